"""BitFit: train the biases and nothing else (Ben Zaken et al. 2022, arXiv:2106.10199).

Wherever the model adds a bias b, a learned Δb is added besides:

    y + Δb,        Δb = 0 at the start

This is training b itself, but b stays untouched, so that one model can carry several.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import Delta, some
from pedagogic_peft.core.method import Method, Peft, field
from pedagogic_peft.core.sites import View
from pedagogic_peft.core.targets import Modules, Targets, backbone, find_targets, is_linear

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class BitFit(Method):
    """The hyper-parameters of BitFit.

    Args:
        target_modules: whose biases are trained, as in `LoRA`: linear maps, layer normalisations
            and convolutions. None: all of the backbone (not the head's).
        modules_to_save: names of modules to train in full, such as a new classification head.

    Raises:
        ValueError: a value is of the wrong type; the message names it.
    """

    peft = Peft("BITFIT")

    target_modules: Targets = field(None, validation.targets)

    @staticmethod
    def can_adapt(module: nn.Module) -> bool:
        """Tell whether this is a module of a kind that adds a bias, if it has one."""
        return isinstance(module, (nn.LayerNorm, *CONVOLUTIONS)) or is_linear(module)

    def targets(self, view: View, without: Iterable[str]) -> Modules:
        """Return ``{path: module}`` of the modules with a bias to train."""
        if self.target_modules is None:
            own = {module for module in backbone(view) if _has_bias(module)}
            if not own:
                raise ValueError(
                    f"{type(view.model).__name__} has no bias, which BitFit would train"
                )
            if strange := {type(m).__name__ for m in own if not self.can_adapt(m)}:
                raise ValueError(f"{some(strange)} has a bias of unknown use: give target_modules")
            return find_targets(view, ".*", own.__contains__, without)
        places = super().targets(view, without)
        if bare := [path for path, module in places.items() if not _has_bias(module)]:
            raise ValueError(f"target_modules={self.target_modules!r}: {some(bare)} without a bias")
        return places

    def delta(self, path: str, module: Any) -> nn.Module:
        """Return the delta for one module."""
        return BiasDelta(module)


class BiasDelta(Delta):
    """y + Δb beside a module that has a bias.

    Args:
        base: the module; Δb has the shape of its bias.
    """

    def __init__(self, base: Any):
        super().__init__()
        self.delta_bias = nn.Parameter(torch.zeros_like(base.bias, dtype=torch.float32))
        # The axes of y behind the one that Δb belongs to: those of a convolution's picture.
        self.behind = len(base.kernel_size) if isinstance(base, CONVOLUTIONS) else 0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y + Δb, for y: (..., d), or (..., channels, height, width)."""
        delta = self.delta_bias.view(*self.delta_bias.shape, *[1] * self.behind)
        return (y + delta).to(y.dtype)

    @torch.no_grad()
    def merge_into(self, base: Any) -> None:
        """Add Δb to the bias: summed in float32 (at least), then rounded once."""
        base.bias.copy_(base.bias + self.delta_bias)


def _has_bias(module: nn.Module) -> bool:
    return isinstance(getattr(module, "bias", None), nn.Parameter)
