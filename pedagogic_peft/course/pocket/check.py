"""Does a text follow the story world's grammar? The forms of ``world.toml``, read as one pattern.

The check is of sentence forms: it does not ask whether a story keeps to its characters.
"""

import re
from functools import cache

from pedagogic_peft.course.pocket.stories import WORLD, words_of


def pattern_of(form: str) -> str:
    """The regular expression of one form: its alternatives, and any word of the kind for each slot."""
    # "(a|) b" may leave nothing, and so one space less, where a word could stand
    parts = [p for p in re.split(r"(\([^()]*\)|\{\w+\}| )", form) if p.strip()]
    return "".join(_word(part) for part in parts)


def _word(part: str) -> str:
    if part.startswith("{"):
        choices = words_of(part.strip("{}"))
    elif part.startswith("("):
        choices = part[1:-1].split("|")
    else:
        choices = [part]
    inner = [" ".join(_slot(w) for w in choice.split()) for choice in choices if choice]
    optional = "?" if len(inner) < len(choices) else ""
    return f"(?:(?:{'|'.join(inner)}) ){optional}"


def _slot(word: str) -> str:
    """One word inside a choice: itself, or any word of its slot's kind."""
    return (
        f"(?:{'|'.join(words_of(word.strip('{}')))})" if word.startswith("{") else re.escape(word)
    )


@cache
def sentence_pattern() -> re.Pattern[str]:
    """One sentence of a story, or one question with its answer, each word followed by a space."""
    told = [pattern_of(form) for beat in WORLD["beats"].values() for form in beat["forms"]]
    asked = [
        pattern_of(f"{q} {a} .") for beat in WORLD["beats"].values() for q, a in beat["questions"]
    ]
    return re.compile("|".join(told + asked))


def count_sentences(text: str) -> tuple[int, int]:
    """Count the sentences of a story and those that follow the grammar.

    Returns:
        ``(right, all)``. Where no form fits, the words up to the next ``"."`` count as one wrong sentence.
    """
    rest, right, wrong = text.strip() + " ", 0, 0
    while rest.strip():
        match = sentence_pattern().match(rest)
        if match:
            right += 1
            rest = rest[match.end() :]
        else:
            wrong += 1
            rest = rest.partition(" . ")[2]
    return right, right + wrong
