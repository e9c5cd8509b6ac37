"""Compacter: bottleneck adapters made of few numbers (Karimi Mahabadi et al. 2021, arXiv:2106.04647).

The two linear maps of the adapter are sums of n Kronecker products (parameterised hypercomplex
multiplication, PHM),

    W = Σ_i A_i ⊗ B_i,    B_i = s_i t_iᵀ,    A_i: n x n,  s_i: d_out/n x r,  t_i: d_in/n x r

All maps of the adaptation share A = (A_1, ..., A_n), the *rule*. A map of its own has s and t,
r (d_in + d_out) numbers, instead of d_in · d_out; r = 1 in the paper.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import Deltas, Reference
from pedagogic_peft.core.method import Peft, field
from pedagogic_peft.core.sites import Modules, View
from pedagogic_peft.methods.bottleneck import NON_LINEARITIES, BottleneckAdapter, ready


class Compacter(BottleneckAdapter):
    """The hyper-parameters of a Compacter.

    It begins as the identity, exactly: the factor t of each W_up is zero, and the rest is drawn so
    that W_down begins with entries of standard deviation 1/√d. (The authors' code begins near the
    identity, not at it: the rule has entries of variance 1e-4, and no factor is zero.)

    Args:
        phm_dim: n; it must divide the model's width d and the bottleneck m.
        phm_rank: r, the rank of each B_i.
        placement: "houlsby" (Compacter) or "pfeiffer" (Compacter++).

    The others are those of `BottleneckAdapter`.

    Example:
        >>> from pedagogic_peft import Compacter, attach, count_parameters, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> print(count_parameters(attach(model, Compacter(reduction_factor=4))))
        trainable: 784 of 76,960 (1.02 %)
    """

    peft = Peft("COMPACTER")

    reduction_factor: float = field(32, validation.positive)
    non_linearity: str = field("gelu", validation.one_of(*NON_LINEARITIES))
    placement: str = field("houlsby", validation.one_of("houlsby", "pfeiffer"))
    phm_dim: int = field(4, validation.count)
    phm_rank: int = field(1, validation.count)

    def deltas(self, view: View, places: Modules) -> Deltas:
        """Return ``{path: delta}`` whose maps share one rule.

        Raises:
            ValueError: n does not divide d and m.
        """
        deltas = super().deltas(view, places)
        maps = [m for delta in deltas.values() for m in delta.modules() if isinstance(m, PHMLinear)]
        for phm in maps:
            phm.shared = maps[0].shared
        maps[0].rule = maps[0].shared.module  # a part of the first: so it is saved and counted once
        return deltas

    def maps(self, d: int, m: int) -> tuple[nn.Module, nn.Module]:
        """Return W_down and W_up as they start."""
        options = PHMRule(self.phm_dim), self.phm_rank
        down, up = PHMLinear(d, m, *options), PHMLinear(m, d, *options)
        nn.init.zeros_(up.t)
        return down, up


class PHMRule(nn.Module):
    """The matrices A_1, ..., A_n, of n x n, with entries of variance 1/n at the start."""

    def __init__(self, n: int):
        super().__init__()
        self.A = nn.Parameter(torch.randn(n, n, n) / math.sqrt(n))  # (i, row, column)


class PHMLinear(nn.Module):
    """x ↦ W x + b with W = Σ_i A_i ⊗ s_i t_iᵀ: (d_out, d_in), which is never made.

    Args:
        d_in, d_out: sizes of input and output; n must divide both.
        rule: the shared A; referred to, not registered as a part of this map.
        r: rank of each s_i t_iᵀ.

    Raises:
        ValueError: n does not divide both sizes.
    """

    def __init__(self, d_in: int, d_out: int, rule: PHMRule, r: int = 1):
        super().__init__()
        n = len(rule.A)
        if d_in % n or d_out % n:
            what = f"phm_dim={n} must divide both {d_in} and {d_out}"
            raise ValueError(f"{what}: set bottleneck_size")
        self.s = nn.Parameter(torch.randn(n, r, d_out // n))
        self.t = nn.Parameter(torch.randn(n, r, d_in // n) / math.sqrt(d_in * r))
        self.bias = nn.Parameter(torch.zeros(d_out))
        self.shared: Any = Reference(rule)

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        """Return W x + b, (..., d_in) -> (..., d_out); ``frozen`` as in `Bottleneck.change`.

        With x and y written as matrices X: (n, d_in/n) and Y: (n, d_out/n), row by row,
        (A_i ⊗ s_i t_iᵀ) x is A_i X t_i s_iᵀ.
        """
        rule = self.shared.module
        A, s, t, b = (ready(p, x, frozen) for p in (rule.A, self.s, self.t, self.bias))
        X = x.unflatten(-1, (len(A), -1))  # (..., n, d_in/n)
        h = torch.einsum("...bq,irq->...irb", X, t)  # X t_i, for each i and each rank
        h = torch.einsum("iab,...irb->...ira", A, h)  # A_i X t_i
        Y = torch.einsum("...ira,irp->...ap", h, s)  # Σ_i A_i X t_i s_iᵀ: (..., n, d_out/n)
        return Y.flatten(-2) + b
