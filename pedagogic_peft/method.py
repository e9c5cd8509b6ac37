"""What all methods share: hyper-parameters that check themselves, the plan, and the checkpoint.

A method is a frozen dataclass of hyper-parameters. Of its own it says which modules it can adapt
(`can_adapt`), what it puts there (`delta`), and what its hyper-parameters and tensors are called in
the checkpoints of Hugging Face PEFT (`KEYS`, `MARK`). The rest is here.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from pedagogic_peft.checks import check_optional
from pedagogic_peft.peft_format import (
    check_options,
    check_paths,
    fill,
    heads_of,
    tensors_of,
    with_prefix,
    without_prefix,
)
from pedagogic_peft.sites import TrainedCopy, base_modules
from pedagogic_peft.targets import (
    find_modules,
    find_targets,
    inside,
    is_conv1d,
    is_linear,
    shortest_names,
)

Config = Mapping[str, Any]
Deltas = dict[str, nn.Module]  # path of a module -> its delta
Tensors = Mapping[str, Tensor]


def hyper(default: Any, check: Callable[[str, Any], Any]) -> Any:
    """Declare a hyper-parameter: its default, and the check (of `checks`) that returns its value.

    One whose default is None may be None.
    """
    if isinstance(default, dict):
        return field(default_factory=dict, metadata={"check": check})
    check = partial(check_optional, check=check) if default is None else check
    return field(default=default, metadata={"check": check})


def same_keys(**defaults: Any) -> dict[str, tuple[str, Any]]:
    """Return the `KEYS` of hyper-parameters that PEFT calls the same, from PEFT's defaults."""
    return {name: (name, default) for name, default in defaults.items()}


@dataclass(frozen=True)
class Method:
    """The hyper-parameters of a method.

    Attributes:
        peft_type: the method's name in checkpoints.
        KEYS: {hyper-parameter: (its key in PEFT's configuration, PEFT's default)}.
        IGNORED: further keys, in one string, that mean nothing for a trained adaptation.
        OFF: for some keys, the values that switch nothing on.
        MARK: the name, as a regular expression, of a tensor that each delta has.
    """

    peft_type: ClassVar[str]
    KEYS: ClassVar[Mapping[str, tuple[str, Any]]] = {}
    IGNORED: ClassVar[str] = "fan_in_fan_out"
    OFF: ClassVar[Mapping[str, list[Any]]] = {"bias": ["none"]}
    MARK: ClassVar[str] = ""

    delta: ClassVar[Callable[..., nn.Module]]  # (self, path, module): the delta for one module

    # Not annotated, so no fields: a method that has these hyper-parameters declares them.
    target_modules = cast("Sequence[str] | str | None", None)
    modules_to_save = cast(Sequence[str], ())

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, f.metadata["check"](f.name, getattr(self, f.name)))

    @staticmethod
    def can_adapt(module: nn.Module) -> bool:
        """Tell whether the method has a meaning at this module."""
        return is_linear(module)

    def targets(self, model: nn.Module, without: Iterable[str]) -> dict[str, nn.Module]:
        """Return ``{path: module}`` of the modules to adapt, none of them inside ``without``."""
        return find_targets(model, self.target_modules, self.can_adapt, without)

    def deltas(self, model: nn.Module, places: Mapping[str, nn.Module]) -> Deltas:
        """Return ``{path: delta}`` for the modules to adapt."""
        return {path: self.delta(path, module) for path, module in places.items()}

    def plan(self, model: nn.Module) -> Deltas:
        """Return ``{path: delta}`` as they start, for this model, which is not changed.

        Raises:
            ValueError: a name matches nothing, or nothing the method can adapt.
        """
        return self.build(model)

    def build(self, model: nn.Module) -> Deltas:
        """Return ``{path: delta}``, before a start that depends on the model, or a checkpoint."""
        saved = find_modules(model, self.modules_to_save)
        places = self.targets(model, saved)
        modules = base_modules(model)
        deltas = self.deltas(model, places)
        if lost := [path for path in deltas if inside(path, saved)]:
            raise ValueError(f"modules_to_save: adapters sit at {lost}: name others")
        for path, delta in deltas.items():
            own = next(modules[path].parameters(), torch.empty(0))  # a module of RoPE has none
            delta.to(own.device)
        return deltas | {path: TrainedCopy(module) for path, module in saved.items()}

    def to_peft(self, model: nn.Module, deltas: Deltas) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the configuration and the tensors of a checkpoint."""
        modules = base_modules(model)
        paths = [path for path, delta in deltas.items() if not isinstance(delta, TrainedCopy)]
        config = {key: getattr(self, name) for name, (key, _) in self.KEYS.items()} | {
            "target_modules": shortest_names(model, paths),
            "modules_to_save": list(self.modules_to_save) or None,
            "fan_in_fan_out": any(is_conv1d(modules[path]) for path in paths),
        }
        if "bias" in self.OFF:
            config["bias"] = "none"
        return config, with_prefix(tensors_of(deltas))

    @classmethod
    def from_peft(cls, model: nn.Module, config: Config, tensors: Tensors) -> tuple[Self, Deltas]:
        """Return the hyper-parameters of a checkpoint and ``{path: delta}`` with its tensors.

        Raises:
            ValueError: an option is not supported, or the tensors do not fit the model.
        """
        known = {key for key, _ in cls.KEYS.values()} | set(cls.IGNORED.split())
        check_options(config, known, cls.OFF)
        tensors = without_prefix(model, tensors)
        marks = (re.fullmatch(rf"(.+)\.({cls.MARK})", key) for key in tensors)
        method = cls(**cls.read(model, config, tensors, [m[1] for m in marks if m]))
        deltas = method.build(model)
        fill(deltas, tensors)
        return method, deltas

    @classmethod
    def read(
        cls, model: nn.Module, config: Config, tensors: Tensors, paths: Sequence[str]
    ) -> dict[str, Any]:
        """Return the hyper-parameters of a checkpoint whose deltas are at these paths."""
        check_paths(model, config, paths, cls.can_adapt)
        found = {name: config.get(key, default) for name, (key, default) in cls.KEYS.items()}
        found["target_modules"] = shortest_names(model, list(paths))
        return found | {"modules_to_save": heads_of(config, model)}


class OwnFormat(Method):
    """A method PEFT does not have: its checkpoint's configuration is its hyper-parameters."""

    def to_peft(self, model: nn.Module, deltas: Deltas) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the hyper-parameters and the tensors."""
        return asdict(self), with_prefix(tensors_of(deltas))

    @classmethod
    def from_peft(cls, model: nn.Module, config: Config, tensors: Tensors) -> tuple[Self, Deltas]:
        """Return the hyper-parameters of a checkpoint and ``{path: delta}`` with its tensors.

        Raises:
            ValueError: an option is not supported, or the tensors do not fit the model.
        """
        known = {f.name for f in fields(cls)}
        check_options(config, known)
        method = cls(**{name: config[name] for name in known & config.keys()})
        deltas = method.build(model)
        fill(deltas, without_prefix(model, tensors))
        return method, deltas
