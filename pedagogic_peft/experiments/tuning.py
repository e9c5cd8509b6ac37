"""The grids of page 6.3: how wide a bottleneck, how long a prompt, how many examples.

    python -m pedagogic_peft.experiments.tuning    # runs what is missing, about 10 minutes in all

Each cell adapts pocket-gpt to sentiment and stores accuracy and loss on 250 validation reviews. The
ranks and scalings of LoRA are in `lora_grid`.
"""

import copy
from collections.abc import Callable
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
from pedagogic_peft.experiments.store import Cell, run_missing
from pedagogic_peft.pocket import tasks

RESULTS = Path(__file__).with_name("tuning.jsonl")
STEPS, BATCH_SIZE = 60, 16
SEEDS = (0, 1, 2)
MANY = 1500  # training examples, where their number is not what varies
# part: (the method of a size, the sizes, the learning rates)
PARTS: dict[str, tuple[Callable[[int], Any], tuple[int, ...], tuple[float, ...]]] = {
    "bottleneck": (
        lambda m: BottleneckAdapter(bottleneck_size=m, placement="houlsby"),
        (2, 8, 32),
        (3e-3, 1e-2, 3e-2),
    ),
    "prompt length": (
        lambda n: PromptTuning(num_virtual_tokens=n),
        (2, 8, 32),
        (3e-2, 1e-1, 3e-1),
    ),
    "examples": (
        lambda n: LoRA(r=8, alpha=16, target_modules="all-linear"),
        (50, 200, 800),
        (1e-2,),  # LoRA's best rate in `lora_grid`
    ),
}


@cache
def material() -> tuple[Any, Any, list[Any], list[tasks.Example]]:
    """Return the base, its tokenizer, the training data and the validation reviews."""
    torch.set_num_threads(1)
    base, tokenizer = load_base("pocket-gpt")
    short = [e for e in tasks.sentiment(2000, seed=1) if len(e.prompt.split()) <= 16]
    return base, tokenizer, tasks.encode(tokenizer, short), tasks.sentiment(250, seed=3)


def run(part: str, size: int, lr: float, seed: int) -> Cell:
    """Train one cell and measure it."""
    base, tokenizer, data, reviews = material()
    torch.manual_seed(seed)
    model = attach(copy.deepcopy(base), PARTS[part][0](size))
    data = data[: size if part == "examples" else MANY]
    train(model, data, steps=STEPS, batch_size=BATCH_SIZE, lr=lr, seed=seed, progress=False)
    return {
        "accuracy": tasks.word_accuracy(model, tokenizer, reviews, ["frowned", "smiled"]),
        "loss": round(tasks.loss_per_token(model, tokenizer, reviews), 4),
        "trainable": count_parameters(model).trainable,
    }


def cells() -> list[Cell]:
    """Return every cell of the grids."""
    return [
        {"part": part, "size": size, "lr": lr, "seed": seed}
        for part, (_, sizes, rates) in PARTS.items()
        for size in sizes
        for lr in rates
        for seed in SEEDS
    ]


if __name__ == "__main__":
    run_missing(cells(), run, RESULTS)
