"""Where the parts of a transformer are in each architecture: what a method's defaults are made of.

The table itself is ``architectures.toml``. An architecture that is not in it can be adapted too, with
`target_modules`.
"""

import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from pedagogic_peft.core.sites import View, Viewed


@dataclass(frozen=True)
class Roles:
    """Regular expressions for the ends of the paths of modules; "" where there is no such module.

    Attributes:
        attention: the module that holds one attention.
        query, key, value: its input projections; one fused projection stands in all three.
        attention_output: its output projection.
        ffn_input: the first linear map of a feed-forward block (the first of two, if it is gated).
        ffn_output: the last one, which maps back to the model's width.
        ffn_norm: in a post-norm architecture, the normalisation of "residual + feed-forward".
        residual: what reads the residual stream before the block: a norm, or `ffn_input` itself.
    """

    attention: str
    query: str
    key: str
    value: str
    attention_output: str
    ffn_input: str
    ffn_output: str
    ffn_norm: str = ""
    residual: str = ""


TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
ROLES = {kind: Roles(**row) for row in TABLE["roles"] for kind in row.pop("models").split()}


def by_kind(table: dict[str, str]) -> dict[str, str]:
    """Return ``{architecture: value}`` of a table ``{value: architectures}``."""
    return {kind: value for value, kinds in table.items() for kind in kinds.split()}


DEFAULT_TARGETS = {k: tuple(v.split()) for k, v in by_kind(TABLE["query_and_value"]).items()}
RESIDUAL = by_kind(TABLE["residual"])


def model_type(model: nn.Module) -> str | None:
    """Return ``config.model_type``, the name of the model's architecture, if it has one."""
    return getattr(getattr(model, "config", None), "model_type", None)


def refuse_lost(model: nn.Module, paths: Any) -> None:
    """Raise a ValueError if deltas inside of layers would get no gradient while embeddings are frozen.

    Reformer's layers are one function of autograd, left out if no input of it needs a gradient.
    """
    why = TABLE["lost_behind_frozen_embeddings"].get(model_type(model) or "")
    if why and any(".layers." in p for p in paths) and not any("embeddings" in p for p in paths):
        raise ValueError(why)


def backbone_of(model: Any) -> Any:
    """Return the model without its head, also where ``base_model`` is the model itself (Llama 4)."""
    if model.base_model is not model or model.get_output_embeddings() is None:
        return model.base_model
    table = model.get_input_embeddings()
    return next((part for part in model.children() if table in set(part.modules()) - {part}), model)


def roles_of(model: nn.Module, instead: str = "target_modules") -> Roles:
    """Return the row of this model's architecture.

    Args:
        model: a transformers model.
        instead: the hyper-parameters that do without, for the message.

    Raises:
        ValueError: it has none; the message lists those that have.
    """
    if (kind := model_type(model)) not in ROLES:
        what = f"No defaults for the architecture {kind!r} ({type(model).__name__})"
        known = f"they are known for {', '.join(sorted(ROLES))}"
        raise ValueError(f"{what}; {known}. Give {instead} instead")
    roles, norm = ROLES[kind], RESIDUAL.get(str(kind))
    if getattr(model.config, "do_layer_norm_before", True) is False:  # one size of OPT
        norm = None
    return replace(roles, residual=norm or roles.ffn_input)


def beside_the_text(model: Any) -> set[nn.Module]:
    """Return the modules for images or sounds in a model that reads text as well.

    A row of such a model may hold any number of images, so their first dimension is not the batch. The
    encoder of an encoder-decoder is no such module: it gets one image, or one sound, a row.
    """
    kinds = _inputs(model)
    if "text" not in kinds or len(kinds) == 1:
        return set()
    encoder = set(model.get_encoder().modules()) if model.config.is_encoder_decoder else set()
    text = encoder.union(model.get_decoder().modules())
    towers = [m for m in model.modules() if "text" not in _inputs(m) and m not in encoder]
    return (set(model.base_model.modules()) - text).union(*(tower.modules() for tower in towers))


def _inputs(module: nn.Module) -> set[str]:
    kinds: Any = getattr(module, "input_modalities", "text")  # of a transformers model
    return {kinds} if isinstance(kinds, str) else set(kinds)


def modules_in_role(model: Viewed, *patterns: str) -> dict[str, nn.Module]:
    """Return ``{path: module}`` of the modules that match one of a row's expressions.

    Raises:
        ValueError: an expression matches nothing.
    """
    found: dict[str, nn.Module] = {}
    view = View.of(model)
    modules = view.modules
    for pattern in patterns:
        here = {p: m for p, m in modules.items() if re.fullmatch(rf"(.*\.)?({pattern})", p)}
        if not here:
            raise ValueError(f"This {type(view.model).__name__} has no module {pattern!r}")
        found |= here
    return {path: modules[path] for path in modules if path in found}  # in the model's order
