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
* "parallel": one in each layer, beside the feed-forward network: it is added to the network's output
  and reads the residual stream from which that begins (He et al. 2022, arXiv:2110.04366).
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.architectures import Roles, modules_in_role, roles_of
from pedagogic_peft.core.delta import Delta, Deltas, Reference
from pedagogic_peft.core.method import Method, Peft, field
from pedagogic_peft.core.sites import Modules, View, layer_of
from pedagogic_peft.core.targets import Targets, is_linear, sizes
from pedagogic_peft.methods.padding_trial import reach_the_text, refuse_behind_padding

Function = Callable[[Tensor], Tensor]

# The modules whose outputs change (or, of a norm, the input).
PLACEMENTS: dict[str, Callable[[Roles], list[str]]] = {
    "houlsby": lambda roles: [roles.attention_output, roles.ffn_output],
    "pfeiffer": lambda roles: [roles.ffn_norm or roles.ffn_output],
    "parallel": lambda roles: [roles.ffn_output],
}
NON_LINEARITIES: dict[str, Function] = {"relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh}
NON_LINEARITIES |= {"silu": F.silu, "swish": F.silu, "leakyrelu": F.leaky_relu}
NON_LINEARITIES["gelu_new"] = partial(F.gelu, approximate="tanh")


class BottleneckAdapter(Method):
    """The hyper-parameters of bottleneck adapters. They hold no tensors; `attach` makes those.

    "houlsby" and "pfeiffer" begin near the identity: the model's outputs change a little when they
    are attached. "parallel" begins exactly there. Houlsby et al. train the LayerNorms and the head
    as well: for BERT ``modules_to_save=["LayerNorm", "classifier"]`` does so with "houlsby" (with
    "pfeiffer" an adapter sits at a LayerNorm, which then cannot be trained in full).

    Args:
        reduction_factor: d / m. The bottleneck m is rounded down and at least 1.
        bottleneck_size: m itself; with it `reduction_factor` means nothing.
        non_linearity: f: "relu", "gelu", "gelu_new" (its tanh approximation), "silu" (or "swish"),
            "tanh" or "leakyrelu".
        placement: "houlsby", "pfeiffer" or "parallel". In T5's decoder "houlsby" puts an
            adapter after the cross-attention too.
        reads: what "parallel" reads in architectures that normalise before the feed-forward network
            (in the others it is the same): "residual", the state that is normalised, as in He et al.'s
            code and in AdapterHub; or "normalised", what the network itself reads.
        scaling: s, greater than 0; None means 4 for "parallel", as He et al. found best, and else 1.
        leave_out: numbers of the layers without adapters, counted from 0 (specialised AdapterDrop,
            Rücklé et al. 2021, arXiv:2010.11918); in T5, of the encoder and of the decoder.
        target_modules: names or a regular expression, as in `LoRA`: the linear maps whose outputs
            adapters read and change. None means those of the placement. Not with "parallel". Adapters
            have biases: where these would bring back padding that the model has hidden (Mamba's
            ``in_proj``), "all-linear" has no adapter, and a name is refused; see `padding_trial`.
        modules_to_save: names of modules to train in full.

    Raises:
        ValueError: a value is of the wrong type or out of range; the message names it.

    Example:
        >>> from pedagogic_peft import BottleneckAdapter, attach, count_parameters, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> print(count_parameters(attach(model, BottleneckAdapter(bottleneck_size=8))))
        trainable: 1,648 of 77,824 (2.12 %)
    """

    peft = Peft("BOTTLENECK")

    reduction_factor: float = field(16, validation.positive)
    bottleneck_size: int | None = field(None, validation.count)
    non_linearity: str = field("relu", validation.one_of(*NON_LINEARITIES))
    placement: str = field("pfeiffer", validation.one_of(*PLACEMENTS))
    reads: str = field("residual", validation.one_of("residual", "normalised"))
    scaling: float | None = field(None, validation.positive)
    leave_out: Sequence[int] = field((), validation.layers)
    target_modules: Targets = field(None, validation.targets)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.placement == "parallel":
            good = self.target_modules is None
            validation.expect(good, "target_modules", self.target_modules, "None with 'parallel'")

    def targets(self, view: View, without: Iterable[str]) -> Modules:
        """Return ``{path: module}`` of the linear maps and LayerNorms where adapters are added.

        Raises:
            ValueError: the architecture is not known; a name or layer number matches nothing.
        """
        if self.target_modules is None:
            places = modules_in_role(view, *PLACEMENTS[self.placement](roles_of(view.model)))
        else:
            places = super().targets(view, without)
        if self.target_modules == "all-linear":
            lost = reach_the_text(view.model, places)
            places = {path: module for path, module in places.items() if path not in lost}
        layers = dict.fromkeys(map(layer_of, places))
        good, expected = set(self.leave_out) < layers.keys(), f"some of the layers {list(layers)}"
        validation.expect(good, "leave_out", self.leave_out, f"{expected}, not all")
        return {p: module for p, module in places.items() if layer_of(p) not in self.leave_out}

    def deltas(self, view: View, places: Modules) -> Deltas:
        """Return ``{path: delta}``; with "parallel", also the taps where those read.

        Raises:
            ValueError: what an adapter adds at padding would reach the text behind it.
        """
        if self.target_modules not in (None, "all-linear"):
            refuse_behind_padding(view.model, places)
        deltas: dict[str, Any] = super().deltas(view, places)
        if self.placement == "parallel":
            roles = roles_of(view.model)
            start = roles.residual if self.reads == "residual" else roles.ffn_input
            ends = (modules_in_role(view, end) for end in (start, roles.ffn_output))
            pairs = [(x, y) for x, y in zip(*ends, strict=True) if y in places]
            deltas |= {x: deltas[y].tap.module for x, y in pairs}
        return deltas

    def delta(self, path: str, module: Any) -> nn.Module:
        """Return the delta for a linear map, or for a LayerNorm."""
        d = sizes(module)[1] if is_linear(module) else len(module.weight)
        m = self.bottleneck_size or max(1, int(d // self.reduction_factor))
        parts = (*self.maps(d, m), self.non_linearity)
        if self.placement == "parallel":
            return ParallelBottleneck(*parts, self.scaling or 4.0)
        if is_linear(module):
            return Bottleneck(*parts, self.scaling or 1.0)
        return BottleneckBeforeNorm(module, *parts, self.scaling or 1.0)

    def maps(self, d: int, m: int) -> tuple[nn.Module, nn.Module]:
        """Return W_down and W_up as they start; the biases are zero.

        "parallel" starts as LoRA: W_down is uniform in ±1/√d, W_up is zero. The others start as
        Houlsby et al. (section 3.6): Gaussian, standard deviation 0.01, cut off at two of them.
        """
        down, up = AdapterLinear(d, m), AdapterLinear(m, d)
        for linear in (down, up):
            nn.init.trunc_normal_(linear.weight, std=1e-2, a=-2e-2, b=2e-2)
            nn.init.zeros_(linear.bias)
        if self.placement == "parallel":
            nn.init.uniform_(down.weight, -(d**-0.5), d**-0.5)
            nn.init.zeros_(up.weight)
        return down, up


class Bottleneck(Delta):
    """h + s · W_up f(W_down h), where h is the output of the site.

    Args:
        down, up: the two maps, from width d to m and back.
        non_linearity: the name of f.
        scaling: s.
    """

    def __init__(self, down: nn.Module, up: nn.Module, non_linearity: str, scaling: float):
        super().__init__()
        self.adapter_down, self.adapter_up = down, up  # W_down: (m, d), W_up: (d, m)
        self.non_linearity, self.scaling = non_linearity, scaling

    def change(self, h: Tensor, frozen: bool = False) -> Tensor:
        """Return s · W_up f(W_down h); both are (..., d).

        ``frozen``: gradients pass through to h, but not into the parameters (for AdapterFusion).
        """
        f = NON_LINEARITIES[self.non_linearity]
        z = f(self.adapter_down(h, frozen))  # (..., d) -> (..., m)
        up: Tensor = self.adapter_up(z, frozen)  # (..., m) -> (..., d)
        return self.scaling * up

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y + s · W_up f(W_down y), for y: (..., d); x is not read."""
        return y + self.change(y)


class BeforeNorm(Delta):
    """Mixed into a delta whose place is the LayerNorm that closes a layer, as in BERT.

    The site, that LayerNorm, gets x = feed-forward output + residual. The delta reads z = LN(x),
    what it makes of z is added to x, and the same LN normalises the sum: the layer's output becomes
    LN(x + change(z)). As this changes only the site's input, a second delta reads what the first
    has left: a stack.

    Args:
        norm: the LayerNorm; referred to, not registered as a part of the delta.
        parts: what the class it is mixed into takes.
    """

    change: Callable[..., Tensor]

    def __init__(self, norm: nn.Module, *parts: Any):
        super().__init__(*parts)
        self.norm: Any = Reference(norm)

    def before(self, x: Tensor) -> Tensor:
        """Return x + change(LN(x)); both are (..., d)."""
        return x + self.change(self.norm.module(x))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y: (..., d), which has the change in it."""
        return y


class BottleneckBeforeNorm(BeforeNorm, Bottleneck):
    """Placement "pfeiffer" at a LayerNorm: LN(x + s · W_up f(W_down LN(x))); see `BeforeNorm`."""


class ParallelBottleneck(Bottleneck):
    """y + s · W_up f(W_down h), where y is the output of the feed-forward network.

    h is what another module gets, see `BottleneckAdapter`: a `Tap` sits there and keeps it until here.

    Args:
        parts: as in `Bottleneck`.
    """

    def __init__(self, *parts: Any):
        super().__init__(*parts)
        self.tap: Any = Reference(Tap())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y + s · W_up f(W_down h), for y: (..., d) and the kept h: (..., d)."""
        return y + self.change(self.tap.module.take())


class Tap(Delta):
    """Keeps the input of a site until it is used, once; it changes nothing.

    Each adaptation has taps of its own. So when the rows of a batch have different adaptations
    (``activate(rows=...)``), each tap sees the same rows as the delta it serves, in the same order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.here = OfThread()

    def before(self, x: Tensor) -> Tensor:
        """Return x: (..., d), and keep it."""
        self.here.seen = x
        return x

    def take(self) -> Any:
        """Return what was kept: (..., d)."""
        h, self.here.seen = self.here.seen, None
        return h


class OfThread(threading.local):
    """What one thread keeps: two that run the model at once do not see each other's."""

    seen: Any = None

    def __reduce__(self) -> Any:
        return OfThread, ()  # a copy begins empty


class AdapterLinear(nn.Linear):
    """A linear map with float32 parameters, rounded to the input's dtype for the product."""

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        """Return W x + b, (..., d_in) -> (..., d_out); ``frozen`` as in `Bottleneck.change`."""
        return F.linear(x, ready(self.weight, x, frozen), ready(self.bias, x, frozen))


def ready(parameter: Tensor, x: Tensor, frozen: bool) -> Tensor:
    """Return the parameter in the dtype and on the device of x, without gradient if frozen."""
    return (parameter.detach() if frozen else parameter).to(x)
