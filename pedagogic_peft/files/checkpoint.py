"""Save and load adaptations in the format of Hugging Face PEFT.

A folder with two files: ``adapter_config.json`` (the hyper-parameters) and
``adapter_model.safetensors`` (the tensors). Either library reads what the other writes. What the
files hold is the affair of each method's codec (``codecs.py``).
"""

import json
import os
import re
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import Tensors, some
from pedagogic_peft.core.method import Method
from pedagogic_peft.core.sites import Model, Site, View, deltas_of
from pedagogic_peft.core.verbs import (
    adaptations_of,
    check_can_attach,
    check_names,
    install,
    one_adaptation,
)
from pedagogic_peft.files.codecs import codec_of
from pedagogic_peft.files.disk import remove_leftovers, tensors_of_pickle, text_of
from pedagogic_peft.files.peft import Bounded, Config
from pedagogic_peft.files.strangers import WEIGHTS, as_peft, hint_of

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PICKLE = "adapter_model.bin"  # PEFT's old format
DIGEST = "config_sha256"
PENDING = ".pending"  # a save whose files are complete, but not in place yet


def save(
    model: nn.Module, path: str | Path, name: str | None = None, task_type: str | None = None
) -> Path:
    """Write one adaptation as a folder that this library and Hugging Face PEFT can load.

    Saved are the adaptation's tensors, `modules_to_save` among them, and its hyper-parameters:
    never the base model. Files of an earlier save are replaced only when the new ones are complete:
    whatever stops it, even a kill, `load` finds the one or the other adaptation, whole.

    Args:
        model: the model that carries the adaptation, merged or not.
        path: the folder; it is made if need be.
        name: which adaptation; None means the only active one.
        task_type: PEFT's name of the task, such as "CAUSAL_LM" or "SEQ_CLS", for its Auto classes.

    Returns:
        The folder.

    Raises:
        ValueError: no such adaptation; no name although several are active; a trained parameter
            belongs to no adaptation, so that it would be lost; `load` would take the method for
            another, because its class has no `peft` of its own or was defined again.
        OSError: a file could not be written; those that were there are as before.

    Warns:
        UserWarning: Hugging Face PEFT will refuse the files (DoRA beside the experts of some mixtures),
            or not find all of the tensors (where it renames them).

    Example:
        >>> from pedagogic_peft import LoRA, attach, load_base, save
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> folder = save(attach(model, LoRA(r=4)), "my-lora", task_type="CAUSAL_LM")
        >>> sorted(path.name for path in folder.iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    name = one_adaptation(model, name)
    method: Method = adaptations_of(model).methods[name]
    _refuse_unknown(type(method))
    view = View(model)
    check_names(view)
    _refuse_unowned(view)
    config, tensors = codec_of(type(method)).to_peft(view, method, deltas_of(view, name))
    common = {
        "peft_type": method.peft.type,
        "base_model_name_or_path": getattr(model, "name_or_path", None) or None,
        "inference_mode": True,
        "task_type": None,
    }
    config = common | config | ({"task_type": task_type} if task_type else {})
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, config, {k: t.detach().contiguous().clone() for k, t in tensors.items()})
    return folder


def load(
    model: Model,
    path: str | Path,
    name: str = "default",
    *,
    allow_bin: bool = False,
    part: str | None = None,
) -> Model:
    """Attach an adaptation from a folder or from the Hugging Face Hub.

    It is trainable, and the only active one.

    The tensors decide: the modules they name are the targets, their shapes the ranks. Adapter tensors
    are kept in float32, whatever their stored dtype. Modules trained in full take the base's dtype; a
    module counts as trained in full if the file has a weight of it that differs from the base's.

    A LoRA of diffusers (``pytorch_lora_weights.safetensors``) or of kohya-ss, which is a file without a
    configuration, is read as well: `strangers`.

    Args:
        model: the base model the adaptation was made for; changed in place.
        path: a folder with the two files, a Hub repository such as "user/my-lora", or a file of diffusers
            or kohya-ss.
        name: what to call the adaptation.
        allow_bin: read an old ``adapter_model.bin`` where there is nothing newer. It is a pickle, which
            can hold code; torch's ``weights_only`` loader refuses all but tensors.
        part: for which of the models in a file of diffusers or kohya-ss the model is, if several fit.

    Returns:
        The same model.

    Raises:
        FileNotFoundError: there is no such folder, file or repository.
        ValueError: the files are of a method or feature that is not supported here, or do not fit
            the model. The model is then unchanged.

    Warns:
        UserWarning: the configuration is not the one that `save` wrote beside these tensors; a file
            of diffusers or kohya-ss has more parts.

    Example:
        >>> from pedagogic_peft import LoRA, attach, load, load_base, save
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> folder = save(attach(model, LoRA(r=4)), "my-lora")
        >>> fresh, tokenizer = load_base("pocket-gpt-tiny")
        >>> fresh = load(fresh, folder, name="style")  # Hugging Face PEFT reads the folder too
    """
    view = check_can_attach(model, name)
    config_file, tensors_file = _locate(path, allow_bin)
    if config_file is None:
        config, (tensors, metadata) = None, _read_tensors(tensors_file)
    else:
        config, (tensors, metadata) = _read_config(config_file), _read_tensors(tensors_file)
        written = sha256(config_file.read_bytes()).hexdigest()
        if metadata.get(DIGEST, written) != written:  # PEFT's have none
            problem = "was edited after these tensors were saved, or their saving was cut off"
            validation.warn(f"{config_file} {problem}")
    try:
        if config is None:
            config, tensors = as_peft(view, tensors, metadata, part)
        elif part is not None:
            raise ValueError(f"part={part!r}: a folder with {CONFIG} is for one model")
        kind = _kind_of(config)
        with Bounded(model, tensors):
            method, deltas = codec_of(kind).from_peft(view, config, tensors)
    except Exception as error:  # a stranger's numbers can fail anywhere
        where = tensors_file if config_file is None else config_file.parent
        raise ValueError(f"{where}: {error}") from error
    install(view, method, name, deltas)
    return model


def _kind_of(config: Config) -> type[Method]:
    """Return the class of a checkpoint: the one whose flag is on, else the one without a flag."""
    kinds = {
        flag: kind for (name, flag), kind in Method.KINDS.items() if name == config["peft_type"]
    }
    on = [flag for flag in kinds if flag and config.get(flag)]
    if not on and "" not in kinds:
        raise ValueError(f"{config['peft_type']} without any of {', '.join(kinds)}")
    return kinds[on[0] if on else ""]


def _refuse_unknown(kind: type[Method]) -> None:
    """Raise a ValueError if `load` would make another class of what this one saves."""
    known = Method.KINDS[kind.peft.type, kind.peft.flag]
    if "peft" not in vars(kind):
        what = f"{kind.__name__} has no peft of its own: load would read it as {known.__name__}"
        own = f"dataclasses.replace({known.__name__}.peft, type={kind.__name__.upper()!r})"
        raise ValueError(f"{what}. Give the class one, such as peft = {own}")
    if known is not kind:
        what = (
            f"load would read this {kind.__name__} as the {known.__name__} that was defined later"
        )
        raise ValueError(f"{what}, as {kind.peft.type!r} too: attach it again, or rename one")


def _refuse_unowned(view: View) -> None:
    lost: list[str] = []
    modules: dict[str, Any] = view.seats  # nothing that was attached is among them
    for path, m in modules.items():
        own = m.base.named_parameters() if isinstance(m, Site) else m._parameters.items()
        lost += [f"{path}.{key}".strip(".") for key, p in own if p is not None and p.requires_grad]
    if lost:
        what = f"{some(lost)} would be trained but not saved, since no adaptation has them"
        raise ValueError(f"{what}: name them in modules_to_save when you attach, or freeze them")


def _write(folder: Path, config: Config, tensors: Tensors) -> None:
    """Write both files into a folder of their own, and from there put them in place.

    The one renaming that makes that folder `PENDING` decides: until then the old files count, from
    then on the new ones, for `load` looks there first and the next `save` puts them in place, should
    this process be killed. Another process that saves here does so before or after, never half.
    """
    import safetensors.torch

    remove_leftovers(folder / PENDING)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    metadata = {"format": "pt", DIGEST: sha256(text.encode()).hexdigest()}
    suffix = f".{os.getpid()}"
    with TemporaryDirectory(prefix=PENDING + ".", suffix=suffix, dir=folder) as new:
        Path(new, CONFIG).write_text(text, encoding="utf-8", newline="\n")
        # Not save_file: only their owner can read its files, and its errors are no OSError.
        Path(new, TENSORS).write_bytes(safetensors.torch.save(dict(tensors), metadata))
        for attempt in range(20):
            _put_in_place(folder)
            try:
                os.rename(new, folder / PENDING)
                break
            except OSError:  # another process has a save pending: put that in place first
                if attempt == 19 or not (folder / PENDING).is_dir():
                    raise
    _put_in_place(folder)


def _put_in_place(folder: Path) -> None:
    """Move the files of a pending save, or what is left of them, to where they belong."""
    for name in (CONFIG, TENSORS):
        with suppress(FileNotFoundError):  # there is none, or another process was faster
            os.replace(folder / PENDING / name, folder / name)
    with suppress(OSError):
        (folder / PENDING).rmdir()


def _locate(path: str | Path, allow_bin: bool) -> tuple[Path | None, Path]:
    """Return the files of the configuration, if there is one, and of the tensors."""
    place = Path(path)
    if place.is_file():
        if place.name not in (CONFIG, TENSORS, PICKLE):
            return None, place
        place = place.parent
    if place.is_dir():
        if (config := _newest(place, CONFIG)) is None and (file := _stranger_in(place)):
            return None, file
        tensors = _newest(place, TENSORS) or (_newest(place, PICKLE) if allow_bin else None)
        if config is None or tensors is None:
            raise FileNotFoundError(_what_is_missing(place, TENSORS if config else CONFIG))
        return config, tensors
    if isinstance(path, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        raise FileNotFoundError(f"There is no folder {path}")
    try:
        return _download(path, CONFIG), _download(path, TENSORS, *[PICKLE] * allow_bin)
    except FileNotFoundError:
        with suppress(FileNotFoundError):
            return None, _download(path, WEIGHTS)
        raise


def _newest(folder: Path, name: str) -> Path | None:
    found = (file for file in (folder / PENDING / name, folder / name) if file.is_file())
    return next(found, None)


def _stranger_in(folder: Path) -> Path | None:
    """Return the file of diffusers or kohya-ss in a folder: by its name, or as the only such file."""
    not_these = (TENSORS, "model.safetensors")  # the second is a whole model
    files = [file for file in folder.glob("*.safetensors") if file.name not in not_these]
    named = [file for file in files if file.name == WEIGHTS]
    return next(iter(named or files if len(named or files) == 1 else []), None)


def _what_is_missing(folder: Path, name: str) -> str:
    there = sorted(file.name for file in folder.iterdir())
    what = f"{folder} has no {name}; it has {', '.join(there) or 'nothing'}"
    if name == TENSORS and PICKLE in there:
        way = f"load(..., allow_bin=True) reads the tensors of {PICKLE}, a pickle, and nothing else"
        return f"{what}. {way}; PEFT makes a {TENSORS} of it by loading and saving"
    return what + hint_of(there)


def _download(repository: str, *names: str) -> Path:
    """Return the first of these files that the repository on the Hub has.

    Raises:
        FileNotFoundError: it has none, or there is no way to it.
    """
    from huggingface_hub import hf_hub_download

    errors = []
    for name in names:
        try:
            return Path(hf_hub_download(repository, name))
        except Exception as error:  # offline, no such repository, no such file in it
            errors.append(error)
    reason = f"{type(errors[0]).__name__}: {errors[0]}"
    raise FileNotFoundError(f"No folder {repository} here, nor on the Hub. {reason}") from errors[0]


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(text_of(file))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    names = {name for name, _ in Method.KINDS}
    if not isinstance(kind, str) or kind not in names:
        known = ", ".join(sorted(names))
        own = hint_of(config) if isinstance(config, dict) else ""
        raise ValueError(f"{file}: peft_type is {kind!r}; what can be loaded is {known}{own}")
    return config


def _read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors, and the strings in the head of their file."""
    from safetensors import safe_open

    try:
        if file.name == PICKLE:
            return tensors_of_pickle(file), {}
        with safe_open(file, "pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}
            return tensors, opened.metadata() or {}
    except Exception as error:  # safetensors and pickle have exception classes of their own
        what = f"{file} is not a whole {'safetensors ' if file.name != PICKLE else ''}file"
        raise ValueError(f"{what}: {error}{hint_of([file.name])}") from error
