"""LoHa: a Hadamard product of two low-rank matrices (Hyeon-Woo et al. 2022, "FedPara",
arXiv:2108.06098), as a change of a weight in LyCORIS (Yeh et al. 2024, arXiv:2309.14859).

    h = W_0 x + (α / r) ((B_1 A_1) ⊙ (B_2 A_2)) x,    B_i: d_out x r,  A_i: r x d_in

⊙ multiplies entry by entry. The change has rank r² at most, with as many numbers as a LoRA of rank 2 r.
A_2 starts at zero, so the model is unchanged.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import Delta, Deltas
from pedagogic_peft.core.method import Method, Peft, field
from pedagogic_peft.core.sites import Modules, View
from pedagogic_peft.core.targets import Targets, sizes
from pedagogic_peft.methods.lora import LoRALinear, check_patterns, look_up


class Products(Method, abstract=True):
    """The hyper-parameters that LoHa and LoKr share: changes of a weight that are products.

    Hugging Face PEFT has both for linear maps and convolutions: here they are for linear maps, and for
    GPT-2's `Conv1D`, whose checkpoints PEFT cannot read.

    Args:
        r: the rank, at least 1.
        alpha: α, the numerator of the scaling α / r; greater than 0.
        target_modules: which linear maps, as in `LoRA`.
        rank_dropout: in training, the probability of leaving out an output of the change.
        module_dropout: in training, the probability of leaving out the change of a map.
        rank_pattern: ranks for some modules, {end of the path (a regular expression): r}.
        alpha_pattern: the same for α.
        modules_to_save: names of modules to train in full, such as a new classification head.

    Raises:
        ValueError: a value is of the wrong type or out of range; the message names it.
    """

    r: int = field(8, validation.count)
    alpha: float = field(8, validation.positive)
    target_modules: Targets = field(None, validation.targets)
    rank_dropout: float = field(0.0, validation.probability)
    module_dropout: float = field(0.0, validation.probability)
    rank_pattern: Mapping[str, int] = field({}, validation.pattern(validation.count))
    alpha_pattern: Mapping[str, float] = field({}, validation.pattern(validation.positive))

    def rank_and_alpha(self, path: str) -> tuple[int, float]:
        """Return r and α for the module at this path."""
        r, alpha = look_up(self.rank_pattern, path, self.r), self.alpha
        return r, look_up(self.alpha_pattern, path, alpha)

    def deltas(self, view: View, places: Modules) -> Deltas:
        """Return ``{path: delta}`` for the modules to adapt."""
        check_patterns(self, places)
        return super().deltas(view, places)


class LoHa(Products):
    """The hyper-parameters of a LoHa adaptation: those of `Products`, with Hugging Face PEFT's defaults.

    r is the rank of both B_1 A_1 and B_2 A_2. ΔW is formed in every forward pass, in training and
    unmerged inference: (d_out, d_in) numbers for each map.

    Example:
        >>> from pedagogic_peft import LoHa, attach, count_parameters, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> print(count_parameters(attach(model, LoHa(r=4))))
        trainable: 3,072 of 79,248 (3.88 %)
    """

    peft = Peft("LOHA", tensor="hada_w1_a", ignored="init_weights use_effective_conv2d")

    def delta(self, path: str, module: Any) -> nn.Module:
        """Return the delta for one module."""
        r, alpha = self.rank_and_alpha(path)
        dropout = OutputDropout(self.rank_dropout, self.module_dropout)
        return LoHaLinear(*sizes(module), r, alpha, dropout)


class LoHaLinear(Delta):
    """ΔW = (α / r) (B_1 A_1) ⊙ (B_2 A_2) beside a linear map.

    In checkpoints B_1, A_1, B_2, A_2 are hada_w1_a, hada_w1_b, hada_w2_a, hada_w2_b.

    Args:
        d_in, d_out: sizes of the linear map's input and output.
        r, alpha: as in `LoHa`.
        dropout: of the outputs of the change.
    """

    def __init__(self, d_in: int, d_out: int, r: int, alpha: float, dropout: nn.Module):
        super().__init__()
        self.hada_w1_a = start(d_out, r)  # B_1
        self.hada_w1_b = start(r, d_in)  # A_1
        self.hada_w2_a = start(d_out, r)  # B_2
        self.hada_w2_b = nn.Parameter(torch.zeros(r, d_in))  # A_2
        self.scaling, self.dropout = alpha / r, dropout

    def delta_weight(self) -> Tensor:
        """Return ΔW: (d_out, d_in), in float32."""
        one, two = self.hada_w1_a @ self.hada_w1_b, self.hada_w2_a @ self.hada_w2_b
        return self.scaling * (one.float() * two.float())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y + ΔW x, for x: (..., d_in) and y: (..., d_out)."""
        change: Tensor = self.dropout(F.linear(x, self.delta_weight().to(x.dtype)))
        return y + change

    merge_into = LoRALinear.merge_into  # adds delta_weight()


def start(*shape: int) -> nn.Parameter:
    """Return a factor as it starts, uniform in ±1/√columns, as LoRA's A and as in PEFT."""
    return nn.Parameter(nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5)))


class OutputDropout(nn.Module):
    """In training, leaves out some outputs of a change, or the whole of it; one draw for a batch.

    Args:
        some, whole: `rank_dropout` and `module_dropout`, as in `Products`.
        rescale: whether the outputs that are kept grow, so that the mean of all keeps its size.
    """

    def __init__(self, some: float, whole: float, rescale: bool = True):
        super().__init__()
        self.some, self.whole, self.rescale = some, whole, rescale

    def forward(self, change: Tensor) -> Tensor:
        """Return the change: (..., d_out), or what is left of it."""
        if not self.training or not (self.some or self.whole):
            return change
        d_out = change.shape[-1]
        kept = (torch.rand(d_out, device=change.device) >= self.some).to(change.dtype)
        if self.rescale:
            kept = kept / kept.mean().clamp(min=1 / d_out)  # all may be left out
        return change * kept * (torch.rand(1, device=change.device) >= self.whole)
