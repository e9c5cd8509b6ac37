"""What each method of the comparison costs: parameters, bytes, memory and time.

    python -m pedagogic_peft.course.experiments.comparison_costs    # measures all again, about two minutes

Times are CPU times of one thread, and only ratios are stored: each is the median over rounds in which
every method takes its turn, so that a busy machine slows all of them alike. Peak memory is counted from
the allocations that torch's profiler reports, so it is the same in each run on one machine.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pedagogic_peft import count_parameters, merge, model_bytes, save
from pedagogic_peft.course.experiments import comparison_tasks
from pedagogic_peft.course.experiments.comparison import METHODS, NO_MEANING, prepare
from pedagogic_peft.course.experiments.store import Cell
from pedagogic_peft.course.pocket import tasks
from pedagogic_peft.training.train import pad_collate

RESULTS = Path(__file__).with_name("comparison_costs.jsonl")
BASES = {"pocket-gpt": ("sentiment", 16), "pocket-vit": ("vision", 32)}  # the batch of a step
ROUNDS = 15


def batch_of(base: str, size: int | None = None) -> dict[str, torch.Tensor]:
    """Return a batch as the bench trains on it."""
    task, usual = BASES[base]
    examples = comparison_tasks.TASKS[task].draw(size or usual, comparison_tasks.TRAINING)
    if base == "pocket-gpt":
        examples = tasks.encode(comparison_tasks.load(base)[1], examples)
    return pad_collate()(examples)


def stepper(base: str, method: str) -> tuple[Any, torch.optim.Optimizer, Callable[[], None]]:
    """Return a prepared model, its optimiser, and a function that makes one training step."""
    model, batch = prepare(base, method).train(), batch_of(base)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, optimizer, step


def peak_bytes(base: str, method: str) -> dict[str, int]:
    """Return what one training step holds at its peak, in bytes, and what of it is there all the time.

    There all the time are the weights ("weights") and Adam's moments ("moments"). The rest of "peak"
    are activations, gradients and short-lived tensors.
    """
    model, optimizer, step = stepper(base, method)
    step()  # makes Adam's moments
    moments = sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if value.dim()  # not the step's number
    )
    weights = model_bytes(model)
    return {
        "weights": weights,
        "moments": moments,
        "peak": weights + moments + highest_water(step),
    }


def highest_water(action: Callable[[], None]) -> int:
    """Return the most bytes that ``action`` holds at once of those that it allocates itself."""
    from torch.profiler import ProfilerActivity, profile

    with quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]"]
    held = highest = 0
    for _, change in sorted(changes, key=lambda each: each[0]):
        held += change
        highest = max(highest, held)
    return highest


@contextmanager
def quiet() -> Iterator[None]:
    """Send what the process writes on standard error to nowhere: the profiler announces itself there."""
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def stored_bytes(base: str, method: str) -> int:
    """Return the size of the file that a trained model needs beside the base."""
    from safetensors.torch import save as to_bytes

    model = prepare(base, method)
    if method in ("full", "head"):
        trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        return len(to_bytes(trained))
    with tempfile.TemporaryDirectory() as folder:
        return (save(model, folder) / "adapter_model.safetensors").stat().st_size


def merges(base: str, method: str) -> bool:
    """Tell whether the adaptation can become a part of the base's own weights."""
    if method in ("full", "head"):
        return True
    try:
        merge(prepare(base, method), unload=True)
    except ValueError:
        return False
    return True


def ratios(
    actions: Mapping[str, Callable[[], Any]], rounds: int, progress: bool = True
) -> dict[str, float]:
    """Return how much CPU time each action takes, as a ratio to the first: medians of the rounds."""
    found: dict[str, list[float]] = {name: [] for name in actions}
    for turn in tqdm(range(rounds + 1), desc="rounds", disable=not progress):
        times = {}
        for name, action in actions.items():
            start = time.process_time()
            action()
            times[name] = time.process_time() - start
        first = next(iter(times.values()))
        for name, seconds in times.items():
            if turn:  # the first round warms up
                found[name].append(seconds / first)
    return {name: statistics.median(each) for name, each in found.items()}


def measure(base: str, rounds: int = ROUNDS) -> list[Cell]:
    """Return one record for each method that has a meaning on this base."""
    methods = [method for method in METHODS if (method, base) not in NO_MEANING]
    steps = {method: stepper(base, method)[2] for method in methods}
    one = batch_of(base, size=1)

    def forward(model: Any) -> Callable[[], Any]:
        return torch.no_grad()(lambda: [model(**one) for _ in range(5)])

    models = {"bare": comparison_tasks.load(base)[0]} | {
        m: prepare(base, m).eval() for m in methods
    }
    step = ratios(steps, rounds)
    latency = ratios({name: forward(model) for name, model in models.items()}, rounds)
    return [
        {
            "base": base,
            "method": method,
            "trainable": count_parameters(models[method]).trainable,
            "stored_bytes": stored_bytes(base, method),
            "merges": merges(base, method),
            "step_ratio": round(step[method], 2),
            "latency_ratio": round(latency[method], 2),
            **peak_bytes(base, method),
        }
        for method in methods
    ]


def main() -> None:
    """Measure all, and store it."""
    made = {"date": str(date.today()), "torch": torch.__version__, "machine": platform.machine()}
    records = [record | made for base in BASES for record in measure(base)]
    RESULTS.write_text("".join(json.dumps(record) + "\n" for record in records))


if __name__ == "__main__":
    main()
