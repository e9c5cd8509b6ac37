"""The comparison of page 2.5: LoRA and its variants at about equal budget, each at its own rate.

    python chapters/02_lora/experiments/lora_family.py    # runs what is missing, about 15 minutes in all

Every method gets the same four tries: learning rates that differ by factors of about three. The page
chooses by the validation score and reports the test score.
"""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from store import Cell, run_missing

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
from pedagogic_peft.pocket import tasks

RESULTS = Path(__file__).with_name("lora_family.jsonl")
SEEDS = (0, 1, 2)
EVERYWHERE = {"target_modules": "all-linear"}
METHODS: dict[str, tuple[Callable[[], Any], tuple[float, ...]]] = {
    "LoRA": (lambda: LoRA(r=8, alpha=16, **EVERYWHERE), (1e-3, 3e-3, 1e-2, 3e-2)),
    "rsLoRA": (
        lambda: LoRA(r=8, alpha=16, use_rslora=True, **EVERYWHERE),
        (1e-3, 3e-3, 1e-2, 3e-2),
    ),
    "LoRA+": (lambda: LoRA(r=8, alpha=16, **EVERYWHERE), (3e-4, 1e-3, 3e-3, 1e-2)),
    "DoRA": (lambda: DoRA(r=8, alpha=16, **EVERYWHERE), (1e-3, 3e-3, 1e-2, 3e-2)),
    "PiSSA": (lambda: PiSSA(r=8, alpha=8, **EVERYWHERE), (3e-4, 1e-3, 3e-3, 1e-2)),
    "VeRA": (lambda: VeRA(r=128, **EVERYWHERE), (1e-2, 3e-2, 1e-1, 3e-1)),
    "AdaLoRA": (
        lambda: AdaLoRA(init_r=12, target_r=8, alpha=24, tinit=10, tfinal=15, **EVERYWHERE),
        (3e-3, 1e-2, 3e-2, 1e-1),
    ),
}
PLUS_RATIO = 16  # LoRA+: the rate of B divided by that of A


@cache
def material(task: str) -> dict[str, Any]:
    """Return the data of a task, encoded, its metric, and how long to train."""
    torch.set_num_threads(1)
    base, tokenizer = load_base("pocket-gpt")
    if task == "sentiment":
        short = [e for e in tasks.sentiment(2000, seed=1) if len(e.prompt.split()) <= 16]
        examples = {name: tasks.sentiment(250, seed) for name, seed in (("val", 3), ("test", 2))}
        words = ["smiled", "frowned"]
        metric = lambda model, held: tasks.word_accuracy(model, tokenizer, held, words)
        steps, batch_size = 60, 16
    else:
        short = tasks.recipes(500, seed=1)
        examples = {name: tasks.recipes(60, seed) for name, seed in (("val", 3), ("test", 2))}
        metric = lambda model, held: tasks.loss_per_token(model, tokenizer, held)
        steps, batch_size = 50, 8
    data = tasks.encode(tokenizer, short)
    settings = {"steps": steps, "batch_size": batch_size, "progress": False}
    return {"base": base, "data": data, "metric": metric, "settings": settings} | examples


def run(task: str, method: str, lr: float, seed: int) -> Cell:
    """Train one cell; return its scores on validation and test set, and how many parameters."""
    given = material(task)
    torch.manual_seed(seed)
    model = attach(copy.deepcopy(given["base"]), METHODS[method][0]())
    settings = given["settings"] | {"lr": lr, "seed": seed}
    trainable = count_parameters(model).trainable
    if method == "LoRA+":
        groups = lora_plus_groups(model, lr=lr, ratio=PLUS_RATIO)
        settings["optimizer"] = torch.optim.AdamW(groups)
    if method == "AdaLoRA":
        budget = AdaLoRABudget(model, total_steps=settings["steps"])
        settings |= {"before_step": budget.before_step, "after_step": budget.after_step}
    try:
        train(model, given["data"], **settings)
    except FloatingPointError:  # the rate was far too large
        return {"val": None, "test": None, "trainable": trainable}
    scores = {name: round(given["metric"](model, given[name]), 4) for name in ("val", "test")}
    return scores | {"trainable": trainable}


def cells() -> list[Cell]:
    """Return every cell of the comparison."""
    return [
        {"task": task, "method": name, "lr": lr, "seed": seed}
        for task in ("sentiment", "recipes")
        for name, (_, rates) in METHODS.items()
        for lr in rates
        for seed in SEEDS
    ]


if __name__ == "__main__":
    run_missing(cells(), run, RESULTS)
