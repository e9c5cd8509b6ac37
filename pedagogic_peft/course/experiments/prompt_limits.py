"""The experiment of pages 4.3 and 4.4: what is elicited, what is taught, and does the model's size matter?

    python -m pedagogic_peft.course.experiments.prompt_limits    # runs what is missing, 25 minutes in all

Two tasks, three sizes of pocket-gpt, five methods, 60 steps. Each method tries four or five learning
rates on seed 0; the one with the best validation score is run on two seeds more. "style" is a way of
telling that pretraining held, seldom. Half of the reviews of "sentiment" hang on a contrast, and
pretraining never told the verdict of those: who knows all the others and guesses there is right in
three of four. The largest model is trained on "sentiment" once more, five times as long, by all
methods but full fine-tuning.

What a method did not do in so few steps it may be slow at. So `controls` trains the prompt longer on
"style", and on "pirate", a tone that pretraining never held.
"""

import copy
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pedagogic_peft import (
    BottleneckAdapter,
    LoRA,
    PrefixTuning,
    PromptTuning,
    attach,
    count_parameters,
    load_base,
    train,
)
from pedagogic_peft.course.experiments.store import Cell, read, run_missing
from pedagogic_peft.course.pocket import tasks

RESULTS = Path(__file__).with_name("prompt_limits.jsonl")
BASES = ("pocket-gpt-tiny", "pocket-gpt-small", "pocket-gpt")
TASKS, STYLE = ("style", "sentiment"), "tale"
STEPS, LONGER = 60, 300
SETTLED = 180  # steps of the prompt on "style"
WORDS = "hey , hey , leo was happy , so they sang !"  # where the prompt for "pirate" begins
SETTINGS: dict[str, Any] = {"steps": STEPS, "batch_size": 16, "progress": False}
METHODS: dict[str, tuple[Any, tuple[float, ...]]] = {
    "prompt": (PromptTuning(16), (0.01, 0.03, 0.1, 0.3)),
    "prefix": (PrefixTuning(16), (0.03, 0.1, 0.3, 1.0, 3.0)),
    # about as many parameters as LoRA; the scaling fits the length of this model's states (page 3.1)
    "adapter": (
        BottleneckAdapter(bottleneck_size=32, placement="houlsby", scaling=8),
        (3e-4, 1e-3, 3e-3, 1e-2),
    ),
    "LoRA": (LoRA(r=8, alpha=16, target_modules="all-linear"), (1e-3, 3e-3, 1e-2, 3e-2)),
    "full": (None, (3e-4, 1e-3, 3e-3, 1e-2)),
}


@cache
def base(name: str) -> tuple[Any, Any]:
    """Return a base model and its tokenizer."""
    torch.set_num_threads(1)
    return load_base(name)


def method_of(method: str) -> Any:
    """Return the method; "words" is a prompt that begins as WORDS, of the same length."""
    if method != "words":
        return METHODS[method][0]
    ids = base("pocket-gpt")[1](WORDS, add_special_tokens=False).input_ids
    return PromptTuning(len(ids), init=ids)


@cache
def data(task: str) -> list[dict[str, list[int]]]:
    """Return the training examples: short ones, for they are quicker."""
    if task in ("style", "pirate"):
        tone = STYLE if task == "style" else task
        examples = tasks.styled(tone, 1000, seed=1, sentences=1)
    else:
        examples = [e for e in tasks.sentiment(2000, seed=1) if len(e.prompt.split()) <= 16]
    return tasks.encode(base("pocket-gpt")[1], examples)


def contrast(example: tasks.Example) -> bool:
    """Return whether a review hangs on a contrast."""
    return not {"but", "although"}.isdisjoint(example.prompt.split())


def in_tone(model: Any, tone: str, seed: int) -> float:
    """Return the share of 50 continuations that have a sentence, and all of whose sentences wear the tone."""
    openings = [e.prompt for e in tasks.styled(tone, 50, seed)]
    told = [
        re.findall(r"[^.!?]+[.!?]", text)
        for text in tasks.continuations(model, base("pocket-gpt")[1], openings)
    ]
    good = [bool(some) and all(tasks.wears(s.strip(), tone) for s in some) for some in told]
    return sum(good) / len(good)


def score(task: str, model: Any, seed: int) -> float:
    """Return the share of sentences that wear the style, of continuations ("pirate"), or of 250 verdicts."""
    tokenizer = base("pocket-gpt")[1]
    if task == "pirate":
        return in_tone(model, task, seed)
    if task == "style":
        return tasks.style_accuracy(model, tokenizer, STYLE, tasks.styled(STYLE, 50, seed))
    return tasks.word_accuracy(model, tokenizer, tasks.sentiment(250, seed), tasks.VERDICTS)


def run(base_name: str, task: str, method: str, lr: float, seed: int, steps: int) -> Cell:
    """Train one cell; return its scores on validation and test set, and how many parameters.

    Longer runs on "sentiment" also return the test score on the reviews with a contrast alone.
    """
    torch.manual_seed(seed)
    model, chosen = copy.deepcopy(base(base_name)[0]), method_of(method)
    if chosen is not None:
        attach(model, chosen)
    trainable = count_parameters(model).trainable
    try:
        train(model, data(task), lr=lr, seed=seed, **SETTINGS | {"steps": steps})
    except FloatingPointError:  # the rate was far too large
        return {"val": 0.0, "test": 0.0, "trainable": trainable}
    scores = {name: round(score(task, model, held), 4) for name, held in (("val", 3), ("test", 2))}
    tokenizer = base(base_name)[1]
    if task == "sentiment" and steps > STEPS:
        asked = [e for e in tasks.sentiment(250, 2) if contrast(e)]
        scores["contrast"] = round(tasks.word_accuracy(model, tokenizer, asked, tasks.VERDICTS), 4)
    return scores | {"trainable": trainable}


def search(base_name: str) -> list[Cell]:
    """Return the cells that choose the learning rates."""
    kinds = [(task, m, STEPS, rates) for task in TASKS for m, (_, rates) in METHODS.items()]
    if base_name == BASES[-1]:  # full fine-tuning needs no longer run; longer ones want lower rates
        kinds += [("sentiment", m, LONGER, r[:-1]) for m, (_, r) in METHODS.items() if m != "full"]
    return [
        {"base_name": base_name, "task": task, "method": m, "lr": lr, "seed": 0, "steps": steps}
        for task, m, steps, rates in kinds
        for lr in rates
    ]


def controls() -> list[Cell]:
    """Return the longer runs that tell what is slow from what is not learned, the shortest first."""
    largest, three = BASES[-1], (0, 1, 2)
    rows: list[tuple[Any, ...]] = [  # base, task, method, rate, seeds, steps
        (largest, "pirate", "prefix", 1.0, three, STEPS),
        (largest, "style", "prompt", 0.03, three, SETTLED),
        (largest, "pirate", "words", 0.1, (0,), LONGER),
    ]
    keys = ("base_name", "task", "method", "lr", "seed", "steps")
    return [
        dict(zip(keys, (base_name, task, method, lr, seed, steps), strict=True))
        for base_name, task, method, lr, seeds, steps in rows
        for seed in seeds
    ]


def best(records: list[Cell], base_name: str, task: str, method: str, steps: int = STEPS) -> Cell:
    """Return the record of seed 0 with the best validation score; of equal ones, the lower rate."""
    wanted = (base_name, task, method, steps, 0)
    keys = ("base_name", "task", "method", "steps", "seed")
    mine = [r for r in records if tuple(r[key] for key in keys) == wanted]
    return max(mine, key=lambda r: (r["val"], -r["lr"]))


def repeats(records: list[Cell], base_name: str) -> list[Cell]:
    """Return the cells that repeat the best learning rates with other seeds."""
    kinds = dict.fromkeys((c["task"], c["method"], c["steps"]) for c in search(base_name))
    chosen = [best(records, base_name, *kind) for kind in kinds]
    keys = search(base_name)[0].keys()
    return [{key: r[key] for key in keys} | {"seed": seed} for seed in (1, 2) for r in chosen]


if __name__ == "__main__":
    for name in BASES:
        run_missing(search(name), run, RESULTS)
        run_missing(repeats(read(RESULTS), name), run, RESULTS)
    run_missing(controls(), run, RESULTS)
