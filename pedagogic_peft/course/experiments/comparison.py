"""The bench of chapter 5: every method of the book on six tasks, each at a learning rate of its own.

    python -m pedagogic_peft.course.experiments.comparison    # runs what is missing, about an hour in all

`VARIANTS` has two of the tasks again with few examples, and one with a longer training, for which three
rates and one seed have to do.

**The search is the same for all.** A method starts with three learning rates of `GRID`, whose steps
are factors of about 3, and one seed. While the best of them, by the loss on validation data, has a
neighbour that was not tried, that neighbour is tried, up to `MOST_RATES` rates. The best rate is then
run with two more seeds. A seed decides the training examples, their order and the random initial values.

`comparison_costs` measures what a method costs. Where a method has no meaning, `NO_MEANING` says why.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from random import Random
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
    load_base,
    train,
)
from pedagogic_peft.course.experiments.store import Cell, read, run_missing
from pedagogic_peft.course.pocket import stories, tasks, vision
from pedagogic_peft.course.pocket.tasks import Example
from pedagogic_peft.training.train import pad_collate

RESULTS = Path(__file__).with_name("comparison.jsonl")
SEEDS = (0, 1, 2)
GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0, 30.0, 100.0)
MOST_RATES = 6
MANY, FEW = 1000, 32  # training examples
TRAINING, VALIDATION, TEST = 100, 10_001, 20_001  # the seeds of the examples; runs add their own

# --- the methods --------------------------------------------------------------------------------

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


# --- the tasks ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A task of the bench.

    Attributes:
        draw: ``draw(n, seed)`` returns examples.
        score: ``score(model, tokenizer, examples)``, or without the tokenizer for images; greater is
            better.
        unit: what the score counts.
        steps, batch_size: how long every method trains.
        held_out: the number of validation examples, half that of test examples (but for images).
        chance: the score of a guess, where there is one. For translation it copies the name and says the
            most frequent words.
        n: the number of training examples.
        most_rates, seeds: how far the search goes, and the seeds of the best rate.
    """

    base: str
    draw: Callable[[int, int], list[Any]]
    score: Callable[..., float]
    unit: str
    steps: int
    batch_size: int
    held_out: int
    chance: float | None = None
    n: int = MANY
    most_rates: int = MOST_RATES
    seeds: tuple[int, ...] = SEEDS


def short_reviews(n: int, seed: int) -> list[Example]:
    """Return reviews of at most 16 words."""
    return [e for e in tasks.sentiment(4 * n, seed) if len(e.prompt.split()) <= 16][:n]


def telegrams(n: int, seed: int) -> list[Example]:
    """Return anecdotes with questions in telegram style: "what colour ball :" asks for a colour.

    Pretraining knows the questions, but asked in full: "what colour was the ball ?"
    """
    rng = Random(seed)
    found: list[Example] = []
    while len(found) < n:
        told = stories.anecdote(rng)
        if told.questions:
            question = rng.choice(told.questions)
            words = [w for w in question.text.split() if w not in {"was", "the", "?"}]
            found.append(Example(f"{told.text} {' '.join(words)} :", question.answer))
    return found


def pictures(n: int, seed: int) -> list[dict[str, Any]]:
    """Return rotated digits: n of the training images, or a split of the data set."""
    if seed in (VALIDATION, TEST):
        return vision.digits("rotated", "validation" if seed == VALIDATION else "test")
    return Random(seed).sample(vision.digits("rotated", "train"), n)


@torch.no_grad()
def words_right(model: Any, tokenizer: Any, examples: Sequence[Example]) -> float:
    """Return the share of the answers' words (0 to 1) that are the likeliest after the right ones before.

    The full stop and the end of the text, which are always the same, do not count.
    """
    batch = pad_collate(tokenizer.pad_token_id)(tasks.encode(tokenizer, examples))
    labels = batch.pop("labels")[:, 1:]
    likeliest = model(**batch).logits[:, :-1].argmax(-1)
    idle = torch.tensor([-100, tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(".")])
    counts = ~torch.isin(labels, idle)
    return float((likeliest == labels)[counts].float().mean())


def verdicts_right(model: Any, tokenizer: Any, examples: Sequence[Example]) -> float:
    """Return the share of reviews (0 to 1) of which the right verdict is the likelier one."""
    return tasks.word_accuracy(model, tokenizer, examples, list(tasks.VERDICTS))


def minus_loss(model: Any, tokenizer: Any, examples: Sequence[str]) -> float:
    """Return minus the loss, so that greater is better."""
    return -tasks.loss_per_token(model, tokenizer, examples)


def in_tale_style(model: Any, tokenizer: Any, examples: Sequence[Example]) -> float:
    """Return the share of sentences (0 to 1) that the model writes in the style "tale"."""
    return tasks.style_accuracy(model, tokenizer, "tale", examples)


TALES = partial(tasks.styled, "tale")
SHARE = "share right"
TASKS = {
    "vision": Task("pocket-vit", pictures, vision.accuracy, SHARE, 60, 32, 200, 0.1),
    "sentiment": Task("pocket-gpt", short_reviews, verdicts_right, SHARE, 50, 16, 150, 0.5),
    "recipes": Task("pocket-gpt", tasks.recipes, minus_loss, "minus nats per token", 30, 4, 16),
    "questions": Task("pocket-gpt", telegrams, tasks.word_accuracy, SHARE, 50, 8, 100),
    "translation": Task("pocket-gpt", tasks.translation, words_right, SHARE, 60, 8, 60, 0.36),
    "style": Task("pocket-gpt", TALES, in_tale_style, SHARE, 20, 4, 12),
}
VARIANTS = {
    "vision, few": replace(TASKS["vision"], n=FEW),
    "sentiment, few": replace(TASKS["sentiment"], n=FEW),
    "vision, long": replace(TASKS["vision"], steps=240, most_rates=3, seeds=(0,)),
}
ALL = TASKS | VARIANTS


@cache
def load(base: str) -> tuple[Any, Any]:
    """Return a pocket model and its tokenizer."""
    torch.set_num_threads(1)
    return load_base(base)


@cache
def held_out(task: str, seed: int) -> list[Any]:
    """Return the validation or the test set of a task."""
    n = ALL[task].held_out
    return ALL[task].draw(n if seed == VALIDATION else 2 * n, seed)


def score(task: str, model: Any, examples: list[Any]) -> float:
    """Return how well the model does on these examples: the greater, the better."""
    the = ALL[task]
    tokenizer = load(the.base)[1]
    return (
        the.score(model, examples) if tokenizer is None else the.score(model, tokenizer, examples)
    )


def loss_of(base: str, model: Any, examples: list[Any]) -> float:
    """Return the mean loss, in nats for each token or image."""
    if base == "pocket-gpt":
        return tasks.loss_per_token(model, load(base)[1], examples)
    with torch.no_grad():
        images = torch.stack([e["pixel_values"] for e in examples])
        labels = torch.tensor([e["labels"] for e in examples])
        return float(model(pixel_values=images, labels=labels).loss)


def kept(base: str, model: Any) -> float:
    """Return how the model does what the base was pretrained for: the less it forgot, the greater.

    Minus the loss on 32 held-out stories, or the accuracy on 497 upright digits.
    """
    if base == "pocket-gpt":
        return -tasks.loss_per_token(model, load(base)[1], tasks.held_out_stories(32))
    return vision.accuracy(model, vision.digits("upright", "test"))


# --- one run ------------------------------------------------------------------------------------


def run(task: str, method: str, rate: float, seed: int, n: int) -> Cell:
    """Train one cell; return its scores, and what it has kept of the base's own skill.

    A training whose loss stopped being finite has None for all of them.
    """
    the = ALL[task]
    model = load(the.base)[0] if method == "frozen" else prepare(the.base, method, seed)
    if method != "frozen":
        try:
            fit(model, task, method, rate, seed, n)
        except FloatingPointError:
            return dict.fromkeys(("val_loss", "test", "kept"))
    found = {
        "val_loss": loss_of(the.base, model, held_out(task, VALIDATION)),
        "test": score(task, model, held_out(task, TEST)),
        "kept": kept(the.base, model),
    }
    return {key: round(value, 4) for key, value in found.items()}


def fit(model: Any, task: str, method: str, rate: float, seed: int, n: int) -> None:
    """Train a prepared model."""
    the = ALL[task]
    examples = the.draw(n, TRAINING + seed)
    if the.base == "pocket-gpt":
        examples = tasks.encode(load(the.base)[1], examples)
    options: dict[str, Any] = {"steps": the.steps, "batch_size": the.batch_size, "lr": rate}
    if method == "AdaLoRA":
        budget = AdaLoRABudget(model, total_steps=the.steps)
        options |= {"before_step": budget.before_step, "after_step": budget.after_step}
    train(model, examples, seed=seed, progress=False, **options)


# --- which runs ---------------------------------------------------------------------------------


def meaningful(method: str, task: str) -> bool:
    """Tell whether the method has a meaning for the task's base model."""
    return (method, ALL[task].base) not in NO_MEANING


def runs(records: Sequence[Cell], task: str, method: str, **more: Any) -> list[Cell]:
    """Return the records of a method on a task."""
    wanted = {"task": task, "method": method} | more
    return [r for r in records if wanted.items() <= r.items()]


def best_rate(records: Sequence[Cell], task: str, method: str) -> float:
    """Return the rate with the lowest validation loss."""
    found = [r for r in runs(records, task, method, seed=0) if r["val_loss"] is not None]
    return float(min(found, key=lambda r: r["val_loss"])["rate"])


def chosen(records: Sequence[Cell], task: str, method: str) -> list[Cell]:
    """Return the runs of a method at its best rate, one for each seed."""
    if method == "frozen":
        return runs(records, task, method)
    return runs(records, task, method, rate=best_rate(records, task, method))


def start(records: Sequence[Cell], task: str) -> float:
    """Return the score from which a method's gain counts: the frozen base's, or chance if that is more."""
    frozen = float(runs(records, task, "frozen")[0]["test"])
    chance = ALL[task].chance
    return frozen if chance is None else max(frozen, chance)


def next_rates(records: Sequence[Cell], task: str, method: str) -> list[float]:
    """Return the rates to try next; none when the search is over."""
    middle = GRID.index(METHODS[method][1])
    tried = {r["rate"] for r in runs(records, task, method, seed=0)}
    if first := [rate for rate in GRID[middle - 1 : middle + 2] if rate not in tried]:
        return first
    best = GRID.index(best_rate(records, task, method))
    beside = [rate for rate in GRID[max(best - 1, 0) : best + 2] if rate not in tried]
    return beside if len(tried) < ALL[task].most_rates else []


def cell(task: str, method: str, rate: float, seed: int) -> Cell:
    """Return the arguments of `run` as a record."""
    return {"task": task, "method": method, "rate": rate, "seed": seed, "n": ALL[task].n}


def stages(records: Sequence[Cell]) -> list[list[Cell]]:
    """Return the runs that the rule asks for, given those that are known, in order.

    For each task first the search, then the seeds.
    """
    found = [[cell(task, "frozen", 0.0, 0) for task in ALL]]
    for task in ALL:
        search, seeds = [], []
        for method in METHODS:
            if not meaningful(method, task):
                continue
            if rates := next_rates(records, task, method):
                search += [cell(task, method, rate, 0) for rate in rates]
                continue
            rate = best_rate(records, task, method)
            seeds += [cell(task, method, rate, seed) for seed in ALL[task].seeds]
        found += [search, seeds]
    return found


def finished(records: Sequence[Cell]) -> list[str]:
    """Return the tasks of which nothing is missing: searched for every method, every seed stored."""
    left = {each["task"] for stage in stages(records) for each in without(stage, records)}
    return [task for task in ALL if task not in left]


def missing(records: Sequence[Cell]) -> list[Cell]:
    """Return the runs of the first stage that is not all stored."""
    return next((todo for stage in stages(records) if (todo := without(stage, records))), [])


def without(wanted: Sequence[Cell], records: Sequence[Cell]) -> list[Cell]:
    """Return those of the wanted runs that are not stored."""
    done = [{key: r[key] for key in ("task", "method", "rate", "seed", "n")} for r in records]
    return [each for each in wanted if each not in done]


def main() -> None:
    """Run all that is missing."""
    while todo := missing(read(RESULTS)):
        run_missing(todo, run, RESULTS)


if __name__ == "__main__":
    main()
