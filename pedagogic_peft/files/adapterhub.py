"""Read bottleneck adapters that the `adapters` library (AdapterHub) saved.

Such a folder has ``adapter_config.json`` and ``adapter.safetensors`` or ``pytorch_adapter.bin``. A
tensor is called ``<path in the model>.adapters.<adapter's name>.adapter_down.0.weight``.
"""

import json
import re
from pathlib import Path
from typing import Any

from torch import nn

from pedagogic_peft.core.architectures import model_type, modules_in_role, roles_of
from pedagogic_peft.core.delta import Deltas, Tensors, load_tensors
from pedagogic_peft.core.sites import Model, View, layer_of
from pedagogic_peft.core.verbs import check_can_attach, install
from pedagogic_peft.files.disk import tensors_of_pickle, text_of
from pedagogic_peft.files.peft import TABLE, Bounded, Config, check_options
from pedagogic_peft.methods.bottleneck import BottleneckAdapter, Tap

ARCHITECTURES = ("bert", "roberta", "xlm-roberta", "distilbert", "gpt2")

CONFIG, WEIGHTS = "adapter_config.json", ("adapter.safetensors", "pytorch_adapter.bin")

BLOCK = r"attention\.output|attention_adapters|output|output_adapters"
NAME = rf"(?:.*\.)?(\d+)\.({BLOCK})\.adapters\.([^.]+)\.(adapter_down|adapter_up)(?:\.0)?(\.\w+)"


def load_adapterhub(model: Model, path: str | Path, name: str = "default") -> Model:
    """Attach a bottleneck adapter from a folder that the `adapters` library wrote.

    It can be trained, and is the only active one. Read are its configurations "seq_bn" (here:
    "pfeiffer"), "double_seq_bn" ("houlsby") and "par_bn" ("parallel"), for BERT, RoBERTa, DistilBERT
    and GPT-2; not "seq_bn" for GPT-2, where it reads the residual stream, which "pfeiffer" here does
    not. Prediction heads (``head_config.json``) are not read.

    Args:
        model: the base model the adapter was made for; changed in place.
        path: the folder.
        name: what to call the adaptation.

    Returns:
        The same model.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: an architecture, configuration or option that is not supported, which is named;
            the tensors do not fit the model. The model is then unchanged.

    Example:
        >>> from pedagogic_peft import load_adapterhub, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> load_adapterhub(model, "my-adapter")  # a folder that `adapters` wrote is needed
        Traceback (most recent call last):
        FileNotFoundError: my-adapter needs adapter_config.json and adapter.safetensors or pytorch_adapter.bin
    """
    view = check_can_attach(model, name)
    folder = Path(path)
    config, tensors = _read(folder)
    try:
        method = _method(model, config)
        with Bounded(model, tensors):
            deltas = method.build(view)
        load_tensors(deltas, _our_names(view, deltas, tensors, config.get("name")))
    except Exception as error:  # a stranger's numbers can fail anywhere
        raise ValueError(f"{folder}: {error}") from error
    install(view, method, name, deltas)
    return model


def _read(folder: Path) -> tuple[Config, Tensors]:
    from safetensors.torch import load_file

    there = [folder / f for f in (CONFIG, *WEIGHTS) if (folder / f).is_file()]
    if len(there) < 2 or there[0].name != CONFIG:
        raise FileNotFoundError(f"{folder} needs {CONFIG} and {' or '.join(WEIGHTS)}")
    try:
        config = json.loads(text_of(there[0]))
        if there[1].suffix == ".bin":
            return config, tensors_of_pickle(there[1])
        return config, load_file(there[1])
    except Exception as error:  # safetensors and pickle have exceptions of their own
        raise ValueError(f"{folder}: a file is not whole or not safe: {error}") from error


def _method(model: nn.Module, config: Config) -> BottleneckAdapter:
    kind = model_type(model)
    if kind not in ARCHITECTURES:
        raise ValueError(f"The architecture {kind!r}: adapters are read for {ARCHITECTURES}")
    options: Any = config.get("config")
    what = options.get("architecture") if isinstance(options, dict) else options or "nothing"
    if what is not None:
        raise ValueError(f"The adapter is {what!r}: only bottleneck adapters are read")
    check_options(options | {"peft_type": "ADAPTERHUB"}, TABLE["ignored_of_adapterhub"].split())
    chosen = {flag: bool(options.get(flag, False)) for flag in TABLE["placements"]["pfeiffer"]}
    found = [name for name, flags in TABLE["placements"].items() if flags == chosen]
    if not found or (kind == "gpt2" and found == ["pfeiffer"]):
        raise ValueError(f"{chosen} is a placement not supported here for {kind}")
    return BottleneckAdapter(
        reduction_factor=options["reduction_factor"],
        non_linearity=options["non_linearity"].lower(),
        placement=found[0],
        scaling=options.get("scaling", 1.0),
        leave_out=options.get("leave_out") or (),
    )


def _our_names(view: View, deltas: Deltas, tensors: Tensors, adapter: Any) -> Tensors:
    """Return the tensors by their names here: a delta is found by its layer, and its half of it."""
    attention = modules_in_role(view, roles_of(view.model).attention_output)
    paths = {(layer_of(p), p in attention): p for p, d in deltas.items() if not isinstance(d, Tap)}
    found = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(NAME, key)
        layer, block, name, linear, kind = match.groups() if match else ("-1", "", "", "", "")
        place = int(layer), block.startswith("attention")
        if name != adapter or place not in paths:
            raise ValueError(f"{key} has no place in this model")
        found[f"{paths[place]}.{linear}{kind}"] = tensor
    return found
