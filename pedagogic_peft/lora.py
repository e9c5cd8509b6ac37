"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al. 2021, arXiv:2106.09685).

A frozen weight W_0 (d_out x d_in) gets a correction of rank r,

    h = W_0 x + ΔW x,    ΔW = (α / r) B A,    B: d_out x r,  A: r x d_in    (section 4.1)

of which only A and B are trained. The site is a linear map or an embedding, the delta is
(α / r) B A x, and it is joined by addition.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.checks import (
    check_flag,
    check_pattern,
    check_positive,
    check_probability,
    check_whole,
    names,
    targets,
)
from pedagogic_peft.peft_format import (
    check_options,
    check_paths,
    fill,
    heads_of,
    tensors_of,
    with_prefix,
    without_prefix,
)
from pedagogic_peft.sites import TrainedCopy, base_modules
from pedagogic_peft.targets import find_modules, find_targets, is_conv1d, shortest_names

# Keys of PEFT's configuration that are read here, or that mean nothing for a trained adapter, and
# values of other keys that mean nothing either (the other initialisations change the base too).
KNOWN_KEYS = set(
    """alpha_pattern eva_config fan_in_fan_out lora_alpha lora_dropout qalora_group_size r
    rank_pattern use_rslora""".split()
)
OFF: dict[str, list[Any]] = {
    "bias": ["none"],
    "init_lora_weights": [True, False, "gaussian", "orthogonal", "eva"],
}
LORA_A = re.compile(r"(?P<path>.+)\.(lora_A\.weight|lora_embedding_A)")  # both are (r, size)
# Fused projections of these mix q, k and v head by head: no block of their output is q.
INTERLEAVED = "bloom codegen falcon gpt_bigcode gpt_neox gpt_neox_japanese persimmon".split()
T = TypeVar("T")


@dataclass(frozen=True)
class LoRA:
    """The hyper-parameters of a LoRA adaptation. They hold no tensors; `attach` makes those.

    The default rank 8 is enough for most tasks in the paper (its table 6: r = 1 to 8 differ
    little). The default α = 2r gives ΔW the weight 2, the common choice of later practice; Hugging
    Face PEFT's default is α = r. For other ranks keep the ratio α / r, so that a learning rate
    found at one rank serves at another.

    Args:
        r: rank of ΔW, at least 1.
        alpha: α, the numerator of the scaling; greater than 0.
        dropout: probability of zeroing an entry of the input of A (never of the base path), at
            least 0 and below 1. Embeddings have none.
        target_modules: which modules to adapt. A list of names ("c_attn" means every module whose
            path is or ends with it); a string, which is a regular expression for the whole path;
            "all-linear", every linear map except the head; None, the query and value projections
            of the architecture.
        use_rslora: scale by α / √r instead of α / r (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732).
        modules_to_save: names of modules to train in full, such as a new classification head.
        rank_pattern: ranks for some modules, {end of the path (a regular expression): r}.
        alpha_pattern: the same for α.
        parts: some of "q", "k", "v", when every target is a fused projection whose output is q, k
            and v in three equal blocks (GPT-2's ``c_attn``): each part gets an A and a B of its own,
            of rank r, and the others get none. () adapts the whole output with one A and one B.

    Raises:
        TypeError, ValueError: a value is of the wrong type or out of range; the message names it.
    """

    peft_type: ClassVar[str] = "LORA"

    r: int = 8
    alpha: float = 16
    dropout: float = 0.0
    target_modules: Sequence[str] | str | None = None
    use_rslora: bool = False
    modules_to_save: Sequence[str] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    parts: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_whole("r", self.r)
        check_positive("alpha", self.alpha)
        check_probability("dropout", self.dropout)
        check_flag("use_rslora", self.use_rslora)
        check_pattern("rank_pattern", self.rank_pattern, check_whole)
        check_pattern("alpha_pattern", self.alpha_pattern, check_positive)
        object.__setattr__(self, "target_modules", targets("target_modules", self.target_modules))
        object.__setattr__(self, "modules_to_save", names("modules_to_save", self.modules_to_save))
        object.__setattr__(self, "parts", names("parts", self.parts))
        if not set(self.parts) <= set("qkv") or len(set(self.parts)) < len(self.parts):
            raise ValueError(f'parts={self.parts!r}: expected some of "q", "k", "v", each once')

    def plan(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return ``{path: delta}`` for this model, which is not changed.

        Raises:
            ValueError: a name matches nothing, or nothing LoRA can adapt; or a target has no parts.
        """
        kind = getattr(getattr(model, "config", None), "model_type", None)
        if self.parts and kind in INTERLEAVED:
            raise ValueError(f"parts={self.parts!r}: {kind} mixes q, k and v head by head")
        saved = find_modules(model, self.modules_to_save)
        places = find_targets(model, self.target_modules, can_adapt, without=saved)
        _check_all_match("rank_pattern", self.rank_pattern, places)
        _check_all_match("alpha_pattern", self.alpha_pattern, places)
        deltas = {path: self._delta(path, module) for path, module in places.items()}
        return deltas | {path: TrainedCopy(module) for path, module in saved.items()}

    def to_peft(
        self, model: nn.Module, deltas: Mapping[str, nn.Module]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return PEFT's configuration and tensors (under ``save``: see there).

        An adaptation of parts is written as the ordinary LoRA it equals (`LoRAParts.as_lora`), with
        a key "parts" that PEFT drops with a warning and `from_peft` reads.
        """
        if self.parts:
            return self._to_wider_peft(model, deltas, len(self.parts), "parts")
        paths = [path for path, delta in deltas.items() if not isinstance(delta, TrainedCopy)]
        ranks = {p: self.rank_of(p) for p in paths}
        alphas = {p: self.alpha_of(p) for p in paths}
        config = {
            "r": self.r,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "use_rslora": self.use_rslora,
            "rank_pattern": {p: r for p, r in ranks.items() if r != self.r},
            "alpha_pattern": {p: a for p, a in alphas.items() if a != self.alpha},
        }
        return config | targets_config(self, model, paths), with_prefix(tensors_of(deltas))

    @classmethod
    def from_peft(
        cls, model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> tuple[Self, dict[str, nn.Module]]:
        """Return the hyper-parameters (targets and ranks of the tensors) and the filled deltas.

        Raises:
            ValueError: an option is not supported, or the tensors do not fit the model.
        """
        if config.get("parts"):
            return cls._from_wider_peft(model, config, tensors, "parts")
        check_options(config, KNOWN_KEYS, OFF)
        tensors = without_prefix(model, tensors)
        ranks = {m["path"]: len(t) for key, t in tensors.items() if (m := LORA_A.fullmatch(key))}
        check_paths(model, config, ranks, can_adapt)
        r, alpha = config.get("r", 8), config.get("lora_alpha", 8)  # PEFT's defaults
        of_config = cls(r, alpha, alpha_pattern=config.get("alpha_pattern") or {})
        alphas = {path: of_config.alpha_of(path) for path in ranks}
        method = cls(
            r=r,
            alpha=alpha,
            dropout=config.get("lora_dropout", 0.0),
            target_modules=shortest_names(model, list(ranks)),
            use_rslora=config.get("use_rslora", False),
            modules_to_save=heads_of(config, model),
            rank_pattern={path: rank for path, rank in ranks.items() if rank != r},
            alpha_pattern={path: a for path, a in alphas.items() if a != alpha},
        )
        deltas = method.plan(model)
        fill(deltas, tensors)
        return method, deltas

    def rank_of(self, path: str) -> int:
        """Return r for the module at this path."""
        return _look_up(self.rank_pattern, path, self.r)

    def alpha_of(self, path: str) -> float:
        """Return α for the module at this path."""
        return _look_up(self.alpha_pattern, path, self.alpha)

    def _classes(self) -> tuple[Any, Any]:
        """Return the classes of the deltas beside a linear map and beside an embedding."""
        return LoRALinear, LoRAEmbedding

    def _delta(self, path: str, base: Any) -> Any:
        r, alpha = self.rank_of(path), self.alpha_of(path)
        linear, embedding = self._classes()
        d_in, d_out = sizes(base)
        if self.parts:
            if isinstance(base, nn.Embedding) or d_out != 3 * d_in:
                raise ValueError(
                    f"parts={self.parts!r}: {path!r} ({type(base).__name__}, {d_in} -> {d_out}) is "
                    "no fused projection of q, k and v, which would be d -> 3 d"
                )
            delta = LoRAParts(self.parts, d_in, r, alpha, self.dropout, self.use_rslora)
        elif isinstance(base, nn.Embedding):
            scale = float(getattr(base, "embed_scale", 1.0))  # Gemma's and BART's scale the rows
            delta = embedding(d_in, d_out, r, alpha, self.use_rslora, base.padding_idx, scale)
        else:
            delta = linear(d_in, d_out, r, alpha, self.dropout, self.use_rslora)
        return delta.to(base.weight.device)

    def _to_wider_peft(
        self, model: nn.Module, deltas: Mapping[str, nn.Module], factor: int, key: str
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Write each delta as the ordinary LoRA it equals, of ``factor`` times the rank.

        That alone would not say how it was made up, so ``config[key]`` keeps our own values.
        """
        stretch = math.sqrt(factor) if self.use_rslora else factor  # keeps the scaling
        wider = LoRA(
            r=factor * self.r,
            alpha=stretch * self.alpha,
            dropout=self.dropout,
            use_rslora=self.use_rslora,
            modules_to_save=self.modules_to_save,
            rank_pattern={end: factor * r for end, r in self.rank_pattern.items()},
            alpha_pattern={end: stretch * a for end, a in self.alpha_pattern.items()},
        )
        made: dict[str, Any] = dict(deltas)
        ordinary = {p: d if isinstance(d, TrainedCopy) else d.as_lora() for p, d in made.items()}
        config, tensors = wider.to_peft(model, ordinary)
        fields = ("r", "alpha", "rank_pattern", "alpha_pattern", "parts")
        return config | {key: {name: getattr(self, name) for name in fields}}, tensors

    @classmethod
    def _from_wider_peft(
        cls, model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor], key: str
    ) -> tuple[Self, dict[str, nn.Module]]:
        """Read what `_to_wider_peft` wrote."""
        rest = {name: value for name, value in config.items() if name != key}
        wider, deltas = LoRA.from_peft(model, rest, tensors)
        ordinary: Any
        method = cls(**(vars(wider) | config[key]))
        modules = base_modules(model)
        for path, ordinary in deltas.items():
            if not isinstance(ordinary, TrainedCopy):
                delta = method._delta(path, modules[path])
                fits = delta.as_lora().lora_A.weight.shape == ordinary.lora_A.weight.shape
                if fits:
                    delta.take(ordinary)
                again = delta.as_lora()
                same = math.isclose(again.scaling, ordinary.scaling)
                if (
                    not fits
                    or not same
                    or not torch.equal(again.lora_B.weight, ordinary.lora_B.weight)
                ):
                    raise ValueError(f"{key}={config[key]!r} is not what {path!r} was made from")
                deltas[path] = delta
        return method, deltas


class LoRALinear(nn.Module):
    """ΔW = (α / r) B A beside a linear map (`nn.Linear`, or GPT-2's `Conv1D`).

    A starts random and B at zero, so ΔW = 0 and the model is unchanged. A is drawn as in the
    authors' code and in Hugging Face PEFT, uniform in ±1/√d_in (the paper's text says Gaussian). A
    and B are float32; beside a base of lower precision they are rounded to the input's dtype for
    the product, which is cheaper than raising the input, and their gradients arrive in float32.

    Args:
        d_in, d_out: sizes of the linear map's input and output.
        r, alpha, dropout, use_rslora: as in `LoRA`.
    """

    def __init__(self, d_in: int, d_out: int, r=8, alpha=16, dropout=0.0, use_rslora=False):
        super().__init__()
        self.lora_A = nn.Linear(d_in, r, bias=False)  # A: (r, d_in)
        self.lora_B = nn.Linear(r, d_out, bias=False)  # B: (d_out, r)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.scaling = alpha / (math.sqrt(r) if use_rslora else r)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y + (α / r) B A x, for x: (..., d_in) and y = W_0 x: (..., d_out)."""
        A, B = self.lora_A.weight.to(x.dtype), self.lora_B.weight.to(x.dtype)
        h = F.linear(self.dropout(x), A)  # (..., d_in) -> (..., r)
        return y + F.linear(self.scaling * h, B)  # (..., r) -> (..., d_out)

    def delta_weight(self) -> Tensor:
        """Return ΔW: (d_out, d_in), in float32."""
        return self.scaling * (self.lora_B.weight.float() @ self.lora_A.weight.float())

    @torch.no_grad()
    def merge_into(self, base: nn.Module) -> None:
        """Add ΔW to the base's weight: summed in float32 (at least), then rounded once."""
        delta = self.delta_weight()
        base.weight.copy_(base.weight + (delta.T if is_conv1d(base) else delta))


class LoRAParts(nn.Module):
    """A LoRA for each of some parts of a fused projection, whose output is q, k and v: (..., 3 d).

    Each part's ΔW = (α / r) B A is added to its slice of the output, so the others keep W_0. This
    equals an ordinary LoRA of the whole map whose A is the parts' A, one below the other, and whose
    B has the parts' B in blocks: A (p r, d) and B (3 d, p r) for p parts.

    Args:
        parts: some of "q", "k", "v".
        d: size of the input and of each part of the output.
        options: r, alpha, dropout and use_rslora, as in `LoRA`; for each part.
    """

    def __init__(self, parts: Sequence[str], d: int, *options: Any):
        super().__init__()
        deltas = {part: LoRALinear(d, d, *options) for part in "qkv" if part in parts}
        self.parts = nn.ModuleDict(deltas)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y with each part's correction in its slice, for x: (..., d) and y: (..., 3 d)."""
        slices = dict(zip("qkv", y.chunk(3, dim=-1), strict=True))
        for part, delta in self.parts.items():
            slices[part] = delta(x, slices[part])
        return torch.cat(list(slices.values()), dim=-1)

    @torch.no_grad()
    def as_lora(self) -> LoRALinear:
        """Return the ordinary LoRA of rank p r that this equals."""
        deltas: dict[str, Any] = dict(self.parts.items())
        A = torch.cat([delta.lora_A.weight for delta in deltas.values()])  # (p r, d)
        nothing = A.new_zeros(A.shape[1], 0)  # the block of a part that is not adapted: no columns
        blocks = [deltas[p].lora_B.weight if p in deltas else nothing for p in "qkv"]
        return lora_of(A, torch.block_diag(*blocks), next(iter(deltas.values())).scaling)

    @torch.no_grad()
    def take(self, lora: LoRALinear) -> None:
        """Take the values of what `as_lora` returned."""
        A, B = lora.lora_A.weight, lora.lora_B.weight
        p = len(self.parts)
        for part, of_A, of_B in zip(self.parts, A.chunk(p), B.chunk(p, dim=1), strict=True):
            delta: Any = self.parts[part]
            delta.lora_A.weight.copy_(of_A)
            delta.lora_B.weight.copy_(of_B.chunk(3)["qkv".index(part)])

    def delta_weight(self) -> Tensor:
        """Return ΔW: (3 d, d), in float32."""
        return self.as_lora().delta_weight()

    def merge_into(self, base: nn.Module) -> None:
        """Add ΔW to the base's weight, as `LoRALinear.merge_into`."""
        self.as_lora().merge_into(base)


class LoRAEmbedding(nn.Module):
    """ΔW = (α / r) (B A)ᵀ beside an embedding table W_0: (num, dim).

    A lookup picks rows, so a token's correction is B times its column of A. Here A starts at zero
    (a token not seen in training keeps its embedding) and B Gaussian, as in the authors' code.

    Args:
        num, dim: number of embeddings and their size.
        r, alpha, use_rslora: as in `LoRA`.
        padding_idx: the token that gets no gradient, as in `nn.Embedding`.
        embed_scale: the factor by which the base multiplies what it looks up.
    """

    def __init__(
        self,
        num: int,
        dim: int,
        r: int = 8,
        alpha: float = 16,
        use_rslora: bool = False,
        padding_idx: int | None = None,
        embed_scale: float = 1.0,
    ):
        super().__init__()
        self.lora_embedding_A = nn.Parameter(torch.zeros(r, num))
        self.lora_embedding_B = nn.Parameter(torch.randn(dim, r))
        self.scaling = alpha / (math.sqrt(r) if use_rslora else r)
        self.padding_idx, self.embed_scale = padding_idx, embed_scale

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y plus the correction of each token, for x: (...) and y: (..., dim)."""
        h = F.embedding(x, self.lora_embedding_A.T, self.padding_idx)  # (...) -> (..., r)
        h = F.linear(self.scaling * self.embed_scale * h, self.lora_embedding_B)  # -> (..., dim)
        return y + h.to(y.dtype)

    def delta_weight(self) -> Tensor:
        """Return ΔW: (num, dim), in float32."""
        return self.scaling * (self.lora_embedding_B.float() @ self.lora_embedding_A.float()).T

    @torch.no_grad()
    def merge_into(self, base: Any) -> None:
        """Add ΔW to the base's weight: summed in float32 (at least), then rounded once."""
        base.weight.copy_(base.weight + self.delta_weight())


def lora_of(A: Tensor, B: Tensor, scaling: float) -> LoRALinear:
    """Return the delta with this A: (r, d_in) and this B: (d_out, r), without dropout."""
    with torch.device("meta"):  # draws no random numbers, which would change a run that saves
        delta = LoRALinear(A.shape[1], len(B), len(A))
    delta.lora_A.weight, delta.lora_B.weight = nn.Parameter(A), nn.Parameter(B)
    delta.scaling = scaling
    return delta


def targets_config(method: Any, model: nn.Module, paths: Sequence[str]) -> dict[str, Any]:
    """Return what PEFT's configurations of weight-changing methods say about the targets."""
    modules = base_modules(model)
    return {
        "target_modules": shortest_names(model, paths),
        "modules_to_save": list(method.modules_to_save) or None,
        "fan_in_fan_out": any(is_conv1d(modules[path]) for path in paths),
        "bias": "none",
    }


def sizes(base: nn.Module) -> tuple[int, int]:
    """Return the sizes of the input and the output; of an embedding, its number and size."""
    if isinstance(base, nn.Embedding):
        return base.num_embeddings, base.embedding_dim
    names = ("nx", "nf") if is_conv1d(base) else ("in_features", "out_features")
    return getattr(base, names[0]), getattr(base, names[1])


def is_linear(module: nn.Module) -> bool:
    """Tell whether this is a linear map."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def can_adapt(module: nn.Module) -> bool:
    """Tell whether LoRA can adapt this module: a linear map or an embedding."""
    if isinstance(module, nn.Embedding):
        # Some embeddings do more than look up (OPT's positions add 2 to the index): not those.
        return type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")
    return is_linear(module)


def _matches_end(pattern: str, path: str) -> bool:
    return re.fullmatch(rf"(.*\.)?({pattern})", path) is not None


def _look_up(pattern: Mapping[str, T], path: str, default: T) -> T:
    """Return the value of the first key that matches the end of the path, as in PEFT."""
    return next((value for key, value in pattern.items() if _matches_end(key, path)), default)


def _check_all_match(what: str, pattern: Mapping[str, Any], paths: Mapping[str, nn.Module]) -> None:
    unused = [key for key in pattern if not any(_matches_end(key, path) for path in paths)]
    if unused:
        raise ValueError(f"{what}: {unused} match none of the targets, which are {list(paths)}")
