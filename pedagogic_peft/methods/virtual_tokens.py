"""Where virtual tokens stand: padding, prompt, text, in all that has a number for each token.

A soft prompt does what as many typed words would do in front of the text. So it stands next to the text,
behind padding on the left: recurrent layers, convolutions and windows of attention see how far away it is.
Masks, positions and token types become as wide as with typed words.
"""

import copy
import functools
import inspect
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from pedagogic_peft.core.delta import Kwargs

CACHES = ("past_key_values", "cache_params", "state", "mems")  # what transformers calls a cache
KNOWN = {"input_ids", "inputs_embeds", "attention_mask", "position_ids", *CACHES}
OTHER_MASKS = ("lengths", "input_mask")  # XLM's and XLNet's
PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")  # where the texts of a packed row begin


def columns(mask: Tensor, n: int) -> Tensor:
    """Return in which column each row of [P; X] stands: (batch, n + tokens).

    Args:
        mask: of the text X, (batch, tokens); P stands behind the zeros it begins with.
        n: how many rows P has.
    """
    padding = (mask.long().cumsum(1) == 0).sum(1, keepdim=True)  # (batch, 1)
    t = torch.arange(mask.shape[1], device=mask.device)
    own = padding + torch.arange(n, device=mask.device)
    return torch.cat([own, torch.where(t < padding, t, t + n)], dim=1)


def in_front(P: Tensor, x: Tensor) -> Tensor:
    """Return [P; X]: P (1 or batch, n, d) before the embedded text x (batch, tokens, d)."""
    P = P.to(x).expand(len(x), -1, -1)  # the same P for every row, or each row's own
    return torch.cat([P, x], dim=1)  # (batch, n + tokens, d)


def placed(both: Tensor, where: Tensor | None, dim: int = 1) -> Tensor:
    """Return [P; X], (..., batch, n + tokens, ...) with the tokens at ``dim``, in the `columns`."""
    return both if where is None else _taken(both, where.argsort(1), dim)


def parted(h: Tensor, where: Tensor | None) -> Tensor:
    """Return h (batch, n + tokens, d) with the prompt's rows in front, wherever they stood."""
    if where is None or h.shape[1] != where.shape[1]:  # a Funnel returns fewer rows
        return h
    return _taken(h, where, 1)


def _taken(x: Tensor, where: Tensor, dim: int) -> Tensor:
    shape = [1] * (dim - 1) + list(where.shape) + [1] * (x.dim() - dim - 1)
    return x.take_along_dim(where.view(shape), dim)


def positions(mask: Tensor) -> Tensor:
    """Return each token's position (batch, tokens): how many real tokens its row has before it."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def own_positions(module: Any, kwargs: Kwargs, x: Tensor) -> Tensor | None:
    """Return the positions (3, batch, tokens) of a backbone that finds images by their ids, or None.

    Args:
        module, kwargs: the backbone, and all its arguments by name.
        x: the embedded text, (batch, tokens, d).
    """
    if not hasattr(module, "compute_3d_position_ids"):
        return None
    asked, known = inspect.signature(module.compute_3d_position_ids).parameters, dict(kwargs)
    known["inputs_embeds"] = x
    given = {k: known.get(k) for k, p in asked.items() if k in known or p.default is p.empty}
    found: Tensor | None = module.compute_3d_position_ids(**given)
    if found is None:  # no image: said all the same, for the module remembers the last one's
        found = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        mask = kwargs.get("attention_mask")
        found = found if mask is None else positions(mask)
    return found


def widened(kwargs: Kwargs, n: int, where: Tensor | None, shape: tuple[int, int]) -> Kwargs:
    """Return the arguments that have a whole number for each token, with zeros for the prompt's.

    These are token types, places on a page, marks of images: zero is what plain words have.

    Args:
        kwargs: all arguments of the backbone, by name.
        n: how many rows the prompt has.
        where: the `columns`.
        shape: (batch, tokens) of the text.

    Raises:
        ValueError: another argument has numbers for each token, such as a mask of pairs of tokens.
    """
    found = {}
    for name, value in kwargs.items():
        if name in KNOWN or name.startswith("encoder_") or not isinstance(value, Tensor):
            continue
        if value.shape[:2] == shape:
            if value.is_floating_point():
                raise ValueError(f"{name}={tuple(value.shape)}: a soft prompt has no values there")
            zeros = value.new_zeros(shape[0], n, *value.shape[2:])
            found[name] = placed(torch.cat([zeros, value], 1), where)
    return found


def cache_of(found: Any) -> Any:
    """Return the cache among a backbone's arguments, or in its output; None if there is none."""
    if isinstance(found, tuple):
        return next((part for part in found if hasattr(part, "get_seq_length")), None)
    return next((found[name] for name in CACHES if found.get(name) is not None), None)


def rows_read(cache: Any, n: int, several: bool) -> int:
    """Return how many rows the model has read in earlier steps; 1 where the cache is only a state.

    Args:
        cache: of an earlier step, empty, or None. From here on its length counts all its rows.
        n: how many rows the prompt has.
        several: whether other prompts are active, too.

    Raises:
        ValueError: the cache is static, does not tell, or was filled without the prompt.
    """
    if cache is None or isinstance(cache, list | tuple):  # RWKV's state
        return int(cache is not None)
    vars(cache).pop("get_seq_length", None)
    try:
        rows = int(cache.get_seq_length())
        bad = cache.is_compileable
    except ValueError:  # layers with a state have no length
        rows = int(any(True in layer.has_previous_state.values() for layer in cache.layers))
        bad = False
    except AttributeError:
        bad = True
    if bad:
        what = f"A soft prompt needs a dynamic cache, not a static cache ({type(cache).__name__})"
        raise ValueError(f"{what}: leave cache_implementation out, or set use_cache=False")
    held = getattr(cache, "prompt_rows", 0)
    if rows and (held < n or (held > n and not several)):
        what = f"The cache holds {held} rows of a prompt, but the prompt has {n} virtual tokens"
        raise ValueError(f"{what}: a cache that was filled without it cannot be used with it")
    if not rows:
        cache.prompt_rows = 0
    return rows


def hide_prompt(cache: Any, n: int) -> None:
    """Leave the prompt's rows out of the cache's length, as long as the backbone is not running.

    `generate`, and other loops, compare that length with the text's: to find what a second turn adds.

    Args:
        cache: what the backbone has read, or None.
        n: how many rows of a prompt this step has put in.
    """
    if hasattr(cache, "get_seq_length"):
        vars(cache).pop("get_seq_length", None)
        cache.prompt_rows = getattr(cache, "prompt_rows", 0) + n
        cache.get_seq_length = functools.partial(_text_length, copy.copy(cache))


def _text_length(cache: Any, *args: Any, **kwargs: Any) -> int:
    """Return the length of a cache, less the prompt's rows; its copy shares the layers, not the name."""
    return max(0, int(cache.get_seq_length(*args, **kwargs)) - int(cache.prompt_rows))


def thread() -> int:
    """Return what tells this thread's forward pass from another's; compiled code keeps its own anyway."""
    return 0 if torch.compiler.is_compiling() else get_ident()


def check_can_widen(kwargs: Kwargs) -> None:
    """Raise a ValueError if the mask is of another kind, or a row has several texts in it."""
    if other := [name for name in OTHER_MASKS if kwargs.get(name) is not None]:
        what = f"{other[0]} says where padding is, and a soft prompt does not read it"
        raise ValueError(f"{what}: give attention_mask in its place")
    mask, given = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        raise ValueError("A soft prompt needs attention_mask=(batch, tokens), not another mask")
    packed = any(kwargs.get(name) is not None for name in PACKED)
    if given is not None and given.dim() == 2:
        back = given[:, 1:] <= given[:, :-1]
        if mask is not None:
            real = mask[:, -given.shape[1] :].bool()
            back = back & real[:, 1:] & real[:, :-1]
        packed = packed or bool(back.any())
    if packed:
        what = "position_ids begin again inside a row: several texts are packed into it"
        raise ValueError(f"{what}. A soft prompt stands in a row once, so give each text its own")


def check_padding(mask: Tensor, pads_left: bool) -> None:
    """Raise a ValueError if a row begins with padding and may not."""
    if not pads_left and bool((mask[:, 0] == 0).any()):
        what = "In this model padding on the left would move a soft prompt's positions"
        raise ValueError(f"{what}: pad on the right, or use rows of one length")
