"""Biases that are trained beside a LoRA: the base's own (``bias``), and one more (``lora_bias``).

Hugging Face PEFT trains the base's biases where they are, so that its files hold their values b, and
a model that carries one such adaptation is changed for all others. Here b is the delta's own, and
what the base added is taken off again, so that the base stays as it was found:

    y + b - b_0

`BitFit` is the method that trains the biases alone. The other bias is that of B (A x) itself, the one
that ``lora_B`` has in PEFT: h = W_0 x + s (B A x + b).
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pedagogic_peft.core.delta import Delta
from pedagogic_peft.core.sites import Modules, View
from pedagogic_peft.core.targets import Names, inside
from pedagogic_peft.methods.bitfit import CONVOLUTIONS, BitFit

WHICH = ("none", "all", "lora_only")


class TrainedBias(Delta):
    """y + b - b_0 beside a module that adds a bias b_0; b starts there, so y is unchanged.

    Args:
        base: the module; b has the shape of its bias, (d,).
    """

    start: Tensor

    def __init__(self, base: Any):
        super().__init__()
        self.trained_bias = nn.Parameter(base.bias.detach().float().clone())
        self.register_buffer("start", base.bias.detach().float().clone(), persistent=False)
        # The axes of y behind the one that b belongs to: those of a convolution's picture.
        self.behind = len(base.kernel_size) if isinstance(base, CONVOLUTIONS) else 0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y + b - b_0, for y: (..., d), or (..., channels, height, width)."""
        change = (self.trained_bias - self.start).view(-1, *[1] * self.behind)
        return (y + change).to(y.dtype)

    @torch.no_grad()
    def merge_into(self, base: Any) -> None:
        """Add b - b_0 to the bias: summed in float32 (at least), then rounded once."""
        base.bias.copy_(base.bias + (self.trained_bias - self.start))


class AddedBias(Delta):
    """y + s b beside a LoRA's target; b starts at zero.

    Args:
        d: size of the output, and of b.
        scaling: s, the LoRA's.
    """

    def __init__(self, d: int, scaling: float):
        super().__init__()
        self.bias, self.scaling = nn.Parameter(torch.zeros(d)), scaling

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y + s b, for y: (..., d)."""
        return (y + self.scaling * self.bias).to(y.dtype)

    @torch.no_grad()
    def merge_into(self, base: Any) -> None:
        """Add s b to the base's bias.

        Raises:
            ValueError: it has none.
        """
        if base.bias is None:
            raise ValueError("lora_bias=True cannot be merged into a map that adds no bias")
        base.bias.copy_(base.bias + self.scaling * self.bias)

    def to_checkpoint(self) -> dict[str, Tensor]:
        """Return b as PEFT calls it: it is the bias of its ``lora_B``."""
        return {"lora_B.bias": self.bias}


def bias_owners(view: View, which: str, targets: Iterable[str], without: Names) -> Modules:
    """Return ``{path: module}`` of the modules whose own biases are trained.

    Args:
        view: a view of the model.
        which: "all", those of the targets ("lora_only") or "none".
        targets: paths of the LoRA's targets.
        without: paths of modules that are trained in full.

    Raises:
        ValueError: a bias belongs to no module, or to several, that would add it when called.
    """
    paths = {"none": (), "lora_only": targets, "all": view.modules}[which]
    owners: dict[nn.Parameter, list[str]] = {}
    for path in paths:
        bias = view.modules[path]._parameters.get("bias")
        if bias is not None and not inside(path, without):
            owners.setdefault(bias, []).append(path)
    found = []
    for shared in owners.values():
        fitting = [path for path in shared if BitFit.can_adapt(view.modules[path])]
        if len(fitting) != 1:
            whose = " and ".join(path or "the model itself" for path in shared)
            what = f"bias={which!r}: the bias of {whose}"
            raise ValueError(f"{what} is not added by one module of a known kind")
        found += fitting
    if not found:
        return {}
    # BitFit's own checks of them all: that the model calls the module, and what it does with the bias.
    checked = BitFit(target_modules="|".join(map(re.escape, found))).build(view)
    return {path: view.modules[path] for path in checked}
