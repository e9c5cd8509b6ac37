"""The attention function that asks the deltas beside an attention module.

Every attention of transformers calls the function its configuration names. Prefixes and LLaMA-Adapter
need no more than a function of their own there: it runs transformers' own SDPA function, and lets the
deltas in the module's hooks change what goes in and what comes out. Nothing enters the KV cache.

A delta for this place has ``attend(run, module, query, key, value, mask, **kwargs)``, which calls
``run`` with the rest of its arguments and returns what that returns, changed or not.

Shapes: query (batch, heads, q, d); key and value (batch, KV heads, k, d); mask None or (batch, 1 or
heads, q, k), boolean (True: may look) or added to the scores; the output (batch, q, heads, d).
"""

import re
from functools import partial
from typing import Any

from torch import Tensor, nn

from pedagogic_peft.core.architectures import ROLES, model_type, modules_in_role, roles_of
from pedagogic_peft.core.delta import Attend, Delta
from pedagogic_peft.core.sites import Adaptations, Modules, View
from pedagogic_peft.core.targets import is_linear, sizes

NAME = "pedagogic_peft"

# CTRL's positions are no module's, to be shifted; Inkling's queries have a bias of their own for each
# position; DiffLlama's attention function gets half an attention at a time.
OTHER = "ctrl diffllama inkling_mm_model inkling_text".split()

# What architectures call the size of a head, the maps of keys and values, and one map of all three.
SIZES = "head_dim attention_head_size head_size key_value_proj_dim".split()
KEYS_VALUES = re.compile(
    r"(qkv_proj\.)?([kv]_proj|key|value|(key|value)_proj|[kv]_lin|[kv])(\.linear)?"
)
FUSED = re.compile(r"c_attn|query_key_value|qkv_proj|Wqkv|qkv")
CROSS = re.compile(r"cross_?att|encoder_attn|EncDecAtt", re.IGNORECASE)  # looks at another text


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Run SDPA with each running delta of the module's hooks around it, the first innermost."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa

    return through(sdpa, module, query, key, value, attention_mask, **kwargs)


def through(
    run: Attend, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Run the attention function ``run`` as `attention` runs SDPA."""
    for delta in module.hooks.running() if "hooks" in module._modules else ():
        run = partial(delta.attend, run)
    return run(module, query, key, value, mask, **kwargs)


def check_can_take_over(model: Any) -> None:
    """Raise a ValueError if the model's attention cannot be `attention`."""
    can = hasattr(model, "set_attn_implementation") and model._can_set_attn_implementation()
    usual = _has_heads(getattr(model, "config", None)) and model_type(model) not in OTHER
    if not (can and usual and model._supports_sdpa):
        what = f"{type(model).__name__} does not compute its attention by transformers' interface"
        raise ValueError(f"{what} and SDPA, where prefixes and LLaMA-Adapter act")
    if (found := model.config._attn_implementation) not in ("sdpa", "eager", NAME):
        what = f"attn_implementation={found!r}: prefixes and LLaMA-Adapter need 'sdpa' or 'eager'"
        raise ValueError(f"{what}; call model.set_attn_implementation('sdpa') first")


def take_over(model: Any, record: Adaptations) -> None:
    """Make `attention` the model's attention; what was there is noted in the record."""
    register()
    if record.found_attention is None:
        record.found_attention = model.config._attn_implementation
        model.set_attn_implementation(NAME)


def register() -> None:
    """Make `attention` known to transformers; its masks are those of SDPA."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


class AttentionDelta(Delta):
    """A delta with ``attend``, beside an attention module."""

    beside = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        register()  # unpickled, perhaps in another process


def is_attention(module: nn.Module) -> bool:
    """Tell whether this is an attention module of transformers."""
    return hasattr(module, "is_causal")


def find_attentions(view: View) -> Modules:
    """Return ``{path: attention module}`` of all self-attentions.

    In encoder-decoders these are the decoder's, as in Hugging Face PEFT. In an architecture without a
    row in `ROLES`, every module that transformers marks as an attention is one, unless its name says
    that it looks at another text.

    Raises:
        ValueError: there is none.
    """
    model: Any = view.model
    if model_type(model) in ROLES:
        found = modules_in_role(view, roles_of(model).attention)
    else:
        found = {path: module for path, module in view.modules.items() if is_attention(module)}
    of = "decoder." if model.config.is_encoder_decoder else ""
    if not (own := {p: m for p, m in found.items() if of in p and not CROSS.search(p)}):
        raise ValueError(f"This {type(model).__name__} has no self-attention")
    return own


def heads_and_size(view: View, path: str) -> tuple[int, int]:
    """Return how many heads keys and values have (under GQA fewer than queries), and their size.

    Layers may differ, so the module's own maps say it, not the model's configuration.

    Raises:
        ValueError: it makes its keys and values otherwise, for example out of latent vectors.
    """
    model: Any = view.model
    module: Any = view.modules[path]
    inner = {p: m for p, m in view.modules.items() if p.startswith(f"{path}.") and is_linear(m)}
    widths = {p.removeprefix(f"{path}."): sizes(m)[1] for p, m in inner.items()}
    size = next((getattr(module, name) for name in SIZES if hasattr(module, name)), 0)
    found = {width for name, width in widths.items() if KEYS_VALUES.fullmatch(name)}
    for width in (width for name, width in widths.items() if FUSED.fullmatch(name)):
        queries = getattr(module, "num_heads", None) or model.config.num_attention_heads
        found.add((width - queries * size) // 2)
    if not size or len(found) != 1 or (width := found.pop()) < size or width % size:
        what = (
            f"{path} ({type(module).__name__}) does not make its keys and values by linear maps of"
        )
        raise ValueError(f"{what} one width: prefixes and LLaMA-Adapter have no shape there")
    return width // size, size


def _has_heads(config: Any) -> bool:
    """Tell whether a configuration is of one kind of layers; composed ones have no number of heads."""
    try:
        return hasattr(config, "num_attention_heads")
    except RuntimeError:  # transformers': it is another one in each layer
        return True
