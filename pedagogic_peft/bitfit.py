"""BitFit: train the biases and nothing else (Ben Zaken et al. 2022, arXiv:2106.10199).

Wherever the model adds a bias b, a learned Δb is added besides:

    y + Δb,        Δb = 0 at the start

This is training b itself, but b stays untouched, so that one model can carry several.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from pedagogic_peft.checks import names, targets
from pedagogic_peft.peft_format import (
    check_options,
    check_paths,
    fill,
    heads_of,
    some,
    tensors_of,
    with_prefix,
    without_prefix,
)
from pedagogic_peft.sites import TrainedCopy
from pedagogic_peft.targets import backbone, find_modules, find_targets, is_conv1d, shortest_names

KEY = ".delta_bias"


@dataclass(frozen=True)
class BitFit:
    """The hyper-parameters of BitFit.

    Args:
        target_modules: whose biases are trained, as in `LoRA`: linear maps, layer normalisations
            and convolutions. None: all of the backbone (not the head's).
        modules_to_save: names of modules to train in full, such as a new classification head.

    Raises:
        TypeError, ValueError: a value is of the wrong type; the message names it.
    """

    peft_type: ClassVar[str] = "BITFIT"

    target_modules: Sequence[str] | str | None = None
    modules_to_save: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_modules", targets("target_modules", self.target_modules))
        object.__setattr__(self, "modules_to_save", names("modules_to_save", self.modules_to_save))

    def plan(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return ``{path: delta}`` for this model, which is not changed.

        Raises:
            ValueError: a name matches nothing; a target has no bias, or no module has one.
        """
        saved = find_modules(model, self.modules_to_save)
        if self.target_modules is None:
            own = {module for module in backbone(model) if has_bias(module)}
            if not own:
                raise ValueError(f"{type(model).__name__} has no bias, which BitFit would train")
            if strange := {type(module).__name__ for module in own if not can_adapt(module)}:
                raise ValueError(f"{some(strange)} has a bias of unknown use: give target_modules")
            places = find_targets(model, ".*", lambda module: module in own, without=saved)
        else:
            places = find_targets(model, self.target_modules, can_adapt, without=saved)
            if without := [path for path, module in places.items() if not has_bias(module)]:
                raise ValueError(
                    f"target_modules={self.target_modules!r}: {some(without)} without a bias"
                )
        deltas: dict[str, nn.Module] = {p: BiasDelta(m) for p, m in places.items()}
        return deltas | {path: TrainedCopy(module) for path, module in saved.items()}

    def to_peft(
        self, model: nn.Module, deltas: Mapping[str, nn.Module]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return configuration and tensors, in PEFT's manner; PEFT itself has no such method."""
        paths = [path for path, delta in deltas.items() if isinstance(delta, BiasDelta)]
        config = {
            "target_modules": shortest_names(model, paths),
            "modules_to_save": list(self.modules_to_save) or None,
        }
        return config, with_prefix(tensors_of(deltas))

    @classmethod
    def from_peft(
        cls, model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> tuple[Self, dict[str, nn.Module]]:
        """Return the hyper-parameters and the filled deltas.

        Raises:
            ValueError: an option is not supported, or the tensors do not fit the model.
        """
        check_options(config, set())
        tensors = without_prefix(model, tensors)
        paths = [key.removesuffix(KEY) for key in tensors if key.endswith(KEY)]
        check_paths(model, config, paths, lambda module: can_adapt(module) and has_bias(module))
        method = cls(shortest_names(model, paths), heads_of(config, model))
        deltas = method.plan(model)
        fill(deltas, tensors)
        return method, deltas


class BiasDelta(nn.Module):
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


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def can_adapt(module: nn.Module) -> bool:
    """Tell whether this is a module of a kind that adds a bias, if it has one."""
    return isinstance(module, (nn.Linear, nn.LayerNorm, *CONVOLUTIONS)) or is_conv1d(module)


def has_bias(module: nn.Module) -> bool:
    """Tell whether this has one."""
    return isinstance(getattr(module, "bias", None), nn.Parameter)
