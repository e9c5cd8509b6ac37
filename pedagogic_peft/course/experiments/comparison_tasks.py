"""The tasks of chapter 5's bench: what is trained on, and how a model is scored.

Five tasks of language for pocket-gpt, one of vision for pocket-vit. `VARIANTS` has two of them again with
few training examples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from random import Random
from typing import Any

import torch

from pedagogic_peft import load_base
from pedagogic_peft.course.pocket import stories, tasks, vision
from pedagogic_peft.course.pocket.tasks import Example
from pedagogic_peft.training.train import pad_collate

MANY, FEW = 1000, 32  # training examples
TRAINING, VALIDATION, TEST = 100, 10_001, 20_001  # the seeds of the examples; runs add their own


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
        n: the number of training examples.
        long: whether the best rate is also run three times as long.
    """

    base: str
    draw: Callable[[int, int], list[Any]]
    score: Callable[..., float]
    unit: str
    steps: int
    batch_size: int
    held_out: int
    n: int = MANY
    long: bool = True


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
    "vision": Task("pocket-vit", pictures, vision.accuracy, SHARE, 60, 32, 200),
    "sentiment": Task("pocket-gpt", short_reviews, verdicts_right, SHARE, 50, 16, 150),
    "recipes": Task("pocket-gpt", tasks.recipes, minus_loss, "minus nats per token", 30, 4, 16),
    "questions": Task("pocket-gpt", telegrams, tasks.word_accuracy, SHARE, 50, 8, 100),
    "translation": Task("pocket-gpt", tasks.translation, words_right, SHARE, 60, 8, 60),
    "style": Task("pocket-gpt", TALES, in_tale_style, SHARE, 20, 4, 12),
}
VARIANTS = {
    f"{name}, few": replace(TASKS[name], n=FEW, long=False) for name in ("vision", "sentiment")
}
ALL = TASKS | VARIANTS


@cache
def load(base: str) -> tuple[Any, Any]:
    """Return a pocket model, on the GPU if there is one, and its tokenizer."""
    torch.set_num_threads(1)
    model, tokenizer = load_base(base)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


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
