"""(IA)³: Infused Adapter by Inhibiting and Amplifying Inner Activations (Liu et al. 2022,
arXiv:2205.05638, section 3.3).

Three learned vectors a layer multiply what is inside it, entry by entry (⊙):

    softmax(Q (l_k ⊙ K)ᵀ / √d_k) (l_v ⊙ V),        W_2 (l_ff ⊙ γ(W_1 x))

So l_k and l_v sit on the outputs of the key and the value projection, l_ff on the input of the last
map of the feed-forward block. All begin at one, so the start is the model itself, bit for bit.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.architectures import ROLES, Roles, modules_in_role, roles_of
from pedagogic_peft.checks import names, targets
from pedagogic_peft.peft_format import (
    check_options,
    check_paths,
    fill,
    heads_of,
    is_named,
    tensors_of,
    with_prefix,
    without_prefix,
)
from pedagogic_peft.sites import TrainedCopy, base_modules
from pedagogic_peft.targets import (
    find_modules,
    find_targets,
    is_conv1d,
    is_linear,
    shortest_names,
    sizes,
)

KNOWN_KEYS = {"fan_in_fan_out", "feedforward_modules", "init_ia3_weights"}


@dataclass(frozen=True)
class IA3:
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
        TypeError, ValueError: a value is of the wrong type; the message names it.
    """

    peft_type: ClassVar[str] = "IA3"

    target_modules: Sequence[str] | str | None = None
    feedforward_modules: Sequence[str] | str | None = None
    modules_to_save: Sequence[str] = ()

    def __post_init__(self) -> None:
        for what in ("target_modules", "feedforward_modules"):
            object.__setattr__(self, what, targets(what, getattr(self, what)))
        object.__setattr__(self, "modules_to_save", names("modules_to_save", self.modules_to_save))

    def plan(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return ``{path: delta}`` for this model, which is not changed.

        Raises:
            ValueError: a name matches nothing, or no linear map; the architecture has no defaults.
        """
        return self._plan(model, _query_rows(model) if self.target_modules is None else {})

    def to_peft(
        self, model: nn.Module, deltas: Mapping[str, nn.Module]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return PEFT's configuration and tensors (under ``save``: see there)."""
        outputs = {p: d for p, d in deltas.items() if isinstance(d, IA3Output)}
        inputs = [p for p, d in deltas.items() if isinstance(d, IA3Input)]
        modules = base_modules(model)
        config = {
            **_names_of(model, outputs, inputs),
            "modules_to_save": list(self.modules_to_save) or None,
            "fan_in_fan_out": any(is_conv1d(modules[path]) for path in [*outputs, *inputs]),
        }
        whole = {f"{path}.ia3_l": delta.whole() for path, delta in outputs.items()}
        return config, with_prefix(tensors_of(deltas) | whole)

    @classmethod
    def from_peft(
        cls, model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> tuple[Self, dict[str, nn.Module]]:
        """Return the hyper-parameters and the filled deltas.

        The shape of a vector says what it scales. A fused projection whose queries are all scaled by
        exactly one was trained without them, and is so again.

        Raises:
            ValueError: an option is not supported, or the tensors do not fit the model.
        """
        check_options(config, KNOWN_KEYS)
        tensors = without_prefix(model, tensors)
        vectors = {
            key.removesuffix(".ia3_l"): t for key, t in tensors.items() if key.endswith(".ia3_l")
        }
        check_paths(model, config, vectors, is_linear)
        modules = base_modules(model)
        inputs = [p for p, t in vectors.items() if tuple(t.shape) == (1, sizes(modules[p])[0])]
        method = cls(
            **_names_of(model, vectors.keys() - set(inputs), inputs),
            modules_to_save=heads_of(config, model),
        )
        fixed = {p: n for p, n in _query_rows(model).items() if _is_one(vectors.get(p), n)}
        deltas = method._plan(model, fixed)
        fill(deltas, tensors | {f"{p}.ia3_l": vectors[p][n:] for p, n in fixed.items()})
        return method, deltas

    def _plan(self, model: nn.Module, fixed: Mapping[str, int]) -> dict[str, nn.Module]:
        """``fixed``: how many of the first rows of an output stay as they are."""
        saved = find_modules(model, self.modules_to_save)
        if self.target_modules is None:
            roles = _roles(model)
            own = set(modules_in_role(model, roles.key, roles.value, roles.ffn_output).values())
            places = find_targets(model, ".*", lambda module: module in own, without=saved)
        else:
            places = find_targets(model, self.target_modules, is_linear, without=saved)
        inputs = self._inputs(model, places)
        deltas: dict[str, nn.Module] = {}
        module: Any
        for path, module in places.items():
            d_in, d_out = sizes(module)
            delta = IA3Input(d_in) if path in inputs else IA3Output(d_out, fixed.get(path, 0))
            deltas[path] = delta.to(module.weight.device)
        return deltas | {path: TrainedCopy(module) for path, module in saved.items()}

    def _inputs(self, model: nn.Module, places: Collection[str]) -> set[str]:
        """Return the paths whose input is scaled."""
        if self.feedforward_modules is None:
            return set(modules_in_role(model, _roles(model).ffn_output)).intersection(places)
        given = self.feedforward_modules
        found = {path for path in places if is_named(given, path)}
        for name in [given] if isinstance(given, str) else given:
            if not any(is_named(given if name is given else [name], path) for path in places):
                raise ValueError(
                    f"feedforward_modules: {name!r} matches none of the targets {list(places)}"
                )
        return found


class IA3Output(nn.Module):
    """l ⊙ y: scales the output of a linear map (l_k and l_v of the paper).

    Args:
        d_out: size of the output.
        fixed: how many of the first entries are not scaled: the queries of a fused projection.
    """

    def __init__(self, d_out: int, fixed: int = 0):
        super().__init__()
        self.fixed = fixed
        self.ia3_l = nn.Parameter(torch.ones(d_out - fixed, 1))

    def whole(self) -> Tensor:
        """Return the vector for the whole output, ones for the fixed entries: (d_out, 1)."""
        return F.pad(self.ia3_l, (0, 0, self.fixed, 0), value=1.0)

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


class IA3Input(nn.Module):
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

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y, the base's output for the scaled input."""
        return y

    @torch.no_grad()
    def merge_into(self, base: Any) -> None:
        """Scale the columns of the weight: in float32 (at least), then rounded once."""
        base.weight.copy_(base.weight * (self.ia3_l.T if is_conv1d(base) else self.ia3_l))


def _roles(model: nn.Module) -> Roles:
    try:
        return roles_of(model)
    except ValueError as error:
        raise ValueError(f"{error}, and feedforward_modules ([] if there are none)") from None


def _query_rows(model: nn.Module) -> dict[str, int]:
    """Return how many rows of each fused projection are queries; keys and values follow them."""
    roles = ROLES.get(getattr(getattr(model, "config", None), "model_type", ""))
    if roles is None or roles.query != roles.key:
        return {}
    shapes = {path: sizes(module) for path, module in modules_in_role(model, roles.key).items()}
    return {path: d_out - 2 * d_in for path, (d_in, d_out) in shapes.items()}


def _is_one(vector: Tensor | None, rows: int) -> bool:
    return vector is not None and bool((vector[:rows] == 1).all())


def _names_of(
    model: nn.Module, outputs: Collection[str], inputs: Collection[str]
) -> dict[str, list[str]]:
    """Return names for both; PEFT wants the second list to be part of the first, word for word."""
    feedforward = shortest_names(model, sorted(inputs))
    both = sorted(shortest_names(model, sorted(outputs)) + feedforward)
    return {"target_modules": both, "feedforward_modules": feedforward}
