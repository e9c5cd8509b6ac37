"""How many parameters a model has and how many of them are trained."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pedagogic_peft.core.sites import Site, View
from pedagogic_peft.core.targets import fused_experts


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters: those that require a gradient, and all.

    ``frozen_experts`` are those of a mixture's experts that are neither trained nor adapted. Experts
    that are parameters and no linear maps are in no `target_modules`; see `LoRA`.
    """

    trainable: int
    total: int
    frozen_experts: int = 0

    @property
    def percent(self) -> float:
        """Share of the trainable ones, in per cent."""
        return 100 * self.trainable / max(self.total, 1)

    def __str__(self) -> str:
        text = f"trainable: {self.trainable:,} of {self.total:,} ({self.percent:.2f} %)"
        return text + bool(n := self.frozen_experts) * f"; experts that stay frozen: {n:,}"


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the model's parameters, each piece of memory once (tied weights are one).

    "Trainable" are all parameters with ``requires_grad``, so those of every attached adaptation,
    active or not; "total" includes what the adaptations added.

    Args:
        model: any module.

    Example:
        >>> from pedagogic_peft import count_parameters, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> print(count_parameters(model.requires_grad_(False)))
        trainable: 0 of 76,176 (0.00 %)
    """
    parameters = {memory_of(p): p for p in model.parameters()}.values()
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    # A byte of an NF4 weight holds two parameters.
    total = sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in parameters)
    view = View(model)
    adapted = [path for path, seat in view.seats.items() if isinstance(seat, Site)]
    frozen = [p for p in fused_experts(view, adapted).values() if not p.requires_grad]
    return ParameterCount(trainable, total, sum(p.numel() for p in frozen))


def model_bytes(model: nn.Module) -> int:
    """Return how many bytes the model's parameters and buffers take, each piece of memory once.

    Args:
        model: any module.

    Example:
        >>> from pedagogic_peft import load_base, model_bytes
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> model_bytes(model) >= 4 * 76_176  # float32
        True
    """
    tensors = [*model.parameters(), *model.buffers()]
    return sum({memory_of(tensor): tensor.nbytes for tensor in tensors}.values())


def memory_of(parameter: Tensor) -> int:
    """Return a key that tied parameters share: their address, where there is one."""
    return parameter.data_ptr() or id(parameter)  # 0 on the meta device
