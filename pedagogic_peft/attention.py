"""The attention function that asks the deltas beside an attention module.

Every attention of transformers calls the function its configuration names. Prefixes and LLaMA-Adapter
need no more than a function of their own there: it runs transformers' own SDPA function, and lets the
deltas in the module's annex change what goes in and what comes out. Nothing enters the KV cache.

A delta for this place has ``attend(run, module, query, key, value, mask, **kwargs)``, which calls
``run`` with the rest of its arguments and returns what that returns, changed or not.

Shapes: query (batch, heads, q, d); key and value (batch, KV heads, k, d); mask None or (batch, 1 or
heads, q, k), boolean (True: may look) or added to the scores; the output (batch, q, heads, d).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from pedagogic_peft.architectures import modules_in_role, roles_of
from pedagogic_peft.sites import Adaptations
from pedagogic_peft.targets import find_targets

NAME = "pedagogic_peft"
Attend = Callable[..., tuple[Tensor, Tensor | None]]


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Run SDPA with each running delta of the module's annex around it, the first innermost."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    run: Attend = sdpa_attention_forward
    annex: Any = module._modules.get("annex")
    for delta in annex.running() if annex is not None else ():
        if hasattr(delta, "attend"):
            run = partial(delta.attend, run)
    return run(module, query, key, value, mask, **kwargs)


def check_can_take_over(model: Any) -> None:
    """Raise a ValueError if the model's attention cannot be `attention`."""
    can = hasattr(model, "set_attn_implementation") and model._can_set_attn_implementation()
    if not can or not model._supports_sdpa:
        raise ValueError(
            f"{type(model).__name__} does not compute its attention through transformers' attention "
            "interface with SDPA, where prefixes and LLaMA-Adapter act; use another method"
        )
    if (found := model.config._attn_implementation) not in ("sdpa", "eager", NAME):
        raise ValueError(
            f"attn_implementation={found!r}: prefixes and LLaMA-Adapter need 'sdpa' or 'eager'; call "
            "model.set_attn_implementation('sdpa') first"
        )


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


def find_attentions(
    model: nn.Module, target_modules: Sequence[str] | str | None = None
) -> dict[str, nn.Module]:
    """Return ``{path: attention module}``: the targets, or all self-attentions.

    In encoder-decoders these are the decoder's, as in Hugging Face PEFT.

    Raises:
        ValueError: a name matches no attention; no names, and the architecture has no row in `ROLES`.
    """
    if target_modules is not None:
        return find_targets(model, target_modules, lambda module: hasattr(module, "is_causal"))
    found = modules_in_role(model, roles_of(model).attention)
    if getattr(model.config, "is_encoder_decoder", False):
        return {p: m for p, m in found.items() if "decoder." in p and "EncDec" not in p}
    return found


def heads_and_size(model: nn.Module) -> tuple[int, int]:
    """Return how many heads the keys and values have (under GQA fewer than queries), and their size."""
    config: Any = model.config
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    return getattr(
        config, "num_key_value_heads", None
    ) or heads, size or config.hidden_size // heads
