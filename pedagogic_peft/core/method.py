"""What all methods share: hyper-parameters that check themselves, the plan, and the checkpoint.

A method is a frozen dataclass of hyper-parameters. Of its own it says which modules it can adapt
(`can_adapt`), what it puts there (`delta`), and by what it is known in the checkpoints of Hugging
Face PEFT (`peft_type`, `MARK`). The rest is here.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self, cast, dataclass_transform

import torch
from torch import Tensor, nn

from pedagogic_peft.core import targets, validation
from pedagogic_peft.core.delta import (
    Delta,
    Deltas,
    Tensors,
    TrainedCopy,
    load_tensors,
    own_deltas,
    tensors_of,
)
from pedagogic_peft.core.sites import base_modules
from pedagogic_peft.core.targets import Modules, Names, Targets
from pedagogic_peft.files import peft_format
from pedagogic_peft.files.peft_format import PREFIX, Config

__all__ = ["Checkpoint", "Config", "Deltas", "Method", "Tensors", "hyper", "own_deltas"]
Checkpoint = tuple[dict[str, Any], dict[str, Tensor]]  # configuration, tensors


def hyper(default: Any, check: validation.Check, key: str | None = None, theirs: Any = ...) -> Any:
    """Declare a hyper-parameter.

    Args:
        default: if it is None, the value may be None.
        check: a check of `validation`; returns the value to keep.
        key: its key in checkpoints; None means its own name, "" that it is not saved.
        theirs: PEFT's default, if it is another.
    """
    about = {"check": check, "key": key, "theirs": default if theirs is ... else theirs}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=about)
    return field(default=default, metadata=about)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
@dataclass(frozen=True)
class Method:
    """The hyper-parameters of a method. Each class derived from this one is a frozen dataclass.

    Args:
        modules_to_save: names of modules to train in full, such as a new classification head.

    Attributes:
        peft_type: the method's name in checkpoints.
        MARK: the name, as a regular expression, of a tensor that each delta has in PEFT's
            checkpoints; "" if PEFT does not have the method.
        SWITCH: a key that, if it is on, makes a checkpoint of the parent class one of this class.
        CLASSES: every class with a `peft_type`, by it.
    """

    peft_type: ClassVar[str] = ""
    MARK: ClassVar[str] = ""
    SWITCH: ClassVar[str] = ""
    CLASSES: ClassVar[dict[str, type["Method"]]] = {}

    delta: ClassVar[Callable[..., nn.Module]]  # (self, path, module): the delta for one module

    target_modules = cast(Targets, None)  # no field: a method that has targets declares it
    modules_to_save: Names = field(
        default=(), kw_only=True, metadata=hyper((), validation.names).metadata
    )

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True)(cls)
        if cls.peft_type:
            cls.CLASSES.setdefault(cls.peft_type, cls)

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None or f.default is not None:
                object.__setattr__(self, f.name, f.metadata["check"](f.name, value))

    @staticmethod
    def can_adapt(module: nn.Module) -> bool:
        """Tell whether the method has a meaning at this module."""
        return targets.is_linear(module)

    def targets(self, model: nn.Module, without: Iterable[str]) -> Modules:
        """Return ``{path: module}`` of the modules to adapt, none of them inside ``without``."""
        return targets.find_targets(model, self.target_modules, self.can_adapt, without)

    def deltas(self, model: nn.Module, places: Modules) -> Deltas:
        """Return ``{path: delta}`` for the modules to adapt."""
        return {path: self.delta(path, module) for path, module in places.items()}

    def plan(self, model: nn.Module) -> Deltas:
        """Return ``{path: delta}`` as they start, for this model, which is not changed.

        Raises:
            ValueError: a name matches nothing, or nothing the method can adapt.
        """
        deltas, modules = self.build(model), base_modules(model)
        for path, delta in deltas.items():
            if isinstance(delta, Delta):
                delta.init_from_base(modules[path])
        return deltas

    def build(self, model: nn.Module) -> Deltas:
        """Return ``{path: delta}``, before a start that depends on the model, or a checkpoint."""
        saved = targets.find_modules(model, self.modules_to_save)
        places, modules = self.targets(model, saved), base_modules(model)
        deltas = self.deltas(model, places)
        if lost := [path for path in deltas if targets.inside(path, saved)]:
            raise ValueError(f"modules_to_save: adapters sit at {lost}: name others")
        for path, delta in deltas.items():
            own = next(modules[path].parameters(), torch.empty(0))  # a module of RoPE has none
            if any((p.device, p.dtype) != (own.device, torch.float32) for p in delta.parameters()):
                delta.to(own.device, torch.float32)
        return deltas | {path: TrainedCopy(module) for path, module in saved.items()}

    @classmethod
    def keys(cls) -> dict[str, tuple[str, Any]]:
        """Return ``{key in checkpoints: (hyper-parameter, PEFT's default)}``."""
        about = ((f.name, f.metadata) for f in fields(cls) if f.metadata["key"] != "")
        return {m["key"] or name: (name, m["theirs"]) for name, m in about}

    def to_peft(self, model: nn.Module, deltas: Deltas) -> Checkpoint:
        """Return the configuration and the tensors of a checkpoint."""
        config = {key: getattr(self, name) for key, (name, _) in self.keys().items()}
        modules, heads = base_modules(model), targets.find_modules(model, self.modules_to_save)
        # To PEFT a name is the end of any path, so that "norm" means an input_layernorm as well.
        ends = tuple(self.modules_to_save)
        more = any(path.endswith(ends) for path in modules.keys() - heads.keys())
        config["modules_to_save"] = list(heads if more else ends) or None
        if self.MARK:
            adapted = {path: modules[path] for path in own_deltas(deltas)}
            config["target_modules"] = targets.shortest_names(model, adapted)
            config["fan_in_fan_out"] = any(map(targets.is_conv1d, adapted.values()))
        tensors = tensors_of(deltas)
        return config, {PREFIX + key: tensor for key, tensor in tensors.items()}

    @classmethod
    def from_peft(cls, model: nn.Module, config: Config, tensors: Tensors) -> tuple[Self, Deltas]:
        """Return the hyper-parameters of a checkpoint and ``{path: delta}`` with its tensors.

        Raises:
            ValueError: an option is not supported, or the tensors do not fit the model.
        """
        peft_format.check_options(config, [*cls.keys(), cls.SWITCH])
        tensors, strange = peft_format.take(PREFIX, tensors)
        validation.expect(not strange, "tensors", sorted(strange)[:3], f"names like {PREFIX}...")
        config, tensors = peft_format.sort_out(model, config, tensors)
        marks = {re.fullmatch(rf"(.+)\.({cls.MARK})", key): t for key, t in tensors.items()}
        method = cls(**cls.read(model, config, {m[1]: t for m, t in marks.items() if m}))
        deltas = method.build(model)
        load_tensors(deltas, tensors)
        return method, deltas

    @classmethod
    def read(cls, model: nn.Module, config: Config, marks: Tensors) -> dict[str, Any]:
        """Return the hyper-parameters of a checkpoint that has ``{path: tensor}`` of each `MARK`."""
        found = {name: config.get(key, theirs) for key, (name, theirs) in cls.keys().items()}
        if cls.MARK:
            peft_format.check_paths(model, config, marks, cls.can_adapt)
            found["target_modules"] = targets.shortest_names(model, marks)
        return found
