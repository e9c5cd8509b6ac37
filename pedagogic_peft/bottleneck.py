"""Bottleneck adapters: small two-layer networks between the frozen layers of a transformer.

The delta narrows a hidden state h of width d to m numbers and widens it again (Houlsby et al. 2019,
"Parameter-Efficient Transfer Learning for NLP", arXiv:1902.00751, section 2.1),

    h + s · W_up f(W_down h),    W_down: m x d,  W_up: d x m

with biases and a non-linearity f. Because of f it is no change of a weight: it cannot be merged,
and costs time at inference. Placements differ in which h is read and where the result is added:

* "houlsby": two in each layer, which read and change the outputs of attention and feed-forward
  network, before dropout, residual connection and LayerNorm.
* "pfeiffer": one in each layer, after the feed-forward network (Pfeiffer et al. 2021,
  "AdapterFusion", arXiv:2005.00247).
* "parallel": one in each layer, which reads the *input* of the feed-forward network and is added to
  its output (He et al. 2022, arXiv:2110.04366).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.architectures import modules_in_role, roles_of
from pedagogic_peft.checks import check_choice, check_positive, check_whole, names, targets
from pedagogic_peft.peft_format import (
    check_options,
    fill,
    tensors_of,
    with_prefix,
    without_prefix,
)
from pedagogic_peft.sites import TrainedCopy, layer_of
from pedagogic_peft.targets import find_modules, find_targets, is_conv1d

PLACEMENTS = ("houlsby", "pfeiffer", "parallel")
NON_LINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda h: F.gelu(h, approximate="tanh"),
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
    "leakyrelu": F.leaky_relu,
}

# Makes W_down and W_up from the sizes d and m.
Maps = Callable[[int, int], tuple[nn.Module, nn.Module]]


@dataclass(frozen=True)
class BottleneckAdapter:
    """The hyper-parameters of bottleneck adapters. They hold no tensors; `attach` makes those.

    "houlsby" and "pfeiffer" begin near the identity: the model's outputs change a little when they
    are attached. "parallel" begins exactly there. Houlsby et al. train the LayerNorms and the head
    as well: for BERT ``modules_to_save=["LayerNorm", "classifier"]`` does so.

    Args:
        reduction_factor: d / m. The bottleneck m is rounded down and at least 1.
        bottleneck_size: m itself; with it `reduction_factor` means nothing.
        non_linearity: f: "relu", "gelu", "gelu_new" (its tanh approximation), "silu" (or "swish"),
            "tanh" or "leakyrelu".
        placement: "houlsby", "pfeiffer" or "parallel". In T5's decoder "houlsby" puts an
            adapter after the cross-attention too.
        scaling: s, greater than 0; None means 4 for "parallel", as He et al. found best, and else 1.
        leave_out: numbers of the layers without adapters, counted from 0 (specialised AdapterDrop,
            Rücklé et al. 2021, arXiv:2010.11918); in T5, of the encoder and of the decoder.
        target_modules: names or a regular expression, as in `LoRA`: the linear maps whose outputs
            adapters read and change. None means those of the placement. Not with "parallel".
        modules_to_save: names of modules to train in full.

    Raises:
        TypeError, ValueError: a value is of the wrong type or out of range; the message names it.
    """

    peft_type: ClassVar[str] = "BOTTLENECK"  # Hugging Face PEFT has no such method

    reduction_factor: float = 16
    bottleneck_size: int | None = None
    non_linearity: str = "relu"
    placement: str = "pfeiffer"
    scaling: float | None = None
    leave_out: Sequence[int] = ()
    target_modules: Sequence[str] | str | None = None
    modules_to_save: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_positive("reduction_factor", self.reduction_factor)
        if self.bottleneck_size is not None:
            check_whole("bottleneck_size", self.bottleneck_size)
        check_choice("non_linearity", self.non_linearity, tuple(NON_LINEARITIES))
        check_choice("placement", self.placement, PLACEMENTS)
        if self.scaling is not None:
            check_positive("scaling", self.scaling)
        if not isinstance(self.leave_out, list | tuple):
            raise TypeError(f"leave_out={self.leave_out!r}: expected a list of layer numbers")
        for layer in self.leave_out:
            check_whole("leave_out", layer, least=0)
        object.__setattr__(self, "leave_out", tuple(self.leave_out))
        object.__setattr__(self, "target_modules", targets("target_modules", self.target_modules))
        object.__setattr__(self, "modules_to_save", names("modules_to_save", self.modules_to_save))
        if self.target_modules is not None and self.placement == "parallel":
            raise ValueError(
                f"target_modules={self.target_modules!r}: placement 'parallel' finds the input and "
                "the output of each feed-forward network by the architecture; leave it None"
            )

    def plan(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return ``{path: delta}`` for this model, which is not changed.

        Raises:
            ValueError: the architecture is not known, a name or layer number matches nothing, or
                `modules_to_save` names a module where an adapter sits.
        """
        return self.plan_with(model, identity_maps if self.placement == "parallel" else small_maps)

    def plan_with(self, model: nn.Module, maps: Maps) -> dict[str, nn.Module]:
        """Return ``{path: delta}`` with the two maps of each delta made by ``maps(d, m)``."""
        saved = find_modules(model, self.modules_to_save)
        places = self._without_left_out(self._places(model, saved))
        deltas: dict[str, Any] = {p: self._delta(m, maps) for p, m in places.items()}
        if self.placement == "parallel":
            inputs = self._without_left_out(modules_in_role(model, roles_of(model).ffn_input))
            joins = list(deltas.values())
            deltas |= {p: join._tap[0] for p, join in zip(inputs, joins, strict=True)}
        if twice := deltas.keys() & saved.keys():
            raise ValueError(f"modules_to_save: adapters sit at {sorted(twice)}: name others")
        return deltas | {path: TrainedCopy(module) for path, module in saved.items()}

    def to_peft(
        self, model: nn.Module, deltas: Mapping[str, nn.Module]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the configuration, which is the hyper-parameters, and the tensors."""
        return asdict(self), with_prefix(tensors_of(deltas))

    @classmethod
    def from_peft(
        cls, model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> tuple[Self, dict[str, nn.Module]]:
        """Return the hyper-parameters and the filled deltas.

        Raises:
            ValueError: an option is not supported, or the tensors do not fit the model.
        """
        known = {f.name for f in fields(cls)}
        check_options(config, known)
        method = cls(**{key: config[key] for key in known & config.keys()})
        deltas = method.plan(model)
        fill(deltas, without_prefix(model, tensors))
        return method, deltas

    def _places(self, model: nn.Module, saved: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        if self.target_modules is not None:
            return find_targets(model, self.target_modules, is_linear, without=saved)
        roles = roles_of(model)
        if self.placement == "houlsby":
            return modules_in_role(model, roles.attention_output, roles.ffn_output)
        if self.placement == "pfeiffer":
            return modules_in_role(model, roles.ffn_norm or roles.ffn_output)
        return modules_in_role(model, roles.ffn_output)

    def _without_left_out(self, places: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        layers = {layer_of(path) for path in places}
        if unknown := [layer for layer in self.leave_out if layer not in layers]:
            there = sorted(layer for layer in layers if layer is not None)
            raise ValueError(f"leave_out: {unknown} are none of the layers {there}")
        kept = {p: m for p, m in places.items() if layer_of(p) not in self.leave_out}
        if not kept:
            raise ValueError(f"leave_out={self.leave_out}: no layer is left to adapt")
        return kept

    def _delta(self, module: Any, maps: Maps) -> Any:
        d = width_of(module)
        m = self.bottleneck_size or max(1, int(d // self.reduction_factor))
        default = 4.0 if self.placement == "parallel" else 1.0
        scaling = default if self.scaling is None else self.scaling
        parts = (*maps(d, m), self.non_linearity, scaling)
        if not is_linear(module):
            return BottleneckBeforeNorm(*parts, module).to(module.weight.device)
        kind = ParallelBottleneck if self.placement == "parallel" else Bottleneck
        return kind(*parts).to(module.weight.device)


class Bottleneck(nn.Module):
    """h + s · W_up f(W_down h), where h is the output of the site.

    Args:
        down, up: the two maps, from width d to m and back.
        non_linearity: the name of f.
        scaling: s.
    """

    def __init__(self, down: nn.Module, up: nn.Module, non_linearity: str, scaling: float):
        super().__init__()
        self.adapter_down = down  # W_down: (m, d)
        self.adapter_up = up  # W_up: (d, m)
        self.non_linearity, self.scaling = non_linearity, scaling

    def change(self, h: Tensor, frozen: bool = False) -> Tensor:
        """Return s · W_up f(W_down h); both are (..., d).

        ``frozen``: gradients pass through to h, but not into the parameters (for AdapterFusion).
        """
        f = NON_LINEARITIES[self.non_linearity]
        z = f(self.adapter_down(h, frozen))  # (..., d) -> (..., m)
        up: Tensor = self.adapter_up(z, frozen)  # (..., m) -> (..., d)
        return self.scaling * up

    def forward(self, x: Tensor, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return y + self.change(y)


class BottleneckBeforeNorm(Bottleneck):
    """Placement "pfeiffer" where a LayerNorm closes the layer, as in BERT; the site is that LayerNorm.

    It gets x = feed-forward output + residual. The adapter reads z = LN(x), is added to x, and the
    same LN normalises the sum: the layer's output becomes LN(x + s · W_up f(W_down z)). As this
    changes only the site's input, a second adapter reads what the first has left: a stack.

    Args:
        down, up, non_linearity, scaling: as in `Bottleneck`.
        norm: the LayerNorm; referred to, not registered as a part of the delta.
    """

    def __init__(
        self, down: nn.Module, up: nn.Module, non_linearity: str, scaling: float, norm: nn.Module
    ):
        super().__init__(down, up, non_linearity, scaling)
        self._norm = (norm,)

    def before(self, x: Tensor) -> Tensor:
        return x + self.change(self._norm[0](x))

    def forward(self, x: Tensor, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return y


class ParallelBottleneck(Bottleneck):
    """y + s · W_up f(W_down h), where h is the input of the feed-forward network and y its output.

    h is what the network's first linear map reads, so in architectures that normalise first it is
    the normalised state. Another module, a `Tap`, sits there and remembers h until it is used here.
    """

    def __init__(self, down: nn.Module, up: nn.Module, non_linearity: str, scaling: float):
        super().__init__(down, up, non_linearity, scaling)
        self._tap = (Tap(),)

    def forward(self, x: Tensor, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return y + self.change(self._tap[0].take())


class Tap(nn.Module):
    """Remembers the input of a site until it is asked for it, once; it changes nothing.

    Each adaptation has taps of its own. So when the rows of a batch have different adaptations
    (``activate(rows=...)``), each tap sees the same rows as the delta it serves, in the same order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor | None = None

    def before(self, x: Tensor) -> Tensor:
        self.seen = x
        return x

    def take(self) -> Tensor:
        """Return the input of the site and forget it."""
        seen, self.seen = self.seen, None
        if seen is None:
            raise RuntimeError("A parallel adapter ran before its feed-forward network's first map")
        return seen

    def forward(self, x: Tensor, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return y


class AdapterLinear(nn.Linear):
    """A linear map with float32 parameters, rounded to the input's dtype for the product."""

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        """Return W x + b, (..., d_in) -> (..., d_out); ``frozen`` as in `Bottleneck.change`."""
        return F.linear(x, ready(self.weight, x, frozen), ready(self.bias, x, frozen))


def ready(parameter: Tensor, x: Tensor, frozen: bool) -> Tensor:
    """Return the parameter in the dtype and on the device of x, without gradient if frozen."""
    return (parameter.detach() if frozen else parameter).to(x)


def small_maps(d: int, m: int) -> tuple[nn.Module, nn.Module]:
    """Return W_down and W_up of near-identity adapters, as Houlsby et al. start them (section 3.1).

    Weights are Gaussian with standard deviation 0.01, cut off at two deviations; biases are zero.
    """
    maps = AdapterLinear(d, m), AdapterLinear(m, d)
    for linear in maps:
        nn.init.trunc_normal_(linear.weight, std=1e-2, a=-2e-2, b=2e-2)
        nn.init.zeros_(linear.bias)
    return maps


def identity_maps(d: int, m: int) -> tuple[nn.Module, nn.Module]:
    """Return W_down and W_up of an adapter that begins as the identity: like LoRA's A and B.

    W_down is uniform in ±1/√d; W_up and the biases are zero.
    """
    down, up = AdapterLinear(d, m), AdapterLinear(m, d)
    nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
    for zero in (down.bias, up.weight, up.bias):
        nn.init.zeros_(zero)
    return down, up


def is_linear(module: nn.Module) -> bool:
    """Tell whether this is a linear map, `nn.Linear` or GPT-2's `Conv1D`."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def width_of(module: Any) -> int:
    """Return the size of the output of a linear map or a LayerNorm."""
    if is_conv1d(module):
        return int(module.nf)
    return int(module.out_features if is_linear(module) else module.weight.shape[0])
