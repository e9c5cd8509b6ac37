"""Bars that change with a slider."""

from collections.abc import Mapping, Sequence

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
) -> MovingFigure:
    """Draw one bar for each name; the reader moves a slider, and the bars and a sentence change.

    In print the bars are curves over the values of the slider.

    Args:
        slider: what the reader moves.
        bars: {name: its length at each value of the slider}, none negative; printed as given.
        sentences: what to say at each value.
        alt, caption: as in `explorable`.
        unit: of the lengths.
        measure: what the lengths are, for the axis in print; without it the axis has the unit alone.

    Raises:
        ValueError: a name or the sentences have another number of entries than the slider.
    """
    from matplotlib.figure import Figure

    n = len(slider.values)
    for what, given in {**bars, "sentences": sentences}.items():
        if len(given) != n:
            raise ValueError(f"{what}: {len(given)} entries for the {n} values of the slider")
    still = Figure(figsize=(6.0, 2.6), dpi=110, layout="constrained")
    axes = still.subplots()
    for (name, lengths), marker in zip(bars.items(), "osD^vP*X", strict=False):
        axes.plot(range(n), list(lengths), marker=marker, label=name)
    axes.set_xticks(range(n), [str(value) for value in slider.values])
    axes.set(xlabel=slider.label, ylabel=f"{measure} ({unit})" if measure else unit)
    axes.legend()
    data = {
        "bars": {name: list(lengths) for name, lengths in bars.items()},
        "colours": list(PALETTE.values()),
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
