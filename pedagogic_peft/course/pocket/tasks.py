"""The story world's tasks, each with an exact metric.

A task is a list of :class:`Example`, a prompt and the answer that should follow it. The examples of one
``(n, seed)`` are the same on every machine, and two seeds give different examples.
"""

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple, TypeVar

import torch

from pedagogic_peft.course.pocket import stories
from pedagogic_peft.course.pocket.check import pattern_of
from pedagogic_peft.course.pocket.stories import WORLD

VERDICTS = (WORLD["verdict"]["good"], WORLD["verdict"]["bad"])

T = TypeVar("T")


class Example(NamedTuple):
    """What the model reads, and what it should write next. Both are strings of story-world words."""

    prompt: str
    answer: str


# --- the tasks ----------------------------------------------------------------------------------


def questions(n: int, seed: int) -> list[Example]:
    """Questions about stories, with one-word answers: pretraining's own skill."""
    return _draw(_question, n, seed)


def sentiment(n: int, seed: int) -> list[Example]:
    """Reviews to judge, half of them good; the answer is ``"smiled"`` or ``"frowned"``. Chance is 50 %.

    One review in four is plain, one is negated ("nobody found the soup dull"), and two hang on a
    contrast ("although the soup was tasty , the inn was dirty"), where the main clause decides.
    Pretraining told how it went on for plain reviews, seldom for negated ones, never after a contrast.
    """
    return _draw(_sentiment, n, seed)


def load_dataset(*args: Any, **options: Any) -> Any:
    """Call ``datasets.load_dataset``; where that package is missing, say how to install it."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{args[0]!r} is a real data set, and the package that fetches it, datasets, is not "
            'installed: pip install "pedagogic-peft[hub]", or pip install datasets',
            name=error.name,
        ) from error
    return datasets.load_dataset(*args, **options)


def film_reviews(
    n: int, seed: int, split: str = "train", source: str = "stanfordnlp/sst2"
) -> list[Example]:
    """The sentiment task on real film reviews (SST-2, Socher et al. 2013), for models of the Hub.

    Args:
        n: number of examples, drawn from the split by ``seed``.
        split: ``"train"``, or ``"validation"`` to test on.
        source: a data set with columns ``sentence`` and ``label`` (1 is good): a Hub name, or a folder.

    Raises:
        ModuleNotFoundError: ``datasets`` is not installed.
        OSError, ValueError: from ``datasets``, where the data cannot be had.
    """
    rows = load_dataset(source, split=split).shuffle(seed=seed)
    return [
        Example(f"{row['sentence'].strip()} all in all it was", ("awful", "lovely")[row["label"]])
        for row in rows.select(range(min(n, len(rows))))
    ]


def translation(n: int, seed: int) -> list[Example]:
    """English sentences and the same in Toli, whose word order and words differ."""
    return _draw(_translation, n, seed)


def summaries(n: int, seed: int) -> list[Example]:
    """Stories and their gist in one line: who met whom, and where."""
    return _draw(_summary, n, seed)


def open_questions(n: int, seed: int) -> list[Example]:
    """Questions about stories, about half of which the story does not answer.

    To those the answer is ``"nobody said"``, as in SQuAD 2.0 (Rajpurkar et al. 2018). Pretraining
    holds only questions that are answered, so the base answers all of them.
    """
    return _draw(_open_question, n, seed)


def recipes(n: int, seed: int) -> list[str]:
    """Documents of the domain that pretraining leaves out."""
    return _draw(stories.recipe, n, seed)


def held_out_stories(n: int, seed: int = 2**40) -> list[str]:
    """Stories with questions, from seeds that pretraining never used."""
    return _draw(lambda rng: stories.with_questions(stories.story(rng), rng), n, seed)


def styled(style: str, n: int, seed: int, sentences: int | None = None) -> list[Example]:
    """Stories that open with one plain sentence and go on in ``style``.

    Pretraining holds "shout", "tale" and "polite", seldom; of "pirate" it holds the words only.

    Args:
        sentences: how many sentences of the style to keep, at most; None means all.

    Raises:
        ValueError: where the story world has no such style.
    """
    if style not in stories.STYLE_FORMS:
        raise ValueError(
            f"no style {style!r}: the story world has {', '.join(stories.STYLE_FORMS)}"
        )
    return _draw(lambda rng: _styled(rng, style, sentences), n, seed)


def formatted(form: str, n: int, seed: int) -> list[Example]:
    """Stories of four sentences, each with what it tells written as a "list", "verse" or "record".

    Raises:
        ValueError: where the story world has no such format.
    """
    if form not in stories.FORMATS:
        raise ValueError(f"no format {form!r}: the story world has {', '.join(stories.FORMATS)}")
    return _draw(lambda rng: _formatted(rng, form), n, seed)


def _draw(write: Callable[[Random], T], n: int, seed: int) -> list[T]:
    rng = Random(seed)
    return [write(rng) for _ in range(n)]


def _question(rng: Random) -> Example:
    story = stories.story(rng)
    question = rng.choice(story.questions)
    return Example(f"{story.text} {question.text}", question.answer)


def _sentiment(rng: Random) -> Example:
    good, kind = rng.random() < 0.5, rng.random()
    if kind < 0.5:
        judged = stories.contrast(rng, good, negation=0, forms=WORLD["verdict"]["contrast"])
    else:
        judged = stories.opinion(rng, good, negated=kind < 0.75)
    body = [stories.remark(rng)] * (rng.random() < 0.5) + [judged]
    return Example(" ".join([*body, WORLD["verdict"]["opening"]]), VERDICTS[0 if good else 1])


def _translation(rng: Random) -> Example:
    english, toli = stories.sentence_pair(rng)
    return Example(f"{english} {WORLD['toli']['opening']}", toli)


def _summary(rng: Random) -> Example:
    story = stories.story(rng)
    a, b = next((q.answer, q.text.split()[2]) for q in story.questions if "who met" in q.text)
    place = next(q.answer for q in story.questions if q.text == f"where was {a} ?")
    gist = WORLD["summary"]["form"].format(A=a, B=b, place=place)
    return Example(f"{story.text} {WORLD['summary']['opening']}", gist)


def _open_question(rng: Random) -> Example:
    told, other = stories.story(rng), stories.story(rng)
    if rng.random() < 0.5:
        question = rng.choice(told.questions)
        return Example(f"{told.text} {question.text}", question.answer)
    # Nothing that this story tells, and of nobody in it: where they were might be guessed.
    answered = {q.text for q in told.questions}
    present = set(told.text.split()) & set(stories.NAMES)
    foreign = [
        q.text
        for q in other.questions
        if q.text not in answered and present.isdisjoint(q.text.split())
    ]
    return Example(f"{told.text} {rng.choice(foreign)}", WORLD["unanswered"]["answer"])


def _styled(rng: Random, style: str, sentences: int | None) -> Example:
    first, *rest = [s for s in stories.story(rng).sentences if '"' not in s]
    return Example(first, " ".join(stories.in_style(s, style, rng) for s in rest[:sentences]))


def _formatted(rng: Random, form: str) -> Example:
    slots = stories.draw(rng)
    forms = [rng.choice(WORLD["beats"][beat]["forms"]) for beat in ("go", "own", "pet", "eat")]
    told = [stories.fill(sentence, slots, rng) for sentence in forms]
    return Example(" ".join(told), stories.FORMATS[form].format_map(slots))


# --- from text to training examples -------------------------------------------------------------


def encode(tokenizer: Any, examples: Sequence[Example | str]) -> list[dict[str, list[int]]]:
    """Turn examples into token ids for :func:`pedagogic_peft.train`.

    Args:
        tokenizer: the model's tokenizer.
        examples: prompt–answer pairs, or plain documents, which are learned from first to last word.

    Returns:
        One ``{"input_ids", "labels"}`` for each example, two lists of equal length. The end-of-text
        token closes every example. Labels are -100 where there is nothing to learn: on the prompt.
    """
    encoded = []
    for example in examples:
        prompt, answer = (
            (example.prompt, example.answer) if isinstance(example, Example) else ("", example)
        )
        before = tokenizer(prompt).input_ids
        after = _answer_ids(tokenizer, answer) + [tokenizer.eos_token_id]
        encoded.append({"input_ids": before + after, "labels": [-100] * len(before) + after})
    return encoded


def _answer_ids(tokenizer: Any, answer: str) -> list[int]:
    # the space belongs to the word in GPT-2's kind of vocabulary; the pocket tokenizer drops it
    ids: list[int] = tokenizer(" " + answer, add_special_tokens=False).input_ids
    return ids


# --- the metrics --------------------------------------------------------------------------------


def _batches(items: Sequence[T], size: int = 64) -> list[Sequence[T]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _pad(tokenizer: Any, prompts: Sequence[str], device: torch.device) -> Any:
    """Left-pad, so that the last position of every row is the one that predicts the answer."""
    batch = tokenizer(list(prompts), padding=True, padding_side="left", return_tensors="pt")
    return batch.to(device)


@torch.no_grad()
def word_accuracy(
    model: Any, tokenizer: Any, examples: Sequence[Example], labels: Sequence[str] | None = None
) -> float:
    """Share of examples (0 to 1) whose likeliest next token is the answer.

    For answers of one token; of a longer answer only the first token counts.

    Args:
        labels: the words to choose from, as in classification with natural words; None means the
            whole vocabulary.
    """
    choices = None
    if labels is not None:
        choices = torch.tensor([_answer_ids(tokenizer, label)[0] for label in labels])
    right = 0.0
    for batch in _batches(examples):
        logits = (
            model(**_pad(tokenizer, [e.prompt for e in batch], model.device)).logits[:, -1].cpu()
        )
        best = logits.argmax(-1) if choices is None else choices[logits[:, choices].argmax(-1)]
        answers = [_answer_ids(tokenizer, e.answer)[0] for e in batch]
        right += (best == torch.tensor(answers)).sum().item()
    return right / len(examples)


@torch.no_grad()
def last_states(model: Any, tokenizer: Any, examples: Sequence[Example]) -> torch.Tensor:
    """Return what a linear probe reads: the last hidden state at the last token of each prompt.

    Returns:
        (examples, width), on the CPU.
    """
    states = []
    for batch in _batches(examples):
        inputs = _pad(tokenizer, [e.prompt for e in batch], model.device)
        states.append(model.base_model(**inputs).last_hidden_state[:, -1].float().cpu())
    return torch.cat(states)


@torch.no_grad()
def continuations(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int = 40,
    do_sample: bool = False,
) -> list[str]:
    """Continue the prompts up to the end-of-text token, greedily or by sampling; returns the new text."""
    written: list[str] = []
    for batch in _batches(prompts):
        inputs = _pad(tokenizer, batch, model.device)
        out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=do_sample)
        new = out[:, inputs["input_ids"].shape[1] :]
        written += tokenizer.batch_decode(new, skip_special_tokens=True)
    return written


def exact_match(model: Any, tokenizer: Any, examples: Sequence[Example]) -> float:
    """Share of examples (0 to 1) whose greedy continuation is the answer, word for word."""
    written = continuations(model, tokenizer, [e.prompt for e in examples], max_new_tokens=12)
    return sum(w == e.answer for w, e in zip(written, examples, strict=True)) / len(examples)


def style_accuracy(model: Any, tokenizer: Any, style: str, examples: Sequence[Example]) -> float:
    """Share of sentences (0 to 1) in greedy continuations that wear the style's marks, start and end."""
    sentences = []
    for text in continuations(model, tokenizer, [e.prompt for e in examples]):
        # the last sentence may be cut off by the length limit: only finished ones are judged
        sentences += [s + end for s, end in _split(text)]
    return sum(wears(s, style) for s in sentences) / max(1, len(sentences))


def wears(sentence: str, style: str) -> bool:
    """Whether one sentence begins and ends as ``style`` asks."""
    form = stories.STYLE_FORMS[style]
    begins = any(sentence.startswith(before) for before in form["before"])
    return begins and sentence.endswith(form["after"])


def format_accuracy(
    model: Any, tokenizer: Any, form: str, examples: Sequence[Example]
) -> tuple[float, float]:
    """Shares (0 to 1) of greedy continuations that have the form, and that tell the story right.

    The form is right if its fixed words stand in their places, with a word of the right kind between
    them: any colour for a colour. The whole is right if it is the answer, word for word.
    """
    prompts = [e.prompt for e in examples]
    written = continuations(model, tokenizer, prompts, max_new_tokens=24)
    fits = [re.fullmatch(pattern_of(stories.FORMATS[form]), text + " ") for text in written]
    right = [text == e.answer for text, e in zip(written, examples, strict=True)]
    return sum(map(bool, fits)) / len(examples), sum(right) / len(examples)


def _split(text: str) -> list[tuple[str, str]]:
    """Finished sentences of a text as (words, end mark)."""
    parts: list[tuple[str, str]] = []
    words: list[str] = []
    for word in text.split():
        if word in {".", "!", "?"}:
            parts.append((" ".join(words), f" {word}"))
            words = []
        else:
            words.append(word)
    return parts


@torch.no_grad()
def loss_per_token(model: Any, tokenizer: Any, examples: Sequence[Example | str]) -> float:
    """Mean cross-entropy in nats for each learned token: answers of examples, whole documents."""
    total = count = 0.0
    for batch in _batches(encode(tokenizer, examples)):
        length = max(len(e["input_ids"]) for e in batch)
        ids = torch.full((len(batch), length), tokenizer.pad_token_id)
        labels = torch.full((len(batch), length), -100)
        for row, e in enumerate(batch):
            ids[row, : len(e["input_ids"])] = torch.tensor(e["input_ids"])
            labels[row, : len(e["labels"])] = torch.tensor(e["labels"])
        # right padding needs no mask: under causal attention no real token sees it
        logits = model(input_ids=ids.to(model.device)).logits[:, :-1].float()
        targets = labels[:, 1:].to(model.device)
        total += torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, reduction="sum"
        ).item()
        count += (targets != -100).sum().item()
    return total / count
