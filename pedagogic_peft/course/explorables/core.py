"""One figure that moves: data, controls and a script, in a piece of HTML that loads nothing."""

import hashlib
import html
import io
import itertools
import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from pedagogic_peft.course.explorables.controls import Slider


class MovingFigure:
    """What a notebook shows: HTML on a page, a still picture in print, a sentence in a terminal."""

    def __init__(self, html: str, png: bytes, text: str):
        self.html, self.png, self.text = html, png, text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        picture = b64encode(self.png).decode("ascii")
        return {"text/html": self.html, "image/png": picture, "text/plain": self.text}

    def __repr__(self) -> str:
        return self.text


def explorable(
    data: Any,
    controls: Sequence[Slider],
    script: str,
    *,
    alt: str,
    still: Any,
    summary: str = "",
    caption: str = "",
    role: str = "img",
) -> MovingFigure:
    """Make a figure that the reader moves, drawn in the browser from ``data``.

    ``script`` is the body of a JavaScript function ``(stage, data, at)``. It runs at the start and
    at every move. ``stage`` is the element to draw in; ``at.NAME.value``, ``at.NAME.index`` and
    ``at.NAME.shown`` tell where control NAME stands. It returns a sentence, which is shown and read
    out to who cannot see, or ``{say: sentence, table: rows}``, where the rows (the first of them the
    head) hold the same data as text.

    Args:
        data: anything JSON can hold. Round it: digits that differ between machines are noise.
        controls: `Slider`, `Select` and `Check`, each of which has a name of its own.
        script: JavaScript; draw with ``currentColor`` so that it is legible in light and dark.
        alt: what the figure shows, for a reader who does not see it.
        still: a `matplotlib.figure.Figure` for print and for viewers that run no scripts.
        summary: the numbers of the figure that a test should compare, rounded, in words.
        caption: shown below the figure; plain text.
        role: of the stage: "img" for a picture, "group" where the script writes text to be read.

    Raises:
        ValueError: an ``alt`` too short to say anything, two controls of one name, or data that JSON
            can't hold.
    """
    if len(alt) < 20:
        raise ValueError(f"alt={alt!r}: expected a sentence that says what the figure shows")
    names = [control.name for control in controls]
    if len(set(names)) < len(names):
        raise ValueError(f"controls named {names}: expected a name of its own for each")
    at = {c.name: {"values": list(c.values), "shown": c.texts} for c in controls}
    fields = {
        "ALT": html.escape(alt),
        "CAPTION": f"<figcaption>{html.escape(caption)}</figcaption>" if caption else "",
        "CONTROLS": "\n".join(control.html() for control in controls),
        "ROLE": role,
        "VALUES": to_json(at),
        "SCRIPT": script.strip(),
        "DATA": to_json(data),
    }
    page = read_script("page.html")
    for name, value in fields.items():
        page = page.replace(f"@{name}@", value)
    digest = hashlib.sha256(page.encode()).hexdigest()[:10]
    text = f"{alt}\n{summary}".strip()
    return MovingFigure(page.replace("@ID@", f"fig-{digest}"), png(still), text)


def settings(compute: Callable[..., Any], controls: Sequence[Slider]) -> dict[str, Any]:
    """Call ``compute`` for each setting of the controls: {positions, as in "0,2": its result}."""
    n = int(np.prod([len(control.values) for control in controls]))
    if n > 200:
        raise ValueError(f"{n} settings of the controls: expected at most 200")
    names = [control.name for control in controls]
    positions = itertools.product(*(range(len(control.values)) for control in controls))
    return {
        ",".join(map(str, at)): compute(
            **{n: c.values[i] for n, c, i in zip(names, controls, at, strict=True)}
        )
        for at in positions
    }


def start_of(controls: Sequence[Slider]) -> str:
    return ",".join(str(control.start) for control in controls)


def sayings(frames: Mapping[str, Mapping[str, Any]]) -> str:
    """What the figure says at every setting, each sentence once: this is what a test compares."""
    return "\n".join(dict.fromkeys(str(frame["say"]) for frame in frames.values()))


def read_script(name: str) -> str:
    return (files("pedagogic_peft.course.explorables") / name).read_text(encoding="utf-8").strip()


def to_json(value: Any) -> str:
    """JSON that may stand inside a script element, and reads the same on every machine."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("</", "<\\/")


def png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
