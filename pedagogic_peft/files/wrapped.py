"""What PEFT's LoRA files hold of the base itself: biases that were trained, and rows of its tables.

A tensor is named after what PEFT wraps around the module: ``base_layer`` in a target, ``token_adapter``
around a table whose rows are trained, ``modules_to_save`` and ``original_module`` for one that is trained
in full.
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import Deltas, Tensors, some
from pedagogic_peft.core.sites import View
from pedagogic_peft.core.targets import is_named
from pedagogic_peft.files.peft import PREFIX, Config
from pedagogic_peft.methods.biases import WHICH, bias_owners
from pedagogic_peft.methods.token_rows import HeadRows, TokenRows, input_embedding, tied_to

ROWS = "token_adapter.trainable_tokens_delta"


def peft_biases(tensors: Tensors, targets: Iterable[str], deltas: Deltas) -> dict[str, Tensor]:
    """Return the tensors with PEFT's names of trained biases.

    Args:
        tensors: ``{prefixed path.name: tensor}``, where a trained bias is called ``trained_bias``.
        targets: the prefixed paths of the LoRA's targets.
        deltas: all of the adaptation, by path.
    """
    around = dict.fromkeys(targets, ".base_layer")
    for path, delta in deltas.items():
        if any(isinstance(part, TokenRows) for part in delta.modules()):
            around[PREFIX + path] = ".token_adapter.base_layer"

    def name(key: str) -> str:
        path = key.removesuffix(".trained_bias")
        return key if path == key else f"{path}{around.get(path, '')}.bias"

    return {name(key): tensor for key, tensor in tensors.items()}


def own_biases(view: View, config: Config, tensors: Tensors, targets: Tensors) -> Tensors:
    """Return the tensors, with the biases that were trained by the name they have in our deltas.

    With "all", PEFT saves every tensor called bias, so that those of a module trained in full are there
    three times, and one that two modules share twice.

    Args:
        view: a view of the model.
        config: the configuration of the checkpoint.
        tensors: its tensors, without the prefix of their names.
        targets: the paths of the LoRA's targets.

    Raises:
        ValueError: two values of one bias differ; or as `bias_owners`.
    """
    which = validation.one_of(*WHICH)("bias", config.get("bias") or "none")
    heads = validation.names("modules_to_save", config.get("modules_to_save") or [])
    full = [path for path in view.modules if heads and path.endswith(heads)]
    known = [path for path in targets if path in view.modules]
    names = {m.bias: path for path, m in bias_owners(view, which, known, full).items()}
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        path, _, name = key.rpartition(".")
        if which == "all" and name == "bias" and _is_copy(path, full):
            continue
        module: Any = view.modules.get(re.sub(r"(\.token_adapter)?\.base_layer$", "", path))
        owner = module is not None and name == "bias" and names.get(module._parameters["bias"])
        new = f"{owner}.trained_bias" if owner else key
        if new in found and not torch.equal(found[new], tensor):
            raise ValueError(f"{key}: the checkpoint has two values of this bias")
        found[new] = tensor
    return found


def warn_of_lost_bias(view: View, deltas: Deltas) -> None:
    """Warn of an output embedding with a bias whose rows are trained: there PEFT leaves out the bias."""
    heads = [p for p, d in deltas.items() if any(isinstance(m, HeadRows) for m in d.modules())]
    for path in heads:
        bias = view.modules[path]._parameters.get("bias")
        if bias is not None and (bias.is_meta or bias.any()):
            what = f"PEFT computes {path!r} without its bias, because rows of it are trained"
            validation.warn(f"{what}; this library with it, so the two differ by the bias")


def own_rows(view: View, config: Config, tensors: Tensors) -> Tensors:
    """Return the tensors without the tables that PEFT saves beside the rows of a grown vocabulary.

    Raises:
        ValueError: a table differs from the model's in a row that is not one of those trained.
    """
    tokens: Any = config.get("trainable_token_indices")
    if not tokens:
        return tensors
    source = input_embedding(view)
    tied = [] if source is None else tied_to(view, source)
    found = dict(tensors)
    for key, tensor in tensors.items():
        path, _, name = key.rpartition(".token_adapter.")
        if key == f"{path}.{ROWS}" and path in tied and f"{source}.{ROWS}" in found:
            if torch.equal(tensor, found[f"{source}.{ROWS}"]):
                del found[key]
        elif name == "base_layer.weight" and path in view.modules:
            rows = _tokens_of(tokens, source if path in tied else path)
            own = view.modules[path].weight.detach().cpu()  # type: ignore[operator]
            if tensor.shape != own.shape:
                what = f"{key} has {len(tensor)} rows, and the model's table {len(own)}"
                raise ValueError(f"{what}: resize_token_embeddings first")
            differ = (tensor.to(own.dtype) != own).any(1).nonzero().flatten().tolist()
            if other := set(differ) - set(rows):
                what = f"{key}: the checkpoint was made on a base with another weight, in rows"
                raise ValueError(f"{what} that are not trained: {some(map(str, other))}")
            del found[key]
    return found


def _is_copy(path: str, full: list[str]) -> bool:
    outer = re.split(r"\.(?:original_module|modules_to_save)(?:\.|$)", path)
    return len(outer) == 2 and outer[0] in full


def _tokens_of(tokens: Any, path: str | None) -> list[int]:
    if not isinstance(tokens, dict):
        return list(tokens)
    return [i for name, ids in tokens.items() if is_named([name], path or "") for i in ids]
