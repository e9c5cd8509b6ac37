"""Every method, with hyper-parameters for any model: ``{name: (what makes it for a model, its start)}``."""

from collections.abc import Callable
from typing import Any

import pedagogic_peft as pp
from pedagogic_peft.core.sites import View
from pedagogic_peft.core.targets import fused_experts
from pedagogic_peft.testing.subject import EXACT, FREE, NEAR

ALL: dict[str, Any] = {"target_modules": "all-linear"}
SMALL: dict[str, Any] = {
    "bottleneck_size": 16,
    "non_linearity": "gelu",
}  # of few all may be dead, most with ReLU, and where a random model's numbers are in the hundreds


def always(method: Any) -> Callable[[Any], Any]:
    """Return a function that makes the method for any model."""
    return lambda model: method


def of_experts(model: Any) -> Any:
    """Return a LoRA of all experts that are parameters; None if there are none."""
    names = sorted({".".join(p.split(".")[-2:]) for p in fused_experts(View(model), ())})
    return pp.LoRA(r=2, target_modules=(), target_parameters=names) if names else None


CASES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "LoRA": (always(pp.LoRA(r=4)), EXACT),
    "LoRA all-linear": (always(pp.LoRA(r=4, **ALL)), EXACT),
    "LoRA and biases": (always(pp.LoRA(r=4, bias="all", **ALL)), EXACT),
    "LoRA and tokens": (always(pp.LoRA(r=4, trainable_token_indices=[7, 5], **ALL)), EXACT),
    "LoRA of experts": (of_experts, EXACT),
    "DoRA": (always(pp.DoRA(r=4, **ALL)), EXACT),
    "PiSSA": (always(pp.PiSSA(r=4, **ALL)), EXACT),
    "VeRA": (always(pp.VeRA(r=8, d_initial=1.0, **ALL)), EXACT),
    "AdaLoRA": (always(pp.AdaLoRA(init_r=4, target_r=2, **ALL)), EXACT),
    "LoHa": (always(pp.LoHa(r=4, **ALL)), EXACT),
    "LoKr": (always(pp.LoKr(r=2, **ALL)), EXACT),
    "OFT": (always(pp.OFT(oft_block_size=8, **ALL)), EXACT),
    "LN tuning": (always(pp.LNTuning()), EXACT),
    "LoReFT": (always(pp.LoReFT(r=3)), EXACT),
    "IA3": (always(pp.IA3(**ALL, feedforward_modules=())), EXACT),
    "BitFit": (always(pp.BitFit()), EXACT),
    "bottleneck": (always(pp.BottleneckAdapter(**SMALL, **ALL)), NEAR),
    "parallel": (always(pp.BottleneckAdapter(**SMALL, placement="parallel")), EXACT),
    "Compacter": (always(pp.Compacter(reduction_factor=4)), EXACT),
    "prompt tuning": (always(pp.PromptTuning(3)), FREE),
    "P-tuning": (always(pp.PTuning(3)), FREE),
    "prefix tuning": (always(pp.PrefixTuning(3)), FREE),
    "projected prefix": (always(pp.PrefixTuning(3, prefix_projection=True)), FREE),
    "LLaMA-Adapter": (always(pp.LlamaAdapter(3)), EXACT),
}
