"""The comparison of page 2.5: LoRA and its variants, each at its own learning rate.

    python -m pedagogic_peft.course.experiments.lora_family    # what is missing: half an hour in all

Every method gets five tries: learning rates that differ by factors of about three, with three seeds
each. The rate is chosen by the mean validation score and lies inside the five; there two more seeds are
run, and the page reports the test scores of all five.
"""

import copy
import math
import statistics
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pedagogic_peft import (
    AdaLoRA,
    AdaLoRABudget,
    DoRA,
    LoRA,
    PiSSA,
    VeRA,
    attach,
    count_parameters,
    load_base,
    lora_plus_groups,
    train,
)
from pedagogic_peft.course.evidence import Difference, paired
from pedagogic_peft.course.experiments import store
from pedagogic_peft.course.experiments.store import Cell
from pedagogic_peft.course.pocket import tasks
from pedagogic_peft.course.pocket.lessons import lesson

RESULTS = Path(__file__).with_name("lora_family.jsonl")
SEEDS = (0, 1, 2)  # of every rate
MORE_SEEDS = (3, 4)  # of the best
EVERYWHERE: dict[str, Any] = {"target_modules": "all-linear"}

METHODS: dict[str, tuple[Callable[[], Any], tuple[float, ...]]] = {
    "LoRA": (lambda: LoRA(r=8, alpha=16, **EVERYWHERE), (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
    "rsLoRA": (
        lambda: LoRA(r=8, alpha=16, use_rslora=True, **EVERYWHERE),
        (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    ),
    "LoRA+": (lambda: LoRA(r=8, alpha=16, **EVERYWHERE), (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
    "DoRA": (lambda: DoRA(r=8, alpha=16, **EVERYWHERE), (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
    "DoRA, r = 7": (lambda: DoRA(r=7, alpha=14, **EVERYWHERE), (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
    "PiSSA": (lambda: PiSSA(r=8, alpha=8, **EVERYWHERE), (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
    "VeRA": (lambda: VeRA(r=128, **EVERYWHERE), (1e-2, 3e-2, 1e-1, 3e-1, 1.0)),
    "AdaLoRA": (
        lambda: AdaLoRA(init_r=12, target_r=8, alpha=24, tinit=10, tfinal=15, **EVERYWHERE),
        (3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    ),
    # Never more parameters than LoRA: it starts with as many triplets and keeps fewer.
    "AdaLoRA, 8 to 5": (
        lambda: AdaLoRA(init_r=8, target_r=5, alpha=16, tinit=10, tfinal=15, **EVERYWHERE),
        (3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    ),
    # Two pairs of equal size, for pocket-gpt: 10,240 parameters as VeRA above, and about 12,200.
    "LoRA, q and v": (lambda: LoRA(r=4, alpha=8), (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)),
    "LoRA, r = 1": (lambda: LoRA(r=1, alpha=2, **EVERYWHERE), (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)),
    "VeRA, r = 198": (lambda: VeRA(r=198, **EVERYWHERE), (1e-2, 3e-2, 1e-1, 3e-1, 1.0)),
}
SMALL = ("VeRA", "LoRA, q and v", "VeRA, r = 198", "LoRA, r = 1")  # the others have LoRA's budget
PLUS_RATIO = 16  # LoRA+: the rate of B divided by that of A


@cache
def frozen(base: str) -> tuple[Any, Any]:
    """Return the base and its tokenizer."""
    torch.set_num_threads(1)
    model, tokenizer = load_base(base)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


@cache
def material(task: str, base: str) -> tuple[Any, dict[str, Any]]:
    """Return the training data of a task, encoded, and how long to train."""
    if task == "sentiment":
        reviews = lesson(base).sentiment(2000, seed=1)
        examples: Any = [e for e in reviews if len(e.prompt.split()) <= 16]
    else:
        examples = lesson(base).recipes(500, seed=1)
    steps, batch_size = (60, 16) if task == "sentiment" else (50, 8)
    return tasks.encode(frozen(base)[1], examples), {"steps": steps, "batch_size": batch_size}


def score(task: str, model: Any, seed: int, split: str, base: str) -> float:
    """Return the accuracy on 250 reviews, or the loss on 60 recipes in nats per token."""
    tokenizer, data = frozen(base)[1], lesson(base)
    if task == "recipes":
        return tasks.loss_per_token(model, tokenizer, data.recipes(60, seed))
    return tasks.word_accuracy(model, tokenizer, data.sentiment(250, seed, split), data.labels)


def run(task: str, method: str, lr: float, seed: int, base: str = "pocket-gpt") -> Cell:
    """Train one cell; return its scores on validation and test set, and how many parameters.

    AdaLoRA takes parameters away in training: counted is what it starts with.
    """
    data, settings = material(task, base)
    torch.manual_seed(seed)
    model = attach(copy.deepcopy(frozen(base)[0]), METHODS[method][0]())
    trainable = count_parameters(model).trainable
    settings = settings | {"lr": lr, "seed": seed, "progress": False}
    if method == "LoRA+":
        settings["optimizer"] = torch.optim.AdamW(lora_plus_groups(model, lr, PLUS_RATIO))
    if method.startswith("AdaLoRA"):
        budget = AdaLoRABudget(model, total_steps=settings["steps"])
        settings |= {"before_step": budget.before_step, "after_step": budget.after_step}
    try:
        train(model, data, **settings)
    except FloatingPointError:  # the rate was far too large
        return {"val": None, "test": None, "trainable": trainable}
    held_out = {"val": (3, "validation"), "test": (2, "test")}
    scores = {name: round(score(task, model, *how, base), 4) for name, how in held_out.items()}
    return scores | {"trainable": trainable}


def cells(base: str = "pocket-gpt") -> list[Cell]:
    """Return every cell of the comparison. Another base's rates are smaller in one proportion."""
    factor = lesson(base).lr_lora / lesson("pocket-gpt").lr_lora
    return [
        {"task": task, "method": name, "lr": factor * lr, "seed": seed}
        for task in ("sentiment", "recipes")
        for name, (_, rates) in METHODS.items()
        for lr in rates
        for seed in SEEDS
    ]


def rates(records: Sequence[Cell], task: str, method: str) -> list[float]:
    """Return the rates that were tried."""
    return sorted({r["lr"] for r in records if (r["task"], r["method"]) == (task, method)})


def runs(records: Sequence[Cell], task: str, method: str, lr: float) -> list[Cell]:
    """Return the records of a method at a rate, in the order of the seeds."""
    wanted = {"task": task, "method": method, "lr": lr}
    return sorted((r for r in records if wanted.items() <= r.items()), key=lambda r: r["seed"])


def best_rate(records: Sequence[Cell], task: str, method: str) -> float:
    """Return the rate with the best mean validation score over the first three seeds."""
    sign = 1 if task == "sentiment" else -1  # accuracy up, loss down

    def merit(lr: float) -> float:
        found = [r["val"] for r in runs(records, task, method, lr) if r["seed"] in SEEDS]
        return -math.inf if None in found else sign * statistics.fmean(found)

    return max(rates(records, task, method), key=merit)


def chosen(records: Sequence[Cell], task: str, method: str) -> dict[int, float]:
    """Return {seed: test score} at a method's best rate."""
    found = runs(records, task, method, best_rate(records, task, method))
    return {r["seed"]: r["test"] for r in found}


def ahead(
    records: Sequence[Cell], name: str, other: str, task: str, comparisons: int
) -> Difference:
    """Return how much better than another a method is, seed by seed, each at its best rate.

    Args:
        comparisons: as in `evidence.paired`.

    Returns:
        The difference in accuracy, or, of recipes, in nats of loss saved.
    """
    a, b = chosen(records, task, name), chosen(records, task, other)
    return paired(a, b, comparisons) if task == "sentiment" else paired(b, a, comparisons)


def repeats(records: Sequence[Cell]) -> list[Cell]:
    """Return the cells of the further seeds at every method's best rate."""
    return [
        {"task": task, "method": name, "lr": best_rate(records, task, name), "seed": seed}
        for task in ("sentiment", "recipes")
        for name in METHODS
        for seed in MORE_SEEDS
    ]


def results(base: str = "pocket-gpt") -> list[Cell]:
    """Return the comparison's records for a base; see `store.results`."""
    grid = store.results(RESULTS, base, cells, run)
    return store.results(RESULTS, base, lambda base: repeats(grid), run)


if __name__ == "__main__":
    store.run_missing(repeats(store.run_missing(cells(), run, RESULTS)), run, RESULTS)
