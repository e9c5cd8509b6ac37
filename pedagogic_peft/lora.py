"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al. 2021, arXiv:2106.09685).

A frozen weight W_0 (d_out x d_in) gets a correction of rank r,

    h = W_0 x + ΔW x,    ΔW = (α / r) B A,    B: d_out x r,  A: r x d_in    (section 4.1)

of which only A and B are trained. The site is a linear map or an embedding, the delta is
(α / r) B A x, and it is joined by addition.
"""

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar

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
from pedagogic_peft.method import Config, Deltas, Method, Tensors, hyper
from pedagogic_peft.sites import TrainedCopy
from pedagogic_peft.targets import is_conv1d, is_linear, sizes

# Fused projections of these mix q, k and v head by head: no block of their output is q.
INTERLEAVED = "bloom codegen falcon gpt_bigcode gpt_neox gpt_neox_japanese persimmon".split()
T = TypeVar("T")


def check_parts(what: str, value: Any) -> tuple[str, ...]:
    """Return the parts if they are some of q, k and v, each once."""
    if not set(names(what, value)) <= set("qkv") or len(set(value)) < len(value):
        raise ValueError(f'{what}={value!r}: expected some of "q", "k", "v", each once')
    return tuple(value)


def can_adapt(module: nn.Module) -> bool:
    """Tell whether LoRA can adapt this module: a linear map or an embedding."""
    if isinstance(module, nn.Embedding):
        # Some embeddings do more than look up (OPT's positions add 2 to the index): not those.
        return type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")
    return is_linear(module)


@dataclass(frozen=True)
class LoRA(Method):
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
    KEYS: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "r": ("r", 8),
        "alpha": ("lora_alpha", 8),
        "dropout": ("lora_dropout", 0.0),
        "use_rslora": ("use_rslora", False),
    }
    IGNORED: ClassVar[str] = (
        "alpha_pattern eva_config fan_in_fan_out parts qalora_group_size rank_pattern"
    )
    # The other initialisations change the base too.
    OFF: ClassVar[Mapping[str, list[Any]]] = {
        "bias": ["none"],
        "init_lora_weights": [True, False, "gaussian", "orthogonal", "eva"],
    }
    MARK: ClassVar[str] = r"lora_A\.weight|lora_embedding_A"  # both are (r, size)
    FOLDED: ClassVar[str] = "parts"  # the key that tells how a checkpoint of `folds` was made up

    can_adapt = staticmethod(can_adapt)

    r: int = hyper(8, check_whole)
    alpha: float = hyper(16, check_positive)
    dropout: float = hyper(0.0, check_probability)
    target_modules: Sequence[str] | str | None = hyper(None, targets)
    use_rslora: bool = hyper(False, check_flag)
    modules_to_save: Sequence[str] = hyper((), names)
    rank_pattern: Mapping[str, int] = hyper({}, partial(check_pattern, check_value=check_whole))
    alpha_pattern: Mapping[str, float] = hyper(
        {}, partial(check_pattern, check_value=check_positive)
    )
    parts: Sequence[str] = hyper((), check_parts)

    @property
    def folds(self) -> int:
        """How many times r is the rank of the ordinary LoRA that a delta equals."""
        return len(self.parts) or 1

    def rank_of(self, path: str) -> int:
        """Return r for the module at this path."""
        return _look_up(self.rank_pattern, path, self.r)

    def alpha_of(self, path: str) -> float:
        """Return α for the module at this path."""
        return _look_up(self.alpha_pattern, path, self.alpha)

    def deltas(self, model: nn.Module, places: Mapping[str, nn.Module]) -> Deltas:
        """Return ``{path: delta}`` for the modules to adapt."""
        kind = getattr(getattr(model, "config", None), "model_type", None)
        if self.parts and kind in INTERLEAVED:
            raise ValueError(f"parts={self.parts!r}: {kind} mixes q, k and v head by head")
        for what in ("rank_pattern", "alpha_pattern"):
            unused = [k for k in getattr(self, what) if not any(_ends(k, p) for p in places)]
            if unused:
                raise ValueError(f"{what}: {unused} match none of the targets {list(places)}")
        return super().deltas(model, places)

    def delta(self, path: str, module: Any) -> Any:
        """Return the delta for one module."""
        d_in, d_out = sizes(module)
        options = self.rank_of(path), self.alpha_of(path), self.dropout, self.use_rslora
        if self.parts:
            if isinstance(module, nn.Embedding) or d_out != 3 * d_in:
                raise ValueError(
                    f"parts={self.parts!r}: {path!r} ({type(module).__name__}, {d_in} -> {d_out}) "
                    "is no fused projection of q, k and v, which would be d -> 3 d"
                )
            return LoRAParts(self.parts, d_in, *options)
        if isinstance(module, nn.Embedding):
            r, alpha, _, rslora = options
            scale = float(getattr(module, "embed_scale", 1.0))  # Gemma's and BART's scale the rows
            return self.classes()[1](d_in, d_out, r, alpha, rslora, module.padding_idx, scale)
        if options[0] > min(d_in, d_out):
            warnings.warn(
                f"r={options[0]} is more than the rank {min(d_in, d_out)} that a change of {path!r} "
                f"({d_in} -> {d_out}) can have; rank_pattern gives single modules another r",
                stacklevel=2,
            )
        return self.classes()[0](d_in, d_out, *options)

    @staticmethod
    def classes() -> tuple[Any, Any]:
        """Return the classes of the deltas for a linear map and for an embedding."""
        return LoRALinear, LoRAEmbedding

    def to_peft(self, model: nn.Module, deltas: Deltas) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return PEFT's configuration and tensors.

        Where r is folded (an adaptation of parts), they are those of the ordinary LoRA it equals;
        one more key, which PEFT drops with a warning, keeps our own values.
        """
        config, tensors = super().to_peft(model, deltas)
        paths = [path for path, delta in deltas.items() if not isinstance(delta, TrainedCopy)]
        n = self.folds
        stretch = math.sqrt(n) if self.use_rslora else n  # keeps the scaling
        ranks = {p: n * self.rank_of(p) for p in paths if self.rank_of(p) != self.r}
        alphas = {p: stretch * self.alpha_of(p) for p in paths if self.alpha_of(p) != self.alpha}
        config |= {"r": n * self.r, "lora_alpha": stretch * self.alpha}
        config |= {"rank_pattern": ranks, "alpha_pattern": alphas}
        if self.parts or n > 1:
            own = ("r", "alpha", "rank_pattern", "alpha_pattern", "parts")
            config[self.FOLDED] = {name: getattr(self, name) for name in own}
        return config, tensors

    @classmethod
    def read(
        cls, model: nn.Module, config: Config, tensors: Tensors, paths: Sequence[str]
    ) -> dict[str, Any]:
        """Return the hyper-parameters: targets and ranks of the tensors, the rest as configured."""
        found = super().read(model, config, tensors, paths)
        if config.get(cls.FOLDED):
            return found | dict(config[cls.FOLDED])
        keys = {
            p: k
            for p in paths
            for k in tensors
            if re.fullmatch(rf"{re.escape(p)}\.({cls.MARK})", k)
        }
        ranks = {path: len(tensors[key]) for path, key in keys.items()}
        pattern = check_pattern("alpha_pattern", config.get("alpha_pattern") or {}, check_positive)
        alphas = {path: _look_up(pattern, path, found["alpha"]) for path in paths}
        return found | {
            "rank_pattern": {path: r for path, r in ranks.items() if r != found["r"]},
            "alpha_pattern": {path: a for path, a in alphas.items() if a != found["alpha"]},
        }


class LoRALinear(nn.Module):
    """ΔW = (α / r) B A beside a linear map (`nn.Linear`, or GPT-2's `Conv1D`).

    A starts random and B at zero, so ΔW = 0 and the model is unchanged. A is drawn as in the
    authors' code and in Hugging Face PEFT, uniform in ±1/√d_in (the paper's text says Gaussian). A
    and B are float32; beside a base of lower precision they are rounded to the input's dtype for
    the product, which is cheaper than raising the input, and their gradients arrive in float32.

    Args:
        d_in, d_out: sizes of the linear map's input and output.
        r, alpha, dropout, rslora: as in `LoRA`, where the last is `use_rslora`.
    """

    def __init__(
        self, d_in: int, d_out: int, r: int, alpha: float, dropout: float = 0, rslora: bool = False
    ):
        super().__init__()
        self.lora_A = nn.Linear(d_in, r, bias=False)  # A: (r, d_in)
        self.lora_B = nn.Linear(r, d_out, bias=False)  # B: (d_out, r)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.scaling = alpha / (math.sqrt(r) if rslora else r)
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
    def merge_into(self, base: Any) -> None:
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
        self.parts: Any = nn.ModuleDict(
            {p: LoRALinear(d, d, *options) for p in "qkv" if p in parts}
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y with each part's correction in its slice, for x: (..., d) and y: (..., 3 d)."""
        slices = dict(zip("qkv", y.chunk(3, dim=-1), strict=True))
        for part, delta in self.parts.items():
            slices[part] = delta(x, slices[part])
        return torch.cat(list(slices.values()), dim=-1)

    def export(self) -> dict[str, Tensor]:
        """Return the tensors of the ordinary LoRA of rank p r that this equals."""
        A = torch.cat([delta.lora_A.weight for delta in self.parts.values()])  # (p r, d)
        nothing = A.new_zeros(A.shape[1], 0)  # the block of a part that is not adapted: no columns
        blocks = [self.parts[p].lora_B.weight if p in self.parts else nothing for p in "qkv"]
        return {"lora_A.weight": A, "lora_B.weight": torch.block_diag(*blocks)}

    def take(self, tensors: Tensors) -> None:
        """Take the values of what `export` returned."""
        A, B = (
            tensors[f"lora_{name}.weight"].chunk(len(self.parts), dim)
            for name, dim in (("A", 0), ("B", 1))
        )
        for i, (part, delta) in enumerate(self.parts.items()):
            delta.lora_A.weight.copy_(A[i])
            delta.lora_B.weight.copy_(B[i].chunk(3)["qkv".index(part)])

    def delta_weight(self) -> Tensor:
        """Return ΔW: (3 d, d), in float32."""
        first = next(iter(self.parts.values()))
        A, B = self.export().values()
        scaling: float = first.scaling
        return scaling * (B.float() @ A.float())

    merge_into = LoRALinear.merge_into


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


def _ends(pattern: str, path: str) -> bool:
    return re.fullmatch(rf"(.*\.)?({pattern})", path) is not None


def _look_up(pattern: Mapping[str, T], path: str, default: T) -> T:
    """Return the value of the first key that matches the end of the path, as in PEFT."""
    return next((value for key, value in pattern.items() if _ends(key, path)), default)
