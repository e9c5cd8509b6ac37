"""LoRA files that other programs than PEFT write, made PEFT's: those of diffusers and of kohya-ss.

They are one file of tensors without a configuration, for the several models of a pipeline (a U-Net, text
encoders). A tensor's name says which model, which module of it, and which factor::

    unet.down_blocks.0.attentions.0.proj_in.lora_A.weight         diffusers; or lora.down.weight
    lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight   kohya-ss, and .alpha beside it

What is converted then goes the way of every checkpoint, so that what does not fit is refused.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import Tensors, some
from pedagogic_peft.core.sites import View
from pedagogic_peft.core.targets import is_linear
from pedagogic_peft.files.peft import PREFIX, Checkpoint

WEIGHTS = "pytorch_lora_weights.safetensors"  # diffusers' own name of its file
Named = Mapping[tuple[str, str], Tensor]  # by the name of the module, and which factor it is
METADATA = "lora_adapter_metadata"  # diffusers' configuration, in the head of the file

A = "lora_A.weight"
FACTORS = {
    A: r"(?:lora_A|lora_down|lora\.down|lora_linear_layer\.down)\.weight",
    "lora_B.weight": r"(?:lora_B|lora_up|lora\.up|lora_linear_layer\.up)\.weight",
    "lora_B.bias": r"lora_B\.bias",
    "lora_magnitude_vector": r"lora_magnitude_vector(?:\.weight)?",
    "alpha": "alpha",
}
# Until 2023 the factors of an attention were beside its maps, in diffusers.
OLD = {
    r"\.processor\.to_([qkv])_lora\.(down|up)\.": r".to_\1.lora.\2.",
    r"\.processor\.to_out_lora\.(down|up)\.": r".to_out.0.lora.\1.",
    r"\.to_([qkv]|out)_lora\.(down|up)\.": r".\1_proj.lora.\2.",
}

# What cannot be read, by a part of the names of its tensors, keys or files; and who converts it.
OTHERS = {
    r"\.(hada_|lokr_|lora_mid|oft_|diff$)": "LyCORIS wrote it, and it is no plain LoRA: LyCORIS's own "
    "tools merge it into the base",
    r"\.dora_scale": "It is kohya-ss's DoRA: its own tools merge it into the base",
    r"(input|output|double|single)_blocks|middle_block|diffusion_model": "Its modules have the names "
    "of the original code; diffusers renames them: load_lora_weights, then save_lora_weights",
    r"\.lora_[ab]\.|^adapter_\w*\.pt$": "torchtune wrote it, by names of its own: its checkpointer "
    "writes adapter_model.safetensors and adapter_config.json too, and these can be loaded",
    r"^adapters\.(safetensors|npz)$|^lora_parameters$": "MLX wrote it: mlx_lm.fuse makes a whole model "
    "of it",
    r"^pytorch_lora_weights\.bin$": "diffusers wrote it, as a pickle: there, load_lora_weights and "
    f"save_lora_weights make {WEIGHTS} of it",
    r"^model_class$": "The adapters library wrote it: load_adapterhub reads it",
}


def hint_of(names: Iterable[str]) -> str:
    """Return whose format has such names and who converts it, as the end of a message; or ""."""
    names = list(names)
    found = (say for word, say in OTHERS.items() if any(re.search(word, name) for name in names))
    return "".join(f". {say}" for say in found)


def as_peft(
    view: View, tensors: Tensors, metadata: Mapping[str, str], part: str | None = None
) -> Checkpoint:
    """Return the configuration and the tensors that PEFT would have written for this model.

    Args:
        view: a view of the model.
        tensors: those of the file.
        metadata: the strings in the head of the file.
        part: for which of the file's models the model is ("unet", "text_encoder_2", "te1", ...); None
            means the one whose modules the model has.

    Raises:
        ValueError: the format is another; no part fits, or several do.

    Warns:
        UserWarning: the file has more parts.
    """
    parts: dict[str, dict[tuple[str, str], Tensor]] = {}
    validation.expect(tensors, "tensors", list(tensors), "at least one")
    for key, tensor in tensors.items():
        word, path, factor = _split(view, key)
        named = parts.setdefault(word, {})
        validation.expect((path, factor) not in named, "tensors", key, "one tensor for each factor")
        named[path, factor] = tensor
    names: dict[str, set[str]] = {}  # of each module: its path, and for kohya without the dots
    for path in view.modules:
        for name in (path, path.replace(".", "_")):
            names.setdefault(name, set()).add(path)
    found = {word: _resolved(names, named) for word, named in parts.items()}
    fitting = [word for word, (_, lost) in found.items() if not lost]
    what = f"The file is for {sorted(parts)}"
    if part is None and len(fitting) > 1:
        raise ValueError(f"{what}, of which {sorted(fitting)} fit: load(..., part=...) says which")
    chosen = (fitting or list(found))[0] if part is None else part
    if chosen not in fitting:
        lost = some(found[chosen][1]) if chosen in found else f"part={part!r}"
        raise ValueError(f"{what}; {type(view.model).__name__} has no {lost}{hint_of(tensors)}")
    if others := sorted(parts.keys() - {chosen}):
        validation.warn(f"Only {chosen!r} was loaded; the file also has {others}, for other models")
    return _checkpoint(view, found[chosen][0], _configuration(metadata, chosen))


def _split(view: View, key: str) -> tuple[str, str, str]:
    """Return the part that a tensor is for, the name of its module, and which factor it is."""
    name = key
    for old, new in OLD.items():
        name = re.sub(old, new, name)
    matches = {factor: re.fullmatch(rf"(.+)\.{end}", name) for factor, end in FACTORS.items()}
    found = [(match[1], factor) for factor, match in matches.items() if match]
    if not found:
        raise ValueError(f"{key} is no tensor of a LoRA of diffusers or kohya-ss{hint_of([key])}")
    [(path, factor)] = found
    if match := re.fullmatch(r"lora_([a-z]+\d?)_([^.]+)", path):
        return match[1], match[2], factor
    if path in view.modules:  # a file for one model
        return "", path, factor
    word, _, rest = path.partition(".")
    return word, rest, factor


def _resolved(
    names: Mapping[str, set[str]], named: Named
) -> tuple[dict[tuple[str, str], Tensor], list[str]]:
    """Return the tensors by the paths in this model, and the names that mean no module, or two."""
    found, lost = {}, []
    for (name, factor), tensor in named.items():
        # transformers 5 has no text_model in a CLIPTextModel any more
        shorter = re.sub(r"^text_model[._]", "", name)
        paths: set[str] = names.get(name) or names.get(shorter) or set()
        if len(paths) == 1 and (*paths, factor) not in found:
            found[next(iter(paths)), factor] = tensor
        else:
            lost.append(name)
    return found, lost


def _configuration(metadata: Mapping[str, str], part: str) -> dict[str, Any]:
    """Return what diffusers says of a part, in PEFT's words: {} in an older file, or kohya's."""
    if METADATA not in metadata:
        return {}
    said = validation.expect(
        isinstance(said := json.loads(metadata[METADATA]), dict), METADATA, said, "an object"
    )
    prefix = f"{part}." if part else ""
    return {k.removeprefix(prefix): value for k, value in said.items() if k.startswith(prefix)}


def _checkpoint(view: View, named: Named, config: dict[str, Any]) -> Checkpoint:
    ranks = {path: len(tensor) for (path, factor), tensor in named.items() if factor == A}
    alphas: dict[str, Any] = {p: float(t) for (p, factor), t in named.items() if factor == "alpha"}
    if lost := [path for path, _ in named if path not in ranks]:
        raise ValueError(f"{lost[0]}: the file has no A (down) for it")
    if not config:
        # Without an α, or with 0, these programs multiply by 1: α is the rank.
        alphas = {path: alphas.get(path) or float(r) for path, r in ranks.items()}
        common = Counter(alphas.values()).most_common(1)[0][0]
        odd = {f"^{re.escape(p)}": alpha for p, alpha in alphas.items() if alpha != common}
        config = {"r": next(iter(ranks.values())), "lora_alpha": common, "alpha_pattern": odd}
    elif alphas:
        raise ValueError(f"The file says α twice: in {METADATA} and for {some(alphas)}")
    factors = {factor for _, factor in named}
    config |= {"peft_type": "LORA", "lora_bias": "lora_B.bias" in factors}
    config["use_dora"] = "lora_magnitude_vector" in factors
    tensors = {}
    for (path, factor), tensor in named.items():
        if factor != "alpha":
            # A linear map may have been a 1 x 1 convolution where the file was made.
            flat = tensor.dim() == 4 and is_linear(view.modules[path])
            tensors[f"{PREFIX}{path}.{factor}"] = tensor.flatten(1) if flat else tensor
    return config, tensors
