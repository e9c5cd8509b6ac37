"""LoRA of parameters in PEFT's files: what `target_parameters` means there, and how the tensors are named.

PEFT wraps a module once for each of its adapted parameters, so the first has the innermost wrapper. A key
says which by the number of ``base_layer`` in it: ``experts.base_layer.lora_A.weight`` is of the first of
two, ``experts.lora_A.weight`` of the second. Here it is ``experts.loras.<name>.lora_A.weight``.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.architectures import model_type
from pedagogic_peft.core.delta import Deltas, Tensors, some
from pedagogic_peft.core.sites import View
from pedagogic_peft.core.targets import Names, is_named
from pedagogic_peft.files.peft import TABLE, Config
from pedagogic_peft.methods.experts import LoRAExperts, find_parameters


def parameters_meant(view: View, config: Config) -> list[str]:
    """Return the names in ``target_parameters`` that mean other things than a linear map's weight.

    LoRA of the parameter ``x.weight`` is LoRA of the linear map ``x``. Some names in PEFT's files mean
    nothing: its "all-linear" adds a router that not every model has.
    """
    names = validation.names("target_parameters", config.get("target_parameters") or [])
    modules = view.modules.items()
    there = [(f"{p}.{k}", m) for p, m in modules for k, _ in m.named_parameters(recurse=False)]
    meant = {n: {isinstance(m, nn.Linear) for p, m in there if is_named([n], p)} for n in names}
    return [name for name, linear in meant.items() if linear and not any(linear)]


def split_experts(deltas: Deltas) -> tuple[Deltas, dict[str, Any]]:
    """Return the deltas beside modules, and those beside parameters."""
    experts = {path: d for path, d in deltas.items() if isinstance(d, LoRAExperts)}
    return {path: d for path, d in deltas.items() if path not in experts}, experts


def wrapped(view: View, names: Names) -> dict[str, str]:
    """Return ``{path of a parameter's LoRA here: its path in PEFT}``."""
    found: dict[str, str] = {}
    for path in reversed(find_parameters(view, names)):
        place, _, name = path.rpartition(".")
        ours = f"{place}.loras.{name}"
        while place in found.values():
            place += ".base_layer"
        found[ours] = place
    return found


def renamed(tensors: Tensors, paths: dict[str, str]) -> dict[str, Tensor]:
    """Return the tensors with other paths before their ``.lora_A`` and ``.lora_B``."""
    places = {key: key.rpartition(".lora_")[0] for key in tensors}
    return {paths.get(p, p) + key.removeprefix(p): tensors[key] for key, p in places.items()}


def ranks_of(view: View, marks: Tensors) -> dict[str, int]:
    """Return ``{path of a module or of a parameter: its rank}`` from the A of each LoRA."""
    ranks = {}
    for path, A in marks.items():
        place, parameter, name = path.rpartition(".loras.")
        W: Any = getattr(view.modules[place], name) if parameter else A
        ranks[f"{place}.{name}" if parameter else path] = len(A) // (len(W) if W.dim() == 3 else 1)
    return ranks


def misread_maps(view: View, paths: Names, dora: bool) -> dict[str, str]:
    """Return ``{path: path.weight}`` of the linear maps that PEFT would take for experts.

    It takes ``gate_proj`` of a shared expert or of a dense layer for the experts' (its bug #3711). What
    is named by its weight it reads as it is meant.

    Warns:
        UserWarning: it is `DoRA`, which PEFT does not have beside parameters.
    """
    kind, misread = model_type(view.model), TABLE["misread"].split()
    names = [path for path in paths if path.rpartition(".")[2] in misread]
    if kind not in TABLE["misread_in"].split() or not names:
        return {}
    if dora:
        what = f"takes {some(names)} of {kind} for experts (its bug #3711)"
        validation.warn(f"Hugging Face PEFT {what}, where it has no DoRA: it will refuse this")
        return {}
    return {path: f"{path}.weight" for path in names}


def warn_of_renamed(model: Any, paths: Iterable[str]) -> None:
    """Warn of maps whose tensors PEFT would not find, if there are any.

    It renames what transformers 5 has renamed, and some patterns match the new names as well
    ("shared_expert." those of Laguna's shared experts).

    Warns:
        UserWarning: there are such maps.
    """
    if (kind := model_type(model)) is None:
        return
    try:
        from transformers import PreTrainedModel, conversion_mapping, core_model_loading
    except ImportError:  # then PEFT does not rename either
        return
    known = conversion_mapping.get_checkpoint_conversion_mapping(kind) is not None
    if not known or not isinstance(model, PreTrainedModel):
        return
    found = conversion_mapping.get_model_conversion_mapping(model)
    renamings = [one for one in found if isinstance(one, core_model_loading.WeightRenaming)]
    keys = [f"{path}.lora_A.weight" for path in paths]
    new = {key: core_model_loading.rename_source_key(key, renamings, [])[0] for key in keys}
    if lost := [key for key in keys if not key.endswith(new[key])]:
        what = f"renames {some(lost)} of {kind} when it loads, and so leaves them out"
        validation.warn(f"Hugging Face PEFT {what}: what it computes with this file is wrong")
