"""The checkpoint format of Hugging Face PEFT: what the methods' readers and writers share.

A checkpoint is a configuration (a dict) and tensors. A tensor's name is ``base_model.model.<path of
the module>.<name in the delta>``; a module trained in full keeps its own names below that prefix.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pedagogic_peft import checks
from pedagogic_peft.sites import TrainedCopy, base_modules

PREFIX = "base_model.model."

# PEFT adds these to modules_to_save for classifiers, whichever of them the model has.
AUTOMATIC_HEADS = {"classifier", "score"}

# Keys of every method's configuration, and keys that mean nothing for a trained adapter.
COMMON_KEYS = set(
    """auto_mapping base_model_name_or_path exclude_modules inference_mode layers_pattern
    layers_to_transform megatron_config megatron_core modules_to_save peft_type peft_version revision
    runtime_config target_modules task_type""".split()
)
# Of all other keys only these values are accepted: they switch a feature off.
OFF: list[Any] = [None, False, [], {}, ""]


def check_options(
    config: Mapping[str, Any], known: set[str], off: Mapping[str, list[Any]] | None = None
) -> None:
    """Raise a ValueError for an option that is switched on and not supported.

    Args:
        config: the configuration.
        known: keys the method reads, besides those of every method.
        off: for some keys, the values that mean nothing, instead of None, False and empty.
    """
    for key in ("target_modules", "exclude_modules"):
        checks.targets(key, config.get(key))
    checks.names("modules_to_save", config.get("modules_to_save") or [])
    for key in sorted(config.keys() - COMMON_KEYS - known):
        if config[key] not in (off or {}).get(key, OFF):
            raise ValueError(
                f"{config.get('peft_type')}: {key}={config[key]!r} is a feature that is not "
                "supported here"
            )


def exported(delta: Any) -> dict[str, Tensor]:
    """Return a delta's tensors as a checkpoint has them; a trained copy's, as the model has them.

    A delta whose own tensors are others has ``export()``, and ``take(tensors)`` to read them.
    """
    body: Any = delta.module if isinstance(delta, TrainedCopy) else delta
    own = body.export() if hasattr(body, "export") else body.state_dict()
    return {key: tensor.detach() for key, tensor in own.items()}


def tensors_of(deltas: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return ``{path.key: tensor}``."""
    return {f"{path}.{k}": t for path, delta in deltas.items() for k, t in exported(delta).items()}


def with_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names of a checkpoint."""
    return {PREFIX + key: tensor for key, tensor in tensors.items()}


def without_prefix(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under ``path.key``, without PEFT's copies of the base.

    Raises:
        ValueError: a name has no prefix; a copy of the base differs from the base here.
    """
    strange = [key for key in tensors if not key.startswith(PREFIX)]
    if strange:
        raise ValueError(f"The tensors {some(strange)} do not begin with {PREFIX!r}")
    own = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
    return _without_base_copies(model, own)


def fill(deltas: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Copy the tensors ``{path.key: tensor}`` into the deltas; neither may have more than the other.

    Raises:
        ValueError: tensors are missing, unexpected, of another shape, or not finite.
    """
    own = tensors_of(deltas)
    missing = [key for key in own if key not in tensors]
    unexpected = [key for key in tensors if key not in own]
    wrong = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own.keys() & tensors.keys()
        if tensors[key].shape != own[key].shape
    ]
    broken = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    for what, keys in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of wrong shape", wrong),
        ("not finite", broken),
    ):
        if keys:
            raise ValueError(f"The checkpoint does not fit this model: {what}: {some(keys)}")
    for path, delta in deltas.items():
        _fill_one(path, delta, {key: tensors[f"{path}.{key}"] for key in exported(delta)})


@torch.no_grad()
def _fill_one(path: str, delta: Any, tensors: Mapping[str, Tensor]) -> None:
    if hasattr(delta, "export"):
        delta.take(tensors)
    else:
        for key, own in exported(delta).items():
            own.copy_(tensors[key])
    for key, own in exported(delta).items():
        if not torch.equal(own, tensors[key].to(own)):
            raise ValueError(f"{path}.{key} is not made up as the configuration says")


def targets_of(
    config: Mapping[str, Any], model: nn.Module, can_adapt: Callable[[nn.Module], bool]
) -> list[str]:
    """Return the paths PEFT would adapt ("all-linear" says too little to tell: none)."""
    modules = base_modules(model)
    targets, layers = config.get("target_modules"), config.get("layers_to_transform")
    if not targets or targets == "all-linear":
        return []
    candidates = [p for p, m in modules.items() if can_adapt(m)]
    paths = [path for path in candidates if is_named(targets, path)]
    if layers not in (None, []) and not isinstance(targets, str):
        wanted = {layers} if isinstance(layers, int) else set(layers)
        paths = [
            path for path in paths if _numbered_layer(path, config.get("layers_pattern")) in wanted
        ]
    saved = config.get("modules_to_save") or []
    excluded = config.get("exclude_modules") or []
    left_out = [path for path in modules if is_named(excluded, path) or is_named(saved, path)]
    return [p for p in paths if not any(p == o or p.startswith(o + ".") for o in left_out)]


def is_named(names: str | Iterable[str], path: str) -> bool:
    """Tell whether PEFT's names (a list of ends, or a regular expression) mean this path."""
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith("." + name) for name in names)


def _numbered_layer(path: str, layers_pattern: str | Iterable[str] | None) -> int | None:
    """Return the number of the layer a module is in: the first number of its path."""
    names = [layers_pattern] if isinstance(layers_pattern, str) else layers_pattern or [r"[^.]*"]
    for name in names:
        if match := re.match(rf"(?:.*?\.)?{name}\.(\d+)\.", path):
            return int(match[1])
    return None


def heads_of(config: Mapping[str, Any], model: nn.Module) -> list[str]:
    """Return the names of the modules trained in full."""
    modules = base_modules(model)
    names = dict.fromkeys(config.get("modules_to_save") or [])
    automatic = AUTOMATIC_HEADS if config.get("task_type") in ("SEQ_CLS", "TOKEN_CLS") else set()
    return [n for n in names if n not in automatic or any(is_named([n], path) for path in modules)]


def check_paths(
    model: nn.Module,
    config: Mapping[str, Any],
    paths: Iterable[str],
    can_adapt: Callable[[nn.Module], bool],
) -> None:
    """Check that the model has the modules the tensors adapt, and that none is without tensors.

    Raises:
        ValueError: it is otherwise.
    """
    paths, modules = set(paths), base_modules(model)
    strangers = [path for path in paths if path not in modules]
    if strangers:
        raise ValueError(
            f"This {type(model).__name__} has no {some(strangers)}, which the checkpoint adapts"
        )
    absent = [path for path in targets_of(config, model, can_adapt) if path not in paths]
    if absent:
        raise ValueError(
            f"target_modules={config['target_modules']!r}, but no tensors for {some(absent)}"
        )


def _without_base_copies(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what PEFT copies from the base beside an adapted embedding, if it is the same."""
    modules = base_modules(model)
    kept = {}
    for key, tensor in tensors.items():
        path, is_copy, attribute = key.partition(".base_layer.")
        if is_copy:
            own = getattr(modules.get(path), attribute, None)
            if own is None or not torch.equal(own.detach().cpu(), tensor.to(own.dtype)):
                raise ValueError(
                    f"{key}: the checkpoint was made on a base with another weight than this one"
                )
        else:
            kept[key] = tensor
    return kept


def some(names: Iterable[str]) -> str:
    """Return how many names there are, and the first three."""
    names = sorted(names)
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
