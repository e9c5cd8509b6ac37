"""A formula that the reader fills in: a sum of parts, drawn as one bar."""

import inspect
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pedagogic_peft.course.explorables.controls import Slider
from pedagogic_peft.course.explorables.core import MovingFigure, explorable, read_script
from pedagogic_peft.course.explorables.palette import PALETTE


def calculator_explorable(
    compute: Callable[..., Mapping[str, float]],
    formula: str,
    controls: Sequence[Slider],
    *,
    alt: str,
    unit: str,
    total: str = "total",
    limit: str = "",
    caption: str = "",
) -> MovingFigure:
    """Let the reader compute his own case: a sum of parts, drawn as one bar.

    There are too many settings to store, so the browser computes. The same formula is given twice:
    as the page's Python function, and in JavaScript. The figure carries the Python function's results
    for some settings, and the site's browser test compares.

    Args:
        compute: the page's own function, called with one keyword argument per control (but
            ``limit``); returns {part: how much}, none negative.
        formula: the body of a JavaScript function of one argument ``at``, in which ``at.NAME`` is the
            value of control NAME; returns an object like ``compute``'s.
        controls: what the reader sets; values are numbers, strings or booleans.
        unit: of the parts, such as ``"GB"``.
        total: what the sum is called.
        limit: name of a control whose value (in ``unit``) the total should not exceed, if any.
        alt, caption: as in `explorable`.

    Raises:
        ValueError: ``compute`` returns something negative or not finite.
    """
    from matplotlib.figure import Figure

    def run(positions: Sequence[int]) -> dict[str, float]:
        at = {c.name: c.values[i] for c, i in zip(controls, positions, strict=True)}
        at.pop(limit, None)
        parts = {name: float(value) for name, value in compute(**at).items()}
        wrong = {name: x for name, x in parts.items() if not 0 <= x < np.inf}
        if wrong:
            raise ValueError(f"compute({at}) gives {wrong}: expected finite numbers from 0")
        return parts

    start = [control.start for control in controls]
    rng = np.random.default_rng(0)  # which settings the test compares
    sample = [start] + [[int(rng.integers(len(c.values))) for c in controls] for _ in range(24)]
    checks = [[s, {k: float(f"{v:.8g}") for k, v in run(s).items()}] for s in sample]
    parts = run(start)
    data = {
        "colours": list(PALETTE.values()),
        "unit": unit,
        "total": total,
        "limit": limit,
        "checks": checks,
    }
    bars = {total: sum(parts.values())} | dict(reversed(parts.items()))
    still = Figure(figsize=(6.0, 0.6 + 0.35 * len(bars)), dpi=110, layout="constrained")
    axes = still.subplots()
    colours = [PALETTE["orange"]] + [PALETTE["blue"]] * len(parts)
    axes.barh(list(bars), list(bars.values()), color=colours)
    for control in controls:
        if control.name == limit:
            name = f"{control.label} {control.texts[control.start]}"
            axes.axvline(control.values[control.start], color="0.3", linestyle="--", label=name)
            axes.legend()
    axes.set(xlabel=unit)
    settings = ", ".join(f"{c.label} {c.texts[c.start]}" for c in controls)
    numbers = ", ".join(f"{name} {value:.2f} {unit}" for name, value in parts.items())
    script = read_script("calculator.js").replace("@FORMULA@", inspect.cleandoc(formula))
    return explorable(
        data,
        controls,
        script,
        alt=alt,
        still=still,
        summary=f"{settings}: {numbers}",
        caption=caption,
        role="group",
    )
