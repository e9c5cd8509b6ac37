"""How much of their attention the tokens of a text give to each other, and to a prefix."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pedagogic_peft.core import attention
from pedagogic_peft.core.sites import View
from pedagogic_peft.methods.watching import watched


def attention_shares(model: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return which share of its attention each token gives to the positions of the active prefixes.

    In every attention the weights of prefix and text together sum to 1. So ``shares.sum(-1)`` is the λ
    of He et al. 2022 (arXiv:2110.04366, equation 7), what goes to the prefix, and 1 - λ goes to the text.

    Args:
        model: a model with prefixes; it computes as it does now (training mode, active adaptations).
        batch: the arguments of its forward pass: ``{"input_ids": (batch, tokens), ...}``.

    Returns:
        ``{path: (batch, heads, tokens, n)}`` of the attentions with a prefix, in float32; heads are the
        queries'. Several prefixes stand in the order in which `activate` named them. In a batch whose
        rows have different ones, the shorter ones have zeros in front.

    Raises:
        ValueError: the model's attention is not transformers' SDPA, as for `PrefixTuning`.

    Example:
        >>> from pedagogic_peft import PrefixTuning, attach, attention_shares, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> model = attach(model, PrefixTuning(num_virtual_tokens=5))
        >>> batch = tokenizer("emma had the blue book .", return_tensors="pt")
        >>> [tuple(shares.shape) for shares in attention_shares(model, batch).values()]
        [(1, 8, 7, 5), (1, 8, 7, 5)]
    """
    found = _watch(model, batch)
    return {path: seen[..., :n] for path, (n, seen) in found.items() if n}


def attention_weights(model: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the attention weights of every attention, as transformers' ``output_attentions`` would.

    Unlike that option it works with prefixes, and with the attention function that the model has.

    Args:
        model, batch: as in `attention_shares`; the model needs no prefix.

    Returns:
        ``{path: (batch, heads, queries, n + keys)}`` in float32, the n positions of prefixes in front;
        each row sums to 1.

    Raises:
        ValueError: as `attention_shares`.
    """
    return {path: seen for path, (_, seen) in _watch(model, batch).items()}


def _watch(model: Any, batch: Mapping[str, Any]) -> dict[str, tuple[int, Tensor]]:
    """Return ``{path: (n, weights)}`` of a forward pass."""
    attention.check_can_take_over(model)
    paths = {module: path for path, module in View(model).modules.items()}
    found: dict[str, tuple[int, Tensor]] = {}

    def watch(module: Any, n: int, Q: Tensor, K: Tensor, V: Tensor, mask: Any, more: Any) -> None:
        if mask is None and Q.shape[2] > 1 and getattr(module, "is_causal", False):
            # transformers left it out, since its kernel knows that no token looks ahead
            mask = torch.ones(Q.shape[2], K.shape[2], dtype=torch.bool, device=Q.device)
            mask = mask.tril(K.shape[2] - Q.shape[2])
        found[paths[module]] = n, weights(Q, K, mask, more)

    with torch.no_grad(), watched(model, watch):
        model(**batch)
    return found


def weights(Q: Tensor, K: Tensor, mask: Any, more: Mapping[str, Any]) -> Tensor:
    """Return the attention weights (batch, heads, q, k), in float32; arguments as in `attention`."""
    K = K.repeat_interleave(Q.shape[1] // K.shape[1], 1)  # GQA: several queries' heads share keys
    scale = more.get("scaling") or Q.shape[-1] ** -0.5
    scores = (Q @ K.transpose(2, 3) * scale).float()
    if (bias := more.get("position_bias")) is not None:
        scores = scores + bias
    if mask is not None:
        boolean = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -torch.inf) if boolean else scores + mask
    found: Tensor = scores.softmax(-1)
    return found
