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
from typing import Any, ClassVar, Self

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
OFF = {"bias": ["none"], "init_lora_weights": [True, False, "gaussian", "orthogonal", "eva"]}
LORA_A = re.compile(r"(?P<path>.+)\.(lora_A\.weight|lora_embedding_A)")  # both are (r, size)


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

    def __post_init__(self):
        check_whole("r", self.r)
        check_positive("alpha", self.alpha)
        check_probability("dropout", self.dropout)
        check_flag("use_rslora", self.use_rslora)
        check_pattern("rank_pattern", self.rank_pattern, check_whole)
        check_pattern("alpha_pattern", self.alpha_pattern, check_positive)
        object.__setattr__(self, "target_modules", targets("target_modules", self.target_modules))
        object.__setattr__(self, "modules_to_save", names("modules_to_save", self.modules_to_save))

    def plan(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return ``{path: delta}`` for this model, which is not changed.

        Raises:
            ValueError: a name matches nothing, or nothing LoRA can adapt.
        """
        saved = find_modules(model, self.modules_to_save)
        places = find_targets(model, self.target_modules, can_adapt, without=saved)
        _check_all_match("rank_pattern", self.rank_pattern, places)
        _check_all_match("alpha_pattern", self.alpha_pattern, places)
        deltas = {path: self._delta(path, module) for path, module in places.items()}
        return deltas | {path: TrainedCopy(module) for path, module in saved.items()}

    def to_peft(
        self, model: nn.Module, deltas: Mapping[str, nn.Module]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return PEFT's configuration and tensors (under ``save``: see there)."""
        paths = [path for path, delta in deltas.items() if not isinstance(delta, TrainedCopy)]
        ranks = {p: self.rank_of(p) for p in paths}
        alphas = {p: self.alpha_of(p) for p in paths}
        modules = base_modules(model)
        config = {
            "r": self.r,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "use_rslora": self.use_rslora,
            "target_modules": shortest_names(model, paths),
            "rank_pattern": {p: r for p, r in ranks.items() if r != self.r},
            "alpha_pattern": {p: a for p, a in alphas.items() if a != self.alpha},
            "modules_to_save": list(self.modules_to_save) or None,
            "fan_in_fan_out": any(is_conv1d(modules[path]) for path in paths),
            "bias": "none",
        }
        return config, with_prefix(tensors_of(deltas))

    @classmethod
    def from_peft(
        cls, model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> tuple[Self, dict[str, nn.Module]]:
        """Return the hyper-parameters (targets and ranks of the tensors) and the filled deltas.

        Raises:
            ValueError: an option is not supported, or the tensors do not fit the model.
        """
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

    def _delta(self, path: str, base: nn.Module) -> nn.Module:
        r, alpha = self.rank_of(path), self.alpha_of(path)
        if isinstance(base, nn.Embedding):
            num, dim = base.num_embeddings, base.embedding_dim
            scale = float(getattr(base, "embed_scale", 1.0))  # Gemma's and BART's scale the rows
            delta = LoRAEmbedding(num, dim, r, alpha, self.use_rslora, base.padding_idx, scale)
        elif is_conv1d(base):
            delta = LoRALinear(base.nx, base.nf, r, alpha, self.dropout, self.use_rslora)
        else:
            d_in, d_out = base.in_features, base.out_features
            delta = LoRALinear(d_in, d_out, r, alpha, self.dropout, self.use_rslora)
        return delta.to(base.weight.device)


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
        self, num: int, dim: int, r=8, alpha=16, use_rslora=False, padding_idx=None, embed_scale=1.0
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
    def merge_into(self, base: nn.Module) -> None:
        """Add ΔW to the base's weight: summed in float32 (at least), then rounded once."""
        base.weight.copy_(base.weight + self.delta_weight())


def can_adapt(module: nn.Module) -> bool:
    """Tell whether LoRA can adapt this module: a linear map or an embedding."""
    if isinstance(module, nn.Embedding):
        # Some embeddings do more than look up (OPT's positions add 2 to the index): not those.
        return type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")
    return isinstance(module, nn.Linear) or is_conv1d(module)


def _matches_end(pattern: str, path: str) -> bool:
    return re.fullmatch(rf"(.*\.)?({pattern})", path) is not None


def _look_up(pattern: Mapping[str, Any], path: str, default: Any) -> Any:
    """Return the value of the first key that matches the end of the path, as in PEFT."""
    return next((value for key, value in pattern.items() if _matches_end(key, path)), default)


def _check_all_match(what: str, pattern: Mapping[str, Any], paths: Mapping[str, nn.Module]) -> None:
    unused = [key for key in pattern if not any(_matches_end(key, path) for path in paths)]
    if unused:
        raise ValueError(f"{what}: {unused} match none of the targets, which are {list(paths)}")
