"""What all methods share: hyper-parameters that check themselves, and the deltas for one model.

A method is a frozen dataclass of hyper-parameters. It defines which modules it can adapt (`can_adapt`),
what it puts there (`delta`), and what its checkpoints are called (`peft`)::

    class Scale(Method):
        peft = Peft("SCALE")
        target_modules: Targets = field(None, validation.targets)

        def delta(self, path, module):
            return ScaleDelta(module.out_features)  # a `Delta`

The rest is here, and in `files`, which alone knows what a file holds.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, cast, dataclass_transform

import torch
from torch import nn

from pedagogic_peft.core import targets, validation
from pedagogic_peft.core.delta import Delta, Deltas, TrainedCopy, overrides
from pedagogic_peft.core.sites import Modules, View
from pedagogic_peft.core.targets import Names, Targets

# The hyper-parameters that choose among the targets of any method.
SELECTION = ("exclude_modules", "layers_to_transform", "layers_pattern")


@dataclasses.dataclass(frozen=True)
class Peft:
    """What a method's checkpoints are called: all that a method says of files.

    Attributes:
        type: the method's name in checkpoints, PEFT's own if PEFT has the method.
        tensor: the name, as a regular expression, of a tensor that each delta has in PEFT's
            checkpoints; "" if PEFT does not have the method.
        flag: a key of the configuration; if it is on, a checkpoint of this type belongs to this class
            (DoRA's ``use_dora``, in one of LoRA's).
        keys: {hyper-parameter: its key in the configuration}, where the two differ.
        defaults: {hyper-parameter: PEFT's default}, where it differs from ours.
        unsaved: hyper-parameters that a checkpoint does not hold, with spaces between.
        ignored: keys of PEFT's configuration that mean nothing for a trained adapter, likewise.
    """

    type: str
    tensor: str = ""
    flag: str = ""
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unsaved: str = ""
    ignored: str = ""


def field(default: Any, check: validation.Check) -> Any:
    """Declare a hyper-parameter.

    Args:
        default: if it is None, the value may be None.
        check: a check of `validation`; returns the value to keep.
    """
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata={"check": check})
    return dataclasses.field(default=default, metadata={"check": check})


def _layers(what: str, value: Any) -> tuple[int, ...]:
    """Return the numbers of layers as a tuple; one number is a layer too, as in PEFT."""
    return validation.layers(what, [value] if isinstance(value, int) else value)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
@dataclasses.dataclass(frozen=True)
class Method:
    """The hyper-parameters of a method. Each class derived from this one is a frozen dataclass.

    A class with `peft` of its own is known to `load`; the newest definition counts, so the cell of a
    notebook that defines one can be corrected and run again. A class that only inherits `peft` can be
    attached and trained, but not saved. One that other methods are to be derived from, and that has
    no meaning by itself, is defined as ``class Common(Method, abstract=True)``.

    Args:
        modules_to_save: names of modules to train in full, such as a new classification head.
        exclude_modules: which of the targets to leave out: names, or a regular expression for the whole
            path, of the targets themselves. This and the next two are for every method that has
            `target_modules`, given or not, and mean what they mean in PEFT.
        layers_to_transform: the layers whose targets are adapted, a number or several, counted from 0:
            the first number of a target's path. Targets outside of the layers are left out.
        layers_pattern: the name before that number, or several (regular expressions), where a path has
            other numbers before it; only with `layers_to_transform`.

    Attributes:
        peft: what its checkpoints are called.
        delta: ``delta(path, module)`` returns the delta for one module; or define `deltas` instead.
        KINDS: every class with a `peft` of its own, by its type and flag.

    Raises:
        TypeError: when a class is defined without `peft` or without `delta`, with a hyper-parameter that
            is not declared with `field`, or with the name of a method of the library in `peft`.
    """

    peft: ClassVar[Peft]
    delta: ClassVar[Callable[..., nn.Module]]
    KINDS: ClassVar[dict[tuple[str, str], type["Method"]]] = {}

    target_modules = cast(Targets, None)  # no field: a method that has targets declares it
    modules_to_save: Names = dataclasses.field(
        default=(), kw_only=True, metadata={"check": validation.names}
    )
    exclude_modules: Targets = dataclasses.field(
        default=None, kw_only=True, metadata={"check": validation.targets}
    )
    layers_to_transform: Sequence[int] | None = dataclasses.field(
        default=None, kw_only=True, metadata={"check": _layers}
    )
    layers_pattern: Targets = dataclasses.field(
        default=None, kw_only=True, metadata={"check": validation.targets}
    )

    def __init_subclass__(cls, abstract: bool = False) -> None:
        dataclasses.dataclass(frozen=True)(cls)
        if not abstract:
            _check_definition(cls)
        if "peft" in vars(cls):
            cls.KINDS[cls.peft.type, cls.peft.flag] = cls

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if value is not None or f.default is not None:
                object.__setattr__(self, f.name, f.metadata["check"](f.name, value))
        for name in SELECTION:
            value, alone = getattr(self, name), "target_modules" not in self.__dataclass_fields__
            if value and (alone or self.layers_to_transform is None and name == "layers_pattern"):
                needed = "target_modules" if alone else "layers_to_transform"
                raise ValueError(f"{name}={value!r}: {type(self).__name__} needs {needed} for that")

    @staticmethod
    def can_adapt(module: nn.Module) -> bool:
        """Tell whether the method has a meaning at this module."""
        return targets.is_linear(module)

    def targets(self, view: View, without: Iterable[str]) -> Modules:
        """Return ``{path: module}`` of the modules to adapt, none of them inside ``without``.

        Raises:
            ValueError: a name matches nothing, or nothing the method can adapt.
        """
        return targets.find_targets(view, self.target_modules, self.can_adapt, without)

    def select(self, view: View, found: Modules) -> Modules:
        """Return the targets that `exclude_modules` and `layers_to_transform` leave.

        Raises:
            ValueError: a name or the number of a layer means nothing, or no target is left.
        """
        excluded, layers = self.exclude_modules, self.layers_to_transform
        out: set[str] = set()
        if excluded:
            own, every = self.target_modules or (), view.modules
            known = {
                p: m for p, m in every.items() if self.can_adapt(m) or targets.is_named(own, p)
            }
            out |= targets.match(view, every, known | found, excluded).keys()
        if layers:
            out |= targets.outside(layers, self.layers_pattern, found)
        if out and out >= found.keys():
            what = f"exclude_modules={excluded!r}, layers_to_transform={layers}"
            raise ValueError(f"{what}: no target is left of {list(found)}")
        return {path: module for path, module in found.items() if path not in out}

    def deltas(self, view: View, places: Modules) -> Deltas:
        """Return ``{path: delta}`` for the modules to adapt."""
        return {path: self.delta(path, module) for path, module in places.items()}

    def plan(self, view: View) -> Deltas:
        """Return ``{path: delta}`` as they start, for this model, which is not changed.

        Raises:
            ValueError: a name matches nothing, or nothing the method can adapt.
        """
        deltas = self.build(view)
        for path, delta in deltas.items():
            if overrides(delta, Delta.init_from_base):
                base = view.modules[path]
                check_there(path, device_of(base), base.parameters())
                cast(Delta, delta).init_from_base(base)
        return deltas

    def build(self, view: View) -> Deltas:
        """Return ``{path: delta}``, before a start that depends on the model, or a checkpoint.

        Raises:
            ValueError: as `plan`; a module trained in full has a delta inside.
        """
        saved = targets.find_modules(view, self.modules_to_save)
        found = self.targets(view, saved)
        places = self.select(view, found)
        targets.refuse_ignored(view, places)
        targets.warn_of_left_out(view, self, found, saved)
        deltas = self.deltas(view, places)
        if lost := [path for path in deltas if targets.inside(path, saved)]:
            raise ValueError(f"modules_to_save: adapters sit at {lost}: name others")
        for path, delta in deltas.items():
            device, held = device_of(view.modules[path]), [m._parameters for m in delta.modules()]
            own = [p for parameters in held for p in parameters.values() if p is not None]
            check_there(path, device, own)
            if any((p.device, p.dtype) != (device, torch.float32) for p in own):
                delta.to(device, torch.float32)
        for path, module in saved.items():
            check_there(path, device_of(module), module.parameters())
        return deltas | {path: TrainedCopy(module) for path, module in saved.items()}


def device_of(module: nn.Module) -> torch.device:
    """Return where a module computes: where its parameters are, or where accelerate brings them."""
    direct = (p for p in module._parameters.values() if p is not None)  # found in less time
    first = next(chain(direct, module.parameters()), None)
    own = torch.empty(0).device if first is None else first.device  # RoPE's have no parameter
    for part in module.modules() if own.type == "meta" else ():
        hook = getattr(part, "_hf_hook", None)
        for one in getattr(hook, "hooks", [hook]):
            if (there := getattr(one, "execution_device", None)) is not None:
                return torch.device(there)
    return own


def has_no_values(model: nn.Module) -> bool:
    """Tell whether a model is on "meta", and no one brings its values for a pass, as accelerate does."""
    return any(p.is_meta for p in model.parameters()) and device_of(model).type == "meta"


def check_there(path: str, device: torch.device, needed: Iterable[nn.Parameter]) -> None:
    """Raise a ValueError if what is needed of an offloaded module has no values now."""
    if device.type != "meta" and any(p.is_meta for p in needed):
        what = f"{path!r} is offloaded: between two calls accelerate keeps its values elsewhere"
        raise ValueError(f"{what}, and they are needed to begin with. Keep it on a device")


def _check_definition(cls: type[Method]) -> None:
    """Raise a TypeError if a class derived from `Method` is not whole."""
    name, hint = cls.__name__, "if others are to be derived from it, define it with abstract=True"
    if not hasattr(cls, "peft"):
        what = f"{name} has no name for its checkpoints: add peft = Peft({name.upper()!r})"
        raise TypeError(f"{what}; {hint}")
    if not hasattr(cls, "delta") and cls.deltas is Method.deltas:
        raise TypeError(f"{name} has no delta: define delta(self, path, module); {hint}")
    if plain := [f.name for f in dataclasses.fields(cls) if "check" not in f.metadata]:
        what = f"{name}.{plain[0]} is no hyper-parameter yet: declare it with field(default, check)"
        raise TypeError(f"{what}, with a check of pedagogic_peft.core.validation")
    before = cls.KINDS.get((cls.peft.type, cls.peft.flag), cls)
    new = (before.__module__, before.__qualname__) != (cls.__module__, cls.__qualname__)
    if "peft" in vars(cls) and new and before.__module__.startswith("pedagogic_peft."):
        what = f"{name}: {cls.peft.type!r} in peft is the library's {before.__name__}"
        raise TypeError(f"{what}; choose another")
