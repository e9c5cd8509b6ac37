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


NO_BIAS = {"llama": "bias", "t5": "bias"}
NO_TOKENS = {"vit": "token"}

CASES = {
    "LoRA": Case(pp.LoRA(r=4)),
    "LoRA all-linear": Case(pp.LoRA(r=4, target_modules="all-linear", use_rslora=True)),
}
