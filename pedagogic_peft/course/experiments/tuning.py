"""The grids of page 6.3: how wide a bottleneck, how long a prompt, how many examples, which rank.

    python -m pedagogic_peft.course.experiments.tuning    # runs what is missing, about 5 minutes in all

Each cell adapts pocket-gpt to sentiment and stores accuracy and loss on 250 validation reviews. The
rates of a size are those that the rule in `search` asks for: the best one by accuracy has a neighbour on
either side.

The ranks of LoRA are those of `lora_grid`, whose records `of_ranks` adds.
"""

import copy
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pedagogic_peft import (
    BottleneckAdapter,
    LoRA,
    PromptTuning,
    attach,
    count_parameters,
    load_base,
    train,
)
from pedagogic_peft.course.experiments import lora_grid, search, store
from pedagogic_peft.course.experiments.store import Cell
from pedagogic_peft.course.pocket import tasks
from pedagogic_peft.course.pocket.lessons import lesson

RESULTS = Path(__file__).with_name("tuning.jsonl")
BATCH_SIZE = 16
SEEDS = (0, 1, 2)
MANY = 1500  # training examples, where their number is not what varies


def lora(r: int, alpha: int) -> LoRA:
    """Return LoRA on all linear maps."""
    return LoRA(r=r, alpha=alpha, target_modules="all-linear")


# part: (the method of a size, the steps, {size: the learning rates})
PARTS: dict[str, tuple[Callable[[int], Any], int, dict[int, tuple[float, ...]]]] = {
    "α = 2r": (lambda r: lora(r, alpha=2 * r), 60, {}),  # the runs are in `lora_grid`
    "α = 16": (lambda r: lora(r, alpha=16), 60, {}),
    "examples": (
        lambda n: lora(r=8, alpha=16),
        60,
        dict.fromkeys((50, 200, 800), (1e-2,)),  # LoRA's best rate in `lora_grid`
    ),
    "prompt length": (
        lambda n: PromptTuning(num_virtual_tokens=n),
        60,
        {
            2: (1e-2, 3e-2, 1e-1, 3e-1),
            8: (3e-2, 1e-1, 3e-1),
            32: (1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0),
        },
    ),
    "bottleneck": (
        lambda m: BottleneckAdapter(bottleneck_size=m, placement="houlsby"),
        60,
        {8: (3e-3, 1e-2, 3e-2, 1e-1), 32: (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)},
    ),
}
RANKS = {"α = 2r": "2", "α = 16": "16 / r"}  # part: the scaling's name in `lora_grid`


@cache
def material(base: str = "pocket-gpt") -> tuple[Any, Any, list[Any], list[tasks.Example]]:
    """Return the base, its tokenizer, the training data and the validation reviews."""
    torch.set_num_threads(1)
    model, tokenizer = load_base(base)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    reviews = lesson(base).sentiment
    short = [e for e in reviews(2000, seed=1) if len(e.prompt.split()) <= 16]
    held_out = reviews(250, seed=3, split="validation")
    return model, tokenizer, tasks.encode(tokenizer, short), held_out


def run(part: str, size: int, lr: float, seed: int, steps: int, base: str = "pocket-gpt") -> Cell:
    """Train one cell and measure it."""
    frozen, tokenizer, data, reviews = material(base)
    torch.manual_seed(seed)
    model = attach(copy.deepcopy(frozen), PARTS[part][0](size))
    if part not in RANKS:  # these have all the data, as in `lora_grid`
        data = data[: size if part == "examples" else MANY]
    train(model, data, steps=steps, batch_size=BATCH_SIZE, lr=lr, seed=seed, progress=False)
    return {
        "accuracy": tasks.word_accuracy(model, tokenizer, reviews, lesson(base).labels),
        "loss": round(tasks.loss_per_token(model, tokenizer, reviews), 4),
        "trainable": count_parameters(model).trainable,
    }


def cell(part: str, size: int, lr: float, seed: int) -> Cell:
    """Return the arguments of `run` as a record."""
    return {"part": part, "size": size, "lr": lr, "seed": seed, "steps": PARTS[part][1]}


def cells(base: str = "pocket-gpt") -> list[Cell]:
    """Return the cells that choose the rates. Another base's are smaller in one proportion."""
    factor = lesson(base).lr_lora / lesson("pocket-gpt").lr_lora
    return [
        cell(part, size, factor * lr, seed)
        for part, (_, _, grid) in PARTS.items()
        for size, rates in grid.items()
        for lr in rates
        for seed in SEEDS
    ]


def of_ranks(records: Sequence[Cell], grid: Sequence[Cell]) -> list[Cell]:
    """Return the records with those of `lora_grid` for the same parts, in one form."""
    part = {name: part for part, name in RANKS.items()}
    theirs = [
        cell(part[r["name"]], r["r"], r["lr"], r["seed"]) | {"accuracy": r["accuracy"]}
        for r in grid
        if r["part"] == "scaling" and r["name"] in part
    ]
    return [*theirs, *records]


def of_size(records: Sequence[Cell], part: str, size: int) -> list[Cell]:
    """Return the runs of a size, named as `search` wants them."""
    found = [r for r in records if (r["part"], r["size"]) == (part, size)]
    return [
        {"rate": r["lr"], "val": r["accuracy"], "val_loss": r.get("loss", 0.0)} | r for r in found
    ]


def best_rate(records: Sequence[Cell], part: str, size: int) -> float:
    """Return the rate with the greatest mean accuracy; of equal ones, that with the least loss.

    A size of which no rate leaves the floor has its best one where chance put it: see `search.at_edge`.
    """
    return search.best_rate(of_size(records, part, size), edge=True)


def results(base: str = "pocket-gpt") -> list[Cell]:
    """Return the grids' records for a base, with those of the ranks; see `store.results`."""
    return of_ranks(store.results(RESULTS, base, cells, run), lora_grid.results(base))


if __name__ == "__main__":
    store.run_missing(cells(), run, RESULTS)
