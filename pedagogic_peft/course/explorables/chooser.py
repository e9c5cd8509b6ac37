"""A ranking of options by the reader's answers, with reasons."""

from collections.abc import Mapping, Sequence
from typing import Any

from pedagogic_peft.course.explorables.controls import Slider
from pedagogic_peft.course.explorables.core import MovingFigure, explorable, read_script


def chooser_explorable(
    questions: Sequence[Slider],
    options: Mapping[str, Mapping[str, Mapping[str, tuple[int | None, str]]]],
    *,
    alt: str,
    caption: str = "",
) -> MovingFigure:
    """Rank options by the reader's answers, with the reason for every point.

    Args:
        questions: controls; `Select` reads best.
        options: {option: {question's name: {answer as shown: (points, reason)}}}. Points from -3 to 3
            add up; None rules the option out. Take the reasons from what the page measured.
        alt, caption: as in `explorable`.

    Raises:
        ValueError: a rule for a question or an answer that is not there, or points out of range.
    """
    answers = {question.name: question.texts for question in questions}
    for option, rules in options.items():
        for name, verdicts in rules.items():
            unknown = set(verdicts) - set(answers.get(name, ()))
            if unknown:
                raise ValueError(
                    f"{option!r}: no answer {sorted(unknown)[0]!r} to a question {name!r}; "
                    f"expected one of {answers.get(name, sorted(answers))}"
                )
            for points, _ in verdicts.values():
                if points is not None and not -3 <= points <= 3:
                    raise ValueError(f"{option!r}: points {points}: expected from -3 to 3, or None")
    plain = {o: {q: {a: list(v) for a, v in r.items()} for q, r in rules.items()}
             for o, rules in options.items()}  # fmt: skip
    data = {"questions": list(answers), "options": plain}
    start = {question.name: question.texts[question.start] for question in questions}
    found = {o: [r.get(q, {}).get(a) for q, a in start.items()] for o, r in options.items()}
    still = _list_still(
        [f"{question.label}: {start[question.name]}" for question in questions]
        + [f"– {o}: {'; '.join(v[1] for v in vs if v)}" for o, vs in found.items()]
    )
    said = [
        f"{option} / {name} = {answer}: {'out' if points is None else points}, {why}"
        for option, rules in options.items()
        for name, verdicts in rules.items()
        for answer, (points, why) in verdicts.items()
    ]
    return explorable(
        data,
        questions,
        read_script("chooser.js"),
        alt=alt,
        still=still,
        summary="\n".join(said),
        caption=caption,
        role="group",
    )


def _list_still(lines: Sequence[str]) -> Any:
    from textwrap import fill

    from matplotlib.figure import Figure

    text = "\n".join(fill(line, 84, subsequent_indent="   ") for line in lines)
    figure = Figure(figsize=(6.0, 0.2 + 0.17 * (text.count("\n") + 1)), dpi=110)
    figure.text(0.01, 0.97, text, va="top", fontsize=8)
    return figure
