"""How much a frozen encoder knows already: a logistic regression on its vectors, by where it reads them.

    python -m pedagogic_peft.course.experiments.real_readouts    # what is missing

The tasks, the rows and the scores are those of `real_encoder`. Nothing of MiniLM is trained; the regression
has up to 5,000 iterations, and its C is chosen among ten by the rows that choose a rate there (on the
pooled vector two seeds of SST-2 choose the largest, where hardly any penalty is left). It reads the mean of
the last vectors, or the first one ([CLS]), or what the pooling layer makes of the first one, which is all
that the bench's new head sees. It is the baseline of whatever is trained in the encoder, and tells what of
a head's weakness comes from the place it reads.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pedagogic_peft.course.experiments import real_encoder
from pedagogic_peft.course.experiments.store import Cell, run_missing

RESULTS = Path(__file__).with_name("real_readouts.jsonl")
PLACES = ("mean", "first", "pooled")
SEEDS = (0, 1, 2, 3, 4)
STRENGTHS = tuple(10.0**k for k in range(-4, 6))  # C, the inverse of the penalty's weight


@torch.no_grad()
def vectors(model: Any, tokenizer: Any, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return what the places hold of each text: {place: (texts, width)}."""
    found: dict[str, list[torch.Tensor]] = {place: [] for place in PLACES}
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=real_encoder.LONGEST, return_tensors="pt")
        out = model.base_model(**ids.to(model.device))
        last = out.last_hidden_state
        for place, vector in zip(
            PLACES, (last.mean(1), last[:, 0], out.pooler_output), strict=True
        ):
            found[place].append(vector.cpu())
    return {place: torch.cat(some) for place, some in found.items()}


@cache
def frozen(base: str) -> tuple[Any, Any]:
    """Return the encoder and its tokenizer."""
    model, tokenizer = real_encoder.prepare("sst2", "head", base=base)
    return model.eval(), tokenizer


@cache
def held(task: str, base: str) -> list[dict[str, torch.Tensor]]:
    """Return the vectors of the rows that choose and of those that rank, which are the same for all seeds."""
    parts = real_encoder.parts(task)[1:]
    return [vectors(*frozen(base), [row["text"] for row in rows]) for rows in parts]


def run(task: str, seed: int, base: str = real_encoder.BASE) -> Cell:
    """Fit a regression at each place; return {place: share right}, and the C of each.

    Args:
        seed: of the training rows, as in `real_encoder`.
    """
    from sklearn.linear_model import LogisticRegression

    rows = real_encoder.training_rows(task, real_encoder.N, seed)
    sets = [vectors(*frozen(base), [row["text"] for row in rows]), *held(task, base)]
    labels = [[row["label"] for row in some] for some in (rows, *real_encoder.parts(task)[1:])]
    found: Cell = {}
    for place in PLACES:
        xs = [each[place].numpy() for each in sets]
        tried = {}
        for strength in STRENGTHS:
            fitted = LogisticRegression(C=strength, max_iter=5000).fit(xs[0], labels[0])
            tried[strength] = [fitted.score(x, y) for x, y in zip(xs[1:], labels[1:], strict=True)]
        best = max(tried, key=lambda strength: tried[strength][0])
        found |= {place: round(float(tried[best][1]), 4), f"{place}_c": best}
    return found


def scores(records: Sequence[Cell], task: str, place: str = "mean") -> dict[int, float]:
    """Return {seed: share right} of a task's records."""
    return {r["seed"]: r[place] for r in records if r["task"] == task}


def cells() -> list[Cell]:
    """Return every run."""
    return [{"task": task, "seed": seed} for task in real_encoder.TASKS for seed in SEEDS]


if __name__ == "__main__":
    run_missing(cells(), run, RESULTS)
