"""Every method of the library, with small hyper-parameters, for the matrix of method × architecture."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

import pedagogic_peft as pp
from pedagogic_peft.testing import EXACT, FREE, NEAR, Subject
from pedagogic_peft.testing.models import randomise


@dataclass(frozen=True)
class Case:
    """A method and what it promises.

    Attributes:
        method: the hyper-parameters.
        start: how the start compares with the frozen model.
        refused: architectures where it has no meaning, with a part of the error.
        without: checks that do not apply to it, on any architecture.
        prepare: what the model needs before the method is attached.
    """

    method: Any
    start: str = EXACT
    refused: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    prepare: Callable[[Any], object] | None = None

    def on(self, architecture: str) -> Subject:
        """Return what the checks look at."""
        return Subject(self.method, architecture, self.start, self.prepare)


def two_adapters(model: Any) -> None:
    """Attach what a fusion needs: two adapters, as if trained; the same each time."""
    torch.manual_seed(3)
    for name in ("task_a", "task_b"):
        pp.attach(model, pp.BottleneckAdapter(bottleneck_size=5, placement="houlsby"), name)
    randomise(model)


NO_BIAS = {"llama": "no bias|bias", "t5": "bias"}
NO_TOKENS = {"vit": "embedding of tokens"}
NO_WEIGHT = ("merge",)  # it changes no weight, so there is nothing to merge into one

CASES = {
    "LoRA": Case(pp.LoRA(r=4)),
    "rsLoRA": Case(pp.LoRA(r=4, target_modules="all-linear", use_rslora=True)),
    "DoRA": Case(pp.DoRA(r=4)),
    "PiSSA": Case(pp.PiSSA(r=4)),
    "VeRA": Case(pp.VeRA(r=8, d_initial=1.0)),
    "AdaLoRA": Case(pp.AdaLoRA(init_r=4, target_r=2)),
    "Houlsby": Case(
        pp.BottleneckAdapter(reduction_factor=4, placement="houlsby"), NEAR, without=NO_WEIGHT
    ),
    "Pfeiffer": Case(
        pp.BottleneckAdapter(bottleneck_size=5, non_linearity="gelu"), NEAR, without=NO_WEIGHT
    ),
    "parallel": Case(
        pp.BottleneckAdapter(reduction_factor=4, placement="parallel"), without=NO_WEIGHT
    ),
    "Compacter": Case(pp.Compacter(reduction_factor=4), without=NO_WEIGHT),
    "AdapterFusion": Case(
        pp.AdapterFusion(["task_a", "task_b"]), FREE, without=NO_WEIGHT, prepare=two_adapters
    ),
    "IA3": Case(pp.IA3()),
    "BitFit": Case(pp.BitFit(), refused=NO_BIAS),
    "prompt tuning": Case(
        pp.PromptTuning(num_virtual_tokens=3), FREE, NO_TOKENS, without=NO_WEIGHT
    ),
    "P-tuning": Case(pp.PTuning(num_virtual_tokens=3), FREE, NO_TOKENS, without=NO_WEIGHT),
    "prefix tuning": Case(pp.PrefixTuning(num_virtual_tokens=3), FREE, without=NO_WEIGHT),
    "projected prefix": Case(
        pp.PrefixTuning(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=8),
        FREE,
        without=NO_WEIGHT,
    ),
    "LLaMA-Adapter": Case(pp.LlamaAdapter(adapter_len=3), without=NO_WEIGHT),
}
