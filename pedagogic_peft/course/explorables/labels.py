"""Names beside dots that lie over nothing, and a look whether any words of a figure do."""

import itertools
import os
from collections.abc import Iterator, Mapping
from typing import Any

from pedagogic_peft.course.experiments.again import GATE

SIZE, FAR = 7, 60  # points: of a letter, and how far from its dot a name may stand


def name_dots(ax: Any, dots: Mapping[str, tuple[float, float]]) -> None:
    """Write a name beside each dot: over no other name, no dot and, where there is room, no line.

    Call it last: it looks at what the axes hold and where they lie on the page.

    Args:
        ax: matplotlib's axes.
        dots: {name: (x, y)}, in the axes' units.
    """
    ax.figure.canvas.draw()  # so that every place is known
    names: list[Any] = []
    marks, lines = list(_marks(ax)), list(_lines(ax))

    def is_free(box: Any, may_cross: bool) -> bool:
        inside = ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 and box.y1 <= ax.bbox.y1
        over = any(box.overlaps(name) for name in names) or any(box.overlaps(m) for m in marks)
        crossed = not may_cross and any(line.intersects_bbox(box, filled=False) for line in lines)
        return inside and not over and not crossed

    for name, place in sorted(dots.items(), key=lambda item: (item[1][1], item[1][0])):
        note = ax.annotate(name, place, (0, 0), textcoords="offset points", va="center", size=SIZE)
        for may_cross, (dx, dy, side) in itertools.product((False, True), _offsets()):
            note.set(position=(dx, dy), ha=side)
            if is_free(note.get_window_extent(), may_cross):
                break
        names.append(note.get_window_extent())
        if max(abs(dx), abs(dy)) > SIZE + 2:  # not beside its dot: a line leads there
            look = {"arrowstyle": "-", "lw": 0.5, "color": "0.5", "shrinkA": 4, "shrinkB": 2}
            ax.annotate("", place, (dx, dy), textcoords="offset points", arrowprops=look)


def _offsets() -> Iterator[tuple[float, float, str]]:
    """Yield where a name may stand, in points from its dot, the nearest places first."""
    for far in range(0, FAR, 6):
        a, b = 5 + far, SIZE + 2 + far
        yield from ((a, 0, "left"), (-a, 0, "right"), (0, b, "center"), (0, -b, "center"))
        yield from ((a, b, "left"), (a, -b, "left"), (-a, b, "right"), (-a, -b, "right"))


def _marks(ax: Any) -> Iterator[Any]:
    """Yield a box round every dot, in pixels."""
    from matplotlib.transforms import Bbox

    for line in ax.lines:
        half = line.get_markersize() / 2 * ax.figure.dpi / 72
        if line.get_marker() not in (None, "None", "", " ") and line.get_visible():
            for x, y in line.get_transform().transform(line.get_xydata()):
                yield Bbox.from_extents(x - half, y - half, x + half, y + half)


def _lines(ax: Any) -> Iterator[Any]:
    """Yield the path of every line, and of every error bar, in pixels."""
    for line in ax.lines:
        if line.get_linestyle() not in ("None", "", " "):
            yield line.get_transform().transform_path(line.get_path())
    for some in ax.collections:
        for path in some.get_paths():
            if len(path) == 2:
                yield some.get_transform().transform_path(path)


def collisions(figure: Any) -> list[str]:
    """Return which words of a matplotlib figure lie over words, and which legends lie over dots.

    Words that are turned are left out: their box is larger than they are.
    """
    from matplotlib.transforms import Bbox

    figure.canvas.draw()
    words = [
        (text.get_text().strip(), text.get_window_extent().padded(-1)) for text in _words(figure)
    ]
    over = [
        f"{a!r} over {b!r}" for (a, x), (b, y) in itertools.combinations(words, 2) if x.overlaps(y)
    ]
    for ax in figure.axes:
        if (legend := ax.get_legend()) is not None:
            parts = [*legend.get_texts(), *legend.legend_handles]  # without the space around them
            box = Bbox.union([part.get_window_extent() for part in parts])
            over += ["the legend over a dot" for mark in _marks(ax) if box.overlaps(mark)][:1]
    return over


def _words(figure: Any) -> Iterator[Any]:
    """Yield what is written and can be seen: titles, names of axes and ticks, legends, notes."""
    texts = [*figure.texts, *([figure._suptitle] if figure._suptitle else [])]
    for ax in figure.axes:
        texts += [ax.title, *ax.texts]
        if (legend := ax.get_legend()) is not None:
            texts += legend.get_texts()
        for axis in (ax.xaxis, ax.yaxis) if ax.axison else ():
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            texts += [tick.label1 for tick in ticks if low <= tick.get_loc() <= high]
            texts.append(axis.label)
    for text in texts:
        if text.get_visible() and text.get_text().strip() and text.get_rotation() % 90 == 0:
            yield text


def check_when_shown() -> None:
    """In the gate, and under ``make run``, let ``plt.show`` refuse a figure whose words collide."""
    import matplotlib.pyplot as plt

    if not os.environ.get(GATE) or hasattr(plt.show, "unchecked"):
        return
    shown = plt.show

    def show(*args: Any, **options: Any) -> Any:
        for number in plt.get_fignums():
            if found := collisions(plt.figure(number)):
                raise AssertionError(f"in a figure: {'; '.join(found)}")
        return shown(*args, **options)

    show.unchecked = shown  # type: ignore[attr-defined]
    plt.show = show
