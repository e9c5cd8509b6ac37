"""The sweep of page 3.1 and the comparison of page 3.4: adapters at many sizes, and their relatives.

    python -m pedagogic_peft.course.experiments.adapters    # runs what is missing, about 8 minutes in all

Every method gets four learning rates that differ by factors of about three, with one seed, and more
where the best was the first or the last. The rate with the lowest validation loss is run with two seeds
more; pages report the three test losses.
"""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pedagogic_peft import (
    IA3,
    BottleneckAdapter,
    Compacter,
    LoRA,
    PrefixTuning,
    attach,
    count_parameters,
    load_base,
    train,
)
from pedagogic_peft.course.experiments.store import Cell, read, run_missing
from pedagogic_peft.course.pocket import tasks

RESULTS = Path(__file__).with_name("adapters.jsonl")
SEEDS = (0, 1, 2)
STEPS, BATCH_SIZE = 50, 8
SIZES = (2, 4, 16, 64)
LOW, HIGH, HIGHER, HIGHEST = (
    (1e-3, 3e-3, 1e-2, 3e-2),
    (3e-3, 1e-2, 3e-2, 1e-1),
    (1e-2, 3e-2, 1e-1, 3e-1),
    (1e-1, 3e-1, 1.0, 3.0, 10.0),
)


def bottleneck(placement: str, m: int) -> Callable[[], Any]:
    """Return a function that makes the hyper-parameters of an adapter."""
    return lambda: BottleneckAdapter(bottleneck_size=m, placement=placement)


# {name: (what makes the method, or None for full fine-tuning; its learning rates)}
METHODS: dict[str, tuple[Callable[[], Any] | None, tuple[float, ...]]] = {
    "full fine-tuning": (None, LOW),
    **{f"Pfeiffer, m={m}": (bottleneck("pfeiffer", m), HIGH) for m in SIZES},
    # at about 21,000 trained parameters, as Pfeiffer with m=16 has
    "Houlsby, m=8": (bottleneck("houlsby", 8), HIGH),
    "parallel, m=16": (bottleneck("parallel", 16), HIGH),  # s = 4, as in its paper
    "Compacter, r=6": (lambda: Compacter(bottleneck_size=40, phm_rank=6), HIGH),
    "LoRA, q and v, r=8": (lambda: LoRA(r=8, alpha=16), HIGH),
    "LoRA, all, r=2": (lambda: LoRA(r=2, alpha=4, target_modules="all-linear"), HIGH),
    "prefix, n=16": (lambda: PrefixTuning(num_virtual_tokens=16), HIGHEST),
    # at about 3,000, as Pfeiffer with m=2 has
    "Compacter++, r=1": (
        lambda: Compacter(bottleneck_size=40, phm_rank=1, placement="pfeiffer"),
        HIGHER,
    ),
    "(IA)³": (IA3, HIGHER),
}


@cache
def material() -> tuple[Any, Any, list[Any]]:
    """Return pocket-gpt, its tokenizer, and the training data: 500 recipes, encoded."""
    torch.set_num_threads(1)
    base, tokenizer = load_base("pocket-gpt")
    return base, tokenizer, tasks.encode(tokenizer, tasks.recipes(500, seed=1))


def run(method: str, lr: float, seed: int) -> Cell:
    """Train one cell; return its loss on 60 recipes, in nats per token, and how much was trained."""
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


def search() -> list[Cell]:
    """Return the cells that choose the rates: every rate of every method, with the first seed."""
    return [
        {"method": name, "lr": lr, "seed": SEEDS[0]}
        for name, (_, rates) in METHODS.items()
        for lr in rates
    ]


def best_rates(records: list[Cell]) -> dict[str, float]:
    """Return the rate with the lowest validation loss of each method, from the search's records."""
    found: dict[str, Cell] = {}
    for record in records:
        name, loss = record["method"], record["val"]
        if record["seed"] == SEEDS[0] and loss is not None:
            if name not in found or loss < found[name]["val"]:
                found[name] = record
    return {name: found[name]["lr"] for name in METHODS if name in found}


def cells() -> list[Cell]:
    """Return the search, and the chosen rates with the other seeds (so the search has to be stored)."""
    chosen = best_rates(read(RESULTS)).items()
    more = [{"method": name, "lr": lr, "seed": seed} for name, lr in chosen for seed in SEEDS[1:]]
    return search() + more


def at_best_rate() -> dict[str, list[Cell]]:
    """Return the stored records of each method at its rate, one for each seed."""
    records = read(RESULTS)
    return {
        name: [r for r in records if r["method"] == name and r["lr"] == lr]
        for name, lr in best_rates(records).items()
    }


if __name__ == "__main__":
    run_missing(search(), run, RESULTS)
    run_missing(cells(), run, RESULTS)
