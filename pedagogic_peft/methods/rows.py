"""Serving several adaptations in one batch: each row of the batch has one of its own.

``activate(model, rows=["sentiment", "style", None])`` chooses. The frozen model runs once for all rows;
deltas that are alike are then served in one go, by what is registered here in `BATCHED`. Without an
entry a site calls each delta with the rows it serves; what stands beside a module needs one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.core.delta import BATCHED, Args, Batched, Kwargs
from pedagogic_peft.core.sites import by_name
from pedagogic_peft.methods.lora import LoRALinear
from pedagogic_peft.methods.prompt_tuning import (
    EncodedPrompt,
    SoftPrompt,
    WiderCrossMask,
)


def batched_lora(deltas: Sequence[LoRALinear]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that applies a different LoRA to each row, with two batched products."""

    def forward(x: Tensor, y: Tensor) -> Tensor:
        A = torch.stack([d.lora_A.weight for d in deltas]).to(x.dtype)  # (rows, r, d_in)
        B = torch.stack([d.lora_B.weight for d in deltas]).to(x.dtype)  # (rows, d_out, r)
        scaling = x.new_tensor([d.scaling for d in deltas])[:, None, None]
        x = deltas[0].dropout(x).reshape(len(deltas), -1, x.shape[-1])  # (rows, tokens, d_in)
        return y + (scaling * (x @ A.mT) @ B.mT).view_as(y)

    return forward


class RowPrompts:
    """Prompts for a batch in which each row has its own; it trains nothing itself.

    Shorter prompts stand behind filler that the mask hides, as padding on the left is hidden.

    Args:
        prompts: one for each row; None for a row without.
    """

    def __init__(self, prompts: Sequence[SoftPrompt | None]):
        self.prompts = prompts
        self.first = next(prompt for prompt in prompts if prompt is not None)

    def enter(self, module: Any, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Put each row's prompt in front of it.

        Raises:
            ValueError: the batch has another number of rows; prompts of different lengths, where
                padding is not hidden that well.
        """
        kwargs = by_name(module, args, kwargs)
        each = {prompt: prompt.prompt() for prompt in self.prompts if prompt is not None}
        empty = next(iter(each.values()))[:0]
        rows = [empty if prompt is None else each[prompt] for prompt in self.prompts]
        lengths = [len(row) for row in rows]
        if len(set(lengths)) > 1 and not self.first.counts:
            what = f"rows with prompts of {lengths} virtual tokens: in a {type(module).__name__}"
            raise ValueError(f"{what} they need the same number in every row")
        x = kwargs.get("inputs_embeds")
        batch = len(kwargs["input_ids"] if x is None else x)
        if batch % len(rows):
            raise ValueError(f"A batch of {batch} rows, but activate named {len(rows)}")
        n, repeats = max(lengths), batch // len(rows)  # beams of one row follow each other
        P = torch.stack([F.pad(row, (0, 0, n - len(row), 0)) for row in rows])  # (rows, n, d)
        real = torch.tensor([[0] * (n - m) + [1] * m for m in lengths], device=P.device)
        P, real = P.repeat_interleave(repeats, 0), real.repeat_interleave(repeats, 0)
        return (), self.first.put(module, kwargs, P, real if min(lengths) < n else None)

    def leave(self, module: nn.Module, output: Any) -> Any:
        """Take the rows of P off the last hidden state."""
        return self.first.leave(module, output)


def any_of(deltas: Sequence[WiderCrossMask | None]) -> WiderCrossMask:
    """Return what serves all rows: any of the deltas, because their prompts have one length."""
    return next(delta for delta in deltas if delta is not None)


def _rank_and_dropout(delta: LoRALinear) -> tuple[int, float]:
    return delta.lora_A.out_features, getattr(delta.dropout, "p", 0.0)


BATCHED[LoRALinear] = Batched(_rank_and_dropout, batched_lora)
BATCHED[SoftPrompt] = BATCHED[EncodedPrompt] = Batched(type, RowPrompts)
BATCHED[WiderCrossMask] = Batched(type, any_of)
