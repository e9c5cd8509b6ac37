"""LoReFT: low-rank linear subspace ReFT, representation fine-tuning (Wu et al. 2024,
arXiv:2404.03592, section 3.2).

No weight changes. The hidden state h that leaves a layer is moved, inside a subspace of r dimensions that
the orthonormal rows of R span:

    h + Rᵀ (W h + b - R h),    R: r x d with R Rᵀ = I,  W: r x d,  b: r

So R h, the coordinates of h in that subspace, becomes W h + b, and what is orthogonal to it stays. It
is no change of one weight, so it cannot be merged.
"""

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import Delta, Deltas
from pedagogic_peft.core.method import Method, Peft, field, has_no_values
from pedagogic_peft.core.sites import Modules, View, layer_of
from pedagogic_peft.core.targets import is_linear, sizes
from pedagogic_peft.methods.prompt_trial import first_output, undisturbed, words

TRIED = (3, 5)  # rows and tokens of `words`


class LoReFT(Method):
    """The hyper-parameters of a LoReFT adaptation.

    It moves the states of all tokens. The paper moves those of the first and the last few tokens of the
    prompt, as many as suit the task; a batch does not say where a prompt ends. When it is attached, a short
    forward pass looks at what the layers return: one state of the model's width. Its checkpoints are this
    library's own, with the names and shapes of pyreft's tensors (``weight``, ``bias``, ``rotate_layer``).

    Args:
        r: dimension of the subspace, at least 1 and at most the width.
        layers: numbers of the layers whose output is moved, counted from 0; () means all. In
            encoder-decoders they are the decoder's.
        modules_to_save: names of modules to train in full, such as a new classification head.

    Raises:
        ValueError: a value is of the wrong type or out of range; the message names it.

    Example:
        >>> from pedagogic_peft import LoReFT, attach, count_parameters, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> print(count_parameters(attach(model, LoReFT(r=4))))
        trainable: 776 of 76,952 (1.01 %)
    """

    peft = Peft("LOREFT")

    r: int = field(4, validation.count)
    layers: Sequence[int] = field((), validation.layers)

    def targets(self, view: View, without: Iterable[str]) -> Modules:
        """Return ``{path: module}`` of the layers.

        Raises:
            ValueError: the model has no layers that transformers marks as such, or not these.
        """
        found = {p: m for p, m in view.modules.items() if is_layer(m) and p[-1:].isdigit()}
        if any(re.search(r"\bdecoder\.", path) for path in found):
            found = {path: m for path, m in found.items() if re.search(r"\bdecoder\.", path)}
        if not found:
            kind = type(view.model).__name__
            raise ValueError(f"{kind} has no layers that LoReFT knows: it needs transformers' own")
        there = {layer_of(path) for path in found}
        good, expected = there >= set(self.layers), f"some of {sorted(map(str, there))}"
        validation.expect(good, "layers", self.layers, expected)
        return {p: m for p, m in found.items() if layer_of(p) in (self.layers or there)}

    def deltas(self, view: View, places: Modules) -> Deltas:
        """Return ``{path: delta}`` for the layers.

        Raises:
            ValueError: a layer returns states of another width, such as several side by side.
        """
        deltas = super().deltas(view, places)
        for path, shape in shapes_of_states(view.model, places).items():
            check_width(places[path], shape, width(places[path]))
            if len(shape) > 3 and shape[:2] != TRIED:
                what = f"{type(places[path]).__name__} returns {list(shape)}"
                raise ValueError(f"{what}: several states before the rows of the batch, not one")
        return deltas

    def delta(self, path: str, module: nn.Module) -> nn.Module:
        """Return the delta for one layer."""
        d = width(module)
        expected = f"at most {d}, the width of {path!r}"
        return Intervention(d, validation.expect(self.r <= d, "r", self.r, expected))


class Intervention(Delta):
    """h + Rᵀ (W h + b - R h), for the output h of a layer.

    R is made of a free matrix by a QR decomposition. It starts random; W starts at R and b at zero, so the
    model is unchanged. (In pyreft that is a variant, "identity init"; the usual start of W is random.)

    Args:
        d, r: width of h, and dimension of the subspace.
    """

    beside = True

    def __init__(self, d: int, r: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(r, d))  # W
        self.bias = nn.Parameter(torch.zeros(r))  # b
        self.rotate_layer = nn.Parameter(nn.init.orthogonal_(torch.empty(d, r)))

    @torch.no_grad()
    def init_from_base(self, base: nn.Module) -> None:
        """Set W to R, on the device where the layer is."""
        self.weight.copy_(self.R())

    def R(self) -> Tensor:
        """Return the orthonormal rows that span what the columns of the free matrix span: (r, d)."""
        with torch.autocast(self.rotate_layer.device.type, enabled=False):
            Q, T = torch.linalg.qr(self.rotate_layer)
            R: Tensor = (Q * T.diagonal().sign()).mT  # the signs of Q are any: these make it unique
            return R

    def leave(self, module: nn.Module, output: Any) -> Any:
        """Move the layer's output: h, (..., d), or a tuple that begins with it."""
        h, *more = output if isinstance(output, tuple) else (output,)
        check_width(module, h.shape, len(self.rotate_layer))
        R, W, b = (p.to(h.dtype) for p in (self.R(), self.weight, self.bias))
        h = h + F.linear(F.linear(h, W) + b - F.linear(h, R), R.mT)
        return (h, *more) if isinstance(output, tuple) else h


def width(layer: nn.Module) -> int:
    """Return the width of the states that a layer passes on: its configuration's, or its first map's."""
    configs = (getattr(module, "config", None) for module in layer.modules())
    widths = (getattr(config, "hidden_size", None) for config in configs)
    found: int | None = next(filter(None, widths), None)
    return found or next((sizes(m)[0] for m in layer.modules() if is_linear(m)), 0)


def check_width(layer: nn.Module, shape: torch.Size, expected: int) -> None:
    """Raise a ValueError if what a layer returns has another width."""
    if shape[-1] != expected:
        what = f"{type(layer).__name__} returns {list(shape)}"
        raise ValueError(f"{what}: LoReFT expected states of width {expected}")


@torch.no_grad()
def shapes_of_states(model: Any, layers: Modules) -> dict[str, torch.Size]:
    """Return the shape of what each layer returns, in a short forward pass of the frozen model.

    Those that cannot be tried are not in it: of images, of what needs more than ids, on "meta".
    """
    found: dict[str, torch.Size] = {}

    def look(path: str, output: Any) -> None:
        found[path] = (output[0] if isinstance(output, tuple) else output).shape

    if has_no_values(model):
        return found
    handles = [
        layer.register_forward_hook(lambda module, args, output, path=path: look(path, output))
        for path, layer in layers.items()
    ]
    with suppress(Exception):  # a stranger's model may want anything else
        ids, mask = words(model)
        with undisturbed(model, ids.device):
            first_output(model, ids, mask)
    for handle in handles:
        handle.remove()
    return found


def is_layer(module: nn.Module) -> bool:
    """Tell whether this is a layer of a transformers model: by name, so that it need not be imported."""
    return any(kind.__name__ == "GradientCheckpointingLayer" for kind in type(module).__mro__)
