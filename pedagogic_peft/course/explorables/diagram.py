"""Parts and what flows between them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pedagogic_peft.course.explorables.controls import Slider
from pedagogic_peft.course.explorables.core import (
    MovingFigure,
    explorable,
    read_script,
    sayings,
    settings,
    start_of,
)


@dataclass(frozen=True)
class Box:
    """A part of a `Diagram`.

    Args:
        name: what the arrows call it; unique in its diagram.
        text: what stands in it, at most about 24 letters.
        kind: "frozen", "trained", "join" (a sum or a product) or "data".
        row: counted from the bottom, where the data come in.
        column: counted from the left.
    """

    name: str
    text: str
    kind: str
    row: float
    column: float = 0

    KINDS: ClassVar[dict[str, str]] = {
        "frozen": "#dfe6ee",
        "trained": "#f6c667",
        "join": "#ffffff",
        "data": "#ffffff",
    }

    def __post_init__(self) -> None:
        if self.kind not in self.KINDS:
            raise ValueError(f"kind={self.kind!r}: expected one of {', '.join(self.KINDS)}")


@dataclass(frozen=True)
class Diagram:
    """What `diagram_explorable` draws: boxes, the arrows between them, and a sentence.

    Args:
        boxes: the parts.
        arrows: (from, to) by the boxes' names. Between neighbours the line is straight, else it goes
            round the column.
        say: what to notice; shown below, and read out to who cannot see.
    """

    boxes: Sequence[Box]
    arrows: Sequence[tuple[str, str]] = field(default_factory=tuple)
    say: str = ""


def diagram_explorable(
    compute: Callable[..., Diagram],
    controls: Sequence[Slider],
    *,
    alt: str,
    caption: str = "",
) -> MovingFigure:
    """Draw parts and what flows between them; the reader picks another arrangement, or the next step.

    What is trained is drawn bold and filled, so that it shows without colour too. ``compute`` is
    called now, once for each setting of the controls.

    Args:
        compute: called with one keyword argument per control, named as the control.
        controls: at most 200 settings in all.
        alt, caption: as in `explorable`.

    Raises:
        ValueError: an arrow from or to a box that is not there, two boxes of one name, or too many
            settings.
    """
    frames = {key: _lay_out(d) for key, d in settings(compute, controls).items()}
    size = {side: max(frame[side] for frame in frames.values()) for side in ("width", "height")}
    for frame in frames.values():  # all of one size, so that the page stays where it is
        frame.update(size)
    order = [control.name for control in controls]
    return explorable(
        {"frames": frames, "order": order, "fills": Box.KINDS},
        controls,
        read_script("diagram.js"),
        alt=alt,
        still=_diagram_still(frames[start_of(controls)]),
        summary=sayings(frames),
        caption=caption,
    )


def _lay_out(diagram: Diagram) -> dict[str, Any]:
    """Give every box a place, in units of a pixel, and every arrow its corners."""
    w, h, gap_x, gap_y = 150, 28, 44, 22
    boxes = {box.name: box for box in diagram.boxes}
    if len(boxes) < len(diagram.boxes):
        raise ValueError(f"boxes {[box.name for box in diagram.boxes]}: expected unique names")
    top = max(box.row for box in diagram.boxes)
    left = 30  # room for lines that go round the first column
    place = {
        name: (left + box.column * (w + gap_x), 8 + (top - box.row) * (h + gap_y))
        for name, box in boxes.items()
    }
    wide = {name: 34 if box.kind == "join" else w for name, box in boxes.items()}
    arrows = []
    for start, end in diagram.arrows:
        for name in (start, end):
            if name not in boxes:
                raise ValueError(f"arrow ({start!r}, {end!r}): no box {name!r}")
        arrows.append(_corners(start, end, boxes, place, (w, h, gap_x, gap_y), wide))
    drawn = [
        {
            "x": place[name][0] + (w - wide[name]) / 2,
            "y": place[name][1],
            "w": wide[name],
            "h": h,
            "text": box.text,
            "kind": box.kind,
        }
        for name, box in boxes.items()
    ]
    return {
        "boxes": drawn,
        "arrows": arrows,
        "say": diagram.say,
        "width": left + max(x for x, _ in place.values()) + w - left + 12,
        "height": 8 + top * (h + gap_y) + h + 8,
    }


def _corners(
    start: str,
    end: str,
    boxes: Mapping[str, Box],
    place: Mapping[str, tuple[float, float]],
    sizes: tuple[int, int, int, int],
    wide: Mapping[str, int],
) -> list[tuple[float, float]]:
    """The line of an arrow: straight up or across, or round what stands between."""
    w, h, _, gap_y = sizes
    (x0, y0), (x1, y1) = place[start], place[end]
    middle0, middle1 = x0 + w / 2, x1 + w / 2
    if y0 == y1:  # beside each other
        side = 1 if x1 > x0 else -1
        return [(middle0 + side * wide[start] / 2, y0 + h / 2),
                (middle1 - side * wide[end] / 2, y1 + h / 2)]  # fmt: skip
    between = [
        box
        for name, box in boxes.items()
        if box.column == boxes[start].column and y1 < place[name][1] < y0
    ]
    if x0 == x1 and not between:
        return [(middle0, y0), (middle1, y1 + h)]
    if x0 == x1:  # round the column, on its left: a skip connection
        turn = x0 - 16
        low = y0 - gap_y / 2
        return [(middle0, y0), (middle0, low), (turn, low), (turn, y1 + h / 2),
                (middle1 - wide[end] / 2, y1 + h / 2)]  # fmt: skip
    if boxes[end].column > boxes[start].column:  # leave the column, then go up
        low = y0 - gap_y / 2
        return [(middle0, y0), (middle0, low), (middle1, low), (middle1, y1 + h)]
    side = 1 if x0 > x1 else -1  # come up, then back into the column
    return [(middle0, y0), (middle0, y1 + h / 2), (middle1 + side * wide[end] / 2, y1 + h / 2)]


def _diagram_still(frame: Mapping[str, Any]) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    width, height = frame["width"], frame["height"]
    figure = Figure(figsize=(width / 70, height / 70), dpi=110)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    for points in frame["arrows"]:
        axes.plot(*zip(*points[:-1], strict=True), color="black", linewidth=1)
        axes.annotate(
            "", points[-1], points[-2], arrowprops={"arrowstyle": "-|>", "color": "black"}
        )
    for box in frame["boxes"]:
        style = f"round,pad=0,rounding_size={4 if box['kind'] != 'join' else 12}"
        weight = 2.0 if box["kind"] == "trained" else 0.8
        corner = (box["x"], box["y"])
        fill = Box.KINDS[box["kind"]]
        axes.add_patch(FancyBboxPatch(corner, box["w"], box["h"], style, fc=fill, lw=weight))
        middle = (box["x"] + box["w"] / 2, box["y"] + box["h"] / 2)
        axes.text(*middle, box["text"], ha="center", va="center", fontsize=9)
    return figure
