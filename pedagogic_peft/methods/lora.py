"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al. 2021, arXiv:2106.09685).

A frozen weight W_0 (d_out x d_in) gets a correction of rank r,

    h = W_0 x + ΔW x,    ΔW = (α / r) B A,    B: d_out x r,  A: r x d_in    (section 4.1)

of which only A and B are trained. The site is a linear map or an embedding, the delta is
(α / r) B A x, and it is joined by addition.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.architectures import model_type
from pedagogic_peft.core.delta import Delta, Deltas, Tensors, linear
from pedagogic_peft.core.method import Method, Peft, field
from pedagogic_peft.core.sites import Modules, View
from pedagogic_peft.core.targets import (
    Names,
    Targets,
    find_modules,
    is_conv1d,
    is_linear,
    is_named,
    sizes,
)
from pedagogic_peft.methods.biases import WHICH, AddedBias, TrainedBias, bias_owners
from pedagogic_peft.methods.experts import LoRAExperts, LoRAParameter, find_parameters
from pedagogic_peft.methods.padding_trial import refuse_behind_padding
from pedagogic_peft.methods.together import together
from pedagogic_peft.methods.token_rows import Tokens, check_tokens, is_lookup, token_rows

# Fused projections of these mix q, k and v head by head: no block of their output is q.
INTERLEAVED = "bloom codegen falcon gpt_bigcode gpt_neox gpt_neox_japanese persimmon".split()


class LoRALinear(Delta):
    """ΔW = (α / r) B A beside a linear map (`nn.Linear`, or GPT-2's `Conv1D`).

    A starts random and B at zero, so ΔW = 0 and the model is unchanged. A is drawn (twice) as in the
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
        self.lora_A = linear(d_in, r)  # A: (r, d_in), without a bias
        self.lora_B = linear(r, d_out)  # B: (d_out, r)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.scaling = alpha / (math.sqrt(r) if rslora else r)
        nn.init.uniform_(self.lora_A.weight, -1 / math.sqrt(d_in), 1 / math.sqrt(d_in))
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


class LoRAParts(Delta):
    """A LoRA for each of some parts of a fused projection, whose output is q, k and v: (..., 3 d).

    Each part's ΔW = (α / r) B A is added to its slice of the output, so the others keep W_0. This
    equals an ordinary LoRA of the whole map whose A is the parts' A, one below the other, and whose
    B has the parts' B in blocks: A (p r, d) and B (3 d, p r) for p parts.

    Args:
        parts: some of "q", "k", "v".
        d: size of the input and of each part of the output.
        options: r, alpha, dropout and use_rslora, as in `LoRA`; for each part.
    """

    def __init__(self, parts: Names, d: int, *options: Any):
        super().__init__()
        each = {part: LoRALinear(d, d, *options) for part in "qkv" if part in parts}
        self.parts: Any = nn.ModuleDict(each)
        self.scaling = next(iter(each.values())).scaling

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y with each part's correction in its slice, for x: (..., d) and y: (..., 3 d)."""
        slices = dict(zip("qkv", y.chunk(3, dim=-1), strict=True))
        for part, delta in self.parts.items():
            slices[part] = delta(x, slices[part])
        return torch.cat(list(slices.values()), dim=-1)

    def to_checkpoint(self) -> dict[str, Tensor]:
        """Return the tensors of the ordinary LoRA of rank p r that this equals."""
        A = torch.cat([delta.lora_A.weight for delta in self.parts.values()])  # (p r, d)
        nothing = A.new_zeros(A.shape[1], 0)  # the block of a part that is not adapted: no columns
        blocks = [self.parts[p].lora_B.weight if p in self.parts else nothing for p in "qkv"]
        return {"lora_A.weight": A, "lora_B.weight": torch.block_diag(*blocks)}

    def from_checkpoint(self, tensors: Tensors) -> None:
        """Take the values of what `to_checkpoint` returned."""
        A = tensors["lora_A.weight"].chunk(len(self.parts))
        B = tensors["lora_B.weight"].chunk(len(self.parts), dim=1)
        for i, (part, delta) in enumerate(self.parts.items()):
            delta.lora_A.weight.copy_(A[i])
            delta.lora_B.weight.copy_(B[i].chunk(3)["qkv".index(part)])

    def delta_weight(self) -> Tensor:
        """Return ΔW: (3 d, d), in float32."""
        A, B = self.to_checkpoint().values()
        return self.scaling * (B.float() @ A.float())

    merge_into = LoRALinear.merge_into


class LoRAEmbedding(Delta):
    """ΔW = (α / r) (B A)ᵀ beside an embedding table W_0: (num, dim).

    A lookup picks rows, so a token's correction is B times its column of A. Here A starts at zero
    (a token not seen in training keeps its embedding) and B Gaussian, as in the authors' code.

    Args:
        table: the embedding. Its padding token gets no gradient, as in `nn.Embedding`; some tables
            (Gemma's, BART's) multiply what they look up by an ``embed_scale``.
        r, alpha, rslora: as in `LoRALinear`. There is no dropout of a look-up.
    """

    def __init__(self, table: Any, r: int, alpha: float, dropout: float = 0, rslora: bool = False):
        super().__init__()
        self.lora_embedding_A = nn.Parameter(torch.zeros(r, table.num_embeddings))  # A: (r, num)
        self.lora_embedding_B = nn.Parameter(torch.randn(table.embedding_dim, r))  # B: (dim, r)
        self.scaling = alpha / (math.sqrt(r) if rslora else r)
        self.padding_idx = table.padding_idx
        self.embed_scale = float(getattr(table, "embed_scale", 1.0))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y plus the correction of each token, for x: (...) and y: (..., dim)."""
        h = F.embedding(x, self.lora_embedding_A.T, self.padding_idx)  # (...) -> (..., r)
        h = F.linear(self.scaling * self.embed_scale * h, self.lora_embedding_B)  # -> (..., dim)
        return y + h.to(y.dtype)

    def delta_weight(self) -> Tensor:
        """Return ΔW: (num, dim), in float32."""
        return self.scaling * (self.lora_embedding_B.float() @ self.lora_embedding_A.float()).T

    merge_into = LoRALinear.merge_into


def check_parts(what: str, value: Any) -> Any:
    """Return the parts if they are some of q, k and v, each once."""
    good = set(validation.names(what, value)) <= set("qkv") and len(set(value)) == len(value)
    return validation.expect(good, what, tuple(value), 'some of "q", "k", "v", each once')


def can_adapt(module: nn.Module) -> bool:
    """Tell whether LoRA can adapt this module: a linear map or an embedding."""
    return is_lookup(module) if isinstance(module, nn.Embedding) else is_linear(module)


class LoRA(Method):
    """The hyper-parameters of a LoRA adaptation. They hold no tensors; `attach` makes those.

    In the paper's table 6, two tasks on GPT-3, ranks 1 to 8 differ little. The default α = 2r gives
    ΔW the weight 2, the common choice of later practice; Hugging Face PEFT's default is α = r. When
    you change the rank, leave α as it is: then one learning rate serves the ranks nearly alike
    (Schulman et al., "LoRA Without Regret", 2025). With α / r fixed, the rate has to be searched anew.

    Args:
        r: rank of ΔW, at least 1.
        alpha: α, the numerator of the scaling; greater than 0.
        dropout: probability of zeroing an entry of the input of A (never of the base path), at
            least 0 and below 1. Embeddings have none.
        target_modules: which modules to adapt. A list of names ("c_attn" means every module whose
            path is or ends with it); a string, which is a regular expression for the whole path;
            "all-linear", every linear map except the head, those that the model never calls, indexers
            of sparse attention and a mixture's routers (see below); None, the query and value
            projections of the architecture.
        use_rslora: scale by α / √r instead of α / r (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732).
        modules_to_save: names of modules to train in full, such as a new classification head.
        rank_pattern: ranks for some modules, {end of the path (a regular expression): r}.
        alpha_pattern: the same for α.
        exclude_modules, layers_to_transform, layers_pattern: which of the targets to leave out, as in
            `Method`; so for all methods with `target_modules`.
        parts: some of "q", "k", "v", when every target is a fused projection whose output is q, k
            and v in three equal blocks (GPT-2's ``c_attn``): each part gets an A and a B of its own,
            of rank r, and the others get none. () adapts the whole output with one A and one B.
        target_parameters: parameters to adapt that are no linear maps, by their names or ends of
            paths: the experts of a mixture, such as ("gate_up_proj", "down_proj"), where r is the
            rank of each expert (see `LoRAExperts`). They come beside `target_modules`; () as its
            value leaves them alone. Without dropout: it would need an input of each weight.
        bias: which of the model's own biases are trained too: "none", "all" or those of the targets
            ("lora_only").
        lora_bias: whether B (A x) gets a bias of its own, which the scaling multiplies too. Refused
            where it would bring back padding that the model has hidden; see `padding_trial`.
        trainable_token_indices: ids of tokens whose embeddings are trained, as new tokens need it,
            with what is tied to them; or {name of a table: ids}. See `TokenRows`.

    In a mixture "all-linear" means neither routers, whose few numbers decide for all experts, nor experts
    that are no linear maps: most of the model's numbers are theirs, and their changed copy is made in
    each forward pass. So they are adapted when they are named, and `attach` warns of what is left out.
    PEFT decides by the architecture: its "all-linear" adds experts and routers in the relatives of
    Qwen2-MoE and Mixtral, and no experts in others (GPT-OSS). Its files name what they adapt, and are
    read as they are.

    Raises:
        ValueError: a value is of the wrong type or out of range; the message names it.

    Example:
        >>> from pedagogic_peft import LoRA, attach, count_parameters, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> print(count_parameters(attach(model, LoRA(r=4, target_modules=["q_proj", "v_proj"]))))
        trainable: 1,536 of 77,712 (1.98 %)
    """

    peft = Peft(
        "LORA",
        tensor=r"lora_A\.weight|lora_embedding_A",  # both are (r, size)
        keys={"alpha": "lora_alpha", "dropout": "lora_dropout"},
        defaults={"alpha": 8},
        unsaved="parts",
        # How it began, which init_lora_weights tells, and what a file that PEFT converted still says.
        ignored="corda_config eva_config loftq_config lora_ga_config parts qalora_group_size",
    )
    OF_LINEAR: ClassVar[Any] = LoRALinear
    OF_EMBEDDING: ClassVar[Any] = LoRAEmbedding
    can_adapt = staticmethod(can_adapt)

    r: int = field(8, validation.count)
    alpha: float = field(16, validation.positive)
    dropout: float = field(0.0, validation.probability)
    target_modules: Targets = field(None, validation.targets)
    use_rslora: bool = field(False, validation.flag)
    rank_pattern: Mapping[str, int] = field({}, validation.pattern(validation.count))
    alpha_pattern: Mapping[str, float] = field({}, validation.pattern(validation.positive))
    parts: Names = field((), check_parts)
    target_parameters: Names = field((), validation.names)
    bias: str = field("none", validation.one_of(*WHICH))
    lora_bias: bool = field(False, validation.flag)
    trainable_token_indices: Tokens = field(None, check_tokens)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parts and type(self) is not LoRA:
            raise ValueError(f"parts={self.parts!r}: only LoRA adapts parts of a projection")
        if self.target_parameters and (type(self) is not LoRA or self.dropout):
            what = f"target_parameters={self.target_parameters!r}"
            raise ValueError(f"{what}: only LoRA adapts them, and without dropout")
        if self.lora_bias and (self.parts or type(self) is not LoRA):
            raise ValueError("lora_bias=True: only a LoRA without parts has it")

    def rank_of(self, path: str) -> int:
        """Return r for the module at this path."""
        return int(look_up(self.rank_pattern, path, self.r))

    def alpha_of(self, path: str) -> Any:
        """Return α for the module at this path."""
        return look_up(self.alpha_pattern, path, self.alpha)

    def targets(self, view: View, without: Iterable[str]) -> Modules:
        """As in any method; beside `target_parameters` there may be none."""
        alone = self.target_parameters and self.target_modules == ()
        return {} if alone else super().targets(view, without)

    def deltas(self, view: View, places: Modules) -> Deltas:
        """Return ``{path: delta}`` for the modules to adapt, and those that have the parameters."""
        parameters = find_parameters(view, self.target_parameters)
        paths = [*places, *parameters]
        if self.parts and (kind := model_type(view.model)) in INTERLEAVED:
            raise ValueError(f"parts={self.parts!r}: {kind} mixes q, k and v head by head")
        check_patterns(self, paths)
        deltas = super().deltas(view, places)
        biases: Modules = {}
        if self.bias != "none":
            saved = list(find_modules(view, self.modules_to_save))
            biases = bias_owners(view, self.bias, places, saved)
        return together(
            deltas,
            self.of_parameters(parameters),
            self.added_biases(view, places, deltas),
            {path: TrainedBias(module) for path, module in biases.items()},
            token_rows(view, self.trainable_token_indices, places),
        )

    def of_parameters(self, parameters: Modules) -> Deltas:
        """Return ``{path: delta}`` of the modules that have these parameters, ``{path: module}``."""
        deltas: dict[str, Any] = {}
        for path, module in parameters.items():
            place, _, name = path.rpartition(".")
            own = self.rank_of(path), self.alpha_of(path), self.use_rslora
            deltas.setdefault(place, LoRAExperts()).loras[name] = LoRAParameter(module, name, *own)
        return deltas

    def added_biases(self, view: View, places: Modules, deltas: Any) -> Deltas:
        """Return ``{path: delta}`` of the biases that `lora_bias` adds to the outputs."""
        if not self.lora_bias:
            return {}
        if tables := [path for path, m in places.items() if isinstance(m, nn.Embedding)]:
            raise ValueError(f"lora_bias=True: {tables[0]!r} is an embedding, which has no bias")
        refuse_behind_padding(view.model, places)
        return {p: AddedBias(sizes(m)[1], deltas[p].scaling) for p, m in places.items()}

    def delta(self, path: str, module: Any) -> Any:
        """Return the delta for one module."""
        (d_in, d_out), r = sizes(module), self.rank_of(path)
        options = r, self.alpha_of(path), self.dropout, self.use_rslora
        if self.parts:
            if isinstance(module, nn.Embedding) or d_out != 3 * d_in:
                kind = f"{type(module).__name__}, {d_in} -> {d_out}"
                what = f"parts={self.parts!r}: {path!r} ({kind})"
                raise ValueError(f"{what} is no fused projection of q, k and v")
            return LoRAParts(self.parts, d_in, *options)
        if isinstance(module, nn.Embedding):
            return self.OF_EMBEDDING(module, *options)
        if r > min(d_in, d_out):
            what = f"r={r} is more than a change of {path!r} can have ({d_in} -> {d_out})"
            validation.warn(f"{what}; rank_pattern gives single modules another r")
        return self.OF_LINEAR(d_in, d_out, *options)


def look_up(pattern: Mapping[str, Any], path: str, default: Any) -> Any:
    """Return the value of the first key that matches the end of the path, as in PEFT."""
    return next((v for key, v in pattern.items() if is_named(rf"(.*\.)?({key})", path)), default)


def check_patterns(method: Any, places: Iterable[str]) -> None:
    """Raise a ValueError if a key of ``rank_pattern`` or ``alpha_pattern`` means none of the places."""
    for what in ("rank_pattern", "alpha_pattern"):
        pattern = getattr(method, what)
        if unused := [k for k in pattern if not any(look_up({k: 1}, p, 0) for p in places)]:
            raise ValueError(f"{what}: {unused} match none of the targets {list(places)}")
