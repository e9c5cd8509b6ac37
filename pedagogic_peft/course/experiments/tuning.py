"""The grids of page 6.3: how wide a bottleneck, how long a prompt, how many examples.

    python -m pedagogic_peft.course.experiments.tuning    # runs what is missing, about 10 minutes in all

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
from pedagogic_peft.course.experiments import store
from pedagogic_peft.course.experiments.store import Cell
from pedagogic_peft.course.pocket import tasks
from pedagogic_peft.course.pocket.lessons import lesson

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
def material(base: str = "pocket-gpt") -> tuple[Any, Any, list[Any], list[tasks.Example]]:
    """Return the base, its tokenizer, the training data and the validation reviews."""
    torch.set_num_threads(1)
    model, tokenizer = load_base(base)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    reviews = lesson(base).sentiment
    short = [e for e in reviews(2000, seed=1) if len(e.prompt.split()) <= 16]
    held_out = reviews(250, seed=3, split="validation")
    return model, tokenizer, tasks.encode(tokenizer, short), held_out


def run(part: str, size: int, lr: float, seed: int, base: str = "pocket-gpt") -> Cell:
    """Train one cell and measure it."""
    frozen, tokenizer, data, reviews = material(base)
    torch.manual_seed(seed)
    model = attach(copy.deepcopy(frozen), PARTS[part][0](size))
    data = data[: size if part == "examples" else MANY]
    train(model, data, steps=STEPS, batch_size=BATCH_SIZE, lr=lr, seed=seed, progress=False)
    return {
        "accuracy": tasks.word_accuracy(model, tokenizer, reviews, lesson(base).labels),
        "loss": round(tasks.loss_per_token(model, tokenizer, reviews), 4),
        "trainable": count_parameters(model).trainable,
    }


def cells(base: str = "pocket-gpt") -> list[Cell]:
    """Return every cell of the grids. Another base's rates are smaller in one proportion."""
    factor = lesson(base).lr_lora / lesson("pocket-gpt").lr_lora
    return [
        {"part": part, "size": size, "lr": factor * lr, "seed": seed}
        for part, (_, sizes, rates) in PARTS.items()
        for size in sizes
        for lr in rates
        for seed in SEEDS
    ]


def results(base: str = "pocket-gpt") -> list[Cell]:
    """Return the grids' records for a base; see `store.results`."""
    return store.results(RESULTS, base, cells, run)


if __name__ == "__main__":
    store.run_missing(cells(), run, RESULTS)
