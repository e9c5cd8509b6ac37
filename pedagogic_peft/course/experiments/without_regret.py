"""The runs of page 6.7 on SmolLM2: what "LoRA Without Regret" recommends, as far as a small model goes.

    python -m pedagogic_peft.course.experiments.without_regret    # what is missing, an hour

SmolLM2 (134.5 million parameters) learns the house style of a library's desk, with the loss on what the
assistant says. An arm takes 64 conversations: two passes over 32, four or sixteen at a time. Its rate is
chosen by the rule of `search`, the measure being the loss on eight other conversations of that desk; arms
are compared by the loss on the sixteen that chose nothing. Every LoRA has alpha 32 and the scaling
alpha / r, as in Schulman et al. (2025).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pedagogic_peft import LoRA, attach, count_parameters, load_base, train
from pedagogic_peft.course import desk
from pedagogic_peft.course.experiments import search
from pedagogic_peft.course.experiments.real_decoder import loss_of
from pedagogic_peft.course.experiments.store import Cell, read, run_missing

RESULTS = Path(__file__).with_name("without_regret.jsonl")
BASE = "smollm2-135m"
LEARNED, CHOOSING = desk.TRAIN[:32], desk.TRAIN[32:]  # `desk.TEST` ranks
SEEDS = (0, 1, 2, 3, 4)  # that compare the arms, each at its best rate
SEEN = 64  # conversations that an arm takes, whatever its batch
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # that may be tried
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        rank: of the LoRA; none where all weights are trained.
        targets: which maps get one.
        batch_size: conversations a step.
        middle: the middle of the first three rates.
    """

    rank: int | None = 8
    targets: str | Sequence[str] = "all-linear"
    batch_size: int = 4
    middle: float = 1e-3


# Three arms of other targets or ranks than "LoRA"; 21 and 13 make attention and MLP as large as it is.
ARMS = {
    "full": Arm(rank=None, middle=1e-4),
    "LoRA": Arm(),
    "attention": Arm(21, ATTENTION),
    "MLP": Arm(13, MLP),
    "rank 1": Arm(1),
    "rank 64": Arm(64),
    "full, 16 rows": Arm(rank=None, batch_size=16, middle=1e-4),
    "LoRA, 16 rows": Arm(batch_size=16),
}
COMPARED = ("full", "LoRA")  # the ratio of their best rates is asked for


@cache
def rows(part: Sequence[desk.Exchange]) -> list[dict[str, list[int]]]:
    """Return conversations as examples."""
    tokenizer = load_base(BASE)[1]
    return [desk.encode(tokenizer, exchange.messages) for exchange in part]


def prepare(arm: Arm, seed: int) -> Any:
    """Return the model whose trainable parameters are the arm's."""
    torch.manual_seed(seed)
    model = load_base(BASE)[0]
    if arm.rank is None:
        return model
    return attach(model, LoRA(r=arm.rank, alpha=32, target_modules=arm.targets))


def measure(model: Any) -> Cell:
    """Return the losses, in nats a token, on what chooses and on what ranks."""
    pad = model.config.pad_token_id or 0
    val_loss, loss = (round(loss_of(model, rows(part), pad), 4) for part in (CHOOSING, desk.TEST))
    return {"val_loss": val_loss, "val": -val_loss, "loss": loss}


def run(arm: str, rate: float, seed: int) -> Cell:
    """Train one arm; "frozen" trains nothing. A training that diverged has None for its scores."""
    torch.set_num_threads(1)
    if arm == "frozen":
        return measure(load_base(BASE)[0])
    the = ARMS[arm]
    model = prepare(the, seed)
    trained = {"trained": count_parameters(model).trainable}
    options: dict[str, Any] = {"batch_size": the.batch_size, "lr": rate, "seed": seed}
    try:
        train(model, rows(LEARNED), steps=SEEN // the.batch_size, progress=False, **options)
    except FloatingPointError:
        return dict.fromkeys(("val_loss", "val", "loss")) | trained
    return measure(model) | trained


def of(records: Sequence[Cell], arm: str) -> list[Cell]:
    """Return the records of an arm."""
    return [r for r in records if r["arm"] == arm]


def missing(records: Sequence[Cell]) -> list[Cell]:
    """Return the next runs; none when all is done. The first seed of every arm comes first."""
    if not of(records, "frozen"):
        return [{"arm": "frozen", "rate": 0.0, "seed": 0}]
    todo: list[Cell] = [
        {"arm": arm, "rate": rate, "seed": seed}
        for arm in ARMS
        for rate, seed in missing_of(records, arm)
    ]
    return sorted(todo, key=lambda cell: cell["seed"])[:1]


def missing_of(records: Sequence[Cell], arm: str) -> list[tuple[float, int]]:
    """Return the (rate, seed) pairs that one arm needs next."""
    mine = of(records, arm)
    return search.wanted(mine, RATES, ARMS[arm].middle) or beside(records, arm)


def beside(records: Sequence[Cell], arm: str) -> list[tuple[float, int]]:
    """Return what is missing when the rate is known: more seeds, and what is next to a compared rate."""
    rate = rate_of(records, arm)
    wanted = [(rate, seed) for seed in SEEDS]
    if arm in COMPARED:
        wanted += [(r, s) for r in three_rates(records, arm) for s in search.SELECTING]
    done = {(r["rate"], r["seed"]) for r in of(records, arm)}
    return [cell for cell in wanted if cell not in done]


def known(records: Sequence[Cell]) -> list[str]:
    """Return the arms of which all runs are stored."""
    return [arm for arm in ARMS if not missing_of(records, arm)]


def rate_of(records: Sequence[Cell], arm: str) -> float:
    """Return the rate that the validation loss chose."""
    return search.best_rate(of(records, arm))


def at_best(records: Sequence[Cell], arm: str) -> dict[int, float]:
    """Return {seed: the loss that ranks} at the arm's best rate."""
    rate = rate_of(records, arm)
    return {r["seed"]: r["loss"] for r in of(records, arm) if r["rate"] == rate}


def three_rates(records: Sequence[Cell], arm: str) -> list[float]:
    """Return the best rate between its two neighbours."""
    rates = sorted({r["rate"] for r in of(records, arm)})
    i = rates.index(rate_of(records, arm))
    return rates[i - 1 : i + 2]


def lowest_at(records: Sequence[Cell], arm: str, seed: int) -> float:
    """Return the logarithm (base 10) of the rate at which a seed's validation loss is lowest.

    It is the minimum of a parabola through the three rates around the best one, over the logarithm of
    the rate; where that lies outside of the three, or there is none, the lowest of them.
    """
    loss = {r["rate"]: r["val_loss"] for r in of(records, arm) if r["seed"] == seed}
    rates = three_rates(records, arm)
    x, y = [math.log10(rate) for rate in rates], [loss[rate] for rate in rates]
    down, up = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    least = x[y.index(min(y))]
    if up <= down:
        return least
    lowest = (x[0] + x[1]) / 2 - down * (x[2] - x[0]) / 2 / (up - down)
    return lowest if x[0] <= lowest <= x[2] else least


if __name__ == "__main__":
    while todo := missing(read(RESULTS)):
        run_missing(todo, run, RESULTS)
