"""A ranking of options by the reader's answers, with reasons."""

import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from pedagogic_peft.course.explorables.controls import Slider
from pedagogic_peft.course.explorables.core import MovingFigure, explorable, read_script

Ranking = Sequence[tuple[str, bool, Sequence[str]]]


def chooser_explorable(
    questions: Sequence[Slider],
    advise: Callable[..., Ranking],
    *,
    alt: str,
    none: str = "Nothing fits all of this: change one answer.",
    caption: str = "",
) -> MovingFigure:
    """Rank options by the reader's answers, with the reasons for each place.

    The rule is the page's Python function. It is called for every combination of answers; the browser
    only looks its answer up, so it cannot say anything else.

    Args:
        questions: controls; `Select` reads best.
        advise: called with one answer, as shown, per question. Returns (option, whether it is
            possible, reasons) of each option, the first to start with, the impossible ones last.
        none: what is said where nothing is possible.
        alt, caption: as in `explorable`.

    Raises:
        ValueError: an impossible option stands before a possible one.
    """
    names = [question.name for question in questions]
    texts: dict[Hashable, int] = {}
    lines: dict[Hashable, int] = {}
    rankings: dict[Hashable, int] = {}

    def line(option: str, fits: bool, reasons: Sequence[str]) -> int:
        numbered = tuple(_number(texts, reason) for reason in reasons)
        return _number(lines, (_number(texts, option), int(fits), numbered))

    cases = []
    for answers in itertools.product(*(question.texts for question in questions)):
        at = dict(zip(names, answers, strict=True))
        ranking = advise(**at)
        possible = [fits for _, fits, _ in ranking]
        if possible != sorted(possible, reverse=True):
            raise ValueError(f"advise(**{at}): an impossible option stands before a possible one")
        cases.append(_number(rankings, tuple(line(*place) for place in ranking)))
    data = {
        "questions": [[question.name, len(question.values)] for question in questions],
        "texts": list(texts),
        "lines": list(lines),
        "rankings": list(rankings),
        "cases": cases,
        "none": none,
    }
    start = advise(**{question.name: question.texts[question.start] for question in questions})
    said = [f"{question.label}: {question.texts[question.start]}" for question in questions]
    places = _written(start) or [none]
    return explorable(
        data,
        questions,
        read_script("chooser.js"),
        alt=alt,
        still=_list_still(["; ".join(said), "", *places]),
        summary="\n".join([*said, *places]),
        caption=caption,
        role="group",
    )


def _number(known: dict[Hashable, int], what: Hashable) -> int:
    """Return the number of ``what``: the next one if it is new."""
    return known.setdefault(what, len(known))


def _written(ranking: Ranking) -> list[str]:
    """Return the ranking as lines of text."""
    place = itertools.count(1)
    return [
        f"{f'{next(place)}. ' if fits else 'excluded: '}{option}: {'; '.join(reasons)}"
        for option, fits, reasons in ranking
    ]


def _list_still(lines: Sequence[str]) -> Any:
    from textwrap import fill

    from matplotlib.figure import Figure

    text = "\n".join(fill(line, 96, subsequent_indent="   ") for line in lines)
    height = 0.2 + 0.15 * (text.count("\n") + 1)
    figure = Figure(figsize=(6.0, height), dpi=110)
    figure.text(0.01, 1 - 0.1 / height, text, va="top", fontsize=8)
    return figure
