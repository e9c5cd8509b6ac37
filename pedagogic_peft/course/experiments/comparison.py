"""The bench of chapter 5: every method of the book on six tasks, each at a learning rate of its own.

    python -m pedagogic_peft.course.experiments.comparison    # what is missing: three hours of two cores

The tasks are in `comparison_tasks`, the rule of the search in `search`: it chooses by the validation
score, the measure that also ranks the methods. The best rate is run with five seeds, and with three of them
three times as long, to tell what is slow from what cannot be learned. A seed decides the training examples,
their order and the random initial values.

Two more rates get five seeds: LoRA's best one, at which some other methods are trained too (`SHARED`), and
each method's gentlest one, which forgets least among those that learn enough (`gentlest_rate`).

The stored runs were made on one processor, some with the kernels that the gate names and some with the
processor's own: the two round differently, which moves a score as another seed does.

`comparison_costs` measures what a method costs, `comparison_floors` what can be had without a training of
the network. Where a method has no meaning, `NO_MEANING` says why.
"""

import copy
import os
import statistics
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pedagogic_peft import (
    IA3,
    AdaLoRA,
    AdaLoRABudget,
    BitFit,
    BottleneckAdapter,
    Compacter,
    DoRA,
    LoRA,
    PiSSA,
    PrefixTuning,
    PromptTuning,
    PTuning,
    VeRA,
    attach,
    train,
)
from pedagogic_peft.course.experiments import search
from pedagogic_peft.course.experiments.comparison_floors import floors
from pedagogic_peft.course.experiments.comparison_tasks import (
    ALL,
    TASKS,
    TEST,
    TRAINING,
    VALIDATION,
    VARIANTS,
    held_out,
    kept,
    load,
    loss_of,
    score,
)
from pedagogic_peft.course.experiments.store import Cell, read, run_missing
from pedagogic_peft.course.pocket import tasks

__all__ = ["ALL", "TASKS", "VARIANTS"]  # pages read them beside the records

RESULTS = Path(__file__).with_name("comparison.jsonl")
SEEDS = (0, 1, 2, 3, 4)
GRID = (
    1e-5,
    3e-5,
    1e-4,
    3e-4,
    1e-3,
    3e-3,
    1e-2,
    3e-2,
    1e-1,
    3e-1,
    1.0,
    3.0,
    10.0,
    30.0,
    100.0,
    300.0,
)
LONG = 3  # times the steps
ENOUGH = 0.5  # of the gap, for a rate to count among the gentle ones

EVERYWHERE: dict[str, Any] = {"target_modules": "all-linear"}
# name: (the method, the middle one of the first three rates)
METHODS: dict[str, tuple[Any, float]] = {
    "full": (None, 3e-3),
    "head": (None, 3e-2),
    "LoRA": (LoRA(r=8, alpha=16, **EVERYWHERE), 1e-2),
    "DoRA": (DoRA(r=8, alpha=16, **EVERYWHERE), 1e-2),
    "PiSSA": (PiSSA(r=8, alpha=8, **EVERYWHERE), 3e-3),
    "VeRA": (VeRA(r=128, save_projection=False, **EVERYWHERE), 1e-1),
    "AdaLoRA": (AdaLoRA(init_r=12, target_r=8, alpha=24, tinit=5, tfinal=10, **EVERYWHERE), 1e-1),
    "Houlsby": (BottleneckAdapter(reduction_factor=8, placement="houlsby"), 1e-2),
    "Pfeiffer": (BottleneckAdapter(reduction_factor=8, placement="pfeiffer"), 1e-2),
    "parallel": (BottleneckAdapter(reduction_factor=8, placement="parallel"), 1e-2),
    "Compacter": (Compacter(reduction_factor=8), 3e-2),
    "(IA)³": (IA3(), 1e-1),
    "BitFit": (BitFit(), 1e-2),
    "prompt tuning": (PromptTuning(num_virtual_tokens=20), 1e-1),
    "P-tuning": (PTuning(num_virtual_tokens=20), 3e-3),
    "prefix tuning": (PrefixTuning(num_virtual_tokens=20), 1.0),
}
SHARED = (
    "full",
    "DoRA",
    "PiSSA",
    "AdaLoRA",
    "VeRA",
    "Pfeiffer",
    "(IA)³",
)  # also at LoRA's best rate
NO_MEANING = {  # (method, base): why
    ("BitFit", "pocket-gpt"): "its linear maps have no biases, as in Llama",
    ("prompt tuning", "pocket-vit"): "it reads images: there is no token embedding to stand beside",
    ("P-tuning", "pocket-vit"): "it reads images: there is no token embedding to stand beside",
}


def prepare(base: str, method: str, seed: int = 0) -> Any:
    """Return a copy of the base whose trainable parameters are the method's.

    "head" trains the last linear map: pocket-vit's classifier, or pocket-gpt's map to the vocabulary,
    as a copy, since the base shares it with the input embedding. Nothing else trains a head: the
    classes of the tasks are those of the base.
    """
    torch.manual_seed(seed)
    model = copy.deepcopy(load(base)[0])
    if method == "full":
        return model
    if method == "head":
        head = model.requires_grad_(False).get_output_embeddings() or model.classifier
        head.weight = nn.Parameter(head.weight.detach().clone())
        head.requires_grad_(True)
        return model
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The head .* stays frozen")
        return attach(model, METHODS[method][0])


# --- one run ------------------------------------------------------------------------------------


def run(task: str, method: str, rate: float, seed: int, n: int, steps: int) -> Cell:
    """Train one cell; return its scores, and what it has kept of the base's own skill.

    A training whose loss stopped being finite has None for all of them.
    """
    base = ALL[task].base
    model = load(base)[0] if method == "frozen" else prepare(base, method, seed)
    if method != "frozen":
        try:
            fit(model, task, method, rate, seed, n, steps)
        except FloatingPointError:
            return dict.fromkeys(("val", "val_loss", "test", "kept"))
    found = {
        "val": score(task, model, held_out(task, VALIDATION)),
        "val_loss": loss_of(base, model, held_out(task, VALIDATION)),
        "test": score(task, model, held_out(task, TEST)),
        "kept": kept(base, model),
    }
    return {key: round(value, 4) for key, value in found.items()}


def fit(model: Any, task: str, method: str, rate: float, seed: int, n: int, steps: int) -> None:
    """Train a prepared model."""
    the = ALL[task]
    examples = the.draw(n, TRAINING + seed)
    if the.base == "pocket-gpt":
        examples = tasks.encode(load(the.base)[1], examples)
    options: dict[str, Any] = {"steps": steps, "batch_size": the.batch_size, "lr": rate}
    if method == "AdaLoRA":
        budget = AdaLoRABudget(model, total_steps=steps)
        options |= {"before_step": budget.before_step, "after_step": budget.after_step}
    train(model, examples, seed=seed, progress=False, **options)


# --- which runs ---------------------------------------------------------------------------------


def meaningful(method: str, task: str) -> bool:
    """Tell whether the method has a meaning for the task's base model."""
    return (method, ALL[task].base) not in NO_MEANING


def runs(records: Sequence[Cell], task: str, method: str, **more: Any) -> list[Cell]:
    """Return the records of a method on a task, of the usual length unless ``steps`` says otherwise."""
    wanted = {"task": task, "method": method, "steps": ALL[task].steps} | more
    return [r for r in records if wanted.items() <= r.items()]


def best_rate(records: Sequence[Cell], task: str, method: str) -> float:
    """Return the rate with the greatest validation score; see `search`."""
    return search.best_rate(runs(records, task, method))


def chosen(records: Sequence[Cell], task: str, method: str) -> list[Cell]:
    """Return the runs of a method at its best rate, in the order of the seeds."""
    if method == "frozen":
        return runs(records, task, method)
    found = runs(records, task, method, rate=best_rate(records, task, method))
    return sorted(found, key=lambda r: r["seed"])


def scores(records: Sequence[Cell], task: str, method: str) -> dict[int, float]:
    """Return {seed: test score} at the method's best rate; what diverged scores as the frozen base."""
    floor = float(runs(records, task, "frozen")[0]["test"])
    return {
        r["seed"]: floor if r["test"] is None else r["test"] for r in chosen(records, task, method)
    }


def at_rate(records: Sequence[Cell], task: str, method: str, rate: float) -> list[Cell]:
    """Return the runs of a method at a rate, in the order of the seeds."""
    return sorted(runs(records, task, method, rate=rate), key=lambda r: r["seed"])


def longer(records: Sequence[Cell], task: str, method: str) -> list[Cell]:
    """Return the runs at the best rate that took three times the steps, in the order of the seeds."""
    rate, steps = best_rate(records, task, method), LONG * ALL[task].steps
    return sorted(runs(records, task, method, rate=rate, steps=steps), key=lambda r: r["seed"])


def gentlest_rate(records: Sequence[Cell], task: str, method: str) -> float | None:
    """Return the rate that forgot least among those that closed `ENOUGH` of the gap; None without one.

    Both by the first seed, and the gap on validation data, so that the test data have no say.
    """
    low = max(float(runs(records, task, "frozen")[0]["val"]), floors(task)["guess"])
    top = statistics.fmean(r["val"] for r in chosen(records, task, "full"))
    tried = [r for r in runs(records, task, method, seed=0) if r["val"] is not None]
    enough = [r for r in tried if r["val"] >= low + ENOUGH * (top - low)]
    return max(enough, key=lambda r: r["kept"])["rate"] if enough else None


def start(records: Sequence[Cell], task: str) -> float:
    """Return the score from which a method's gain counts: the frozen base's, or a guess's if that is more."""
    return max(float(runs(records, task, "frozen")[0]["test"]), floors(task)["guess"])


def gain(records: Sequence[Cell], task: str, method: str) -> dict[int, float]:
    """Return {seed: share of the gap that the method closes}.

    0 is the start, 1 the mean of full fine-tuning over its seeds; more than 1 is better than that.
    """
    low = start(records, task)
    full = scores(records, task, "full").values()
    width = sum(full) / len(full) - low
    return {seed: (x - low) / width for seed, x in scores(records, task, method).items()}


def cell(task: str, method: str, rate: float, seed: int, times: int = 1) -> Cell:
    """Return the arguments of `run` as a record."""
    the = ALL[task]
    keys = {"task": task, "method": method, "rate": rate, "seed": seed}
    return keys | {"n": the.n, "steps": times * the.steps}


def stages(records: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Yield the runs that the rule asks for, given those that are known, in order.

    First the search of every task, then the seeds of the best rates, those of the variants after them;
    then LoRA's rates and the gentle ones, and the long runs at last.
    """
    yield [cell(task, "frozen", 0.0, 0) for task in ALL]
    yield from _searches(records, TASKS)
    yield from _searches(records, VARIANTS)
    yield _more_rates(records)
    yield _long_runs(records)


def _found(records: Sequence[Cell], task: str) -> list[str]:
    """Return the methods whose search on a task is over."""
    return [
        method
        for method in METHODS
        if meaningful(method, task)
        and not search.wanted(runs(records, task, method), GRID, METHODS[method][1])
    ]


def _searches(records: Sequence[Cell], of: Iterable[str]) -> list[list[Cell]]:
    searches, seeds = [], []
    for task in of:
        found = _found(records, task)
        searches.append(
            [
                cell(task, method, rate, seed)
                for method in METHODS
                if meaningful(method, task) and method not in found
                for rate, seed in search.wanted(
                    runs(records, task, method), GRID, METHODS[method][1]
                )
            ]
        )
        seeds += [
            cell(task, method, best_rate(records, task, method), seed)
            for method in found
            for seed in SEEDS
        ]
    return [*searches, seeds]


def _more_rates(records: Sequence[Cell]) -> list[Cell]:
    """Return the runs at LoRA's best rates and at the gentle ones."""
    wanted = []
    for task in TASKS:
        found = _found(records, task)
        if {"LoRA", "full"} <= set(found):
            common = best_rate(records, task, "LoRA")
            wanted += [(task, method, common) for method in SHARED if method in found]
            gentle = {method: gentlest_rate(records, task, method) for method in found}
            wanted += [(task, method, rate) for method, rate in gentle.items() if rate]
    return [cell(*each, seed) for each in dict.fromkeys(wanted) for seed in SEEDS]


def _long_runs(records: Sequence[Cell]) -> list[Cell]:
    return [
        cell(task, method, best_rate(records, task, method), seed, LONG)
        for task in TASKS
        if ALL[task].long
        for method in _found(records, task)
        for seed in search.SELECTING
    ]


def missing(records: Sequence[Cell]) -> list[Cell]:
    """Return the runs of the first stage that is not all stored; none when the bench is finished."""
    keys = cell("vision", "", 0.0, 0).keys()
    done = {tuple(r[key] for key in keys) for r in records}
    left = ([c for c in stage if tuple(c.values()) not in done] for stage in stages(records))
    return next((stage for stage in left if stage), [])


def main() -> None:
    """Run all that is missing: one process for each core, or a single one where there is a GPU."""
    processes = 1 if torch.cuda.is_available() else os.cpu_count() or 1
    while todo := missing(read(RESULTS)):
        run_missing(todo, run, RESULTS, processes)


if __name__ == "__main__":
    main()
