"""Rows of a batch with prefixes, or prompts of LLaMA-Adapter, of their own (see `rows.py`).

Section 8.2 of Li & Liang 2021 promises it of prefixes: one batch for many users, each with their own.
Shorter ones stand behind filler that the mask hides.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pedagogic_peft.core.delta import BATCHED, Args, Attend, Batched, Delta, Kwargs
from pedagogic_peft.core.sites import by_name
from pedagogic_peft.methods.llama_adapter import GatedPrompt
from pedagogic_peft.methods.prefix_tuning import CountedText, PositionShift, Prefix, attend_to
from pedagogic_peft.methods.prompt_tuning import check_fits


class OfRows:
    """What stands beside a module for a batch in which each row has its own; it trains nothing.

    Args:
        deltas: one for each row; None for a row without.
    """

    enter, leave = Delta.enter, Delta.leave

    def __init__(self, deltas: Sequence[Any]):
        self.deltas = deltas
        self.first = next(delta for delta in deltas if delta is not None)

    def repeats(self, batch: int) -> int:
        """Return how many rows of the batch each delta serves: beams of one row follow each other.

        Raises:
            ValueError: the batch has another number of rows.
        """
        if batch % len(self.deltas):
            raise ValueError(f"A batch of {batch} rows, but activate named {len(self.deltas)}")
        return batch // len(self.deltas)

    def joined(self, each: Mapping[Any, Tensor], batch: int) -> tuple[Tensor, Tensor | None]:
        """Return each row's own tensor (n_i, ...) in one, (batch, n, ...), with filler in front.

        Also (batch, n), where it is no filler; None if nothing is.

        Raises:
            ValueError: as `repeats`.
        """
        n, repeats = max(map(len, each.values())), self.repeats(batch)
        filler = each[self.first].new_zeros(n, *each[self.first].shape[1:])
        own = [filler[:0] if delta is None else each[delta] for delta in self.deltas]
        P = torch.stack([torch.cat([filler[: n - len(x)], x]) for x in own])
        real = torch.tensor(
            [[False] * (n - len(x)) + [True] * len(x) for x in own], device=P.device
        )
        P, real = P.repeat_interleave(repeats, 0), real.repeat_interleave(repeats, 0)
        return P, None if all(len(x) == n for x in own) else real


class RowPrefixes(OfRows):
    """Prefixes, section 8.2 of Li & Liang: one batch for many users, each with a prefix of their own."""

    def attend(
        self, run: Attend, module: Any, Q: Tensor, K: Tensor, V: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Put each row's prefix in front of its keys and values.

        Raises:
            ValueError: the batch has another number of rows; in a T5, some prefixes shift positions.
        """
        each = {prefix: prefix.keys_and_values() for prefix in self.deltas if prefix is not None}
        if len({prefix.table for prefix in each}) > 1:
            raise ValueError("rows: shift_positions has to be the same in all their prefixes")
        P, real = self.joined(each, len(K))
        table = self.first.table[0]
        return attend_to(P, real, table, run, module, Q, K, V, mask, **kwargs)


class RowShifts(OfRows):
    """The shifts of positions; a row without a prefix has none."""

    def enter(self, module: Any, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Move each row's positions by the length of its own prefix.

        Raises:
            ValueError: the lengths differ, where all rows of a batch have the same positions.
        """
        kwargs = by_name(module, args, kwargs)
        lengths = [0 if shift is None else shift.n for shift in self.deltas]
        positions, x = kwargs["position_ids"], next(iter(kwargs.values()))
        if len(set(lengths)) == 1:
            return self.first.enter(module, (), kwargs)  # type: ignore[no-any-return]
        if positions.dim() < 2:
            what = f"rows with prefixes of {lengths} virtual tokens: in a {type(module).__name__}"
            raise ValueError(f"{what} they need the same number in every row")
        check_fits(max(lengths), positions.shape[-1], self.first.limit)
        repeats = self.repeats(max(len(x), positions.shape[-2]))
        shifts = positions.new_tensor(lengths).repeat_interleave(repeats)
        return (), kwargs | {"position_ids": positions + shifts[:, None]}


class RowGates(OfRows):
    """LLaMA-Adapter's prompts."""

    def attend(
        self, run: Attend, module: Any, Q: Tensor, K: Tensor, V: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Add what each row's queries find in its own prompt, behind its own gates."""
        y, weights = run(module, Q, K, V, mask, **kwargs)  # y: (batch, q, heads, size)
        each = {delta: delta.prompt for delta in self.deltas if delta is not None}
        closed, repeats = torch.zeros_like(self.first.gate), self.repeats(len(Q))
        # The maps of keys and values get one prompt a row, for they may be adapted by rows too.
        P, real = self.joined(each, len(self.deltas))
        gate = torch.stack([closed if delta is None else delta.gate for delta in self.deltas])
        gate = gate.repeat_interleave(repeats, 0)[..., None, None]
        options = {"scale": kwargs.get("scaling")}
        if real is not None:  # a softmax needs something to look at, also behind a closed gate
            real = (real | ~real.any(-1, keepdim=True)).repeat_interleave(repeats, 0)
            options["attn_mask"] = real[:, None, None]
        return y + self.first.found(module, P, gate, Q, **options), weights


BATCHED[Prefix] = Batched(type, RowPrefixes)
BATCHED[GatedPrompt] = Batched(type, RowGates)
BATCHED[CountedText] = Batched(type, lambda deltas: next(d for d in deltas if d is not None))
# In a site each shift serves its own rows.
BATCHED[PositionShift] = Batched(lambda shift: shift, RowShifts)
