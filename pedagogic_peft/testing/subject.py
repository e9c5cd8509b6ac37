"""What a check looks at: a method on a small model of one architecture."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pedagogic_peft.core.method import Method
from pedagogic_peft.core.verbs import attach
from pedagogic_peft.testing.models import build, randomise

EXACT, NEAR, FREE = "exact", "near", "free"  # how the start compares with the frozen model
NAME = "default"  # of the adaptation that is looked at


@dataclass(frozen=True)
class Subject:
    """A method on an architecture.

    Attributes:
        method: the hyper-parameters.
        architecture: the name of a model of `pedagogic_peft.testing.models`.
        start: what the method promises of its start, as in `check_method`.
        prepare: gives the model what the method needs there, as in `check_method`.
    """

    method: Method
    architecture: str
    start: str = EXACT
    prepare: Callable[[Any], object] | None = None

    def bare(self, layers: int = 2) -> Any:
        """Return a fresh model without the method; always the same."""
        model = build(self.architecture, layers)
        if self.prepare:
            torch.manual_seed(4)
            self.prepare(model)
        return model

    def fresh(self, layers: int = 2) -> Any:
        """Return a model with the method attached and untrained; always the same."""
        model = self.bare(layers)
        torch.manual_seed(5)
        return attach(model, self.method, NAME)

    def trained(self, layers: int = 2) -> Any:
        """Return a model with the method attached and random values in what it trains.

        One layer is enough, and cheaper, where what is promised does not depend on their number.
        """
        model = self.fresh(layers)
        randomise(model, among=f".deltas.{NAME}.")
        return model


def own(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of the adaptation that is looked at, frozen ones too."""
    return {n: p for n, p in model.named_parameters() if f".deltas.{NAME}." in f".{n}"}


def snapshot(model: nn.Module) -> tuple[Any, ...]:
    """Return everything that `detach` promises to restore: see `differences`."""
    modules = [(path, id(module)) for path, module in model.named_modules()]
    flags = [(key, p.requires_grad, id(p)) for key, p in model.named_parameters()]
    values: dict[str, Tensor] = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    hooks = [p for p, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return modules, flags, hooks, sorted(vars(model)), attention, values


def differences(before: tuple[Any, ...], after: tuple[Any, ...]) -> list[str]:
    """Return, in words, what is not as it was."""
    what = ("modules", "requires_grad", "hooks", "attributes of the model", "attention function")
    found = [name for name, a, b in zip(what, before, after, strict=False) if a != b]
    old, new = before[-1], after[-1]
    if list(old) != list(new):
        return [*found, "names of tensors"]
    return found + [key for key in old if not torch.equal(old[key], new[key])]
