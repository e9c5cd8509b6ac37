"""The attention function that asks the deltas beside an attention module.

Every attention of transformers calls the function its configuration names. Prefixes and LLaMA-Adapter
need no more than a function of their own there: it runs transformers' own SDPA function, and lets the
deltas in the module's hooks change what goes in and what comes out. Nothing enters the KV cache.

A delta for this place has ``attend(run, module, query, key, value, mask, **kwargs)``, which calls
``run`` with the rest of its arguments and returns what that returns, changed or not.

Shapes: query (batch, heads, q, d); key and value (batch, KV heads, k, d); mask None or (batch, 1 or
heads, q, k), boolean (True: may look) or added to the scores; the output (batch, q, heads, d).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from pedagogic_peft.core.architectures import ROLES, model_type, modules_in_role, roles_of
from pedagogic_peft.core.delta import Delta
from pedagogic_peft.core.sites import Adaptations, View
from pedagogic_peft.core.targets import Modules, find_targets

NAME = "pedagogic_peft"
Attend = Callable[..., tuple[Tensor, Tensor | None]]


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Run SDPA with each running delta of the module's hooks around it, the first innermost."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    run: Attend = sdpa_attention_forward
    for delta in module.hooks.running() if "hooks" in module._modules else ():
        run = partial(delta.attend, run)
    return run(module, query, key, value, attention_mask, **kwargs)


def check_can_take_over(model: Any) -> None:
    """Raise a ValueError if the model's attention cannot be `attention`."""
    can = hasattr(model, "set_attn_implementation") and model._can_set_attn_implementation()
    usual = hasattr(getattr(model, "config", None), "num_attention_heads")  # not of two kinds
    # DiffLlama's function gets half an attention at a time; CTRL's positions are no module's, to be shifted.
    if not (can and usual and model._supports_sdpa) or model_type(model) in ("ctrl", "diffllama"):
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

    In encoder-decoders these are the decoder's, as in Hugging Face PEFT. In a decoder or encoder
    without a row in `ROLES`, every module that transformers marks as an attention is one.

    Raises:
        ValueError: there is none; an encoder-decoder without a row.
    """
    model: Any = view.model
    if model.config.is_encoder_decoder:
        found = modules_in_role(view, roles_of(model).attention)
        return {p: m for p, m in found.items() if "decoder." in p and "EncDec" not in p}
    if model_type(model) in ROLES:
        return modules_in_role(view, roles_of(model).attention)
    return find_targets(view, ".*", is_attention)


def heads_and_size(model: Any) -> tuple[int, int]:
    """Return how many heads the keys and values have (under GQA fewer than queries), and their size."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    return heads, size or config.hidden_size // config.num_attention_heads
