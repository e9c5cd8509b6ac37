"""Interleaved timing: on a machine whose speed drifts, only ratios within one round mean something."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

Times = dict[str, list[float]]
Measure = dict[str, float]  # value, and the quartiles low and high
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def interleaved(
    variants: Mapping[str, Callable[..., Any]],
    rounds: int,
    fresh: Callable[[], Any] | None = None,
) -> Times:
    """Time each variant once a round, in an order drawn anew each round, without garbage collection.

    Args:
        variants: {name: what to time}. Each is called once before, untimed. One that returns a float
            has timed itself (in another process), and that is its time.
        rounds: how many rounds.
        fresh: makes, untimed, what each call is given: for what can be done only once to a model.

    Returns:
        {name: seconds of each round}.
    """
    order, draw = list(variants), Random(0)
    times: Times = {name: [] for name in variants}
    gc.disable()
    try:
        for number in range(rounds + 1):
            draw.shuffle(order)
            gc.collect()
            for name in order:
                given = [fresh()] if fresh else []
                took = seconds(variants[name], *given)
                if number:  # round 0 warms up
                    times[name].append(took)
    finally:
        gc.enable()
    return times


def seconds(run: Callable[..., Any], *given: Any) -> float:
    """Return how long one call takes.

    On a CPU these are seconds of processor time, which with one thread are those of the clock on an
    idle machine, and of a busy one disturb less; on a GPU those of the clock until its work is done.
    """
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    clock = time.process_time if DEVICE == "cpu" else time.perf_counter
    start = clock()
    own = run(*given)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return own if isinstance(own, float) else clock() - start


def summary(values: list[float]) -> Measure:
    """Return the median of the rounds' values, and their quartiles."""
    low, median, high = statistics.quantiles(values, n=4)
    return {"value": rounded(median), "low": rounded(low), "high": rounded(high)}


def rounded(value: float) -> float:
    """Return the value to four significant digits."""
    return float(f"{value:.4g}")


def ratio(times: Times, name: str, to: str) -> Measure:
    """Return the ratios name / to of the rounds, summed up."""
    return summary([a / b for a, b in zip(times[name], times[to], strict=True)])


def ratio_of_medians(values: list[float], others: list[float]) -> Measure:
    """Return median / median, with quartiles over 1,000 redrawings of the rounds (bootstrap).

    For differences of a few per cent: in a single round their ratio is noise.
    """
    draw, rounds = Random(0), list(zip(values, others, strict=True))

    def value(rounds: list[tuple[float, float]]) -> float:
        above, below = zip(*rounds, strict=True)
        return statistics.median(above) / statistics.median(below)

    redrawn = summary([value(draw.choices(rounds, k=len(rounds))) for _ in range(1000)])
    return redrawn | {"value": rounded(value(rounds))}


def excess(times: Times, name: str, over: str) -> list[float]:
    """Return by how many seconds ``name`` exceeds ``over``, round by round."""
    return [a - b for a, b in zip(times[name], times[over], strict=True)]


def peak_bytes(model: nn.Module, step: Callable[[], Any]) -> int:
    """Return the most memory that tensors hold during a step, the model's own included.

    On a CPU every allocation of torch is added up, so this is exact and the same each time; what the
    operating system sees is a little more. On a GPU it is what its allocator reports.

    Args:
        model: its parameters and buffers are there before the step.
        step: one training step; it is run once before, so that the optimiser has its state.
    """
    step()
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    assert found.profiler is not None
    now = peak = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    kept = {t.data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]}
    return sum(kept.values()) + peak
