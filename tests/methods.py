"""Every method of the library, with small hyper-parameters, for the matrix of method × architecture."""

from dataclasses import dataclass
from typing import Any

import pedagogic_peft as pp

EXACT, NEAR, FREE = "exact", "near", "free"  # how the start compares with the frozen model


@dataclass(frozen=True)
class Case:
    """A method, what its start promises, and why it has no meaning on some architectures."""

    method: Any
    start: str = EXACT
    refused: dict[str, str] | None = None  # architecture -> part of the error


NO_BIAS = {"llama": "no bias|bias", "t5": "bias"}
NO_TOKENS = {"vit": "embedding of tokens"}

CASES = {
    "LoRA": Case(pp.LoRA(r=4)),
    "rsLoRA": Case(pp.LoRA(r=4, target_modules="all-linear", use_rslora=True)),
    "DoRA": Case(pp.DoRA(r=4)),
    "PiSSA": Case(pp.PiSSA(r=4)),
    "VeRA": Case(pp.VeRA(r=8, d_initial=1.0)),
    "AdaLoRA": Case(pp.AdaLoRA(init_r=4, target_r=2)),
    "Houlsby": Case(pp.BottleneckAdapter(reduction_factor=4, placement="houlsby"), NEAR),
    "Pfeiffer": Case(pp.BottleneckAdapter(bottleneck_size=5, non_linearity="gelu"), NEAR),
    "parallel": Case(pp.BottleneckAdapter(reduction_factor=4, placement="parallel")),
    "Compacter": Case(pp.Compacter(reduction_factor=4)),
    "IA3": Case(pp.IA3()),
    "BitFit": Case(pp.BitFit(), refused=NO_BIAS),
    "prompt tuning": Case(pp.PromptTuning(num_virtual_tokens=3), FREE, NO_TOKENS),
    "P-tuning": Case(pp.PTuning(num_virtual_tokens=3), FREE, NO_TOKENS),
    "prefix tuning": Case(pp.PrefixTuning(num_virtual_tokens=3), FREE),
    "projected prefix": Case(
        pp.PrefixTuning(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=8), FREE
    ),
    "LLaMA-Adapter": Case(pp.LlamaAdapter(adapter_len=3)),
}
