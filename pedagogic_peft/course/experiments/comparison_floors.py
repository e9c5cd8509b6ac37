"""What can be had on the bench's tasks without training a network: a guess, and a rule that counts.

Both see the training examples that a method sees. A method that does not pass them has not shown
that it learned the task.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from pedagogic_peft.course.experiments.comparison_tasks import ALL, TEST, TRAINING, held_out, load
from pedagogic_peft.course.pocket import tasks
from pedagogic_peft.course.pocket.tasks import Example


@cache
def floors(task: str, seed: int = 0) -> dict[str, float]:
    """Return the test scores of the guess ("guess") and of the counting rule ("rule") on a task.

    They see the training examples of ``seed``. The unit is the task's own: shares from 0 to 1, or minus
    nats per token.
    """
    train = ALL[task].draw(ALL[task].n, TRAINING + seed)
    guess, rule = RULES[task.removesuffix(", few")]
    test = held_out(task, TEST)
    return {"guess": round(guess(train, test), 4), "rule": round(rule(train, test), 4)}


def most_frequent(train: Sequence[Example], test: Sequence[Example]) -> float:
    """Always give the most frequent answer."""
    answer = Counter(e.answer for e in train).most_common(1)[0][0]
    return sum(e.answer == answer for e in test) / len(test)


def words_and_pairs(train: Sequence[Example], test: Sequence[Example]) -> float:
    """Logistic regression on which words and pairs of neighbours a review has."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    counts = CountVectorizer(ngram_range=(1, 2), binary=True, token_pattern=r"\S+")
    model = make_pipeline(counts, LogisticRegression(max_iter=1000))
    model.fit([e.prompt for e in train], [e.answer for e in train])
    return float(model.score([e.prompt for e in test], [e.answer for e in test]))


def fitting_word(train: Sequence[Example], test: Sequence[Example]) -> float:
    """Take the sentence that holds the thing asked for, and in it a word that ever answered such a question.

    The thing asked for is the last word of the question, its kind the first; the last fitting word wins.
    """
    answers: dict[str, set[str]] = defaultdict(set)
    for e in train:
        answers[_question(e)[0]].add(e.answer)
    right = 0
    for e in test:
        words = _question(e)
        sentences = [s.split() for s in e.prompt.split(" . ")[:-1]]
        told = [w for s in sentences if words[-1] in s for w in s if w not in words]
        fitting = [w for w in told if w in answers[words[0]]]
        right += fitting[-1:] == [e.answer]
    return right / len(test)


def _question(example: Example) -> list[str]:
    return example.prompt.rpartition(" . ")[2].removesuffix(" :").split()


def usual_words(train: Sequence[Example], test: Sequence[Example]) -> float:
    """Say the most frequent word of each place, but copy the name where a name stands."""
    usual = [Counter(column).most_common(1)[0][0] for column in _columns(train)]
    names = {e.prompt.split()[0] for e in train}

    def say(english: list[str], place: int) -> str:
        return english[0] if usual[place] in names else usual[place]

    return _words_right(say, test)


def dictionary(train: Sequence[Example], test: Sequence[Example]) -> float:
    """Translate word by word, by a dictionary that is counted.

    For each place of the translation it finds the place of the English sentence that tells most
    about it.
    """
    sources = list(zip(*(e.prompt.split() for e in train), strict=True))
    tables: list[tuple[int, dict[str, str]]] = []
    for target in _columns(train):
        counted = []
        for place, source in enumerate(sources):
            seen: dict[str, Counter[str]] = defaultdict(Counter)
            for english, word in zip(source, target, strict=True):
                seen[english][word] += 1
            right = sum(c.most_common(1)[0][1] for c in seen.values())
            counted.append((right, place, {w: c.most_common(1)[0][0] for w, c in seen.items()}))
        _, place, table = max(counted, key=lambda each: each[0])
        tables.append((place, table))

    def say(english: list[str], place: int) -> str:
        source, table = tables[place]
        return table.get(english[source], english[source])

    return _words_right(say, test)


def _columns(examples: Sequence[Example]) -> list[tuple[str, ...]]:
    return list(zip(*(e.answer.removesuffix(" .").split() for e in examples), strict=True))


def _words_right(say: Callable[[list[str], int], str], test: Sequence[Example]) -> float:
    right = [
        say(e.prompt.split(), place) == word
        for e in test
        for place, word in enumerate(e.answer.removesuffix(" .").split())
    ]
    return sum(right) / len(right)


def alone(train: Sequence[str], test: Sequence[str]) -> float:
    """Minus the loss of the frequency of each token."""
    return -_counting_loss(train, test, lambda ids, i: 0)


def after_the_last(train: Sequence[str], test: Sequence[str]) -> float:
    """Minus the loss of the frequency of each token after the one before it."""
    return -_counting_loss(train, test, lambda ids, i: ids[i - 1])


def _counting_loss(
    train: Sequence[str], test: Sequence[str], context: Callable[[list[int], int], int]
) -> float:
    """Mean nats per token of frequencies in a context, each mixed with a tenth of those without one."""
    tokenizer = load("pocket-gpt")[1]
    told = [e["input_ids"] for e in tasks.encode(tokenizer, train)]
    asked = [e["input_ids"] for e in tasks.encode(tokenizer, test)]
    seen: dict[int, Counter[int]] = defaultdict(Counter)
    every: Counter[int] = Counter()
    for ids in told:
        for i in range(1, len(ids)):
            seen[context(ids, i)][ids[i]] += 1
            every[ids[i]] += 1
    total = every.total() + len(tokenizer)  # every token once more, so that none is impossible
    losses = []
    for ids in asked:
        for i in range(1, len(ids)):
            here = seen[context(ids, i)]
            p = (every[ids[i]] + 1) / total
            if here:
                p = 0.1 * p + 0.9 * here[ids[i]] / here.total()
            losses.append(-math.log(p))
    return sum(losses) / len(losses)


def most_frequent_class(train: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]]) -> float:
    """Always give the most frequent class."""
    label = Counter(int(e["labels"]) for e in train).most_common(1)[0][0]
    return sum(int(e["labels"]) == label for e in test) / len(test)


def nearest_picture(train: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]]) -> float:
    """Give the class of the training picture whose pixels are nearest."""
    known = torch.stack([e["pixel_values"].flatten() for e in train])
    asked = torch.stack([e["pixel_values"].flatten() for e in test])
    nearest = torch.cdist(asked, known).argmin(-1)
    right = [
        int(train[i]["labels"]) == int(e["labels"]) for i, e in zip(nearest, test, strict=True)
    ]
    return sum(right) / len(right)


def nothing(train: Sequence[Example], test: Sequence[Example]) -> float:
    """Write nothing in the style."""
    return 0.0


def add_the_ending(train: Sequence[Example], test: Sequence[Example]) -> float:
    """Repeat the sentence that was given, with the ending of the style."""
    said = [e.prompt.removesuffix(" .") + " , so they say ." for e in test]
    return sum(tasks.wears(sentence, "tale") for sentence in said) / len(said)


RULES: dict[str, tuple[Callable[..., float], Callable[..., float]]] = {
    "vision": (most_frequent_class, nearest_picture),
    "sentiment": (most_frequent, words_and_pairs),
    "recipes": (alone, after_the_last),
    "questions": (most_frequent, fitting_word),
    "translation": (usual_words, dictionary),
    "style": (nothing, add_the_ending),
}
