"""The page that a student gets, and text that is safe where it is shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grade import Grade
    from gradebook import Read


def one_line(text: Any) -> str:
    """Return text that is safe in a cell of a table: printable, short, and no formula."""
    text = "".join(c if c.isprintable() else " " for c in str(text))[:400]
    return re.sub(" +", " ", text).lstrip("=+-@ ")


def feedback_page(grade: Grade, read: Mapping[str, Read] | None = None) -> str:
    """Return the page for one submission: points, hints, and the written answers, read or not yet.

    Args:
        grade: what the tests found.
        read: what a person gave, by question.
    """
    lines = [
        f"# {one_line(grade.submission)}: {grade.assignment}",
        "",
        f"Status: {grade.status}",
        "",
    ]
    lines += [f"* {note}" for note in grade.notes]
    for question, points in grade.points.items():
        lines += ["", f"## {question}: {points:g} points", ""]
        lines += [f"* {hint}" for hint in grade.hints[question]] or ["All tests pass."]
    for question, text in grade.written.items():
        quoted = [f"> {line}" for line in text[:20_000].splitlines()]
        if question in (read or {}):
            lines += ["", f"## {question}: {read[question].points:g} points", ""]
            lines += [read[question].comment, ""] if read[question].comment else []
        else:
            lines += ["", f"## {question}: to be read", ""]
        lines += quoted
    return "\n".join(lines) + "\n"
