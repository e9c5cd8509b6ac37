"""The checkpoint format of Hugging Face PEFT: what the codecs of all methods share.

A checkpoint is a configuration (a dict) and tensors. A tensor's name is ``base_model.model.<path of
the module>.<name in the delta>``; a module trained in full keeps its own names below that prefix.
"""

import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import Tensors, some
from pedagogic_peft.core.sites import View
from pedagogic_peft.core.targets import Test, inside, is_named, layer_in, shortest_names

Config = Mapping[str, Any]
Checkpoint = tuple[dict[str, Any], dict[str, Tensor]]  # configuration, tensors

PREFIX = "base_model.model."

# Which keys of a configuration are accepted, and which values.
TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
OFF: list[Any] = [None, False, [], {}, ""]


def check_options(config: Config, known: Iterable[str]) -> None:
    """Raise a ValueError for an option that is switched on and not supported.

    Args:
        config: the configuration.
        known: keys that the method reads, or that mean nothing to it; ``peft.toml`` has those that
            mean nothing to any.
    """
    for key in ("target_modules", "exclude_modules"):
        validation.targets(key, config.get(key) or [])
    validation.names("modules_to_save", config.get("modules_to_save") or [])
    for key in sorted(config.keys() - {*known, *TABLE["ignored"].split()}):
        if config[key] not in TABLE["off"].get(key, OFF):
            what = f"{config.get('peft_type')}: {key}={config[key]!r}"
            value = str(config[key]).lower()
            hints = (
                hint["say"]
                for hint in TABLE["hints"]
                if hint["key"] == key and value.startswith(tuple(hint["values"].split()))
            )
            raise ValueError(f"{what} is a feature that is not supported here{next(hints, '')}")


class Bounded(TorchDispatchMode):
    """Within it, no tensor can be made that has more numbers than the model and the file together.

    A hyper-parameter of a checkpoint could otherwise ask for any amount of memory.
    """

    def __init__(self, model: nn.Module, tensors: Tensors):
        super().__init__()  # type: ignore[no-untyped-call]
        held = [*model.parameters(), *tensors.values()]
        self.most = sum(tensor.numel() for tensor in held if isinstance(tensor, Tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Check the size that a function that makes a tensor is called with."""
        size = args[0] if args and isinstance(args[0], list | tuple) else ()
        if all(isinstance(n, int) for n in size) and math.prod(size) > self.most:
            raise ValueError(
                f"A tensor of {list(size)} would be larger than the model and the file"
            )
        return func(*args, **(kwargs or {}))


def split_prefix(prefix: str, tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors whose names begin so, without the prefix, and the others."""
    taken = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    return taken, {k: t for k, t in tensors.items() if not k.startswith(prefix)}


def split_trained_copies(view: View, config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """Return the configuration, naming every module trained in full, and the tensors without copies.

    A tensor that is named like one of the base's is of a module trained in full, though the end of a word
    in `modules_to_save` may be all that names it ("norm"), or nothing: PEFT saves the embeddings too when
    the vocabulary has grown. If it equals the base's, it is a mere copy. A name of no module means nothing,
    because PEFT adds "classifier" and "score" whichever the model has.

    Raises:
        ValueError: what PEFT would change in the base is adapted, or tied to what the file has not.
    """
    modules = view.modules
    own = {f"{p}.{k}": t for p, m in modules.items() for k, t in m.named_parameters(recurse=False)}
    theirs = {k: b for k in tensors if (b := own.get(k.replace(".base_layer.", "."))) is not None}
    heads = [p for p in modules if is_named(config.get("modules_to_save") or [], p)]
    for key, base in theirs.items():
        if inside(key, heads) or torch.equal(base.detach().cpu(), tensors[key].to(base.dtype)):
            continue
        if any(b is base for k, b in own.items() if k not in tensors):  # so it is at base_layer too
            raise ValueError(f"{key}: the checkpoint was made on a base with another weight")
        heads.append(key.rpartition(".")[0])
    kept = {k: t for k, t in tensors.items() if k not in theirs or inside(k, heads)}
    return {**config, "modules_to_save": shortest_names(view, heads)}, kept


def check_paths(view: View, config: Config, paths: Iterable[str], can_adapt: Test) -> None:
    """Check that the model has the modules the tensors adapt, and that none is without tensors.

    Raises:
        ValueError: it is otherwise.
    """
    if strangers := set(paths) - view.modules.keys():
        raise ValueError(
            f"This {type(view.model).__name__} has no {some(strangers)}: the tensors do"
        )
    if absent := _targets_of(config, view, can_adapt) - set(paths):
        named = config["target_modules"]
        raise ValueError(f"target_modules={named!r}, but no tensors for {some(absent)}")


def _targets_of(config: Config, view: View, can_adapt: Test) -> set[str]:
    """Return the paths PEFT would adapt ("all-linear" says too little to tell: none)."""
    modules, targets = view.modules, config.get("target_modules") or "all-linear"
    layers, names = config.get("layers_to_transform"), config.get("layers_pattern") or r"[^.]*"
    paths = [path for path, m in modules.items() if can_adapt(m) and is_named(targets, path)]
    if layers not in (None, []) and not isinstance(targets, str):
        # PEFT counts layers by the first number that follows one of these names.
        one = names if isinstance(names, str) else "|".join(names)
        validation.regex("layers_pattern", one)
        wanted = {layers} if isinstance(layers, int) else set(layers)
        paths = [path for path in paths if layer_in(path, one) in wanted]
    not_these = [config.get(key) or [] for key in ("exclude_modules", "modules_to_save")]
    left_out = [path for path in modules if any(is_named(names, path) for names in not_these)]
    return {path for path in paths if not inside(path, left_out)}
