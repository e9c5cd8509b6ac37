"""Where an adaptation sits: a module of the model, its deltas, and how they are joined.

He et al. 2022 ("Towards a Unified View of Parameter-Efficient Transfer Learning", section 3)
describe every method by three choices: the *site* in the model, the *delta* computed there, and
the way the two are *joined*. `Site` is the first choice. A delta is any module that is called as
``delta(x, y)`` with the site's input and output and returns the new output, so its last line says
how it is joined.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass
class Adaptations:
    """What one model carries. All its sites share this object, so a switch is one assignment.

    Attributes:
        methods: the hyper-parameters (for example a `LoRA`) of each adaptation, by name.
        active: names of the adaptations that take part in the forward pass, in order.
        enabled: False inside ``with disabled(model)``.
        originals: while the active adaptations are merged into the base weights, the weights from
            before: {path of the site: its base's state dict}.
        found_trainable: the parameters that required a gradient before the first `attach`.
    """

    methods: dict[str, Any] = field(default_factory=dict)
    active: tuple[str, ...] = ()
    enabled: bool = True
    originals: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    found_trainable: list[nn.Parameter] = field(default_factory=list)

    @property
    def merged(self) -> bool:
        """Whether the active adaptations are part of the base weights now."""
        return bool(self.originals)

    @property
    def running(self) -> tuple[str, ...]:
        """Names of the adaptations a site has to compute now."""
        return self.active if self.enabled and not self.merged else ()


class Site(nn.Module):
    """A module of the model, frozen, together with the deltas attached to it.

    The site stands in the model where ``base`` stood. With no adaptation running it returns
    exactly what ``base`` returns. Attributes it does not have (``weight``, ``in_features``, ...)
    are those of ``base``, because model code reads them.

    Args:
        base: the module that is adapted.
        adaptations: the model's shared record of which adaptations are active.
    """

    def __init__(self, base: nn.Module, adaptations: Adaptations):
        super().__init__()
        self.base = base
        self.deltas = nn.ModuleDict()  # adaptation name -> delta
        self.adaptations = adaptations
        self.training = base.training

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """Run ``base`` on ``x``, then let each running adaptation change its output ``y``."""
        y = self.base(x, *args, **kwargs)
        for name in self.adaptations.running:
            if name in self.deltas:
                y = self.deltas[name](x, y, *args, **kwargs)
        return y

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):  # private marks of other libraries concern one module only
                raise
            return getattr(super().__getattr__("base"), name)


class TrainedCopy(nn.Module):
    """A delta that replaces: a copy of the module is trained in full and used in its place.

    This is what a new classification head needs (``modules_to_save``): each adaptation trains a
    head of its own and the original stays as it was. The copy keeps the dtype of the original.

    Args:
        module: the module to copy.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = copy.deepcopy(module).requires_grad_(True)

    def forward(self, x: Tensor, y: Tensor, *args, **kwargs) -> Tensor:
        return self.module(x, *args, **kwargs)

    def merge_into(self, base: nn.Module) -> None:
        base.load_state_dict(self.module.state_dict())


def sites(model: nn.Module) -> Iterator[tuple[str, Site]]:
    """Yield ``(path, site)`` for every site; paths are those of the original modules."""
    for path, module in outline(model).items():
        if isinstance(module, Site):
            yield path, module


def outline(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module by its dotted path, as if no site's inside existed.

    A module reachable by two paths appears once, under the first.
    """
    found: dict[str, nn.Module] = {}
    inside = None  # the path, with its dot, of the site we are in
    for path, module in model.named_modules():
        if inside is None or not path.startswith(inside):
            inside = path + "." if isinstance(module, Site) else None
            found[path] = module
    return found


def base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module by its dotted path, as if the model had no site."""
    return {p: m.base if isinstance(m, Site) else m for p, m in outline(model).items()}


def swap(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Replace modules wherever they stand in the model; ``new`` is ``{old module: new module}``."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() would hide repetitions
            if child in new:
                setattr(parent, name, new[child])
