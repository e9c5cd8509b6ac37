"""Small random models of the text architectures that the installed transformers knows.

Each is made of its own configuration with small sizes in it: by the names that sizes have in most
configurations, and by hand (``small.toml``) where they fit together in another way.
"""

import tomllib
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto

hf: Any = transformers
LARGEST = 8_000_000  # parameters: what is larger has sizes of other names
TASKS = {  # task: the auto class, and its table of architectures
    "writes": ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    "fills in": ("AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"),
    "classifies": (
        "AutoModelForSequenceClassification",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    ),
    "translates": ("AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"),
}
TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
SIZES: dict[str, Any] = {k: int(n) for n, ks in TABLE["sizes"].items() for k in ks.split()}
SIZES |= {"initializer_range": 0.2, "init_std": 0.2}  # so large that attention is far from uniform
LISTS = ("layer_types", "layers_block_type", "mlp_layer_types")  # what each layer is


class TooLarge(Exception):
    """The small sizes do not make this model small."""


class Elsewhere(Exception):
    """The model needs what is not here."""


def kinds(task: str) -> list[str]:
    """Return the architectures of a task: the values of ``config.model_type``."""
    return list(getattr(modeling_auto, TASKS[task][1]))


def build(kind: str, task: str) -> Any:
    """Return a model in evaluation, the same each time, with no weight zero and no norm one."""
    if kind in TABLE["elsewhere"]:
        raise Elsewhere(TABLE["elsewhere"][kind])
    config = configuration(kind)
    if getattr(config, "is_decoder", None) is not None:
        config.is_decoder = task == "writes"
    auto = getattr(hf, TASKS[task][0])
    with torch.device("meta"):
        n = sum(p.numel() for p in auto.from_config(config).parameters())
    if n > LARGEST:
        raise TooLarge(f"{n:,} parameters")
    torch.manual_seed(1)
    model = auto.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.is_floating_point() and p.numel() and bool((p == p.flatten()[0]).all()):
                p.add_(0.2 * torch.randn_like(p))
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = None
    return model


def configuration(kind: str) -> Any:
    """Return an architecture's configuration with small sizes."""
    own = TABLE["own"].get(kind, {})
    plain = hf.AutoConfig.for_model(kind)
    return type(plain)(**{"pad_token_id": 0} | _small(plain, own))


def _small(config: Any, own: dict[str, Any]) -> dict[str, Any]:
    """Return what makes a configuration small, and the parts that it is made of: text, image, encoder."""
    parts = {name: getattr(config, name, None) for name in type(config).sub_configs}
    inner = {
        name: part.to_dict()
        | _small(part, own.get(name, {}) | TABLE["own"].get(part.model_type, {}))
        for name, part in parts.items()
        if isinstance(part, hf.PreTrainedConfig)
    }
    sizes = {} if own.get("alone") else _sizes(config)
    return sizes | inner | {k: v for k, v in own.items() if k != "alone" and k not in inner}


def _sizes(config: Any) -> dict[str, Any]:
    """Return small values for the sizes that a configuration has."""
    found = {k: v for k, v in SIZES.items() if _settable(config, k)}
    if "qk_rope_head_dim" in found:  # latent attention: the heads' size is a sum
        found.pop("head_dim", None)
        found["num_key_value_heads"] = SIZES["num_attention_heads"]
    lists = {k: list(dict.fromkeys(getattr(config, k))) for k in LISTS if _has_list(config, k)}
    layers = max([2, *map(len, lists.values())])
    for name in ("num_hidden_layers", "n_layer", "num_layers"):
        if name in found:
            found[name] = layers
    return found | {name: (each * layers)[:layers] for name, each in lists.items()}


def _settable(config: Any, key: str) -> bool:
    kind = type(config)
    if key in kind.attribute_map or isinstance(getattr(kind, key, None), property):
        return False
    try:
        value = getattr(config, key, None)
    except RuntimeError:  # transformers': it is another one in each layer
        return False
    return value is not None and not isinstance(value, list | dict)


def _has_list(config: Any, key: str) -> bool:
    kind, value = type(config), getattr(config, key, None)
    other = key in kind.attribute_map or isinstance(getattr(kind, key, None), property)
    return isinstance(value, list) and bool(value) and not other
