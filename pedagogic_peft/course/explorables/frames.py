"""One matplotlib picture for each place of a slider."""

from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any

from pedagogic_peft.course.explorables.controls import Slider
from pedagogic_peft.course.explorables.core import MovingFigure, explorable, png, read_script


def frame_slider(
    draw: Callable[[Any, Any], None],
    values: Sequence[Any],
    *,
    label: str,
    alt: str,
    caption: str = "",
    start: int = 0,
) -> MovingFigure:
    """Make a figure with one matplotlib picture per value, and a slider between them.

    Prefer `explorable` for anything the browser can draw: it is smaller, and sharp at any size.

    Args:
        draw: called as ``draw(figure, value)`` with an empty `matplotlib.figure.Figure`.
        values: the values of the slider, at most 20.
        label: the name of what moves, such as ``"rank"``.
        alt, caption, start: as in `explorable` and `Slider`.
    """
    if len(values) > 20:
        raise ValueError(f"{len(values)} frames: expected at most 20, as each is a whole picture")
    from matplotlib.figure import Figure

    frames = []
    for value in values:
        frames.append(Figure(figsize=(6.0, 3.2), dpi=110, layout="constrained"))
        draw(frames[-1], value)
    data = ["data:image/png;base64," + b64encode(png(frame)).decode("ascii") for frame in frames]
    names = [f"{label} = {value}" for value in values]
    sliders = [Slider("frame", label, names, start)]
    return explorable(
        data, sliders, read_script("frames.js"), alt=alt, still=frames[start], caption=caption
    )
