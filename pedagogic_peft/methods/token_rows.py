"""Train the rows of a few tokens in the vocabulary's table, and freeze the rest.

New tokens need embeddings, and a LoRA of the other modules cannot give them any. Training the whole
table (`modules_to_save`) costs as much memory as the table has numbers, for a few rows of it. So

    W[i] = w_i  for each chosen token i,      W[j] = W_0[j]  for the others

with w_i trained, from W_0[i] on. It is what Hugging Face PEFT calls ``trainable_token_indices``. An
output embedding that is tied to the table has the same rows w_i.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import Delta, Deltas
from pedagogic_peft.core.sites import Modules, View
from pedagogic_peft.core.targets import find_modules, ignored, is_conv1d, is_linear

Tokens = Sequence[int] | Mapping[str, Sequence[int]] | None


class TokenRows(Delta):
    """The rows w of some tokens in the place of a table's own.

    Args:
        table: the module whose weight is W_0: (vocabulary, d).
        tokens: the chosen tokens' ids, n of them.
        rows: w: (n, d), of the table that this one is tied to; None: its own, which start at W_0's.
    """

    tokens: Tensor
    start: Tensor

    def __init__(self, table: Any, tokens: Sequence[int], rows: nn.Parameter | None = None):
        super().__init__()
        ids = torch.tensor(tokens, device=table.weight.device)
        start = table.weight.detach()[ids].float()
        self.tied = rows is not None
        self.trainable_tokens_delta = nn.Parameter(start.clone()) if rows is None else rows
        self.register_buffer("tokens", ids, persistent=False)
        self.register_buffer("start", start, persistent=False)

    @torch.no_grad()
    def merge_into(self, base: Any) -> None:
        """Write the rows into the table."""
        base.weight[self.tokens] = self.trainable_tokens_delta.to(base.weight.dtype)

    def to_checkpoint(self) -> dict[str, Tensor]:
        """Return the rows as PEFT calls them; the tied ones are saved where they belong."""
        if self.tied:
            return {}
        return {"token_adapter.trainable_tokens_delta": self.trainable_tokens_delta}


class EmbeddingRows(TokenRows):
    """The rows of an embedding, which are looked up."""

    def __init__(self, table: Any, *args: Any):
        super().__init__(table, *args)
        self.embed_scale = float(getattr(table, "embed_scale", 1.0))  # Gemma's, BART's

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y with the rows of the chosen tokens, for token ids x: (...) and y: (..., d)."""
        chosen = x[..., None] == self.tokens  # (..., n)
        row = F.embedding(chosen.int().argmax(-1), self.trainable_tokens_delta).to(y.dtype)
        row = row * y.new_tensor(self.embed_scale)
        return torch.where(chosen.any(-1, keepdim=True), row, y)


class HeadRows(TokenRows):
    """The rows of an output embedding, whose products with x are the tokens' logits."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y with the logits of the chosen tokens, for x: (..., d) and y: (..., vocabulary).

        Only what the rows have changed is added, so that nothing is rounded where nothing changed.
        """
        change = F.linear(x, (self.trainable_tokens_delta - self.start).to(x.dtype))  # (..., n)
        return y.index_add(-1, self.tokens, change.to(y.dtype))


def is_lookup(module: nn.Module) -> bool:
    """Tell whether this embedding only looks up (OPT's positions add 2 to the index), or scales too."""
    plain = getattr(type(module), "forward", None) is nn.Embedding.forward
    return plain or (isinstance(module, nn.Embedding) and hasattr(module, "embed_scale"))


def check_tokens(what: str, value: Any) -> Any:
    """Return the ids as a tuple, or ``{name of a module: its ids}``."""
    if isinstance(value, Mapping):
        validation.names(what, list(value))
        return {name: check_tokens(f"{what}[{name!r}]", ids) for name, ids in value.items()}
    good = isinstance(value, list | tuple) and value and len(set(map(str, value))) == len(value)
    validation.expect(good, what, value, "a list of token ids, each once, or {module name: ids}")
    return tuple(validation.whole(f"{what}[{i}]", token) for i, token in enumerate(value))


def token_rows(view: View, chosen: Tokens, taken: Modules) -> Deltas:
    """Return ``{path: delta}``: rows for each named table, and for what is tied to the input's.

    Args:
        view: a view of the model.
        chosen: ids of tokens of the input embedding, or ``{module name: ids}``.
        taken: modules that have another delta, by path.

    Raises:
        ValueError: there is no such table, or no such token in it; it has another delta; different
            tokens are chosen of one weight; the model reads that in one place without calling the module.
    """
    if not chosen:
        return {}
    source = input_embedding(view)
    if isinstance(chosen, Mapping):
        named = {path: ids for name, ids in chosen.items() for path in find_modules(view, [name])}
    elif source is not None:
        named = {source: chosen}
    else:
        kind = type(view.model).__name__
        raise ValueError(f"{kind} has no embedding of tokens by itself: give {{module name: ids}}")
    if both := named.keys() & taken.keys():
        raise ValueError(f"trainable_token_indices: {sorted(both)[0]!r} is a target as well")
    if source is None or source not in named:
        return {path: _rows(view, path, ids) for path, ids in named.items()}
    tied, ids = tied_to(view, source), named[source]
    for path, why in ignored(view, tied).items():
        what = f"trainable_token_indices: {path!r} has the weight of {source!r}"
        raise ValueError(f"{what}, and {why}: it would keep the old rows")
    deltas: Deltas = {path: _rows(view, path, named[path]) for path in named if path not in tied}
    for path in tied:
        if path in taken or tuple(named.get(path, ids)) != tuple(ids):
            what = f"trainable_token_indices: {path!r} has the weight of {source!r}"
            raise ValueError(f"{what}, and so the same rows, and no other delta")
        deltas[path] = _rows(view, path, ids, deltas[source].trainable_tokens_delta)
    return deltas


def _rows(view: View, path: str, tokens: Sequence[int], *rows: Any) -> TokenRows:
    table: Any = view.modules[path]
    if not (is_lookup(table) or (is_linear(table) and not is_conv1d(table))):
        kind = type(table).__name__
        raise ValueError(f"trainable_token_indices: {path!r} ({kind}) is no table of tokens")
    if max(tokens) >= len(table.weight) or not table.weight.is_floating_point():
        what = f"{path!r} has {len(table.weight)} rows ({table.weight.dtype})"
        hint = "new tokens need model.resize_token_embeddings first"
        raise ValueError(f"trainable_token_indices: {max(tokens)}, but {what}; {hint}")
    return (EmbeddingRows if is_lookup(table) else HeadRows)(table, tokens, *rows)


def input_embedding(view: View) -> str | None:
    """Return the path of the embedding of tokens, if the model says which it is."""
    model: Any = view.model
    with suppress(AttributeError, NotImplementedError):
        table = model.get_input_embeddings()
        paths = (path for path, seat in view.seats.items() if seat is table)
        return next((path for path in paths if is_lookup(view.modules[path])), None)
    return None


def tied_to(view: View, source: str) -> list[str]:
    """Return the paths of the other modules with the weight of this one."""
    weight = view.modules[source].weight
    tied = [p for p, m in view.modules.items() if m._parameters.get("weight") is weight]
    return [path for path in tied if path != source]
