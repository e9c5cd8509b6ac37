"""LoKr: a Kronecker product (LyCORIS, Yeh et al. 2024, arXiv:2309.14859; KronA, Edalati et al. 2022,
arXiv:2212.10650).

    h = W_0 x + (α / r) (W_1 ⊗ W_2) x,    W_1: a x m,  W_2: b x n,  d_out = a b,  d_in = m n

W_1 ⊗ W_2 has a block for each entry of W_1, which is W_2 times that entry. Its rank is the product of
their ranks. W_2 is a product of rank r, as in LoRA, where it is large enough for that; W_1 is small and
mostly is not. W_1 starts at zero, so the model is unchanged.

The forward pass does not form ΔW: if X (m x n) has x in its rows, one after the other, then W_1 X W_2ᵀ
(a x b) has (W_1 ⊗ W_2) x in its own.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import Delta
from pedagogic_peft.core.method import Peft, field
from pedagogic_peft.core.targets import sizes
from pedagogic_peft.methods.loha import OutputDropout, Products, start
from pedagogic_peft.methods.lora import LoRALinear


def check_factor(what: str, value: Any) -> Any:
    """Return the value if it is -1 or a whole number of at least 1."""
    return value if value == -1 else validation.count(what, value)


class LoKr(Products):
    """The hyper-parameters of a LoKr adaptation: those of `Products`, with Hugging Face PEFT's defaults.

    Args:
        r: the rank of W_2 (and of W_1 with `decompose_both`). A matrix whose longer side is at most 2 r
            is trained whole; then r only divides α.
        decompose_both: whether W_1 may be a product of rank r too.
        decompose_factor: a and m, or the greatest divisors below it; -1: the greatest divisors that are
            at most √d_out and √d_in. (Of a prime number that is 1.)
        rank_dropout_scale: whether outputs that `rank_dropout` keeps grow, as in `LoHa`.

    Raises:
        ValueError: a value is of the wrong type or out of range; the message names it.

    Example:
        >>> from pedagogic_peft import LoKr, attach, count_parameters, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> print(count_parameters(attach(model, LoKr(r=4))))
        trainable: 400 of 76,576 (0.52 %)
    """

    peft = Peft("LOKR", tensor=r"lokr_w2|lokr_w2_a", ignored="init_weights use_effective_conv2d")

    decompose_both: bool = field(False, validation.flag)
    decompose_factor: int = field(-1, check_factor)
    rank_dropout_scale: bool = field(False, validation.flag)

    def delta(self, path: str, module: Any) -> nn.Module:
        """Return the delta for one module."""
        (m, n), (a, b) = (split(d, self.decompose_factor) for d in sizes(module))
        r, alpha = self.rank_and_alpha(path)
        r_1 = r if self.decompose_both and 2 * r < max(a, m) else None
        r_2 = r if 2 * r < max(b, n) else None
        dropout = OutputDropout(self.rank_dropout, self.module_dropout, self.rank_dropout_scale)
        return LoKrLinear((a, m, r_1), (b, n, r_2), alpha / r, dropout)


class LoKrLinear(Delta):
    """ΔW = s (W_1 ⊗ W_2) beside a linear map.

    Args:
        one, two: rows, columns and rank of W_1 and W_2; a rank of None: it is no product.
        scaling: s.
        dropout: of the outputs of the change.
    """

    def __init__(
        self, one: tuple[Any, ...], two: tuple[Any, ...], scaling: float, dropout: nn.Module
    ):
        super().__init__()
        for name, (rows, columns, r) in (("lokr_w1", one), ("lokr_w2", two)):
            shapes = {"": (rows, columns)} if r is None else {"_a": (rows, r), "_b": (r, columns)}
            for part, shape in shapes.items():
                self.register_parameter(name + part, start(*shape))
        first = next(iter(self.parameters()))  # W_1, or its left factor
        nn.init.zeros_(first)
        self.scaling, self.dropout = scaling, dropout

    def factor(self, name: str) -> Tensor:
        """Return W_1 or W_2, by its name in checkpoints, in float32."""
        if hasattr(self, name):  # not in _parameters: `nn.DataParallel`'s copies have none
            whole: Tensor = getattr(self, name).float()
            return whole
        product: Tensor = (getattr(self, name + "_a") @ getattr(self, name + "_b")).float()
        return product

    def delta_weight(self) -> Tensor:
        """Return ΔW: (d_out, d_in), in float32."""
        return self.scaling * torch.kron(self.factor("lokr_w1"), self.factor("lokr_w2"))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y + ΔW x, for x: (..., d_in) and y: (..., d_out)."""
        W_1, W_2 = (self.factor(name).to(x.dtype) for name in ("lokr_w1", "lokr_w2"))
        X = x.unflatten(-1, (W_1.shape[1], W_2.shape[1]))  # (..., d_in) -> (..., m, n)
        h = self.scaling * W_1 @ F.linear(X, W_2)  # -> (..., m, b) -> (..., a, b)
        change: Tensor = self.dropout(h.flatten(-2))
        return y + change

    merge_into = LoRALinear.merge_into  # adds delta_weight()


def split(d: int, factor: int = -1) -> tuple[int, int]:
    """Return two numbers whose product is d, as Hugging Face PEFT chooses them.

    The first is the factor if that divides d, else the greatest divisor of d that is neither above
    it nor above √d; with -1 the greatest that is not above √d.
    """
    if factor > 0 and d % factor == 0:
        return factor, d // factor
    most = math.isqrt(d) if factor == -1 else min(factor, math.isqrt(d))
    first = max(n for n in range(1, most + 1) if d % n == 0)
    return first, d // first
