"""Compacter: bottleneck adapters made of few numbers (Karimi Mahabadi et al. 2021, arXiv:2106.04647).

The two linear maps of the adapter are sums of n Kronecker products (parameterised hypercomplex
multiplication, PHM),

    W = Σ_i A_i ⊗ B_i,    B_i = s_i t_iᵀ,    A_i: n x n,  s_i: d_out/n x r,  t_i: d_in/n x r

All maps of the adaptation share A = (A_1, ..., A_n), the *rule*. A map of its own has s and t,
r (d_in + d_out) numbers, instead of d_in · d_out; r = 1 in the paper.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pedagogic_peft.bottleneck import BottleneckAdapter, ready
from pedagogic_peft.checks import check_whole


@dataclass(frozen=True)
class Compacter(BottleneckAdapter):
    """The hyper-parameters of a Compacter.

    It begins as the identity, exactly: the factor t of each W_up is zero, and the rest is drawn so
    that W_down begins with entries of standard deviation 1/√d.

    Args:
        phm_dim: n; it must divide the model's width d and the bottleneck m.
        phm_rank: r, the rank of each B_i.
        placement: "houlsby" (Compacter) or "pfeiffer" (Compacter++).

    The others are those of `BottleneckAdapter`.
    """

    peft_type: ClassVar[str] = "COMPACTER"

    reduction_factor: float = 32
    non_linearity: str = "gelu"
    placement: str = "houlsby"
    phm_dim: int = 4
    phm_rank: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("phm_dim", self.phm_dim)
        check_whole("phm_rank", self.phm_rank)
        if self.placement == "parallel":
            raise ValueError("placement='parallel': a Compacter is 'houlsby' or 'pfeiffer'")

    def plan(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return ``{path: delta}`` for this model, which is not changed.

        Raises:
            ValueError: as `BottleneckAdapter.plan`; n does not divide d and m.
        """
        rule = PHMRule(self.phm_dim)
        first = True  # the map that owns the rule: so it is saved and counted once

        def maps(d: int, m: int) -> tuple[nn.Module, nn.Module]:
            nonlocal first
            down = PHMLinear(d, m, rule, self.phm_rank, owns_rule=first)
            up = PHMLinear(m, d, rule, self.phm_rank)
            nn.init.zeros_(up.t)
            first = False
            return down, up

        return self.plan_with(model, maps)


class PHMRule(nn.Module):
    """The matrices A_1, ..., A_n, of n x n, with entries of variance 1/n at the start."""

    def __init__(self, n: int):
        super().__init__()
        self.A = nn.Parameter(torch.randn(n, n, n) / math.sqrt(n))  # (i, row, column)


class PHMLinear(nn.Module):
    """x ↦ W x + b with W = Σ_i A_i ⊗ s_i t_iᵀ: (d_out, d_in), which is never made.

    Args:
        d_in, d_out: sizes of input and output; n must divide both.
        rule: the shared A; only referred to, unless this map owns it.
        r: rank of each s_i t_iᵀ.
        owns_rule: whether the rule is registered as a part of this map.
    """

    def __init__(self, d_in: int, d_out: int, rule: PHMRule, r: int = 1, owns_rule: bool = False):
        super().__init__()
        n = len(rule.A)
        if d_in % n or d_out % n:
            raise ValueError(
                f"phm_dim={n} must divide both sizes of each map, but they are {d_in} and {d_out}: "
                "choose another phm_dim, bottleneck_size or reduction_factor"
            )
        self.s = nn.Parameter(torch.randn(n, r, d_out // n))
        self.t = nn.Parameter(torch.randn(n, r, d_in // n) / math.sqrt(d_in * r))
        self.bias = nn.Parameter(torch.zeros(d_out))
        self._rule = (rule,)
        if owns_rule:
            self.rule = rule

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        """Return W x + b, (..., d_in) -> (..., d_out); ``frozen`` as in `Bottleneck.change`.

        With x and y written as matrices X: (n, d_in/n) and Y: (n, d_out/n), row by row,
        (A_i ⊗ s_i t_iᵀ) x is A_i X t_i s_iᵀ.
        """
        parameters = self._rule[0].A, self.s, self.t, self.bias
        A, s, t, bias = (ready(p, x, frozen) for p in parameters)
        X = x.unflatten(-1, (len(A), -1))  # (..., n, d_in/n)
        h = torch.einsum("...bq,irq->...irb", X, t)  # X t_i, for each i and each rank
        h = torch.einsum("iab,...irb->...ira", A, h)  # A_i X t_i
        Y = torch.einsum("...ira,irp->...ap", h, s)  # Σ_i A_i X t_i s_iᵀ: (..., n, d_out/n)
        return Y.flatten(-2) + bias
