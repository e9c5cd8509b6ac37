"""How many parameters a model has and how many of them are trained."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters: those that require a gradient, and all."""

    trainable: int
    total: int

    @property
    def percent(self) -> float:
        """Share of the trainable ones, in per cent."""
        return 100 * self.trainable / max(self.total, 1)

    def __str__(self) -> str:
        return f"trainable: {self.trainable:,} of {self.total:,} ({self.percent:.2f} %)"


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the model's parameters, each piece of memory once (tied weights are one).

    "Trainable" are all parameters with ``requires_grad``, so those of every attached adaptation,
    active or not; "total" includes what the adaptations added.

    Args:
        model: any module.
    """
    parameters = {memory_of(p): p for p in model.parameters()}.values()
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    # A byte of an NF4 weight holds two parameters.
    total = sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in parameters)
    return ParameterCount(trainable, total)


def model_bytes(model: nn.Module) -> int:
    """Return how many bytes the model's parameters and buffers take, each piece of memory once.

    Args:
        model: any module.
    """
    tensors = [*model.parameters(), *model.buffers()]
    return sum({memory_of(tensor): tensor.nbytes for tensor in tensors}.values())


def memory_of(parameter: Tensor) -> int:
    """Return a key that tied parameters share: their address, where there is one."""
    return parameter.data_ptr() or id(parameter)  # 0 on the meta device
