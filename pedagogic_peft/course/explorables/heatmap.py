"""Heat maps: who looks at whom, by how much."""

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
from pedagogic_peft.course.explorables.palette import ONE_SIDED, TWO_SIDED


@dataclass(frozen=True)
class HeatMap:
    """What `heatmap_explorable` draws: one number for each row and column, and a sentence.

    Args:
        rows: names of the rows.
        columns: names of the columns, such as the tokens of a sentence.
        values: (rows, columns), an array, a list of lists, or a tensor on the CPU.
        say: what to notice; shown below, and read out to who cannot see.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: Any
    say: str


def heatmap_explorable(
    compute: Callable[..., HeatMap],
    controls: Sequence[Slider],
    *,
    alt: str,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    digits: int = 2,
    caption: str = "",
) -> MovingFigure:
    """Draw a heat map, such as heads by tokens; the reader moves controls.

    ``compute`` is called now, once for each setting of the controls, and its results are stored.

    Args:
        compute: called with one keyword argument per control, named as the control.
        controls: at most 200 settings in all.
        unit: of the numbers, written directly after them, such as ``" %"``.
        low, high: the numbers of the first and the last colour; by default the extremes. Where
            ``low`` is below zero, zero is white.
        digits: decimals that are kept.
        alt, caption: as in `explorable`.

    Raises:
        ValueError: names that do not fit the values, numbers that are not finite, or too many
            settings.
    """
    maps = {}
    for key, heat in settings(compute, controls).items():
        values = np.asarray(heat.values, dtype=np.float64)
        rows, columns = list(map(str, heat.rows)), list(map(str, heat.columns))
        if values.shape != (len(rows), len(columns)):
            named = (len(rows), len(columns))
            raise ValueError(f"values of shape {values.shape}: expected {named}, the names' number")
        if not np.isfinite(values).all():
            raise ValueError("values: expected finite numbers")
        slanted = max(map(len, columns)) > 2
        kept = (values.round(digits) + 0.0).tolist()  # + 0.0: no minus zero
        maps[key] = {"rows": rows, "columns": columns, "values": kept, "say": heat.say}
        maps[key]["slanted"] = slanted
    everything = [x for one in maps.values() for row in one["values"] for x in row]
    low = min(everything) if low is None else low
    high = max(everything) if high is None else high
    if low < 0:  # two-sided: the same distance on both sides of white
        low, high = -max(-low, high), max(-low, high)
    data = {
        "frames": maps,
        "order": [control.name for control in controls],
        "low": low,
        "high": high,
        "unit": unit,
        "colours": TWO_SIDED if low < 0 else ONE_SIDED,
    }
    first = maps[start_of(controls)]
    return explorable(
        data,
        controls,
        read_script("heatmap.js"),
        alt=alt,
        still=_heat_still(first, low, high),
        summary=sayings(maps),
        caption=caption,
    )


def _heat_still(one: Mapping[str, Any], low: float, high: float) -> Any:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    stops = np.array(TWO_SIDED if low < 0 else ONE_SIDED) / 255
    figure = Figure(figsize=(6.0, 1.2 + 0.22 * len(one["rows"])), dpi=110, layout="constrained")
    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list("book", stops.tolist())
    image = axes.imshow(one["values"], cmap=colours, vmin=low, vmax=high, aspect="auto")
    axes.set_xticks(range(len(one["columns"])), one["columns"], rotation=50, ha="right")
    axes.set_yticks(range(len(one["rows"])), one["rows"])
    axes.grid(False)
    figure.colorbar(image)
    return figure
