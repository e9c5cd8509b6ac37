"""The grid of page 2.3: which matrices, which rank, which scaling, which learning rate; and full fine-tuning.

    python -m pedagogic_peft.course.experiments.lora_grid    # runs what is missing, 40 minutes in all

Each cell adapts pocket-gpt to sentiment and stores the accuracy on 250 validation reviews. Three seeds
choose the best rate of a method, which has a neighbour on either side. There two more seeds are run for
the methods that page 2.3 compares, and compared are the accuracies of all five on 250 test reviews. The
sets of matrices are trained three times as long too ("longer"), at rates of their own.
"""

import copy
import statistics
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pedagogic_peft import LoRA, attach, count_parameters, load_base, train
from pedagogic_peft.core.architectures import modules_in_role, roles_of
from pedagogic_peft.core.targets import find_targets, is_linear, sizes
from pedagogic_peft.course.experiments import store
from pedagogic_peft.course.experiments.store import Cell
from pedagogic_peft.course.pocket import tasks
from pedagogic_peft.course.pocket.lessons import lesson

RESULTS = Path(__file__).with_name("lora_grid.jsonl")
STEPS, LONGER, BATCH_SIZE = 60, 180, 16
SEEDS = (0, 1, 2)  # of every rate
MORE_SEEDS = (3, 4)  # of the best
RANKS = (1, 4, 16, 64)
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
# The scaling of ΔW at rank r. All three agree at rank 8.
SCALINGS: dict[str, Callable[[int], dict[str, Any]]] = {
    "2": lambda r: {"alpha": 2 * r},
    "16 / r": lambda r: {"alpha": 16},
    "5.7 / √r": lambda r: {"alpha": 2 * 8**0.5, "use_rslora": True},
}
ALL_RATES = (3e-3, 5e-3, 1e-2, 2e-2, 4e-2, 8e-2)
LONGER_RATES = (3e-3, 5e-3, 1e-2, 2e-2)
FULL_RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
SETS = ("q, v", "q, k, v, o", "feed-forward", "all")  # of target modules


@cache
def material(
    base: str = "pocket-gpt",
) -> tuple[Any, Any, list[Any], dict[str, list[tasks.Example]]]:
    """Return the base, its tokenizer, the training data and the reviews to measure on."""
    torch.set_num_threads(1)
    model, tokenizer = load_base(base)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    reviews = lesson(base).sentiment
    short = [e for e in reviews(2000, seed=1) if len(e.prompt.split()) <= 16]
    return (
        model,
        tokenizer,
        tasks.encode(tokenizer, short),
        {
            "accuracy": reviews(250, seed=3, split="validation"),
            "test": reviews(250, seed=2, split="test"),
        },
    )


def targets(model: nn.Module, name: str) -> tuple[list[str], int]:
    """Return the modules of one of ``SETS``, and the rank that makes its budget about equal.

    The budget is that of rank 4 on every linear map; for pocket-gpt 48,640 to 51,200 trained
    parameters. Where q, k and v are one map, as in GPT-2, "q, v" holds all three.
    """
    roles = roles_of(model)
    every = find_targets(model, "all-linear", is_linear)
    attention = modules_in_role(model, roles.query, roles.key, roles.value, roles.attention_output)
    found = {
        "q, v": modules_in_role(model, roles.query, roles.value),
        "q, k, v, o": attention,
        "feed-forward": {path: m for path, m in every.items() if path not in attention},
        "all": every,
    }

    def per_rank(modules: Any) -> int:
        return sum(sum(sizes(module)) for module in modules.values())

    return list(found[name]), round(4 * per_rank(every) / per_rank(found[name]))


def run(part: str, name: str, r: int, lr: float, seed: int, base: str = "pocket-gpt") -> Cell:
    """Train one cell; return its accuracy on the validation reviews and on the test reviews."""
    frozen, tokenizer, data, held_out = material(base)
    method = None  # full fine-tuning
    if part == "scaling":
        method = LoRA(r=r, target_modules="all-linear", **SCALINGS[name](r))
    elif part in ("targets", "longer"):
        method = LoRA(r=r, alpha=2 * r, target_modules=targets(frozen, name)[0])
    torch.manual_seed(seed)
    model = copy.deepcopy(frozen)
    if method:
        attach(model, method)
    steps = LONGER if part == "longer" else STEPS
    train(model, data, steps=steps, batch_size=BATCH_SIZE, lr=lr, seed=seed, progress=False)
    scores = {
        name: tasks.word_accuracy(model, tokenizer, reviews, lesson(base).labels)
        for name, reviews in held_out.items()
    }
    return scores | {"trainable": count_parameters(model).trainable}


def cells(base: str = "pocket-gpt") -> list[Cell]:
    """Return every cell of the grid. Another base's rates are smaller in one proportion."""
    own, pocket = lesson(base), lesson("pocket-gpt")
    lora, full = own.lr_lora / pocket.lr_lora, own.lr_full / pocket.lr_full
    rank = {name: targets(material(base)[0], name)[1] for name in SETS}
    rows: list[tuple[Any, ...]] = [
        *(("scaling", s, r, lora * lr) for s in SCALINGS for r in RANKS for lr in RATES),
        *(("targets", t, rank[t], lora * lr) for t in SETS for lr in ALL_RATES),
        *(("longer", t, rank[t], lora * lr) for t in SETS for lr in LONGER_RATES),
        *(("full", "full fine-tuning", 0, full * lr) for lr in FULL_RATES),
    ]
    names = ("part", "name", "r", "lr", "seed")
    return [dict(zip(names, (*row, seed), strict=True)) for row in rows for seed in SEEDS]


def rates(records: Sequence[Cell], part: str, name: str, r: int) -> list[float]:
    """Return the rates that were tried."""
    return sorted({x["lr"] for x in records if (x["part"], x["name"], x["r"]) == (part, name, r)})


def runs(records: Sequence[Cell], part: str, name: str, r: int, lr: float) -> list[Cell]:
    """Return the records of a method at a rate, in the order of the seeds."""
    wanted = {"part": part, "name": name, "r": r, "lr": lr}
    return sorted((x for x in records if wanted.items() <= x.items()), key=lambda x: x["seed"])


def best_rate(records: Sequence[Cell], part: str, name: str, r: int) -> float:
    """Return the rate with the best mean validation accuracy over the first three seeds."""

    def merit(lr: float) -> float:
        found = runs(records, part, name, r, lr)
        return statistics.fmean(x["accuracy"] for x in found if x["seed"] in SEEDS)

    return max(rates(records, part, name, r), key=merit)


def chosen(records: Sequence[Cell], part: str, name: str, r: int) -> dict[int, float]:
    """Return {seed: test accuracy} of a method at its best rate."""
    found = runs(records, part, name, r, best_rate(records, part, name, r))
    return {x["seed"]: x["test"] for x in found}


def repeats(records: Sequence[Cell]) -> list[Cell]:
    """Return the cells of the further seeds: the sets, full fine-tuning, and the ranks under α / r."""
    methods = dict.fromkeys((x["part"], x["name"], x["r"]) for x in records)
    return [
        {"part": part, "name": name, "r": r, "lr": best_rate(records, part, name, r), "seed": seed}
        for part, name, r in methods
        if part != "scaling" or name == "16 / r"
        for seed in MORE_SEEDS
    ]


def results(base: str = "pocket-gpt") -> list[Cell]:
    """Return the grid's records for a base; see `store.results`."""
    grid = store.results(RESULTS, base, cells, run)
    return store.results(RESULTS, base, lambda base: repeats(grid), run)


if __name__ == "__main__":
    store.run_missing(repeats(store.run_missing(cells(), run, RESULTS)), run, RESULTS)
