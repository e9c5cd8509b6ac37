"""What the reader moves: a slider, a list, a box to tick."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Slider:
    """A control of an explorable: the reader picks one of ``values`` on a track.

    Args:
        name: what the script calls it; a JavaScript identifier.
        label: what the reader sees beside it.
        values: at least two values, in the order of the track; numbers or strings.
        start: position of the value shown first.
        shown: how the values read ("7 B" for 7e9); by default as Python prints them.

    Raises:
        ValueError: a name that is none, too few values, or a start outside them.
    """

    name: str
    label: str
    values: Sequence[Any]
    start: int = 0
    shown: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"name={self.name!r}: expected a JavaScript identifier, such as 'r'")
        if len(self.values) < 2:
            raise ValueError(f"values={self.values!r}: expected at least two")
        if not 0 <= self.start < len(self.values):
            last = len(self.values) - 1
            raise ValueError(f"start={self.start}: expected a position from 0 to {last}")
        if self.shown and len(self.shown) != len(self.values):
            raise ValueError(f"shown={self.shown!r}: expected {len(self.values)}, one a value")

    @property
    def texts(self) -> list[str]:
        """How each value reads."""
        return list(self.shown) or [str(value) for value in self.values]

    def html(self) -> str:
        """The control's mark-up."""
        label, last = html.escape(self.label), len(self.values) - 1
        return (
            f'<label><span>{label}</span><input type="range" name="{self.name}" min="0" '
            f'max="{last}" step="1" value="{self.start}"><span class="at" aria-hidden="true">'
            "</span></label>"
        )


@dataclass(frozen=True)
class Select(Slider):
    """A control of an explorable: the reader picks one of ``values`` from a list."""

    def html(self) -> str:
        """The control's mark-up."""
        options = "".join(
            f'<option value="{i}"{" selected" if i == self.start else ""}>{html.escape(text)}'
            "</option>"
            for i, text in enumerate(self.texts)
        )
        name, label = self.name, html.escape(self.label)
        return f'<label><span>{label}</span><select name="{name}">{options}</select></label>'


@dataclass(frozen=True)
class Check(Slider):
    """A control of an explorable: a box to tick. Its value is False or True."""

    values: Sequence[Any] = (False, True)
    shown: Sequence[str] = ("no", "yes")

    def html(self) -> str:
        """The control's mark-up."""
        ticked, label = " checked" if self.start else "", html.escape(self.label)
        return (
            f'<label><input type="checkbox" name="{self.name}"{ticked}><span>{label}</span></label>'
        )
