"""Page 3.3: a dialect of Toli in another order of words, learned from four starting points.

    python -m pedagogic_peft.course.experiments.dialect    # what is missing: 15 minutes of one core in all

A fresh adapter; the adapter of translation, trained on; a stack, with that adapter frozen below and a new one
on top; and a fusion of three adapters. All get the same 60 examples and steps. The rule of `search` chooses
the rate of each by exact match on validation sentences; the best rate has five seeds. A seed decides the
examples, their order and the initial values.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pedagogic_peft import activate, attach, load, train
from pedagogic_peft.core.sites import sites
from pedagogic_peft.course.experiments import composing, search, task_adapters
from pedagogic_peft.course.experiments.store import Cell, read, run_missing
from pedagogic_peft.course.pocket import tasks

RESULTS = Path(__file__).with_name("dialect.jsonl")
SEEDS = (0, 1, 2, 3, 4)
STEPS, BATCH_SIZE, EXAMPLES = 180, 12, 60
VALIDATION, TEST = (50, 9), (100, 8)  # how many, and the seed that draws them
TRAINING = 200  # plus the run's seed: the seed that draws its examples
GRID = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


def dialect(n: int, seed: int) -> list[tasks.Example]:
    """Return n sentences to translate into Toli's words in the order verb, who, thing, colour."""
    found = []
    for example in tasks.translation(n, seed):
        thing, colour, who, verb, stop = example.answer.split()
        found.append(tasks.Example(example.prompt, " ".join([verb, who, thing, colour, stop])))
    return found


def go_on(model: Any) -> None:
    """Load the adapter of translation, to be trained on."""
    load(model, task_adapters.FOLDER / "translation", name="translation")


def stack(model: Any) -> None:
    """Load the adapter of translation, freeze it, and put a new adapter on top."""
    go_on(model)
    attach(model, task_adapters.METHOD, "above")
    for _, site in sites(model):
        site.deltas["translation"].requires_grad_(False)
    activate(model, "translation", "above")


# {name: (what it loads and attaches, the middle one of the first three rates)}
STARTS: dict[str, tuple[Callable[[Any], Any], float]] = {
    "fresh adapter": (composing.fresh, 1e-2),
    "translation, trained on": (go_on, 1e-2),
    "new on top of translation": (stack, 1e-2),
    "fusion of three": (composing.fuse, 3e-2),
}


def run(method: str, rate: float, seed: int) -> Cell:
    """Train from one start and score it; a training that diverged has None for its scores."""
    torch.manual_seed(seed)
    base, tokenizer = composing.material()
    model = copy.deepcopy(base)
    STARTS[method][0](model)
    optimizer = composing.optimizer_of(model, rate) if method == "fusion of three" else None
    data = tasks.encode(tokenizer, dialect(EXAMPLES, TRAINING + seed))
    settings: dict[str, Any] = {"steps": STEPS, "batch_size": BATCH_SIZE, "progress": False}
    try:
        train(model, data, lr=rate, seed=seed, optimizer=optimizer, **settings)
    except FloatingPointError:
        return dict.fromkeys(("val", "val_loss", "test", "test_loss"))
    found: Cell = {}
    for name, (n, drawn) in {"val": VALIDATION, "test": TEST}.items():
        examples = dialect(n, drawn)
        found[name] = tasks.exact_match(model, tokenizer, examples)
        found[f"{name}_loss"] = round(tasks.loss_per_token(model, tokenizer, examples), 4)
    return found


def missing(records: Sequence[Cell]) -> list[Cell]:
    """Return the runs that the rule asks for next, given those that are known; none at the end."""
    middles = {name: middle for name, (_, middle) in STARTS.items()}
    return search.missing_runs(records, middles, GRID, SEEDS)


def at_best_rate() -> dict[str, list[Cell]]:
    """Return the stored runs of each start at its rate, in the order of the seeds."""
    return search.at_best_rate(read(RESULTS), STARTS)


if __name__ == "__main__":
    while todo := missing(read(RESULTS)):
        run_missing(todo, run, RESULTS)
