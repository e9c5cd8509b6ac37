"""The grid of page 2.3: which matrices, which rank, which scaling, which learning rate.

    python -m pedagogic_peft.experiments.lora_grid    # runs what is missing, about 15 minutes in all

Each cell adapts pocket-gpt to sentiment and stores the accuracy on 250 validation reviews.
"""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pedagogic_peft import LoRA, attach, count_parameters, load_base, train
from pedagogic_peft.experiments.store import Cell, run_missing
from pedagogic_peft.pocket import tasks

RESULTS = Path(__file__).with_name("lora_grid.jsonl")
STEPS, BATCH_SIZE = 60, 16
SEEDS = (0, 1, 2)
RANKS = (1, 4, 16, 64)
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
# The scaling of ΔW at rank r. All three agree at rank 8.
SCALINGS: dict[str, Callable[[int], dict[str, Any]]] = {
    "2": lambda r: {"alpha": 2 * r},
    "16 / r": lambda r: {"alpha": 16},
    "5.7 / √r": lambda r: {"alpha": 2 * 8**0.5, "use_rslora": True},
}
ALL_RATES = (3e-3, 5e-3, 1e-2, 2e-2)
# At equal budget: the ranks give each set 48,640 to 49,728 trained parameters.
TARGETS: dict[str, tuple[Any, int]] = {
    "q, v": (["q_proj", "v_proj"], 19),
    "q, k, v, o": (["q_proj", "k_proj", "v_proj", "o_proj"], 10),
    "feed-forward": (["gate_proj", "up_proj", "down_proj"], 7),
    "all": ("all-linear", 4),
}


@cache
def material() -> tuple[Any, Any, list[Any], list[tasks.Example]]:
    """Return the base, its tokenizer, the training data and the validation reviews."""
    torch.set_num_threads(1)
    base, tokenizer = load_base("pocket-gpt")
    short = [e for e in tasks.sentiment(2000, seed=1) if len(e.prompt.split()) <= 16]
    return base, tokenizer, tasks.encode(tokenizer, short), tasks.sentiment(250, seed=3)


def run(part: str, name: str, r: int, lr: float, seed: int) -> Cell:
    """Train one cell and measure it."""
    base, tokenizer, data, reviews = material()
    if part == "scaling":
        method = LoRA(r=r, target_modules="all-linear", **SCALINGS[name](r))
    else:
        method = LoRA(r=r, alpha=2 * r, target_modules=TARGETS[name][0])
    torch.manual_seed(seed)
    model = attach(copy.deepcopy(base), method)
    train(model, data, steps=STEPS, batch_size=BATCH_SIZE, lr=lr, seed=seed, progress=False)
    accuracy = tasks.word_accuracy(model, tokenizer, reviews, ["smiled", "frowned"])
    return {"accuracy": accuracy, "trainable": count_parameters(model).trainable}


def cells() -> list[Cell]:
    """Return every cell of the grid."""
    scaling = [("scaling", s, r, lr) for s in SCALINGS for r in RANKS for lr in RATES]
    targets = [("targets", t, r, lr) for t, (_, r) in TARGETS.items() for lr in ALL_RATES]
    names = ("part", "name", "r", "lr", "seed")
    return [
        dict(zip(names, (*cell, seed), strict=True)) for cell in scaling + targets for seed in SEEDS
    ]


if __name__ == "__main__":
    run_missing(cells(), run, RESULTS)
