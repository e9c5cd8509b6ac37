"""One lesson, many bases: the data and the first learning rates that a page needs for its base model.

A page names its base once, ``BASE = "pocket-gpt"``, and asks for that base's lesson. For a pocket model
the data are the story world's or scikit-learn's digits; for a model of the Hugging Face Hub they are
real ones of the same form, fetched by ``datasets``:

* sentiment: SST-2 (Socher et al. 2013), film reviews;
* a new domain: recipes, from RecipeNLG (Bień et al. 2020);
* home, what the model should not forget: Wikipedia articles, from WikiText-2 (Merity et al. 2016);
* a skill it has: the last word of a passage, from LAMBADA (Paperno et al. 2016);
* images: CIFAR-10 (Krizhevsky 2009).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from pedagogic_peft.course.pocket import tasks, vision
from pedagogic_peft.course.pocket.tasks import Example

LONGEST = 80  # words of a real document: as long as the story world's
SIZES = {"train": range(1100), "validation": range(1100, 1300), "test": range(497)}  # as the digits
COLUMNS = (("image", "img"), ("label", "labels"))


@dataclass(frozen=True)
class Lesson:
    """What a page on a language model works with.

    Attributes:
        sentiment: called as (n, seed, split) with the split ``"train"``, ``"validation"`` or
            ``"test"``; returns reviews to judge, whose answer is one of ``labels``.
        labels: the two answers, the good one first.
        recipes: called as (n, seed); returns documents of a domain to adapt to.
        stories: called as (n, seed); returns documents like those the base was pretrained on.
        questions: called as (n, seed); returns examples of a skill that the base has.
        skill: what these examples are called in a sentence.
        lr_full, lr_lora: learning rates to begin with, for full fine-tuning and for LoRA with α = 2r.
    """

    sentiment: Callable[..., list[Example]]
    labels: tuple[str, str]
    recipes: Callable[..., list[str]]
    stories: Callable[..., list[str]]
    questions: Callable[..., list[Example]]
    skill: str
    lr_full: float
    lr_lora: float


def lesson(base: str) -> Lesson:
    """Return the lesson of a base: the story world's for pocket-gpt, real data for any other.

    Nothing is fetched before it is asked for.
    """
    return POCKET if base == "pocket-gpt" else REAL


def film_reviews(n: int, seed: int, split: str = "train") -> list[Example]:
    """SST-2; its validation split is halved into validation and test, since its test has no labels."""
    halves = {"validation": "validation[:50%]", "test": "validation[50%:]"}
    return tasks.film_reviews(n, seed, halves.get(split, split))


def recipes(n: int, seed: int, source: str = "corbt/all-recipes") -> list[str]:
    """Recipes, cut after 80 words; another seed gives other ones.

    Args:
        source: a data set with a column ``input``: a Hub name, or a folder.
    """
    return list(islice(_documents(source, "input", "train", 10_000 * seed), n))


def articles(n: int, seed: int, source: str = "Salesforce/wikitext") -> list[str]:
    """Paragraphs of Wikipedia of at least 20 words, cut after 80.

    Args:
        source: a data set with a column ``text``: a Hub name, or a folder.
    """
    texts = _documents(source, "text", "train", 1000 * seed)
    return list(islice((text for text in texts if len(text.split()) >= 20), n))


def last_words(n: int, seed: int, source: str = "EleutherAI/lambada_openai") -> list[Example]:
    """Passages without their last word, which is the answer.

    Args:
        source: a data set with a column ``text``: a Hub name, or a folder.
    """
    passages = islice(_documents(source, "text", "test", 100 * seed, longest=None), n)
    return [Example(*text.rsplit(" ", 1)) for text in passages]


def _documents(
    source: str, column: str, split: str, start: int, longest: int | None = LONGEST
) -> Iterator[str]:
    """Yield texts from row ``start`` on, without fetching the rest; round again at the end."""
    name = {"Salesforce/wikitext": "wikitext-2-raw-v1"}.get(source)
    rows = tasks.load_dataset(source, name, split=split, streaming=True)
    for part in (rows.skip(start), rows):
        for row in part:
            words = (row[column] or "").split()
            if len(words) > 1:
                yield " ".join(words[:longest])


POCKET = Lesson(
    sentiment=lambda n, seed, split="train": tasks.sentiment(n, seed),  # each seed draws new ones
    labels=("smiled", "frowned"),
    recipes=tasks.recipes,
    stories=lambda n, seed: tasks.held_out_stories(n, seed + 2**40),
    questions=tasks.questions,
    skill="story questions",
    lr_full=2e-3,
    lr_lora=1e-2,
)
REAL = Lesson(
    sentiment=film_reviews,
    labels=("lovely", "awful"),
    recipes=recipes,
    stories=articles,
    questions=last_words,
    skill="LAMBADA passages",
    lr_full=5e-5,
    lr_lora=5e-4,
)


def pictures(
    base: str, domain: str = "upright", split: str = "train", source: str = "uoft-cs/cifar10"
) -> list[dict[str, Any]]:
    """Return images for a vision model, as `vision.digits` does for pocket-vit.

    Args:
        base: ``"pocket-vit"``, for digits; or a classifier of the Hub whose classes are the data set's,
            such as ``"nateraw/vit-base-patch16-224-cifar10"``.
        domain: a name in ``vision.DOMAINS``.
        split: ``"train"`` (1,100 images), ``"validation"`` (200) or ``"test"`` (497).
        source: a data set of images: a Hub name, or a folder with a folder for each split and, in it,
            one for each class (``datasets``' "imagefolder").

    Returns:
        One ``{"pixel_values": (channels, height, width) in float32, "labels": class}`` for each image.

    Raises:
        ModuleNotFoundError: ``datasets`` is not installed.
        ValueError: there is no such domain or split.
    """
    if base == "pocket-vit":
        return vision.digits(domain, split)
    from transformers import AutoImageProcessor

    shift, part = vision.known(domain, vision.DOMAINS), vision.known(split, SIZES)
    rows = tasks.load_dataset(source, split="test" if split == "test" else "train").shuffle(seed=0)
    rows = rows.select([i for i in part if i < len(rows)])
    image, label = (next(c for c in names if c in rows.column_names) for names in COLUMNS)
    processor = AutoImageProcessor.from_pretrained(base)
    found = []
    for row in rows:
        pixels = np.asarray(row[image].convert("RGB")).transpose(2, 0, 1) / 255  # (3, h, w)
        shown = np.rint(255 * shift(pixels)).astype(np.uint8)
        values = processor(shown.transpose(1, 2, 0), return_tensors="pt")["pixel_values"][0]
        found.append({"pixel_values": values.to(torch.float32), "labels": int(row[label])})
    return found


def picture_rates(base: str) -> dict[str, float]:
    """Return learning rates to begin with, for training a head alone, LoRA with a head, and all."""
    if base == "pocket-vit":
        return {"head": 5e-2, "LoRA": 1e-2, "full": 2e-3}
    return {"head": 1e-2, "LoRA": 5e-4, "full": 5e-5}
