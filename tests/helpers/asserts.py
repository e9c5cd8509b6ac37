"""Assertions about a model as a whole."""

import torch
from torch import nn


def snapshot(model: nn.Module) -> tuple:
    """Return everything `detach` promises to restore."""
    modules = [(path, id(module)) for path, module in model.named_modules()]
    flags = [(key, p.requires_grad, id(p)) for key, p in model.named_parameters()]
    values = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    return modules, flags, set(vars(model)), values


def assert_as_before(model: nn.Module, before: tuple):
    *marks, values = snapshot(model)
    assert tuple(marks) == before[:3]
    assert list(values) == list(before[3])
    assert all(torch.equal(values[key], before[3][key]) for key in values)
