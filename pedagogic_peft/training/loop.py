"""A training loop of thirty lines: AdamW, shuffled batches, warm-up, clipping, and nothing else.

`train` does the same steps, bit for bit, and adds what long runs need: a GPU or mixed precision,
evaluation, callbacks, and a file from which a killed run goes on.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

Collate = Callable[[list[Any]], dict[str, Tensor]]


def loop(
    model: nn.Module,
    examples: Sequence[Any],
    collate_fn: Collate,
    *,
    steps: int,
    batch_size: int = 32,
    lr: float = 1e-3,
    warmup: float = 0.1,
    max_grad_norm: float = 1.0,
    seed: int = 0,
) -> list[float]:
    """Train the parameters that require a gradient; return the loss of each step.

    Args:
        model: ``model(**batch)`` has a ``.loss``; it is left in evaluation mode.
        examples: what ``collate_fn`` makes a batch of, such as `pad_collate`.
        steps, batch_size, lr, warmup, max_grad_norm, seed: as in `train`.

    Raises:
        ValueError: a warm-up outside [0, 1].
    """
    torch.manual_seed(seed)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=lr, weight_decay=0.0, fused=True)
    schedule = LambdaLR(optimizer, warmup_then_decay(steps, warmup))
    losses = []
    model.train()
    for batch in repeat(shuffled(examples, collate_fn, batch_size, seed), steps):
        loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def shuffled(examples: Sequence[Any], collate_fn: Collate, batch_size: int, seed: int) -> Any:
    """Return a loader of batches in an order that depends on the seed; another one in each pass."""
    return DataLoader(
        cast(Any, examples),  # a sequence serves as a Dataset
        batch_size=batch_size,
        shuffle=True,
        collate_fn=collate_fn,
        generator=torch.Generator().manual_seed(seed),
    )


def repeat(loader: Iterable[Any], steps: int) -> Iterator[Any]:
    """Yield ``steps`` batches, going over the data as often as needed."""
    while steps > 0:
        for batch in loader:
            yield batch
            steps -= 1
            if steps == 0:
                return


def warmup_then_decay(steps: int, warmup: float) -> Callable[[int], float]:
    """Return the factor on the learning rate as a function of the steps done; it is never 0.

    Raises:
        ValueError: a warm-up outside [0, 1].
    """
    if not 0 <= warmup <= 1:
        raise ValueError(f"warmup={warmup}: expected a share of the steps, 0 to 1")
    rising = round(warmup * steps)
    return lambda done: min((done + 1) / (rising + 1), (steps - done) / max(steps - rising, 1))
