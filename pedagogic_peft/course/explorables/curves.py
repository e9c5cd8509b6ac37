"""Curves on axes that stay, such as losses by step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pedagogic_peft.course.explorables.controls import Slider
from pedagogic_peft.course.explorables.core import (
    MovingFigure,
    explorable,
    read_script,
    sayings,
    settings,
    start_of,
)
from pedagogic_peft.course.explorables.palette import LINES


@dataclass(frozen=True)
class Curves:
    """What `curves_explorable` draws: lines, and a sentence.

    Args:
        lines: {name: points (x, y)}.
        say: what to notice; shown below, and read out to who cannot see.
    """

    lines: Mapping[str, Sequence[tuple[float, float]]]
    say: str


def curves_explorable(
    compute: Callable[..., Curves],
    controls: Sequence[Slider],
    *,
    x: str,
    y: str,
    alt: str,
    log_x: bool = False,
    log_y: bool = False,
    digits: int = 3,
    caption: str = "",
) -> MovingFigure:
    """Draw curves, such as losses by step; the reader moves controls. The axes stay where they are.

    ``compute`` is called now, once for each setting of the controls, and its results are stored.

    Args:
        compute: called with one keyword argument per control, named as the control.
        controls: at most 200 settings in all.
        x, y: names of the axes, with their units.
        log_x, log_y: draw this axis on a logarithmic scale.
        digits: decimals that are kept of y; of x, six significant digits are.
        alt, caption: as in `explorable`.

    Raises:
        ValueError: numbers that the axes can't show, no point at all, or too many settings.
    """
    from matplotlib.figure import Figure

    frames = {}
    for key, curves in settings(compute, controls).items():
        lines = {
            name: [(float(f"{px:.6g}"), round(float(py), digits)) for px, py in points]
            for name, points in curves.lines.items()
        }
        frames[key] = {"lines": lines, "say": curves.say}
    points = [p for one in frames.values() for line in one["lines"].values() for p in line]
    if not points:
        raise ValueError("compute: expected at least one point in its lines")
    for name, log, at in (("x", log_x, 0), ("y", log_y, 1)):
        wrong = [p[at] for p in points if not np.isfinite(p[at]) or (log and p[at] <= 0)]
        if wrong:
            wanted = "above zero" if log else "finite"
            raise ValueError(f"{name}={wrong[0]}: expected numbers that are {wanted}")

    still = Figure(figsize=(6.0, 3.2), dpi=110, layout="constrained")
    axes = still.subplots()
    for name, line in frames[start_of(controls)]["lines"].items():
        axes.plot(*zip(*line, strict=True), label=name)
    axes.set(xlabel=x, ylabel=y, xscale="log" if log_x else "linear")
    axes.set_yscale("log" if log_y else "linear")
    axes.legend()
    # Every setting is drawn on the same axes, those that hold all of them.
    axes.update_datalim(points)
    axes.autoscale_view()
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    edges = {"x0": x0, "x1": x1, "y0": y0, "y1": y1}
    box = {name: float(f"{edge:.4g}") for name, edge in edges.items()}
    data = {
        "frames": frames,
        "order": [control.name for control in controls],
        "x": x,
        "y": y,
        "logX": log_x,
        "logY": log_y,
        "box": box,
        "ticksX": _ticks(axes.get_xticks(), x0, x1),
        "ticksY": _ticks(axes.get_yticks(), y0, y1),
        "colours": LINES,
    }
    script = read_script("curves.js")
    summary = sayings(frames)
    return explorable(
        data, controls, script, alt=alt, still=still, summary=summary, caption=caption
    )


def _ticks(places: Any, low: float, high: float) -> list[tuple[float, str]]:
    inside = [float(place) for place in places if low <= place <= high]
    return [(float(f"{place:.6g}"), f"{place:g}") for place in inside]
