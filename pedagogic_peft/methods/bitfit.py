"""BitFit: train the biases and nothing else (Ben Zaken et al. 2022, arXiv:2106.10199).

Wherever the model adds a bias b, a learned Δb is added too:

    y + Δb,        Δb = 0 at the start

This is training b itself, but b stays untouched, so that one model can carry several.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import Delta, Deltas, some
from pedagogic_peft.core.method import Method, Peft, field
from pedagogic_peft.core.sites import Modules, View
from pedagogic_peft.core.targets import (
    Targets,
    backbone,
    find_targets,
    is_conv1d,
    is_linear,
    is_packed,
    only_selects,
    use_of,
)

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PLAIN = {kind.forward for kind in (nn.Linear, nn.LayerNorm, *CONVOLUTIONS)}


class BitFit(Method):
    """The hyper-parameters of BitFit.

    Args:
        target_modules: whose biases are trained, as in `LoRA`: linear maps, layer normalisations
            and convolutions. None: all of the backbone (not the head's).
        modules_to_save: names of modules to train in full, such as a new classification head.

    Raises:
        ValueError: a value is of the wrong type; the message names it. When attached: a bias is read by
            the model itself, or added elsewhere than to the last axis (of a convolution, the channels).

    Example:
        >>> from pedagogic_peft import BitFit, attach, count_parameters
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> print(count_parameters(attach(model, BitFit())))
        trainable: 20 of 232 (8.62 %)
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
            inner = backbone(view)
            named = {m: p for p, m in view.modules.items() if m in inner and _has_bias(m)}
            own = {module for module, path in named.items() if not only_selects(view, path)}
            if not own:
                kind = type(view.model).__name__
                raise ValueError(f"{kind} has no bias, which BitFit would train")
            return find_targets(view, ".*", own.__contains__, without)
        return super().targets(view, without)

    def deltas(self, view: View, places: Modules) -> Deltas:
        """Return ``{path: delta}`` for the modules to adapt.

        Raises:
            ValueError: a module has no bias, or does something else with it than add it to its output.
        """
        if bare := [path for path, module in places.items() if not _has_bias(module)]:
            raise ValueError(f"target_modules={self.target_modules!r}: {some(bare)} without a bias")
        if strange := {type(m).__name__ for m in places.values() if not adds_bias(m)}:
            what = f"{some(strange)} has a bias of unknown use"
            raise ValueError(f"{what}: give target_modules, or exclude_modules")
        if read := [path for path in places if "bias" in use_of(view, path)]:
            what = (
                f"{some(read)}: the model reads the bias itself, and would not see a change of it"
            )
            raise ValueError(f"{what}; name it in exclude_modules")
        return super().deltas(view, places)

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


def adds_bias(module: Any) -> bool:
    """Tell whether a change of the module's bias is added to its output where `BiasDelta` adds it.

    Modules with a forward of their own are tried: a normalisation may have the channels first.
    """
    if is_conv1d(module) or is_packed(module) or type(module).forward in PLAIN:
        return True
    delta, bias = BiasDelta(module), module.bias.detach()
    shape = (getattr(module, "in_features", 0),) if is_linear(module) else bias.shape
    if delta.behind:
        shape = (module.in_channels, *[16 * n for n in module.kernel_size])
    x = bias.new_zeros(1, 1, 1, *shape)[(0, 0) if delta.behind else ...]
    with torch.no_grad():
        delta.delta_bias.copy_(torch.linspace(1, 2, bias.numel()).view_as(bias))
        try:
            y = functional_call(module, {"bias": bias}, (x,))
            z = functional_call(module, {"bias": bias + delta.delta_bias}, (x,))
            return z.shape == y.shape and torch.allclose(z, delta(x, y), rtol=0.01, atol=0.01)
        except Exception:  # a stranger's forward may want anything else
            return False


def _has_bias(module: nn.Module) -> bool:
    return isinstance(getattr(module, "bias", None), nn.Parameter)
