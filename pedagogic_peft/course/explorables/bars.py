"""Bars that change with a slider."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pedagogic_peft.course.explorables.controls import Slider
from pedagogic_peft.course.explorables.core import MovingFigure, explorable, read_script
from pedagogic_peft.course.explorables.palette import PALETTE


def bars_explorable(
    slider: Slider,
    bars: Mapping[str, Sequence[float]],
    sentences: Sequence[str],
    *,
    alt: str,
    unit: str = "%",
    measure: str = "",
    caption: str = "",
    log: bool = False,
) -> MovingFigure:
    """Draw one bar for each name; the reader moves a slider, and the bars and a sentence change.

    In print the bars are curves over the values of the slider where these are numbers, and stand side
    by side where they are names, between which nothing lies.

    Args:
        slider: what the reader moves.
        bars: {name: its length at each value of the slider}, none negative; printed as given.
        sentences: what to say at each value.
        alt, caption: as in `explorable`.
        unit: of the lengths.
        measure: what the lengths are, for the axis in print; without it the axis has the unit alone.
        log: whether the axis in print is logarithmic, for lengths of very different sizes; marks stand
            for the bars there, which would have no foot.

    Raises:
        ValueError: a name or the sentences have another number of entries than the slider, or ``log``
            is asked for and a length is not positive.
    """
    from matplotlib.figure import Figure

    n = len(slider.values)
    for what, given in {**bars, "sentences": sentences}.items():
        if len(given) != n:
            raise ValueError(f"{what}: {len(given)} entries for the {n} values of the slider")
    if log and min(map(min, bars.values())) <= 0:
        raise ValueError(
            "log: a length is 0, which has no place on a logarithmic axis; leave it out"
        )
    still = Figure(figsize=(6.0, 2.6), dpi=110, layout="constrained")
    _draw(still.subplots(), slider, bars, log)
    still.axes[0].set(xlabel=slider.label, ylabel=f"{measure} ({unit})" if measure else unit)
    still.legend(loc="outside right center", fontsize=8)
    data = {
        "bars": {name: list(lengths) for name, lengths in bars.items()},
        "colour": PALETTE[
            "blue"
        ],  # one: the names say which is which, and black is lost in the dark
        "longest": max(max(lengths) for lengths in bars.values()) or 1,
        "sentences": list(sentences),
        "label": slider.label,
        "shown": slider.texts,
        "slider": slider.name,
        "unit": unit,
    }
    numbers = [f"{name}: {', '.join(map(str, lengths))} {unit}" for name, lengths in bars.items()]
    summary = "\n".join([f"{slider.label}: {', '.join(map(str, slider.values))}", *numbers])
    script = read_script("bars.js")
    return explorable(
        data, [slider], script, alt=alt, still=still, summary=summary, caption=caption
    )


def _draw(axes: Any, slider: Slider, bars: Mapping[str, Sequence[float]], log: bool) -> None:
    """Draw the bars of all the slider's values: as curves over numbers, or side by side."""
    values, n = list(slider.values), len(slider.values)
    numbers = all(isinstance(value, (int, float)) for value in values)
    for i, (name, lengths) in enumerate(bars.items()):
        marker = "osD^vP*X"[i % 8]
        if numbers:
            axes.plot(values, list(lengths), marker=marker, label=name)
        else:
            width = 0.8 / len(bars)
            places = [at + (i - (len(bars) - 1) / 2) * width for at in range(n)]
            if log:
                axes.plot(places, list(lengths), marker, label=name)
            else:
                axes.bar(places, list(lengths), width, label=name)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    if numbers and values[0] > 0 and all(b >= 1.5 * a for a, b in pairwise(values)):
        axes.set_xscale("log")  # 1, 2, 4, 8 stand at equal distances
        axes.minorticks_off()
    axes.set_xticks(values if numbers else range(n), slider.texts)
