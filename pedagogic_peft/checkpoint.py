"""Save and load adaptations in the format of Hugging Face PEFT.

A folder with two files: ``adapter_config.json`` (the hyper-parameters) and
``adapter_model.safetensors``, whose tensors are called ``base_model.model.<path of the
module>.lora_A.weight`` and so on. Either library reads what the other writes.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pedagogic_peft.adaptation import adaptations_of, check_can_attach, install, one_adaptation
from pedagogic_peft.lora import LoRA, can_adapt
from pedagogic_peft.sites import TrainedCopy, base_modules, sites
from pedagogic_peft.targets import is_conv1d, shortest_names

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
LORA_A = re.compile(r"(?P<path>.+)\.(lora_A\.weight|lora_embedding_A)")  # both are (r, size)

# PEFT adds these to modules_to_save for classifiers, whichever of them the model has.
AUTOMATIC_HEADS = {"classifier", "score"}

# Keys of PEFT's configuration that are read here, or that mean nothing for a trained adapter.
KNOWN_KEYS = set(
    """alpha_pattern auto_mapping base_model_name_or_path eva_config exclude_modules fan_in_fan_out
    inference_mode layers_pattern layers_to_transform lora_alpha lora_dropout megatron_config
    megatron_core modules_to_save peft_type peft_version qalora_group_size r rank_pattern
    revision runtime_config target_modules task_type use_rslora""".split()
)
# Of all other keys only these values are accepted: they switch a feature off.
OFF = [None, False, [], {}, ""]
OFF_FOR = {
    "bias": ["none"],
    "init_lora_weights": [
        True,
        False,
        "gaussian",
        "orthogonal",
        "eva",
    ],  # the others change the base too
}


def save(
    model: nn.Module, path: str | Path, name: str | None = None, task_type: str | None = None
) -> Path:
    """Write one adaptation as a folder that this library and Hugging Face PEFT can load.

    Saved are the adaptation's tensors, `modules_to_save` among them, and its hyper-parameters:
    never the base model. Files of an earlier save are replaced only when the new ones are complete.

    Args:
        model: the model that carries the adaptation, merged or not.
        path: the folder; it is made if need be.
        name: which adaptation; None means the only active one.
        task_type: PEFT's name of the task, such as "CAUSAL_LM" or "SEQ_CLS", for its Auto classes.

    Returns:
        The folder.

    Raises:
        ValueError: no such adaptation, or no name although several are active.
        OSError: the files could not be written; those that were there are as before.
    """
    name = one_adaptation(model, name)
    method = adaptations_of(model).methods[name]
    deltas = {p: site.deltas[name] for p, site in sites(model) if name in site.deltas}
    config = _config_of(model, method, deltas) | {"task_type": task_type}
    tensors = {PREFIX + key: t.detach().contiguous() for key, t in _tensors_of(deltas).items()}
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, config, tensors)
    return folder


def load(model: nn.Module, path: str | Path, name: str = "default") -> nn.Module:
    """Attach an adaptation from a folder or from the Hugging Face Hub.

    It is trainable, and the only active one.

    The tensors decide: the modules they name are the targets, their shapes the ranks. They are
    kept in float32, whatever they were stored in; `modules_to_save` have the dtype of the base.

    Args:
        model: the base model the adaptation was made for; changed in place.
        path: a folder with the two files, or a Hub repository such as "user/my-lora".
        name: what to call the adaptation.

    Returns:
        The same model.

    Raises:
        FileNotFoundError: there is no such folder, file or repository.
        ValueError: the files are of a method or feature that is not supported here, or do not fit
            the model. The model is then unchanged.
    """
    check_can_attach(model, name)
    config_file, tensors_file = _locate(path)
    config = _read_config(config_file)
    tensors = _without_base_copies(model, _read_tensors(tensors_file))
    method = _method_of(model, config, tensors)
    deltas = method.plan(model)
    _fill(deltas, tensors)
    return install(model, method, name, deltas)


def _config_of(model: nn.Module, method: LoRA, deltas: Mapping[str, nn.Module]) -> dict[str, Any]:
    paths = [path for path, delta in deltas.items() if not isinstance(delta, TrainedCopy)]
    modules = base_modules(model)
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": getattr(model, "name_or_path", None) or None,
        "r": method.r,
        "lora_alpha": method.alpha,
        "lora_dropout": method.dropout,
        "use_rslora": method.use_rslora,
        "target_modules": shortest_names(model, paths),
        "rank_pattern": {p: method.rank_of(p) for p in paths if method.rank_of(p) != method.r},
        "alpha_pattern": {
            p: method.alpha_of(p) for p in paths if method.alpha_of(p) != method.alpha
        },
        "modules_to_save": list(method.modules_to_save) or None,
        "fan_in_fan_out": any(is_conv1d(modules[path]) for path in paths),
        "bias": "none",
        "inference_mode": True,
    }


def _tensors_of(deltas: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return ``{path.key: tensor}``; a trained copy's tensors are called as in the model."""
    bodies = {p: d.module if isinstance(d, TrainedCopy) else d for p, d in deltas.items()}
    return {f"{p}.{key}": t for p, body in bodies.items() for key, t in body.state_dict().items()}


def _write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write both files beside the old ones, then put them in place; half-way it is undone."""
    from safetensors.torch import save_file

    new = {name: folder / f".{name}.{os.getpid()}" for name in (CONFIG, TENSORS)}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    old_config = (folder / CONFIG).read_bytes() if (folder / CONFIG).exists() else None
    try:
        new[CONFIG].write_text(text, encoding="utf-8")
        save_file(dict(tensors), new[TENSORS], metadata={"format": "pt"})
        os.replace(new[CONFIG], folder / CONFIG)
        try:
            os.replace(new[TENSORS], folder / TENSORS)
        except BaseException:
            if old_config is None:
                (folder / CONFIG).unlink()
            else:
                (folder / CONFIG).write_bytes(old_config)
            raise
    finally:
        for file in new.values():
            file.unlink(missing_ok=True)


def _locate(path: str | Path) -> tuple[Path, Path]:
    folder = Path(path)
    if folder.is_dir():
        for name in (CONFIG, TENSORS):
            if not (folder / name).is_file():
                there = ", ".join(sorted(f.name for f in folder.iterdir())) or "nothing"
                raise FileNotFoundError(f"{folder} has no {name}; it has {there}")
        return folder / CONFIG, folder / TENSORS
    if isinstance(path, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        raise FileNotFoundError(f"There is no folder {path}")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(path, CONFIG)), Path(hf_hub_download(path, TENSORS))
    except Exception as error:  # offline, no such repository, no such file in it
        reason = f"{type(error).__name__}: {error}"
        raise FileNotFoundError(
            f"No folder {path} here, and not on the Hub either. {reason}"
        ) from error


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{file}: peft_type is {kind!r}; only 'LORA' can be loaded")
    for key in config.keys() - KNOWN_KEYS:
        if config[key] not in OFF_FOR.get(key, OFF):
            raise ValueError(
                f"{file}: {key}={config[key]!r} is a feature that is not supported here"
            )
    return config


def _read_tensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except Exception as error:  # safetensors has an exception class of its own
        raise ValueError(f"{file} is not a whole safetensors file: {error}") from error
    strange = [key for key in tensors if not key.startswith(PREFIX)]
    if strange:
        raise ValueError(f"{file}: {_some(strange)} do not begin with {PREFIX!r}")
    return {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}


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


def _method_of(model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LoRA:
    """Return the hyper-parameters: targets and ranks of the tensors, the rest as configured."""
    ranks = {m["path"]: len(t) for key, t in tensors.items() if (m := LORA_A.fullmatch(key))}
    modules = base_modules(model)
    strangers = [path for path in ranks if path not in modules]
    if strangers:
        raise ValueError(
            f"This {type(model).__name__} has no {_some(strangers)}, which the checkpoint adapts"
        )
    absent = [path for path in _targets_of(config, modules) if path not in ranks]
    if absent:
        raise ValueError(
            f"target_modules={config['target_modules']!r}, but no tensors for {_some(absent)}"
        )
    r, alpha = config.get("r", 8), config.get("lora_alpha", 8)  # PEFT's defaults
    of_config = LoRA(r, alpha, alpha_pattern=config.get("alpha_pattern") or {})
    alphas = {path: of_config.alpha_of(path) for path in ranks}
    return LoRA(
        r=r,
        alpha=alpha,
        dropout=config.get("lora_dropout", 0.0),
        target_modules=shortest_names(model, list(ranks)),
        use_rslora=config.get("use_rslora", False),
        modules_to_save=_heads_of(config, modules),
        rank_pattern={path: rank for path, rank in ranks.items() if rank != r},
        alpha_pattern={path: a for path, a in alphas.items() if a != alpha},
    )


def _targets_of(config: Mapping[str, Any], modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the paths PEFT would adapt ("all-linear" says too little to tell: none)."""
    targets, layers = config.get("target_modules"), config.get("layers_to_transform")
    if not targets or targets == "all-linear":
        return []
    candidates = [p for p, m in modules.items() if can_adapt(m)]
    paths = [path for path in candidates if _named(targets, path)]
    if layers not in (None, []) and not isinstance(targets, str):
        wanted = {layers} if isinstance(layers, int) else set(layers)
        paths = [path for path in paths if _layer_of(path, config.get("layers_pattern")) in wanted]
    saved = config.get("modules_to_save") or []
    excluded = config.get("exclude_modules") or []
    left_out = [path for path in modules if _named(excluded, path) or _named(saved, path)]
    return [p for p in paths if not any(p == o or p.startswith(o + ".") for o in left_out)]


def _named(names: str | Iterable[str], path: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith("." + name) for name in names)


def _layer_of(path: str, layers_pattern: str | Iterable[str] | None) -> int | None:
    """Return the number of the layer a module is in: the first number of its path."""
    names = [layers_pattern] if isinstance(layers_pattern, str) else layers_pattern or [r"[^.]*"]
    for name in names:
        if match := re.match(rf"(?:.*?\.)?{name}\.(\d+)\.", path):
            return int(match[1])
    return None


def _heads_of(config: Mapping[str, Any], modules: Mapping[str, nn.Module]) -> list[str]:
    names = dict.fromkeys(config.get("modules_to_save") or [])
    automatic = AUTOMATIC_HEADS if config.get("task_type") in ("SEQ_CLS", "TOKEN_CLS") else set()
    return [n for n in names if n not in automatic or any(_named([n], path) for path in modules)]


def _fill(deltas: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    own = _tensors_of(deltas)
    missing = [key for key in own if key not in tensors]
    unexpected = [key for key in tensors if key not in own]
    wrong = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own.keys() & tensors.keys()
        if tensors[key].shape != own[key].shape
    ]
    for what, keys in (("missing", missing), ("unexpected", unexpected), ("of wrong shape", wrong)):
        if keys:
            raise ValueError(f"The checkpoint does not fit this model: {what}: {_some(keys)}")
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(tensors[key])


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
