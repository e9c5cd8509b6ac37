"""Interleaved timing: on a machine whose speed drifts, only ratios within one round mean something."""

import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import torch
from torch import nn

Times = dict[str, list[float]]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def interleaved(variants: Mapping[str, Callable[[], Any]], rounds: int) -> Times:
    """Time each variant once a round, in an order drawn anew each round.

    Args:
        variants: {name: what to time}. Each is called once before, untimed.
        rounds: how many rounds.

    Returns:
        {name: seconds of each round}.
    """
    order, draw = list(variants), Random(0)
    for run in variants.values():
        run()
    times: Times = {name: [] for name in variants}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            draw.shuffle(order)
            for name in order:
                times[name].append(seconds(variants[name]))
    finally:
        gc.enable()
    return times


def seconds(run: Callable[[], Any]) -> float:
    """Return how long one call takes; on a GPU, until it has finished its work."""
    _wait()
    start = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def ratio(times: Times, name: str, to: str) -> dict[str, float]:
    """Return the median of the rounds' ratios name / to, and their quartiles."""
    ratios = [a / b for a, b in zip(times[name], times[to], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {"ratio": round(median, 4), "low": round(low, 4), "high": round(high, 4)}


def overhead_ratio(times: Times, name: str, to: str, base: str) -> dict[str, float]:
    """Return by how much ``name`` exceeds ``base``, divided by how much ``to`` does (medians)."""
    medians = {key: statistics.median(values) for key, values in times.items()}
    extra = {key: medians[key] - medians[base] for key in (name, to)}
    return {
        "ratio": round(extra[name] / extra[to], 4),
        "ours": round(medians[name] / medians[base], 4),
        "theirs": round(medians[to] / medians[base], 4),
    }


def bytes_for_backward(model: nn.Module, step: Callable[[], torch.Tensor]) -> int:
    """Return how many bytes the graph of one loss keeps for its backward pass, weights left out.

    Args:
        model: its parameters are there anyway and do not count.
        step: returns the loss, with its graph.
    """
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept: dict[int, tuple[Any, int]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage, storage.nbytes())  # held, so addresses stay apart
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step()
    del loss
    return sum(size for _, size in kept.values())


def fresh(code: str) -> float:
    """Return how many seconds a fresh Python takes for this code."""
    return seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True))
