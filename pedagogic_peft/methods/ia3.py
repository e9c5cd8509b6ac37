"""(IA)³: Infused Adapter by Inhibiting and Amplifying Inner Activations (Liu et al. 2022,
arXiv:2205.05638, section 3.3).

Three learned vectors a layer multiply what is inside it, entry by entry (⊙):

    softmax(Q (l_k ⊙ K)ᵀ / √d_k) (l_v ⊙ V),        W_2 (l_ff ⊙ γ(W_1 x))

So l_k and l_v sit on the outputs of the key and the value projection, l_ff on the input of the last
map of the feed-forward block. All begin at one, so the start is the model itself, bit for bit.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.core import targets, validation
from pedagogic_peft.core.architectures import ROLES, model_type, modules_in_role, roles_of
from pedagogic_peft.core.delta import Delta, Deltas, Tensors
from pedagogic_peft.core.method import Method, Peft, field
from pedagogic_peft.core.sites import Modules, View
from pedagogic_peft.core.targets import Targets, is_conv1d, sizes

BOTH = "target_modules, and feedforward_modules ([] if there are none),"


class IA3(Method):
    """The hyper-parameters of an (IA)³ adaptation.

    Args:
        target_modules: linear maps that get a vector, as in `LoRA`. None: the key and value
            projections and the last map of each feed-forward block; of GPT-2's fused ``c_attn``
            then only keys and values are scaled, as in the paper. Named here, it is scaled whole,
            queries too, as in Hugging Face PEFT.
        feedforward_modules: those of the targets whose *input* is scaled: names, or a regular
            expression for the whole path. None: the last maps of the feed-forward blocks.
        modules_to_save: names of modules to train in full, such as a new classification head.

    Raises:
        ValueError: a value is of the wrong type; the message names it.

    Example:
        >>> from pedagogic_peft import IA3, attach, count_parameters, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> print(count_parameters(attach(model, IA3())))
        trainable: 448 of 76,624 (0.58 %)
    """

    peft = Peft("IA3", tensor="ia3_l", ignored="init_ia3_weights")

    target_modules: Targets = field(None, validation.targets)
    feedforward_modules: Targets = field(None, validation.targets)

    def targets(self, view: View, without: Iterable[str]) -> Modules:
        """Return ``{path: module}`` of the linear maps that get a vector."""
        if self.target_modules is not None:
            return super().targets(view, without)
        roles = roles_of(view.model, BOTH)
        own = set(modules_in_role(view, roles.key, roles.value, roles.ffn_output).values())
        return targets.find_targets(view, ".*", own.__contains__, without)

    def deltas(self, view: View, places: Modules) -> Deltas:
        """Return ``{path: delta}`` for the modules to adapt."""
        given, queries = self.feedforward_modules, _queries(view)
        if given is None:  # the paths whose input is scaled
            inputs = modules_in_role(view, roles_of(view.model, BOTH).ffn_output)
        else:
            inputs = targets.match(view, places, places, given)
        deltas: Deltas = {}
        for path, (d_in, d_out) in ((path, sizes(module)) for path, module in places.items()):
            output = d_out, queries.get(path, 0), self.target_modules is not None
            deltas[path] = IA3Input(d_in) if path in inputs else IA3Output(*output)
        return deltas


class IA3Output(Delta):
    """l ⊙ y: scales the output of a linear map (l_k and l_v of the paper).

    Args:
        d_out: size of the output.
        queries: how many of the first entries are queries: those of a fused projection.
        scale_queries: whether these are scaled too.
    """

    def __init__(self, d_out: int, queries: int = 0, scale_queries: bool = True):
        super().__init__()
        self.d_out, self.queries = d_out, queries
        self.ia3_l = nn.Parameter(torch.ones(d_out if scale_queries else d_out - queries, 1))

    def whole(self) -> Tensor:
        """Return the vector for the whole output, ones for what is not scaled: (d_out, 1)."""
        return F.pad(self.ia3_l, (0, 0, self.d_out - len(self.ia3_l), 0), value=1.0)

    def to_checkpoint(self) -> dict[str, Tensor]:
        """Return the vector for the whole output."""
        return {"ia3_l": self.whole()}

    def from_checkpoint(self, tensors: Tensors) -> None:
        """Take the values of what `to_checkpoint` returned.

        Queries that are all scaled by exactly one were not trained, and are not trained again.
        """
        l = tensors["ia3_l"]
        fixed = self.queries if (l[: self.queries] == 1).all() else 0
        self.ia3_l = nn.Parameter(l[fixed:].to(self.ia3_l, copy=True))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return l ⊙ y, for y: (..., d_out)."""
        # Not in y's dtype: bfloat16 has no number between 1 and 1 + 1/128.
        return (y * self.whole().flatten()).to(y.dtype)

    @torch.no_grad()
    def merge_into(self, base: Any) -> None:
        """Scale the rows of the weight and the bias: in float32 (at least), then rounded once."""
        l = self.whole()
        base.weight.copy_(base.weight * (l.T if is_conv1d(base) else l))
        if base.bias is not None:
            base.bias.copy_(base.bias * l.flatten())


class IA3Input(Delta):
    """W (l ⊙ x): scales the input of a linear map (l_ff of the paper).

    Args:
        d_in: size of the input.
    """

    def __init__(self, d_in: int):
        super().__init__()
        self.ia3_l = nn.Parameter(torch.ones(1, d_in))

    def before(self, x: Tensor) -> Tensor:
        """Return l ⊙ x, for x: (..., d_in)."""
        return (x * self.ia3_l.flatten()).to(x.dtype)

    @torch.no_grad()
    def merge_into(self, base: Any) -> None:
        """Scale the columns of the weight: in float32 (at least), then rounded once."""
        base.weight.copy_(base.weight * (self.ia3_l.T if is_conv1d(base) else self.ia3_l))


def _queries(view: View) -> dict[str, int]:
    """Return how many rows of each fused projection are queries; keys and values follow them."""
    roles = ROLES.get(model_type(view.model) or "")
    if roles is None or roles.query != roles.key:
        return {}
    shapes = {path: sizes(module) for path, module in modules_in_role(view, roles.key).items()}
    return {path: d_out - 2 * d_in for path, (d_in, d_out) in shapes.items()}
