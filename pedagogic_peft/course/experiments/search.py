"""The one rule by which the book's experiments choose a learning rate.

The records of one method on one task with one budget, each with ``rate``, ``seed``, ``val`` (the score
on validation data by the measure that ranks the methods; greater is better) and ``val_loss``:

1. Three rates of a grid are tried with the first seed.
2. As long as a neighbour of the best rate was not tried, it is. So the best rate is never at the edge
   of what was tried.
3. The two leading rates are run with all selecting seeds: a rate that owes its lead to one lucky seed
   loses it. If another rate leads then, go on from 2.

The best rate has the greatest mean validation score; among equal ones the least validation loss
decides. One at the edge of what was tried is not known to be the best, and an error.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Cell = dict[str, Any]
SELECTING = (0, 1, 2)  # the seeds that choose a rate
WORST = float("-inf")


def merit(records: Sequence[Cell], rate: float) -> tuple[float, float]:
    """Return what a rate is chosen by: its mean validation score, and minus its mean loss.

    A training that diverged, whose scores are None, makes both minus infinity.
    """
    found = [r for r in records if r["rate"] == rate and r["seed"] in SELECTING]
    if not found or any(r["val"] is None for r in found):
        return WORST, WORST
    return (
        round(statistics.fmean(r["val"] for r in found), 6),
        -statistics.fmean(r["val_loss"] for r in found),
    )


def leading(records: Sequence[Cell]) -> list[float]:
    """Return all rates that were tried, the best first.

    Raises:
        ValueError: nothing was tried, or all that was tried diverged.
    """
    rates = sorted({r["rate"] for r in records})
    ordered = sorted(rates, key=lambda rate: merit(records, rate), reverse=True)
    if not ordered or merit(records, ordered[0])[0] == WORST:
        raise ValueError(f"rates {rates}: none trained without diverging; try lower ones")
    return ordered


def best_rate(records: Sequence[Cell], edge: bool = False) -> float:
    """Return the rate with the greatest mean validation score.

    Args:
        records: as for `leading`.
        edge: whether it may be the lowest or the highest of several; who allows that prints `at_edge`.

    Raises:
        ValueError: it is, and ``edge`` is false; or all that was tried diverged.
    """
    best = leading(records)[0]
    if not edge and len({r["rate"] for r in records}) > 1 and at_edge(records):
        rates = ", ".join(f"{rate:g}" for rate in sorted({r["rate"] for r in records}))
        raise ValueError(
            f"the best rate, {best:g}, is at the edge of what was tried ({rates}): run the rates beyond"
        )
    return best


def two_leading(
    records: Sequence[Cell], keys: Sequence[str] = ("val", "test")
) -> dict[float, list[float]]:
    """Return {rate: the mean of each key over the selecting seeds} of the two leading rates, the best first.

    How near the choice was to a draw, and what hung on it: an uncertainty that no interval over seeds holds.
    What a diverged training lacks makes a mean NaN.
    """
    found = {}
    for rate in leading(records)[:2]:
        some = [r for r in records if r["rate"] == rate and r["seed"] in SELECTING]
        values = [[math.nan if r[key] is None else r[key] for r in some] for key in keys]
        found[rate] = [statistics.fmean(each) for each in values]
    return found


def at_edge(records: Sequence[Cell]) -> bool:
    """Tell whether the best rate is the lowest or the highest that was tried: then it is not known."""
    rates = sorted({r["rate"] for r in records})
    return leading(records)[0] in (rates[0], rates[-1])


def wanted(
    records: Sequence[Cell], grid: Sequence[float], middle: float
) -> list[tuple[float, int]]:
    """Return the (rate, seed) pairs to run next; none when the search is over.

    Args:
        records: what is known of this method, task and budget.
        grid: all rates that may be tried, in order.
        middle: the middle one of the first three.

    Raises:
        ValueError: the best rate is the first or last of the grid, so the grid is too short.
    """
    tried = {r["rate"] for r in records}
    at = grid.index(middle)
    if first := [rate for rate in grid[max(at - 1, 0) : at + 2] if rate not in tried]:
        return [(rate, SELECTING[0]) for rate in first]
    best, second = leading(records)[:2]
    at = grid.index(best)
    if at in (0, len(grid) - 1):
        raise ValueError(f"the best rate, {best:g}, is at the end of the grid: lengthen the grid")
    if beside := [rate for rate in (grid[at - 1], grid[at + 1]) if rate not in tried]:
        return [(rate, SELECTING[0]) for rate in beside]
    done = {(r["rate"], r["seed"]) for r in records}
    return [(r, s) for r in (best, second) for s in SELECTING if (r, s) not in done]


def missing_runs(
    records: Sequence[Cell],
    middles: Mapping[str, float],
    grid: Sequence[float],
    seeds: Sequence[int],
) -> list[Cell]:
    """Return the runs that the rule asks for next, of several methods; none at the end.

    Args:
        records: what is known, each with its ``method``.
        middles: {method: the middle of its first three rates}.
        grid: as in `wanted`.
        seeds: those that compare the methods, each at its best rate.
    """
    asked = []
    for name, middle in middles.items():
        known = [r for r in records if r["method"] == name]
        more = wanted(known, grid, middle) or [(best_rate(known), seed) for seed in seeds]
        asked += [{"method": name, "rate": rate, "seed": seed} for rate, seed in more]
    done = [{key: r[key] for key in ("method", "rate", "seed")} for r in records]
    return [cell for cell in asked if cell not in done]


def at_best_rate(records: Sequence[Cell], methods: Iterable[str]) -> dict[str, list[Cell]]:
    """Return the runs of each method at its best rate, in the order of the seeds."""
    found = {}
    for name in methods:
        known = [r for r in records if r["method"] == name]
        best = best_rate(known)
        found[name] = sorted((r for r in known if r["rate"] == best), key=lambda r: r["seed"])
    return found
