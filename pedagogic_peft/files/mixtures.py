"""LoRA's files of mixtures of experts: what PEFT calls the tensors beside parameters.

PEFT wraps a module once for each of its parameters that are adapted, so the names say how deep a parameter
lies. In some mixtures it also takes the names of linear maps, ``gate_proj`` of a shared expert or of a dense
layer, for those of the experts (its bug #3711). There the maps' weights are named as parameters, which PEFT
reads as they are meant: LoRA of the parameter ``x.weight`` is LoRA of the module ``x``, tensors and all.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.architectures import model_type
from pedagogic_peft.core.delta import Deltas, Tensors, some, tensors_of
from pedagogic_peft.core.sites import View
from pedagogic_peft.core.targets import Names, is_named
from pedagogic_peft.files.peft import TABLE, Config
from pedagogic_peft.methods.dora import DoRA
from pedagogic_peft.methods.experts import LoRAExperts, find_parameters


def without_experts(deltas: Deltas) -> Deltas:
    """Return the deltas that stand beside modules, not beside parameters."""
    return {path: delta for path, delta in deltas.items() if not isinstance(delta, LoRAExperts)}


def parameters_of(deltas: Deltas) -> list[str]:
    """Return the paths of the parameters that are adapted."""
    experts = [(path, d) for path, d in deltas.items() if isinstance(d, LoRAExperts)]
    return [f"{path}.{name}" for path, delta in experts for name in delta.loras]


def peft_experts(view: View, method: Any, deltas: Deltas) -> dict[str, Tensor]:
    """Return ``{PEFT's name: tensor}`` of the deltas beside parameters."""
    theirs = _wrapped(view, method.target_parameters)
    found = {}
    for key, tensor in tensors_of(
        {p: d for p, d in deltas.items() if isinstance(d, LoRAExperts)}
    ).items():
        place = key.rpartition(".lora_")[0]
        found[key.replace(place, theirs[place])] = tensor
    return found


def own_experts(view: View, config: Config, tensors: Tensors) -> dict[str, Tensor]:
    """Return PEFT's tensors, those beside parameters by the names that they have in our deltas."""
    wrapped = _wrapped(view, named_parameters(view, config))
    ours = {theirs: place for place, theirs in wrapped.items()}
    places = {key: key.rpartition(".lora_")[0] for key in tensors}
    return {key.replace(p, ours.get(p, p), 1): tensors[key] for key, p in places.items()}


def named_parameters(view: View, config: Config) -> list[str]:
    """Return the names in ``target_parameters`` that mean other things than a linear map's weight.

    PEFT's may mean nothing: its "all-linear" adds a router that not every model has.
    """
    names = validation.names("target_parameters", config.get("target_parameters") or [])
    modules = view.modules.items()
    there = [(f"{p}.{k}", m) for p, m in modules for k, _ in m.named_parameters(recurse=False)]
    meant = {n: {isinstance(m, nn.Linear) for p, m in there if is_named([n], p)} for n in names}
    return [name for name, linear in meant.items() if linear and not any(linear)]


def ranks_of(view: View, marks: Tensors) -> dict[str, int]:
    """Return ``{path of a parameter: r}`` of each A: (experts · r, d_in)."""
    ranks = {}
    for path, A in marks.items():
        place, _, name = path.rpartition(".loras.")
        W = getattr(view.modules[place], name)
        ranks[f"{place}.{name}"] = len(A) // (len(W) if W.dim() == 3 else 1)
    return ranks


def as_weights(view: View, method: Any, paths: Iterable[str]) -> dict[str, str]:
    """Return ``{path: path.weight}`` of the maps among these that PEFT would take for experts.

    Warns:
        UserWarning: PEFT will refuse the file: a DoRA, which it has beside modules only.
    """
    misread = model_type(view.model) in TABLE["misread_in"].split()
    names = [path for path in paths if path.rpartition(".")[2] in TABLE["misread"].split()]
    if not misread or not names:
        return {}
    if isinstance(method, DoRA):
        what = f"takes {some(names)} of {model_type(view.model)} for experts (its bug #3711)"
        validation.warn(f"Hugging Face PEFT {what}, where it has no DoRA: it will refuse this")
        return {}
    return {path: f"{path}.weight" for path in names}


def _wrapped(view: View, names: Names) -> dict[str, str]:
    """Return ``{path of a parameter's LoRA here: that in PEFT}``; the first is the innermost."""
    found: dict[str, str] = {}
    for path in reversed(find_parameters(view, names)):
        place, _, name = path.rpartition(".")
        ours = f"{place}.loras.{name}"
        while place in found.values():
            place += ".base_layer"
        found[ours] = place
    return found
