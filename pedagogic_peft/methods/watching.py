"""What goes through a model's attentions, such as the keys and values of a text.

Prefixes act inside the attentions, where hooks see nothing of them. Here the attention function itself
(see `core/attention.py`) shows what it computes with, for the length of one block.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from pedagogic_peft.core import attention
from pedagogic_peft.core.sites import Modules
from pedagogic_peft.core.verbs import disabled

NAME = "pedagogic_peft_watched"
Watch = Callable[[Any, int, Tensor, Tensor, Tensor, Any, dict[str, Any]], None]
WATCH: ContextVar[Watch] = ContextVar("watch")  # of this thread


def keys_and_values(model: Any, ids: Tensor, places: Modules) -> dict[str, Tensor]:
    """Return the keys and values that tokens have in a model without its adaptations.

    Args:
        model: a model that reads tokens.
        ids: token ids, (n,).
        places: ``{path: attention}``.

    Returns:
        ``{path: (n, 2, heads, size)}``, in float32.

    Raises:
        ValueError: an attention runs several times in one forward pass.
    """
    paths = {module: path for path, module in places.items()}
    found: dict[str, Tensor] = {}

    def watch(module: Any, n: int, Q: Tensor, K: Tensor, V: Tensor, mask: Any, more: Any) -> None:
        if (path := paths.get(module)) in found:
            raise ValueError(f"{path} runs several times, each time with keys of its own")
        if path is not None:
            found[path] = torch.stack([K[0], V[0]]).permute(2, 0, 1, 3).float()

    modes = {module: module.training for module in model.modules()}
    alone = disabled(model) if "_adaptations" in vars(model) else nullcontext()
    try:
        with torch.no_grad(), watched(model.eval(), watch), alone:
            model(input_ids=ids[None].to(model.device))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return found


@contextmanager
def watched(model: Any, watch: Watch) -> Iterator[None]:
    """Inside the block, ``watch`` sees what each attention of the model computes with.

    It is called with the module, the number of keys that deltas have put in front, and then as
    `attention` is.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    before, token = model.config._attn_implementation, WATCH.set(watch)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        WATCH.reset(token)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa

    def run(module: Any, Q: Tensor, K: Tensor, V: Tensor, mask: Any, **more: Any) -> Any:
        WATCH.get()(module, K.shape[2] - key.shape[2], Q, K, V, mask, more)
        return sdpa(module, Q, K, V, mask, **more)

    return attention.through(run, module, query, key, value, attention_mask, **kwargs)
