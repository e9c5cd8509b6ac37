"""LN tuning: train the normalisations and nothing else (Qi et al. 2022, arXiv:2211.08682; Zhao et al.
2023, arXiv:2312.11420, for models that read images too).

A normalisation scales each entry of a normalised state by a trained number and adds another:

    y = γ ⊙ (x - mean(x)) / √(var(x) + ε) + β

(RMSNorm takes no mean, has no β, and divides by the root of the mean square.) The delta trains γ and β
as γ' and β', and adds what that changes. They start as γ and β, so the model is unchanged.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import Delta
from pedagogic_peft.core.method import Method, Peft, field
from pedagogic_peft.core.sites import Modules, View
from pedagogic_peft.core.targets import Targets, backbone, find_targets, only_selects


class LNTuning(Method):
    """The hyper-parameters of LN tuning.

    Args:
        target_modules: which normalisations, as in `LoRA`; None: all of the backbone, without those of
            routers and indexers, which get hardly a gradient, or none. (Hugging Face PEFT has a list
            for each architecture; for Qwen it leaves out the first of each layer.)
        modules_to_save: names of modules to train in full, such as a new classification head.

    Raises:
        ValueError: a value is of the wrong type; the message names it.

    Example:
        >>> from pedagogic_peft import LNTuning, attach, count_parameters, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> print(count_parameters(attach(model, LNTuning())))
        trainable: 240 of 76,656 (0.31 %)
    """

    peft = Peft("LN_TUNING", tensor=r"ln_tuning_layers\.weight")

    target_modules: Targets = field(None, validation.targets)

    @staticmethod
    def can_adapt(module: nn.Module) -> bool:
        """Tell whether this is a normalisation with a weight, and without statistics of its own.

        By name, because transformers has a class of its own for RMSNorm in each architecture.
        """
        plain = not any(True for _ in module.children()) and not any(True for _ in module.buffers())
        named = "norm" in type(module).__name__.lower()
        return named and plain and isinstance(getattr(module, "weight", None), nn.Parameter)

    def targets(self, view: View, without: Iterable[str]) -> Modules:
        """Return ``{path: module}`` of the normalisations.

        Raises:
            ValueError: there is none.
        """
        if self.target_modules is not None:
            return super().targets(view, without)
        inner = backbone(view)
        named = {p: m for p, m in view.modules.items() if m in inner and self.can_adapt(m)}
        own = {module for path, module in named.items() if not only_selects(view, path)}
        if not own:
            kind = type(view.model).__name__
            what = "no normalisation with a weight, which LN tuning would train"
            raise ValueError(f"{kind} has {what}")
        return find_targets(view, ".*", own.__contains__, without)

    def delta(self, path: str, module: Any) -> nn.Module:
        """Return the delta for one module."""
        return NormDelta(module)


class NormDelta(Delta):
    """y + N'(x) - N(x) beside a normalisation N, where N' has γ' and β' in place of γ and β.

    Adding the difference, instead of replacing y, leaves room for others at the same module (BitFit,
    a second LN tuning). It is computed in float32.

    Args:
        norm: N.
    """

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.ln_tuning_layers = copy.deepcopy(norm).requires_grad_(True)  # N'
        self.start: Any = copy.deepcopy(norm).requires_grad_(False)  # N

    def forward(self, x: Tensor, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return y + N'(x) - N(x), for x and y of one shape: (..., d)."""
        x = x.to(self.start.weight.dtype)
        change: Tensor = self.ln_tuning_layers(x, *args, **kwargs) - self.start(x, *args, **kwargs)
        return (y + change).to(y.dtype)

    def to_checkpoint(self) -> dict[str, Tensor]:
        """Return γ' and β'."""
        tensors = self.ln_tuning_layers.state_dict()
        return {f"ln_tuning_layers.{key}": tensor for key, tensor in tensors.items()}

    @torch.no_grad()
    def merge_into(self, base: nn.Module) -> None:
        """Add γ' - γ and β' - β to the base's: summed in float32 (at least), then rounded once."""
        pairs = zip(self.ln_tuning_layers.parameters(), self.start.parameters(), strict=True)
        for own, (new, old) in zip(base.parameters(), pairs, strict=True):
            own.copy_(own + (new - old))
