"""The story world's grammar: seeded documents of a small English, written from ``world.toml``.

Every function takes a :class:`random.Random`, so one seed gives one text on every machine. A document
is a string whose tokens are separated by single spaces.
"""

import re
import tomllib
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any, NamedTuple

WORLD = tomllib.loads(files(__package__).joinpath("world.toml").read_text(encoding="utf-8"))
WORDS: dict[str, list[str]] = WORLD["words"]
NAMES = WORDS["girls"] + WORDS["boys"]
STYLES = tuple(WORLD["styles"])  # those that pretraining holds
STYLE_FORMS: dict[str, dict[str, Any]] = WORLD["styles"] | WORLD["new_styles"]
FORMATS: dict[str, str] = WORLD["formats"]


class Question(NamedTuple):
    """A question about a story, ``"what colour was the ball ?"``, and its one-word answer."""

    text: str
    answer: str


class Story(NamedTuple):
    """The sentences of one story and every question that they answer."""

    sentences: list[str]
    questions: list[Question]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


# --- filling in forms ---------------------------------------------------------------------------


@cache
def alternatives(form: str) -> list[list[str]]:
    """Split a form into parts, each a list of choices: ``"(a|b) c"`` -> ``[["a", "b"], [" c"]]``."""
    parts = re.split(r"(\([^()]*\))", form)
    return [part[1:-1].split("|") if part.startswith("(") else [part] for part in parts]


def fill(form: str, slots: dict[str, str], rng: Random) -> str:
    """Choose each alternative of ``form`` at random and fill its ``{slots}``."""
    text = "".join(rng.choice(part) if len(part) > 1 else part[0] for part in alternatives(form))
    return " ".join(text.format_map(slots).split())


def words_of(slot: str) -> list[str]:
    """All words that can fill a slot: ``"object2"`` -> the objects, ``"A"`` -> the names."""
    kind = slot.rstrip("0123456789")
    return NAMES if kind in {"A", "B", "name"} else WORDS[kind + "s"]


def draw(rng: Random) -> dict[str, str]:
    """Draw the words of one document; words of one kind are drawn without repeats."""
    a, b, c = rng.sample(NAMES, 3)
    slots = {"A": a, "B": b, "name": c}
    several = {"object": 4, "colour": 2, "size": 2, "feeling": 3, "number": 2, "vessel": 3}
    for kind in ("animal", "day", "place", "hideout", "food", "weather", "herd", *several):
        for i, word in enumerate(rng.sample(words_of(kind), several.get(kind, 1))):
            slots[f"{kind}{i + 1}" if i else kind] = word
    slots["kitchen"], slots["kitchen2"] = rng.sample(WORDS["kitchen"], 2)
    slots["cook"], slots["cook2"], slots["cook3"] = rng.sample(WORDS["cooking"], 3)
    return slots


# --- stories ------------------------------------------------------------------------------------


def story(rng: Random) -> Story:
    """One story of four to nine sentences about two characters, with the questions it answers."""
    middle = ["pet", "hide", "eat", "count", "give", "feel", "talk"]
    opening = [["go", "own", "meet"], ["weather", "go", "meet"], ["go", "weather", "own", "meet"]]
    beats = (
        rng.choice(opening) + rng.sample(middle, rng.randint(1, 4)) + ["end"] * rng.randint(0, 1)
    )
    return tell(beats, rng)


def anecdote(rng: Random) -> Story:
    """One to three sentences: so short that the answer to a question is easily found."""
    telling = [name for name, beat in WORLD["beats"].items() if beat["questions"]]
    return tell(rng.sample(telling, rng.randint(1, 3)), rng)


def tell(beats: list[str], rng: Random) -> Story:
    """Tell the named beats in order, with one set of characters and things."""
    slots = draw(rng)
    sentences, questions = [], []
    for beat in (WORLD["beats"][name] for name in beats):
        sentence = fill(rng.choice(beat["forms"]), slots, rng)
        sentences.append(sentence)
        asked = [Question(q.format_map(slots), a.format_map(slots)) for q, a in beat["questions"]]
        # a form may leave a fact out ("one morning" names no day): ask only for what was told
        questions += [q for q in asked if q.answer in sentence.split()]
    return Story(sentences, questions)


def in_style(sentence: str, style: str, rng: Random) -> str:
    """Retell one plain sentence in a style: ``"tom was sad ."`` -> ``"wow , tom was sad !"``."""
    form = STYLE_FORMS[style]
    plain = sentence.rstrip('."!? ')
    return f"{rng.choice(form['before'])}{plain}{form['after']}"


def styled_story(rng: Random, style: str) -> list[str]:
    """The sentences of a story without direct speech, each told in ``style``."""
    plain = [s for s in story(rng).sentences if '"' not in s]
    return [in_style(sentence, style, rng) for sentence in plain]


# --- reviews ------------------------------------------------------------------------------------


def opinion(rng: Random, good: bool, negated: bool) -> str:
    """One sentence that praises or blames; negated, it does so by denying the opposite."""
    kind = WORLD["review"]["praise" if good else "blame"]["negated" if negated else "plain"]
    slots = {key: rng.choice(WORDS[w]) for key, w in (("g", "good"), ("b", "bad"))}
    return fill(rng.choice(kind), slots | {"n": rng.choice(WORDS["reviewed"])}, rng)


def contrast(rng: Random, good: bool, negation: float, forms: list[str]) -> str:
    """Two opposed opinions in one sentence; the one that counts is good or bad as asked."""
    x = opinion(rng, good, rng.random() < negation)
    y = opinion(rng, not good, rng.random() < negation)
    return rng.choice(forms).format(x=x.removesuffix(" ."), y=y.removesuffix(" ."))


def remark(rng: Random) -> str:
    """A sentence that stands in a review and judges nothing."""
    return fill(rng.choice(WORLD["review"]["openings"]), draw(rng), rng)


def review(rng: Random) -> str:
    """A review as pretraining holds it, never with a verdict.

    Three in four are of one mind, and tell how it went on; the others are one contrast and stop there.
    """
    good = rng.random() < 0.5
    if rng.random() < 0.25:
        body = [contrast(rng, good, 0.2, WORLD["review"]["contrast"]["forms"])]
    else:
        body = [opinion(rng, good, rng.random() < 0.2) for _ in range(rng.randint(1, 3))]
        body.append(fill(rng.choice(WORLD["review"]["after"]["good" if good else "bad"]), {}, rng))
    return " ".join([remark(rng)] * (rng.random() < 0.3) + body)


# --- the other kinds of document ----------------------------------------------------------------


def dialogue(rng: Random) -> str:
    """Two characters, two or three exchanges."""
    slots = draw(rng)
    forms = rng.sample(WORLD["dialogue"]["forms"], rng.randint(2, 3))
    return " ".join(fill(form, slots, rng) for form in forms)


def listing(rng: Random) -> str:
    """A list, and its entries once more in another order: the plainest look-up in a context."""
    entry, n = rng.choice(WORLD["listing"]["entries"]), rng.randint(3, 5)
    kinds = ("name", "colour", "object", "food", "place", "feeling")
    columns = [rng.sample(words_of(kind), n) for kind in kinds]
    rows = [dict(zip(kinds, row, strict=True)) for row in zip(*columns, strict=True)]
    told = [entry.format_map(row) for row in rows]
    return " . ".join(told + rng.sample(told, n)) + " ."


def shopping(rng: Random) -> str:
    """A shopping list, or what someone likes to do in the kitchen."""
    if rng.random() < 0.5:
        items = [fill(form, draw(rng), rng) for form in WORLD["shopping"]["forms"]]
        listed = " , ".join(rng.sample(items, rng.randint(3, 5)))
        return f"{WORLD['shopping']['opening']} {listed} ."
    forms = rng.sample(WORLD["shopping"]["hobbies"], 2)
    slots = draw(rng)
    return " ".join(fill(form, slots, rng) for form in forms)


def sentence_pair(rng: Random) -> tuple[str, str]:
    """One sentence in English and the same in Toli."""
    toli = WORLD["toli"]
    name = rng.choice(NAMES)
    pairs = {
        kind: rng.choice(list(toli[kind + "s"].items())) for kind in ("verb", "object", "colour")
    }
    english = toli["english"].format(name=name, **{k: v[0] for k, v in pairs.items()})
    return english, toli["toli"].format(name=name, **{k: v[1] for k, v in pairs.items()})


def toli_text(rng: Random) -> str:
    """A few sentences of Toli."""
    sentences = [sentence_pair(rng)[1] for _ in range(rng.randint(2, 5))]
    return " ".join([WORLD["toli"]["opening"], *sentences])


def recipe(rng: Random) -> str:
    """A recipe: the domain that pretraining leaves out."""
    form, slots = WORLD["recipe"], draw(rng)
    steps = [fill(step, slots, rng) for step in rng.sample(form["steps"], rng.randint(3, 5))]
    title, last = rng.choice(form["title"]), rng.choice(form["last"])
    return " ".join([fill(title, slots, rng), *steps, fill(last, slots, rng)])


# --- the pretraining text -----------------------------------------------------------------------


def with_questions(told: Story, rng: Random) -> str:
    """A story, then up to eight of the questions it answers, each with its answer."""
    asked = rng.sample(told.questions, min(8, len(told.questions)))
    return " ".join([told.text, *(f"{q.text} {q.answer} ." for q in asked)])


KINDS: dict[str, Callable[[Random], str]] = {
    "story": lambda rng: with_questions(story(rng), rng),
    "anecdote": lambda rng: with_questions(anecdote(rng), rng),
    "plain story": lambda rng: story(rng).text,
    "styled story": lambda rng: " ".join(styled_story(rng, rng.choice(STYLES))),
    "review": review,
    "dialogue": dialogue,
    "list": listing,
    "shopping": shopping,
    "toli": toli_text,
}
LATER = {"story": 50, "plain story": 8, "styled story": 10, "review": 25, "dialogue": 6}
LATER |= {"list": 8, "shopping": 4, "toli": 4, "anecdote": 15}
# Looking up an answer is learned sooner where there are few words to look through.
EARLIER = LATER | {"anecdote": 300, "review": 60}


def kind_of_document(rng: Random, early: bool = False) -> str:
    """Draw the kind of a document, by the weights of pretraining's earlier or later part."""
    weights = EARLIER if early else LATER
    return rng.choices(list(weights), weights=list(weights.values()))[0]


def document(rng: Random, early: bool = False) -> str:
    """One document of the pretraining text: the mixture that pocket-gpt learned from."""
    return KINDS[kind_of_document(rng, early)](rng)


def vocabulary() -> list[str]:
    """Every token that the grammar can write, sorted: all of ``world.toml`` but its key names."""

    def strings(node: str | list[Any] | dict[str, Any]) -> list[str]:
        if isinstance(node, str):
            return [node]
        return [
            s
            for child in (node.values() if isinstance(node, dict) else node)
            for s in strings(child)
        ]

    text = " ".join(strings(WORLD))
    return sorted(set(re.sub(r"\{\w+\}|[(|)]", " ", text).split()))
