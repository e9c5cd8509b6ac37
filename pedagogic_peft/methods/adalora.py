"""AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning (Zhang et al. 2023).

arXiv:2303.10512. The update has the form of a singular value decomposition, without its cost:

    h = W_0 x + s P Λ Q x,    P: d_out x r,  Λ = diag(λ),  Q: r x d_in    (section 3.1)

where a penalty keeps the columns of P and the rows of Q near orthonormal. A triplet is one λ_i with
its column and row. During training the least important triplets *of the whole model* lose their λ,
so that the ranks go where they are of use: `AdaLoRABudget`, in `training`.

In checkpoints Q, λ and P are called lora_A, lora_E and lora_B.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import Delta
from pedagogic_peft.core.method import Method, Peft, field
from pedagogic_peft.core.targets import Targets, sizes
from pedagogic_peft.methods.lora import LoRALinear


class AdaLoRA(Method):
    """The hyper-parameters of an AdaLoRA adaptation; names as in the paper's code and in PEFT.

    Attached alone it is a LoRA of rank ``init_r``; an `AdaLoRABudget` in the training loop brings
    the ranks down to ``target_r`` on average.

    Args:
        init_r: rank of each target at the start, at least ``target_r``.
        target_r: mean rank at the end, at least 1.
        alpha: α of the scaling s = α / init_r, which stays when triplets go.
        dropout: probability of zeroing an entry of the input of Q.
        target_modules: which linear maps, as in `LoRA`.
        modules_to_save: names of modules to train in full, such as a new classification head.
        tinit: steps at the start with the full budget.
        tfinal: steps at the end with the final budget and a fixed choice of triplets.
        deltaT: steps from one choice of triplets to the next.
        beta1: smoothing of the sensitivity, in (0, 1).
        beta2: smoothing of its uncertainty, in (0, 1).
        orth_reg_weight: γ, the weight of the penalty; at least 0.

    Raises:
        ValueError: a value is of the wrong type or out of range; the message names it.

    Example:
        >>> from pedagogic_peft import AdaLoRA, attach, count_parameters, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> print(count_parameters(attach(model, AdaLoRA(init_r=6, target_r=4))))
        trainable: 2,328 of 78,504 (2.97 %)
    """

    peft = Peft(
        "ADALORA",
        tensor="lora_E",
        keys={"alpha": "lora_alpha", "dropout": "lora_dropout"},
        defaults={"alpha": 8},
        # PEFT itself ignores r and use_rslora; rank_pattern says which triplets are not in the file.
        ignored="qalora_group_size r rank_pattern total_step use_rslora",
    )

    init_r: int = field(12, validation.count)
    target_r: int = field(8, validation.count)
    alpha: float = field(16, validation.positive)
    dropout: float = field(0.0, validation.probability)
    target_modules: Targets = field(None, validation.targets)
    tinit: int = field(0, validation.whole)
    tfinal: int = field(0, validation.whole)
    deltaT: int = field(1, validation.count)
    beta1: float = field(0.85, validation.probability)
    beta2: float = field(0.85, validation.probability)
    orth_reg_weight: float = field(0.5, validation.number)

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.whole("init_r", self.init_r, least=self.target_r)

    def delta(self, path: str, module: Any) -> Any:
        """Return the delta for one module."""
        return AdaLoRALinear(*sizes(module), self.init_r, self.alpha, self.dropout)


class AdaLoRALinear(Delta):
    """ΔW = s P Λ Q beside a linear map.

    P and Q start Gaussian with standard deviation 0.02 and λ at zero, so the model is unchanged.

    Args:
        d_in, d_out: sizes of the linear map's input and output.
        r, alpha, dropout: init_r, alpha and dropout of `AdaLoRA`.
    """

    def __init__(self, d_in: int, d_out: int, r: int, alpha: float, dropout: float = 0.0):
        super().__init__()
        self.lora_A = nn.Parameter(0.02 * torch.randn(r, d_in))  # Q
        self.lora_E = nn.Parameter(torch.zeros(r, 1))  # λ
        self.lora_B = nn.Parameter(0.02 * torch.randn(d_out, r))  # P
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.scaling = alpha / (r + 1e-5)  # as in the authors' code and PEFT

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y + s P Λ Q x, for x: (..., d_in) and y: (..., d_out)."""
        h = F.linear(self.dropout(x), (self.lora_A * self.lora_E).to(x.dtype))  # (..., r)
        return y + F.linear(self.scaling * h, self.lora_B.to(x.dtype))  # (..., r) -> (..., d_out)

    def delta_weight(self) -> Tensor:
        """Return ΔW: (d_out, d_in), in float32."""
        return self.scaling * (self.lora_B.float() @ (self.lora_A * self.lora_E).float())

    merge_into = LoRALinear.merge_into  # adds delta_weight()
