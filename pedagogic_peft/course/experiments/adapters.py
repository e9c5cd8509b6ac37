"""The sweep of page 3.1 and the comparison of page 3.4: adapters at many sizes, and their relatives.

    python -m pedagogic_peft.course.experiments.adapters    # what is missing: 15 minutes of one core in all

All learn recipes. The rule of `search` chooses each method's learning rate by the validation loss, the
measure that also ranks the methods. The best rate has three seeds, and five for the methods that a table
of claims compares.
"""

import copy
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pedagogic_peft import (
    IA3,
    BottleneckAdapter,
    Compacter,
    LoRA,
    LoReFT,
    PrefixTuning,
    attach,
    count_parameters,
    load_base,
    train,
)
from pedagogic_peft.course.experiments import search
from pedagogic_peft.course.experiments.store import Cell, read, run_missing
from pedagogic_peft.course.pocket import tasks

RESULTS = Path(__file__).with_name("adapters.jsonl")
SEEDS = (0, 1, 2, 3, 4)
STEPS, BATCH_SIZE = 50, 8
SIZES = (2, 4, 16, 64)
GRID = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0, 30.0)


def bottleneck(placement: str, m: int, **more: Any) -> Callable[[], Any]:
    """Return a function that makes the hyper-parameters of an adapter."""
    return lambda: BottleneckAdapter(bottleneck_size=m, placement=placement, **more)


# {name: (what makes the method, or None for full fine-tuning; the middle one of the first three rates)}
METHODS: dict[str, tuple[Callable[[], Any] | None, float]] = {
    "full fine-tuning": (None, 1e-2),
    **{f"Pfeiffer, m={m}": (bottleneck("pfeiffer", m), 3e-2) for m in SIZES},
    # at about 21,000 trained parameters, as Pfeiffer with m=16 has
    "Houlsby, m=8": (bottleneck("houlsby", 8), 3e-2),
    "parallel, m=16": (bottleneck("parallel", 16), 1e-2),  # s = 4, as in its paper
    "parallel of LN u, m=16": (bottleneck("parallel", 16, reads="normalised"), 3e-2),
    "Compacter, r=6": (lambda: Compacter(bottleneck_size=40, phm_rank=6), 1e-2),
    "LoRA, q and v, r=8": (lambda: LoRA(r=8, alpha=16), 3e-2),
    "LoRA, all, r=2": (lambda: LoRA(r=2, alpha=4, target_modules="all-linear"), 3e-2),
    "LoReFT, r=16": (lambda: LoReFT(r=16), 3e-2),
    "prefix, n=16": (lambda: PrefixTuning(num_virtual_tokens=16), 1.0),
    # at about 3,000, as Pfeiffer with m=2 has
    "Compacter++, r=1": (
        lambda: Compacter(bottleneck_size=40, phm_rank=1, placement="pfeiffer"),
        1e-1,
    ),
    "(IA)³": (IA3, 1e-1),
}
COMPARED = {
    "full fine-tuning",
    "Pfeiffer, m=16",
    "Houlsby, m=8",
    "parallel, m=16",
    "parallel of LN u, m=16",
    "LoReFT, r=16",
    "Compacter++, r=1",
    "(IA)³",
}


@cache
def material() -> tuple[Any, Any, list[Any]]:
    """Return pocket-gpt, its tokenizer, and the training data: 500 recipes, encoded."""
    torch.set_num_threads(1)
    base, tokenizer = load_base("pocket-gpt")
    return base, tokenizer, tasks.encode(tokenizer, tasks.recipes(500, seed=1))


def run(method: str, lr: float, seed: int) -> Cell:
    """Train one cell; return its loss on 60 recipes, in nats per token, and how much was trained.

    A training whose loss stopped being finite has None for its losses.
    """
    base, tokenizer, data = material()
    make = METHODS[method][0]
    torch.manual_seed(seed)
    model = copy.deepcopy(base)
    if make is not None:
        attach(model, make())
    trainable = count_parameters(model).trainable
    try:
        train(model, data, steps=STEPS, batch_size=BATCH_SIZE, lr=lr, seed=seed, progress=False)
    except FloatingPointError:  # the rate was far too large
        return {"val": None, "test": None, "trainable": trainable}
    loss = {
        name: round(tasks.loss_per_token(model, tokenizer, tasks.recipes(60, held_out)), 4)
        for name, held_out in (("val", 3), ("test", 2))
    }
    return loss | {"trainable": trainable}


def known(records: Sequence[Cell], method: str) -> list[Cell]:
    """Return what `search` has to know of a method; its score is minus the validation loss."""
    return [
        {
            "rate": r["lr"],
            "seed": r["seed"],
            "val": None if r["val"] is None else -r["val"],
            "val_loss": r["val"],
        }
        for r in records
        if r["method"] == method
    ]


def best_rate(records: Sequence[Cell], method: str) -> float:
    """Return the rate with the lowest mean validation loss; see `search`."""
    return search.best_rate(known(records, method))


def missing(records: Sequence[Cell]) -> list[Cell]:
    """Return the runs that the rule asks for next, given those that are known; none at the end."""
    asked = []
    for name, (_, middle) in METHODS.items():
        tried = known(records, name)
        more = search.wanted(tried, GRID, middle)
        if not more and name in COMPARED:
            more = [(search.best_rate(tried), seed) for seed in SEEDS]
        asked += [{"method": name, "lr": lr, "seed": seed} for lr, seed in more]
    done = [{key: r[key] for key in ("method", "lr", "seed")} for r in records]
    return [cell for cell in asked if cell not in done]


def at_best_rate() -> dict[str, list[Cell]]:
    """Return the stored runs of each method at its rate, in the order of the seeds."""
    records = read(RESULTS)
    rates = {name: best_rate(records, name) for name in METHODS if known(records, name)}
    return {
        name: sorted(
            (r for r in records if r["method"] == name and r["lr"] == lr), key=lambda r: r["seed"]
        )
        for name, lr in rates.items()
    }


def losses(runs: Sequence[Cell]) -> dict[int, float]:
    """Return {seed: test loss} of the runs of one method."""
    return {r["seed"]: r["test"] for r in runs}


if __name__ == "__main__":
    while todo := missing(read(RESULTS)):
        run_missing(todo, run, RESULTS)
