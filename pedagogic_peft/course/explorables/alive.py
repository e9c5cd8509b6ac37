"""A figure in which the reader trains: a still of a stored run, and a button on the book's site.

The site's script puts the controls in its place when the button is pressed (`book/alive`). Elsewhere, and on
paper, the still is all there is.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pedagogic_peft.course.explorables.core import MovingFigure, png
from pedagogic_peft.course.explorables.palette import PALETTE

Lines = Mapping[str, tuple[Sequence[Sequence[float]], str]]  # {name: (points, colour)}
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 340, 200, 42, 54, 10
LOSSES, SHARES = (0.1, 0.3, 1, 3, 10), (0, 0.25, 0.5, 0.75, 1)  # the ticks, as in the page
SIZE = "2.7 MB"  # what pressing the button loads, at least

CAPTIONS = {
    "lora": "Train it yourself: a LoRA of pocket-gpt on reviews.",
    "serving": "Two adaptations, their weights, one batch.",
    "tasks": "One base and three tasks: switch between them, and train an adapter of your own.",
    "prompt": "Train a soft prompt from a text of your own, and look for the nearest words.",
}
SAYS = {
    "lora": "A LoRA (r = 8, α = 16) and full fine-tuning, {steps} steps of 8 reviews each, one seed: "
    "validation loss and test accuracy by step.",
    "serving": "Two LoRAs, one trained on reviews and one on tales. What the rows of one batch write:",
    "tasks": "Three stored adapters. For one prompt of each task, what is written without and with "
    "its adapter:",
    "prompt": "A soft prompt that began as “leo was happy , so they say .”, {steps} steps of 8 "
    "sentences, one seed: validation loss by step, and the nearest words at the end.",
}


def alive(place: str) -> MovingFigure:
    """Return the figure of a place: "lora", "serving", "tasks" or "prompt".

    Raises:
        ValueError: there is no such place.
    """
    if place not in CAPTIONS:
        raise ValueError(f"place={place!r}: expected one of {', '.join(CAPTIONS)}")
    from pedagogic_peft.course.experiments import in_the_page, store

    runs = {record["kind"]: record for record in store.read(in_the_page.RESULTS)}
    says = SAYS[place].format(steps=in_the_page.STEPS)
    still, text, figure = STILLS[place](runs)
    page = f"""<figure class="alive" data-alive="{place}" data-figure="alive-{place}">
<div class="alive-still">
<p>{html.escape(says)}</p>
{still}
<p class="alive-start">
<button type="button" hidden>Start: load pocket-gpt ({SIZE}) and train in this page</button>
<span>On the book's site this trains in your browser, without a server; here stands a stored run.</span></p>
</div>
<figcaption>{html.escape(CAPTIONS[place])}</figcaption>
</figure>"""
    return MovingFigure(page, png(figure), f"{CAPTIONS[place]}\n{says}\n{text}")


def _lora(runs: Mapping[str, Any]) -> tuple[str, str, Any]:
    kinds = {"LoRA": ("lora", PALETTE["blue"]), "full fine-tuning": ("full", PALETTE["vermillion"])}
    loss, right = (
        {name: (runs[kind][key], colour) for name, (kind, colour) in kinds.items()}
        for key in ("validation", "accuracy")
    )
    charts = chart(loss, "validation loss, nats", LOSSES) + chart(right, "test accuracy", SHARES)
    text = "\n".join(f"{name}: {_ends(runs[kind])}" for name, (kind, _) in kinds.items())
    return _beside(charts), text, _drawn([(loss, "validation loss"), (right, "test accuracy")])


def _prompt(runs: Mapping[str, Any]) -> tuple[str, str, Any]:
    run = runs["prompt"]
    words = " ".join(word for word, _ in run["nearest"])
    loss = {"soft prompt": (run["validation"], PALETTE["blue"])}
    right = {"soft prompt": (run["accuracy"], PALETTE["blue"])}
    charts = chart(loss, "validation loss, nats", LOSSES) + chart(
        right, "sentences told as a tale", SHARES
    )
    said = f"<p>Nearest words: {html.escape(words)}</p>"
    figure = _drawn([(loss, "validation loss"), (right, "told as a tale")])
    return _beside(charts) + said, f"{_ends(run)}\nnearest words: {words}", figure


def _serving(runs: Mapping[str, Any]) -> tuple[str, str, Any]:
    return _table(["text", "adaptation", "goes on with"], runs["serving"]["rows"])


def _tasks(runs: Mapping[str, Any]) -> tuple[str, str, Any]:
    head = ["task", "prompt", "right answer", "without an adapter", "with its adapter"]
    return _table(head, runs["tasks"]["rows"])


STILLS = {"lora": _lora, "serving": _serving, "tasks": _tasks, "prompt": _prompt}


def _ends(run: Mapping[str, Any]) -> str:
    (_, loss), (_, right) = run["validation"][-1], run["accuracy"][-1]
    return f"validation loss {loss:.2f}, {right:.0%} right"


def chart(lines: Lines, label: str, ticks: Sequence[float]) -> str:
    """Return lines over steps as SVG; the y axis is logarithmic if its ticks begin above 0."""
    end = max(step for points, _ in lines.values() for step, _ in points)
    log = ticks[0] > 0

    def at(step: float, value: float) -> str:
        low, high, value = (math.log(v) if log else v for v in (ticks[0], ticks[-1], value))
        share = min(max((value - low) / (high - low), 0), 1)
        x = LEFT + (WIDTH - LEFT - TOP) * step / end
        return f"{x:.1f},{HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share:.1f}"

    said = "; ".join(f"{name}, {points[-1][1]:g} at the end" for name, (points, _) in lines.items())
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" font-size="12" '
        f'style="max-width: 100%; height: auto" fill="currentColor" '
        f'aria-label="{html.escape(f"{label} by step: {said}")}">'
    ]
    for tick in ticks:
        y = float(at(0, tick).split(",")[1])
        parts += [
            f'<line x1="{LEFT}" x2="{WIDTH - TOP}" y1="{y}" y2="{y}" stroke="currentColor" opacity=".15"/>',
            f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">',
            f"{tick:g}</text>" if log else f"{tick:.0%}</text>",
        ]
    for step in (0, end / 2, end):
        x = at(step, ticks[-1]).split(",")[0]
        parts.append(f'<text x="{x}" y="{HEIGHT - 40}" text-anchor="middle">{step:g}</text>')
    for i, (name, (points, colour)) in enumerate(lines.items()):
        places = " ".join(at(step, value) for step, value in points)
        dash = ' stroke-dasharray="6 3"' if i else ""
        left, bottom = LEFT + 110 * i, HEIGHT - 8
        parts += [
            f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2.5"{dash}/>',
            f'<line x1="{left}" x2="{left + 22}" y1="{bottom - 4}" y2="{bottom - 4}" stroke="{colour}" '
            f'stroke-width="3"{dash}/><text x="{left + 27}" y="{bottom}">{html.escape(name)}</text>',
        ]
    middle = (LEFT + WIDTH) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 25}" text-anchor="middle">step ({label})</text>')
    return "".join([*parts, "</svg>"])


def _beside(charts: str) -> str:
    return f'<div style="display: flex; flex-wrap: wrap; gap: 1rem">{charts}</div>'


def _drawn(charts: Sequence[tuple[Lines, str]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 2.8), dpi=110, layout="constrained")
    for axes, (lines, label) in zip(figure.subplots(1, len(charts)), charts, strict=True):
        for name, (points, colour) in lines.items():
            axes.plot(*zip(*points, strict=True), label=name, color=colour)
        axes.set(xlabel="step", ylabel=label, ylim=(0, None))
        axes.legend()
    return figure


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[str, str, Any]:
    from matplotlib.figure import Figure

    cells = [[html.escape(cell) for cell in row] for row in rows]
    lines = [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells]
    names = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    table = f"<table><tr>{names}</tr>{''.join(lines)}</table>"
    text = "\n".join(" | ".join(row) for row in [head, *rows])
    figure = Figure(figsize=(7.0, 0.3 + 0.3 * len(rows)), dpi=110)
    figure.text(0.01, 0.98, text, va="top", fontsize=7, wrap=True)
    return f'<div class="scroll" style="overflow-x: auto">{table}</div>', text, figure
