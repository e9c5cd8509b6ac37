"""What the benches on real models share: which run is next, batches of like length, and what a run costs.

The rule that chooses a rate is that of `search`, and the records are those of `store`; so a number of a real
model is read as one of a pocket model is. One method after the other is finished, in the order of the
bench, so that what was stored when somebody stopped is complete for some methods, not half for all.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from pedagogic_peft import count_parameters, model_bytes
from pedagogic_peft.course.experiments import search
from pedagogic_peft.course.experiments.comparison import GRID
from pedagogic_peft.course.experiments.comparison_costs import highest_water
from pedagogic_peft.course.experiments.store import Cell, read, run_missing
from pedagogic_peft.training.train import pad_collate

CHUNK = 8  # batches whose rows are sorted by length together
SCORES = ("val", "val_loss", "test", "test_loss")
COSTS = ("seconds", "cpu_seconds", "peak_bytes", "trainable", "hardware")
# What tells one run from another.
KEYS = ("task", "method", "rate", "seed", "n", "steps")


@dataclass(frozen=True)
class Bench:
    """Tasks, methods and the file of their records.

    Attributes:
        results: the file; one JSON object in each line.
        lengths: {task: (training rows, steps)}.
        methods: {name: (the method, the middle one of the first three rates)}, the first to be run first.
        run: ``run(task, method, rate, seed, n, steps)`` trains and measures.
        left_out: pairs (method, task) that are not run.
        frozen: whether ``run`` measures the method "frozen", the base as it came; then that is run first.
    """

    results: Path
    lengths: Mapping[str, tuple[int, int]]
    methods: Mapping[str, tuple[Any, float]]
    run: Callable[..., Cell]
    left_out: frozenset[tuple[str, str]] = frozenset()
    frozen: bool = False

    def pairs(self) -> list[tuple[str, str]]:
        """Return all (task, method) of the bench, in the order in which they are run."""
        return [
            (task, method)
            for task in self.lengths
            for method in self.methods
            if (method, task) not in self.left_out
        ]

    def runs(self, records: Sequence[Cell], task: str, method: str, **more: Any) -> list[Cell]:
        """Return the records of a method on a task, in the order of rates and seeds."""
        wanted = {"task": task, "method": method} | more
        found = [r for r in records if wanted.items() <= r.items()]
        return sorted(found, key=lambda r: (r["rate"], r["seed"]))

    def finished(self, records: Sequence[Cell], task: str, method: str) -> bool:
        """Tell whether the search is over: the rate is inside its grid, and has three seeds."""
        middle = self.methods[method][1]
        return not search.wanted(self.runs(records, task, method), GRID, middle)

    def best_rate(self, records: Sequence[Cell], task: str, method: str) -> float:
        """Return the rate with the greatest validation score; see `search`."""
        return search.best_rate(self.runs(records, task, method))

    def chosen(self, records: Sequence[Cell], task: str, method: str) -> list[Cell]:
        """Return the runs at the best rate, in the order of the seeds.

        Raises:
            ValueError: the search is not over, so that the best rate is not known.
        """
        if not self.finished(records, task, method):
            raise ValueError(
                f"the search of {method} on {task} is not over: `python -m` this script first"
            )
        return self.runs(records, task, method, rate=self.best_rate(records, task, method))

    def known(self, records: Sequence[Cell]) -> list[tuple[str, str]]:
        """Return the (task, method) whose search is over."""
        return [pair for pair in self.pairs() if self.finished(records, *pair)]

    def missing(self, records: Sequence[Cell]) -> list[Cell]:
        """Return the next runs of the first search that is not over; none when the bench is finished."""
        for task, method in self.pairs():
            if self.frozen and not self.runs(records, task, "frozen"):
                return [self.cell(task, "frozen", 0.0, 0)]
            tried = self.runs(records, task, method)
            if more := search.wanted(tried, GRID, self.methods[method][1]):
                return [self.cell(task, method, rate, seed) for rate, seed in more]
        return []

    def cell(self, task: str, method: str, rate: float, seed: int) -> Cell:
        """Return the arguments of ``run`` as a record."""
        return dict(zip(KEYS, (task, method, rate, seed, *self.lengths[task]), strict=True))

    def only(self, tasks: Sequence[str] | None, methods: Sequence[str] | None) -> "Bench":
        """Return a bench of some tasks and methods, with the same file.

        Raises:
            ValueError: a name is not one of the bench.
        """
        for what, asked, there in (
            ("task", tasks, self.lengths),
            ("method", methods, self.methods),
        ):
            if unknown := [name for name in asked or () if name not in there]:
                raise ValueError(f"no {what} {unknown[0]!r}: the bench has {', '.join(there)}")
        return replace(
            self,
            lengths={t: self.lengths[t] for t in tasks or self.lengths},
            methods={m: self.methods[m] for m in methods or self.methods},
        )

    def go_on(self, minutes: float | None = None) -> list[Cell]:
        """Run what is missing, one run after the other, and return all records.

        Args:
            minutes: no new run begins later than that; None means until the end.
        """
        start = time.monotonic()
        while todo := self.missing(read(self.results)):
            for cell in todo:
                if minutes is not None and time.monotonic() - start > 60 * minutes:
                    return read(self.results)
                run_missing([cell], self.run, self.results)
        return read(self.results)

    def again(self, share: float, minutes: float | None = None) -> list[tuple[Cell, Cell]]:
        """Run a share of the stored runs again, on other hardware as a rule; return (stored, again).

        The new records stand in a file of their own, so that no number is there twice.

        Args:
            share: of the runs of this bench that trained, evenly spread; above 0, at most 1.
            minutes: no new run begins later than that.

        Raises:
            ValueError: the share is not above 0 and at most 1.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share={share}: expected more than 0 and at most 1")
        path = self.results.with_name(f"{self.results.stem}_again.jsonl")
        mine = [r for r in read(self.results) if (r["task"], r["method"]) in self.pairs()]
        start, found = time.monotonic(), []
        for stored in mine[:: round(1 / share)]:
            if minutes is not None and time.monotonic() - start > 60 * minutes:
                break
            cell = {key: stored[key] for key in KEYS}
            records = run_missing([cell], self.run, path)
            found.append((stored, next(r for r in records if cell.items() <= r.items())))
        return found

    def main(self, description: str) -> None:
        """The command line: which tasks and methods, and for how long."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--tasks", nargs="+", help=f"of {', '.join(self.lengths)}")
        parser.add_argument("--methods", nargs="+", help=f"of {', '.join(self.methods)}")
        parser.add_argument("--minutes", type=float, help="begin no run later than that")
        parser.add_argument("--again", type=float, metavar="SHARE", help="repeat stored runs")
        asked = parser.parse_args()
        bench = self.only(asked.tasks, asked.methods)
        if asked.again is None:
            bench.go_on(asked.minutes)
            return
        for stored, new in bench.again(asked.again, asked.minutes):
            name = ", ".join(str(stored[key]) for key in KEYS[:4])
            print(f"{name}: {stored['test']} on {stored['hardware']}", end="; ")
            print(f"{new['test']} on {new['hardware']}")


def of_like_length(
    examples: Sequence[Any], batch_size: int, seed: int, pad: int
) -> list[dict[str, torch.Tensor]]:
    """Return the examples as batches that hold little padding; some are a little smaller.

    They are shuffled by the seed; then the rows of each eight batches are sorted by length. The batches
    stay the same in all passes, and `train` shuffles their order: give it ``batch_size=1`` and `alone`.
    """
    order = list(examples)
    Random(seed).shuffle(order)
    collate, size = pad_collate(pad), CHUNK * batch_size
    chunks = [
        sorted(order[i : i + size], key=lambda e: len(e["input_ids"]))
        for i in range(0, len(order), size)
    ]
    return [
        collate(chunk[i : i + batch_size])
        for chunk in chunks
        for i in range(0, len(chunk), batch_size)
    ]


def alone(batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the one batch in a list: the ``collate_fn`` for batches that are made already."""
    (batch,) = batches
    return batch


@contextmanager
def clocked(into: Cell) -> Iterator[None]:
    """Store the seconds by the clock, and the processor's, that the block took."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    into["seconds"] = round(time.perf_counter() - wall, 1)
    into["cpu_seconds"] = round(time.process_time() - cpu, 1)


def peak_bytes(model: Any, batch: Mapping[str, torch.Tensor]) -> int:
    """Return the bytes of a training step with AdamW at their peak: weights, moments, and the step's own.

    Counted from what is allocated, as in `comparison_costs`; on a GPU the step's own part is what CUDA
    counted.
    """
    batch = {key: value.to(model.device) for key, value in batch.items()}
    moments = 2 * sum(p.nbytes for p in model.parameters() if p.requires_grad)

    def step() -> None:
        model.train()(**batch).loss.backward()

    model.zero_grad(set_to_none=True)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        own = torch.cuda.max_memory_allocated() - before
    else:
        own = highest_water(step)
    model.zero_grad(set_to_none=True)
    model.eval()
    return int(model_bytes(model) + moments + own)


def costs(model: Any, batches: Sequence[Mapping[str, torch.Tensor]]) -> Cell:
    """Return what a run on these batches holds at its peak, what it trains, and on what it ran."""
    largest = max(batches, key=lambda batch: batch["input_ids"].numel())
    return {
        "peak_bytes": peak_bytes(model, largest),
        "trainable": count_parameters(model).trainable,
        "hardware": hardware(),
    }


def hardware() -> str:
    """Return the name of the GPU, or of the processor and how many threads are used."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = "a processor"
    if (info := Path("/proc/cpuinfo")).exists():
        lines = info.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {torch.get_num_threads()} thread" + "s" * (torch.get_num_threads() > 1)


def measured(costs_of_run: Cell, scores: Mapping[str, float | None]) -> Cell:
    """Return a record's values, rounded; a score of a training that diverged is None."""
    found = {
        key: None if value is None else round(float(value), 4) for key, value in scores.items()
    }
    return found | costs_of_run


def device() -> str:
    """Return where models of the benches are trained."""
    return "cuda" if torch.cuda.is_available() else "cpu"
