"""The budget of AdaLoRA: which triplets of the model keep their λ (Zhang et al. 2023, section 3.2 and 3.3).

The form of the update is in `methods.adalora`; this is what happens to it during training.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.sites import deltas_of
from pedagogic_peft.core.verbs import adaptations_of, one_adaptation
from pedagogic_peft.methods.adalora import AdaLoRA, AdaLoRALinear


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

    Example:
        >>> from pedagogic_peft import AdaLoRA, AdaLoRABudget, attach, load_base, train
        >>> from pedagogic_peft.course.pocket import tasks
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> model = attach(model, AdaLoRA(init_r=4, target_r=2))
        >>> examples = tasks.encode(tokenizer, tasks.sentiment(8, seed=0))
        >>> budget = AdaLoRABudget(model, total_steps=4)
        >>> hooks = {"before_step": budget.before_step, "after_step": budget.after_step}
        >>> history = train(model, examples, steps=4, progress=False, **hooks)
        >>> sum(int(kept.sum()) for kept in budget.kept)  # of 4 * 4 triplets
        8
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
