"""The three adapters of pages 3.2 and 3.3, and what full fine-tuning on the same tasks forgets.

    python -m pedagogic_peft.course.experiments.task_adapters    # what is missing: 8 minutes in all

Each adapter is trained from pocket-gpt on one task and saved to a folder beside this file, as `save`
writes it. "in sequence" fine-tunes one copy of pocket-gpt in full on the tasks, one after the other.
"""

import argparse
import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pedagogic_peft import BottleneckAdapter, attach, count_parameters, load_base, save, train
from pedagogic_peft.course.experiments.store import Cell, run_missing
from pedagogic_peft.course.pocket import tasks

RESULTS = Path(__file__).with_name("task_adapters.jsonl")
FOLDER = Path(__file__).with_name("task_adapters")
METHOD = BottleneckAdapter(bottleneck_size=32, placement="houlsby")
TASKS = {
    "translation": tasks.translation,
    "summary": tasks.summaries,
    "questions": tasks.open_questions,
}
# How each task is trained: by an adapter, and in full. All have 16 examples a step.
ADAPTER = {"translation": 1200, "summary": 400, "questions": 1500}
IN_FULL = {"translation": 300, "summary": 200, "questions": 200}
LR_ADAPTER, LR_FULL = 1e-2, 1e-3
DRAWN = {"translation": 8_000, "summary": 30_000, "questions": 30_000}
LONGEST = 35  # words in a training prompt: short stories train faster, the test has all lengths
EVERY = 100  # steps between the losses on validation examples
VALIDATION, TEST = 3, 2  # seeds of examples


@cache
def material() -> tuple[Any, Any]:
    """Return pocket-gpt and its tokenizer."""
    torch.set_num_threads(1)
    return load_base("pocket-gpt")


def training_data(task: str) -> list[Any]:
    """Return the drawn examples less the long ones, encoded."""
    examples = [e for e in TASKS[task](DRAWN[task], seed=1) if len(e.prompt.split()) <= LONGEST]
    return tasks.encode(material()[1], examples)


def validation_loss(model: Any, task: str) -> float:
    """Return the loss on 50 examples in nats per token of the answer."""
    return round(tasks.loss_per_token(model, material()[1], TASKS[task](50, VALIDATION)), 4)


def exact(model: Any, n: int = 200) -> dict[str, float]:
    """Return the share of n test examples answered word for word, for each task."""
    tokenizer = material()[1]
    return {
        name: tasks.exact_match(model, tokenizer, draw(n, TEST)) for name, draw in TASKS.items()
    }


def train_adapter(task: str, **options: Any) -> tuple[Any, list[float]]:
    """Train the adapter of a task; return the model and the validation losses on the way."""
    torch.manual_seed(0)
    model = attach(copy.deepcopy(material()[0]), METHOD, task)
    losses: list[float] = []

    def evaluate(model: Any) -> dict[str, float]:
        losses.append(validation_loss(model, task))
        return {}

    settings = {"steps": ADAPTER[task], "batch_size": 16, "lr": LR_ADAPTER, "progress": False}
    train(model, training_data(task), evaluate=evaluate, eval_every=EVERY, **settings | options)
    return model, losses


def run(kind: str, task: str) -> Cell:
    """Train one adapter and save it, or fine-tune in full on all tasks."""
    if kind == "adapter":
        model, losses = train_adapter(task)
        save(model, FOLDER / task)
        trainable = count_parameters(model).trainable
        return {"losses": losses, "exact": exact(model), "trainable": trainable}
    model = copy.deepcopy(material()[0])
    after = {"base": exact(model)}
    for name, steps in IN_FULL.items():
        data = training_data(name)
        train(model, data, steps=steps, batch_size=16, lr=LR_FULL, progress=False)
        after[name] = exact(model)
    return {"after": after, "trainable": count_parameters(model).trainable}


def cells() -> list[Cell]:
    """Return every cell."""
    adapters = [{"kind": "adapter", "task": task} for task in TASKS]
    return [*adapters, {"kind": "full fine-tuning in sequence", "task": "all"}]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=[*TASKS, "all"], help="run one cell only")
    only = parser.parse_args().only
    run_missing([c for c in cells() if only in (None, c["task"])], run, RESULTS)
