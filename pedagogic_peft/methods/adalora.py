"""AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning (Zhang et al. 2023).

arXiv:2303.10512. The update has the form of a singular value decomposition, without its cost:

    h = W_0 x + s P Λ Q x,    P: d_out x r,  Λ = diag(λ),  Q: r x d_in    (section 3.1)

where a penalty keeps the columns of P and the rows of Q near orthonormal. A triplet is one λ_i with
its column and row. During training the least important triplets *of the whole model* lose their λ,
so that the ranks go where they are of use: `AdaLoRABudget`.

In checkpoints Q, λ and P are called lora_A, lora_E and lora_B.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import Delta
from pedagogic_peft.core.method import Method, Peft, field
from pedagogic_peft.core.sites import deltas_of
from pedagogic_peft.core.targets import Targets, sizes
from pedagogic_peft.core.verbs import adaptations_of, one_adaptation
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


class AdaLoRABudget:
    """Decides during training which triplets of the model keep their λ (section 3.2 and 3.3)::

        budget = AdaLoRABudget(model, total_steps=1000)
        train(model, examples, steps=1000, before_step=budget.before_step,
              after_step=budget.after_step)

    With the Trainer of transformers pass ``callbacks=[budget.callback()]`` instead.

    Args:
        model: a model with an `AdaLoRA`.
        total_steps: T, the optimiser steps of the training.
        name: which adaptation; None means the only active one.

    Attributes:
        kept: once the choice is final, for each target which triplets are kept: (init_r,) bool.
        step: the last step that was measured. What is measured is in no checkpoint of the Trainer, so
            a training cannot be resumed in the middle, and each needs a budget of its own.

    Raises:
        ValueError: no such adaptation, one of another method, or no step between tinit and tfinal.
    """

    def __init__(self, model: nn.Module, total_steps: int, name: str | None = None):
        name = one_adaptation(model, name)
        method = adaptations_of(model).methods[name]
        if not isinstance(method, AdaLoRA):
            raise ValueError(f"{name!r} is {type(method).__name__}: only AdaLoRA has a budget")
        good = validation.count("total_steps", total_steps) > (low := method.tinit + method.tfinal)
        validation.expect(good, "total_steps", total_steps, f"more than tinit + tfinal={low}")
        self.method, self.step = method, 0
        self.final = total_steps - method.tfinal  # the step of the final choice
        self.deltas = [d for d in deltas_of(model, name).values() if isinstance(d, AdaLoRALinear)]
        self.sensitivity: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}
        self.kept: list[Tensor] | None = None

    def budget(self, step: int) -> int:
        """Return how many triplets the model may keep after this step (the first is 1).

        From b_0 = init_r times the number of targets to b_T = target_r times it, with a cubic fall

            b(t) = b_T + (b_0 - b_T) (1 - (t - tinit) / (T - tinit - tfinal))³

        between tinit and T - tfinal, rounded down. (The paper's appendix prints t - tinit - tfinal
        in the numerator, which would not fall from b_0 to b_T; its code has this.)
        """
        method, n = self.method, len(self.deltas)
        progress = (step - method.tinit) / (self.final - method.tinit)
        left = (1 - min(max(progress, 0.0), 1.0)) ** 3
        return int((method.init_r - method.target_r) * n * left + method.target_r * n)

    def before_step(self, step: int) -> None:
        """Call after ``backward``: adds the penalty's gradient and measures the sensitivities.

        A weight's sensitivity is ``I = |w ∂L/∂w|``. Kept are Ī, its running mean with beta1, and Ū,
        the running mean of ``|I - Ī|`` with beta2.

        Raises:
            ValueError: this step does not follow the one that was measured last.
        """
        expected = f"{self.step + 1}: a budget measures one training, from the first step on"
        self.step = validation.expect(step == self.step + 1, "step", step, expected)
        self.add_penalty_gradient()
        for parameter in (p for delta in self.deltas for p in delta.parameters()):
            if parameter.grad is not None:
                # With fp16 a gradient may overflow; the optimiser skips that step.
                now = (parameter * parameter.grad).detach().abs().nan_to_num(0.0, 0.0)
                mean, spread = self.sensitivity.get(parameter, (0 * now, 0 * now))
                mean = mean.lerp(now, 1 - self.method.beta1)
                spread = spread.lerp((now - mean).abs(), 1 - self.method.beta2)
                self.sensitivity[parameter] = mean, spread

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Call after the optimiser's step: sets the λ of the triplets that are not kept to zero.

        Until the final choice a λ may come back: its P and Q are still trained.

        Raises:
            RuntimeError: `before_step` was not called.
        """
        kept, due = self.kept, step > self.method.tinit and step % self.method.deltaT == 0
        if kept is None and (due or step >= self.final):
            kept = self._most_important(self.budget(step))
        if step >= self.final:
            self.kept = kept  # for good
        for delta, mask in zip(self.deltas, kept or [], strict=False):
            delta.lora_E.masked_fill_(~mask[:, None], 0)

    def callback(self) -> Any:
        """Return a TrainerCallback of transformers that calls both (after clipping)."""
        return _callback(self)

    @torch.no_grad()
    def add_penalty_gradient(self) -> None:
        """Add the gradient of γ times the mean of ‖F Fᵀ - I‖ over all F = Q and F = Pᵀ: (r, d).

        ‖·‖ is the Frobenius norm, neither squared nor summed as in the paper's equation (4): so it
        is in its code and in PEFT, whose values of γ then serve here.
        """
        weight = self.method.orth_reg_weight / (2 * len(self.deltas))
        for delta in self.deltas:
            for P, transposed in ((delta.lora_A, False), (delta.lora_B, True)):
                if P.grad is not None:
                    rows, gradient = (P.T, P.grad.T) if transposed else (P, P.grad)
                    M = rows @ rows.T - torch.eye(len(rows), device=rows.device)
                    gradient += 2 * weight * (M / M.norm().clamp_min(1e-12)) @ rows

    def _most_important(self, budget: int) -> list[Tensor]:
        """Return for each target which of its triplets are among the model's best: (init_r,) bool.

        A triplet's importance is s(λ_i) plus the means of s over its column and its row, with
        s = Ī Ū of a weight.
        """
        if not self.sensitivity:
            raise RuntimeError("AdaLoRABudget: call before_step after each backward")

        def s(parameter: nn.Parameter) -> Tensor:
            mean, spread = self.sensitivity.get(parameter, (0 * parameter, 0 * parameter))
            return mean * spread

        triplets = ((d.lora_A, d.lora_E, d.lora_B) for d in self.deltas)
        # (number of targets * init_r,)
        scores = torch.cat([s(Q).mean(1) + s(E).sum(1) + s(P).mean(0) for Q, E, P in triplets])
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[scores.topk(budget).indices] = True
        return list(kept.split(self.method.init_r))


def _callback(budget: AdaLoRABudget) -> Any:
    from transformers import TrainerCallback

    class Budget(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            budget.before_step(state.global_step + 1)

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            budget.after_step(state.global_step + 1)

    return Budget()
