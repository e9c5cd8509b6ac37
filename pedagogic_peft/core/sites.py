"""Where an adaptation sits: a module of the model, its deltas, and how they are joined.

He et al. 2022 ("Towards a Unified View of Parameter-Efficient Transfer Learning", section 3)
describe every method by three choices: the *site* in the model, the *delta* computed there, and
the way the two are *joined*. A place holds the deltas of one module, one for each adaptation; what a
delta may do there is the contract of `Delta`:

* A `Site` takes the module's seat. Its deltas read the module's input and change its output.
* `Hooks` stand beside a module that keeps its seat, for what concerns a whole attention or a whole
  backbone. Their deltas change the module's arguments and what it returns.
"""

import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pedagogic_peft.core import serving, validation
from pedagogic_peft.core.delta import (
    BATCHED,
    FUSED,
    Args,
    Delta,
    Kwargs,
    TrainedCopy,
    begin,
    blank,
)
from pedagogic_peft.core.reading import takes_value

Modules = dict[str, nn.Module]  # {path: module}
Model = TypeVar("Model", bound=nn.Module)  # a verb returns the model, of the type it was given


@dataclass
class Adaptations:
    """What one model carries. All its places share this object, so a switch is one assignment.

    Attributes:
        methods: the hyper-parameters (for example a `LoRA`) of each adaptation, by name.
        active: names of the adaptations that take part in the forward pass, in order.
        rows: the adaptation of each row of a batch (None: the frozen model), instead of ``active``.
        made: what the sites have made to serve these rows, by site.
        not_per_row: names of the adaptations that can't be named in ``rows``: those beside a module
            whose deltas are not in `BATCHED`, and those where the rows of a batch are not in order.
        enabled: False inside ``with disabled(model)``.
        dropped_layers: how many of the lowest layers run without deltas (AdapterDrop).
        originals: while the active adaptations are merged into the base weights, the weights from
            before: {path of the site: its base's state dict}.
        found_trainable: the parameters that required a gradient before the first `attach`.
        found_attention: the attention implementation from before a prefix took it over.
        unanswered: in the forward passes of each thread, the sites that were asked for their weight,
            and have not been called since: ``{(thread, site)}``.
        handles: of the hooks by which the record knows where a forward pass begins and ends.
    """

    methods: dict[str, Any] = field(default_factory=dict)
    active: tuple[str, ...] = ()
    rows: tuple[str | None, ...] = ()
    made: dict[Any, Any] = field(default_factory=dict)
    not_per_row: set[str] = field(default_factory=set)
    enabled: bool = True
    dropped_layers: int = 0
    originals: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    found_trainable: list[nn.Parameter] = field(default_factory=list)
    found_attention: str | None = None
    unanswered: set[tuple[int, nn.Module]] = field(default_factory=set)
    handles: list[Any] = field(default_factory=list)

    def watch(self, model: nn.Module) -> None:
        """Warn after a forward pass of the model that passed an adaptation over."""
        beginning = model.register_forward_pre_hook(self.begin)
        self.handles = [beginning, model.register_forward_hook(self.end)]

    def begin(self, model: nn.Module, args: Args) -> None:
        """Forget what this thread asked for before the forward pass."""
        self.take_unanswered()

    def end(self, model: nn.Module, args: Args, output: Any) -> None:
        """Warn of the sites whose weight was taken, and that were not called then."""
        if found := self.take_unanswered():
            paths = [path for path, place in sites(model) if place in found]
            what = f"The model computed with the weight of {paths[:3]} itself, not with the module"
            validation.warn(f"{what}: there the adaptation had no effect")

    def ask(self, site: "Site") -> None:
        """Note that the function which called the caller reads the weight of a site."""
        if torch.compiler.is_compiling():
            return
        reader = sys._getframe(2)
        running = self.rows if site.computed and self.rows else site.running()
        if running and takes_value(reader.f_code, reader.f_lasti):
            self.unanswered.add((get_ident(), site))

    def take_unanswered(self) -> set[nn.Module]:
        """Remove this thread's sites from `unanswered`, and return them."""
        own = {entry for entry in self.unanswered.copy() if entry[0] == get_ident()}
        self.unanswered -= own
        return {site for _, site in own}

    def serve(self, rows: Sequence[str | None]) -> None:
        """Set ``rows``, and forget what was made for those before."""
        self.rows, self.made = tuple(rows), {}

    def __getstate__(self) -> dict[str, Any]:  # a copy of the model makes its own
        return vars(self) | {"made": {}}


class Place(nn.Module):
    """The deltas at one module of the model.

    Args:
        adaptations: the model's shared record of which adaptations are active.
        layer: number of the layer the module is in, counted from 0; None outside of the layers.
    """

    adaptations: Adaptations
    layer: int | None
    deltas: nn.ModuleDict

    def __init__(self, adaptations: Adaptations, layer: int | None):
        begin(self)
        vars(self).update(adaptations=adaptations, layer=layer)  # past torch's slow assignment
        self._modules["deltas"] = blank(nn.ModuleDict)  # adaptation name -> delta

    @property
    def computed(self) -> bool:
        """Whether there is anything to compute now; there is not while it is part of the weights."""
        record = self.adaptations
        if record.dropped_layers and self.layer is not None and self.layer < record.dropped_layers:
            return False
        return record.enabled and not record.originals

    def running(self) -> list[Any]:
        """Return the deltas that take part in the forward pass now, in order."""
        deltas: Any = self._modules["deltas"]  # past torch's slow look-up, as it is at every token
        names = self.adaptations.active if self.computed else ()
        return [deltas._modules[name] for name in names if name in deltas._modules]


class Transparent(Place):
    """The tensors of its ``base`` keep their own names, as if that had its seat.

    These are the names in state dicts, and of `named_parameters`: some tools compare the two.
    """

    base: nn.Module

    def named_modules(
        self, memo: Any = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[Any]:
        """Yield the modules, ``base`` and what is in it by the names that it had."""
        inner = f"{prefix}.base".lstrip(".")
        for path, module in super().named_modules(memo, prefix, remove_duplicate):
            hidden = path == inner or path.startswith(inner + ".")
            yield (prefix + path.removeprefix(inner)).lstrip(".") if hidden else path, module

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> Any:
        """Return the tensors of ``base`` by its own names, and the deltas'."""
        found = super().state_dict(*args, prefix=prefix, **kwargs)
        for key in [key for key in found if key.startswith(f"{prefix}base.")]:
            found[prefix + key.removeprefix(f"{prefix}base.")] = found.pop(key)
        return found

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        own = self.base.state_dict().keys()  # older files have the names with "base."
        for key in [key for key in state_dict if key.removeprefix(prefix) in own]:
            state_dict[f"{prefix}base.{key.removeprefix(prefix)}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Site(Transparent):
    """A module of the model, frozen, together with the deltas attached to it.

    The site stands in the model where ``base`` stood. With no adaptation running it returns
    exactly what ``base`` returns. Attributes it does not have (``weight``, ``in_features``, ...)
    are those of ``base``, because model code reads them.

    Args:
        base: the module that is adapted.
        adaptations, layer: as in `Place`.
    """

    def __init__(self, base: nn.Module, adaptations: Adaptations, layer: int | None = None):
        super().__init__(adaptations, layer)
        self._modules["base"] = base
        vars(self).update(training=base.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run ``base`` on its first argument ``x``, then let each adaptation change its output ``y``."""
        record = self.adaptations
        if record.unanswered:
            record.unanswered.discard((get_ident(), self))
        # First what a model that writes token by token asks for, in few steps of Python: one plain delta.
        special = record.rows or record.originals or record.dropped_layers or not record.enabled
        special = special or kwargs or torch.is_grad_enabled()
        if not special and len(args) == len(record.active) == 1:
            delta: Any = self._modules["deltas"]._modules.get(record.active[0])  # type: ignore[union-attr]
            if type(delta) in FUSED:
                return FUSED[type(delta)](delta, self._modules["base"], *args)  # type: ignore[arg-type]
        x, *more = args or [kwargs.pop(next(iter(kwargs)))]  # an attention gets all of them by name
        rows = record.rows
        if rows and self.computed and not set(rows).isdisjoint(self.deltas):
            if more or kwargs:  # which part of a mask is for which row is not known here
                raise TypeError(f"rows: {type(self.base).__name__} has more than one input")
            return serving.forward_rows(self, rows, x)
        deltas = self.running()
        if deltas and all(isinstance(delta, TrainedCopy) for delta in deltas):
            return deltas[-1](x, None, *more, **kwargs)  # an attention would fill the cache twice
        return self.forward_with(deltas, x, *more, **kwargs)

    def forward_with(self, deltas: Sequence[Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run ``base`` on ``x`` with these deltas."""
        base = self.base
        for delta in deltas:
            if isinstance(delta, Delta):  # a plain module has only delta(x, y)
                base, x = delta.stand_in(base), delta.before(x)
        y = base(x, *args, **kwargs)
        for delta in deltas:
            y = delta(x, y, *args, **kwargs)
        return y

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):  # private marks of other libraries concern one module only
                raise
            if name == "weight":
                self.adaptations.ask(self)
            return getattr(super().__getattr__("base"), name)


class Hooks(Place):
    """Deltas beside a module that keeps its seat; hooks let them change its inputs and outputs.

    They are the module's child ``hooks``, so that the deltas' parameters are the model's.

    Args:
        module: the module, for example the backbone or one attention.
        adaptations, layer: as in `Place`.
    """

    def __init__(self, module: nn.Module, adaptations: Adaptations, layer: int | None = None):
        super().__init__(adaptations, layer)
        self.training = module.training
        # Plain functions: a replica of the module, on another device, has hooks of its own.
        entering = module.register_forward_pre_hook(_enter, with_kwargs=True)
        self.handles = [entering, module.register_forward_hook(_leave)]
        module.hooks = self

    def running(self) -> list[Any]:
        """As in any place; for rows of different adaptations, what serves all of them, by kinds."""
        deltas: dict[Any, Any] = dict(self.deltas.items())
        rows = [deltas.get(name) for name in self.adaptations.rows]
        how = [BATCHED[type(delta)].serve if delta is not None else None for delta in rows]
        if not any(how) or not self.computed:
            return super().running()
        kinds = [serve for serve in dict.fromkeys(how) if serve]
        pairs = list(zip(rows, how, strict=True))
        return [kind([delta if own is kind else None for delta, own in pairs]) for kind in kinds]

    def enter(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Let each running delta change the arguments of the module."""
        for delta in self.running():
            args, kwargs = delta.enter(module, args, kwargs)
        return args, kwargs

    def leave(self, module: nn.Module, output: Any) -> Any:
        """Let each running delta change the output of the module, in reverse order."""
        for delta in reversed(self.running()):
            output = delta.leave(module, output)
        return output

    def remove(self, module: nn.Module) -> None:
        """Take the hooks off the module."""
        for handle in self.handles:
            handle.remove()
        del module.hooks


def _enter(module: Any, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    return module.hooks.enter(module, args, kwargs)  # type: ignore[no-any-return]


def _leave(module: Any, args: Args, output: Any) -> Any:
    return module.hooks.leave(module, output)


class View:
    """A model's modules by their dotted paths, as if nothing were attached: one walk through it.

    A verb makes one view and hands it on to all that look for modules. It holds until modules are
    replaced.

    Args:
        model: any module, with adaptations or without.

    Attributes:
        model: the same.
        seats: {path: the module that stands there}, a `Site` where there is one.
        modules: {path: module}, with its base in the place of a site.
    """

    def __init__(self, model: nn.Module):
        self.model, self.seats = model, walk(model)
        bases = (seat.base if isinstance(seat, Site) else seat for seat in self.seats.values())
        self.modules: Modules = dict(zip(self.seats, bases, strict=True))

    @classmethod
    def of(cls, model: "Viewed") -> "View":
        """Return the view of a model, or the view that is given."""
        return model if isinstance(model, View) else View(model)


Viewed = nn.Module | View


def walk(model: nn.Module) -> Modules:
    """Return every module by its dotted path, as if there were no hooks, and nothing in a site.

    A module reachable by two paths appears once, under the first. What is attached is not walked
    through, so this takes no longer with fifty adaptations than with one.
    """
    found: Modules = {}
    seen: set[nn.Module] = set()

    def visit(prefix: str, name: str, module: nn.Module | None) -> None:
        if module is None or module in seen or isinstance(module, Hooks):
            return
        seen.add(module)
        found[prefix + name] = module
        for child_name, child in () if isinstance(module, Site) else module._modules.items():
            visit(f"{prefix}{name}." if name else "", child_name, child)

    visit("", "", model)
    return found


def sites(model: Viewed) -> Iterator[tuple[str, Place]]:
    """Yield ``(path, place)`` of every site and all hooks; paths are those of the original modules."""
    for path, module in View.of(model).seats.items():
        if isinstance(module, Site):
            yield path, module
        elif isinstance(hooks := module._modules.get("hooks"), Hooks):
            yield path, hooks


def deltas_of(model: Viewed, name: str) -> Modules:
    """Return ``{path: delta}`` of one adaptation."""
    return {path: place.deltas[name] for path, place in sites(model) if name in place.deltas}


def layer_of(path: str) -> int | None:
    """Return the number of the layer a module is in: the first number of its path."""
    match = re.search(r"(?:^|\.)(\d+)(?:\.|$)", path)
    return int(match[1]) if match else None


def replace_modules(view: View, new: Mapping[nn.Module, nn.Module]) -> None:
    """Replace modules wherever they stand in the model; ``new`` is ``{old module: new module}``."""
    for parent in view.seats.values():
        for name, child in parent._modules.items():
            if child is not None and child in new:
                parent._modules[name] = new[child]


def by_name(module: nn.Module, args: Args, kwargs: Kwargs) -> Kwargs:
    """Return all arguments of the module's forward by name."""
    return dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
