"""A project for a class: data that follow from a student's id, a blind test, and what results must show.

Two students have different data, and one student has the same data each time, on every machine. The rules
of `problems` are those by which this book judges its own pages: floors beside the scores, five paired
seeds, a learning rate that is not at the edge of its grid, one budget for all.
"""

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from pedagogic_peft.course.evidence import CEILING, FEWEST_SEEDS
from pedagogic_peft.course.models import POCKET
from pedagogic_peft.course.pocket import lessons
from pedagogic_peft.course.pocket.tasks import Example

SIZES = {"train": 1000, "validation": 200, "test": 200}
FLOORS = ("majority", "frozen")
FEWEST_RATES = 3  # the best of fewer cannot lie between two others


@dataclass(frozen=True)
class Data:
    """What one student works with.

    Attributes:
        train, dev: reviews and their verdicts, to train on and to choose by.
        blind: reviews alone; who hands in verdicts on them is judged by `answers`.
        labels: the two verdicts, the good one first.
    """

    train: list[Example]
    dev: list[Example]
    blind: list[str]
    labels: tuple[str, str]


@dataclass(frozen=True)
class Record:
    """One run: its method, learning rate, seed and number of steps, and the score on ``dev``, 0 to 1."""

    method: str
    rate: float
    seed: int
    steps: int
    score: float


def seed_of(student: str, part: str = "") -> int:
    """Return a seed of 31 bits that follows from the id alone: the head of its SHA-256.

    Args:
        student: the id, as it stands in the roster; blanks around it do not count.
        part: what the seed is for: other parts have other seeds.

    Raises:
        ValueError: the id is empty.
    """
    if not student.strip():
        raise ValueError(f"student={student!r}: expected the id that the roster has")
    return int.from_bytes(sha256(f"{student.strip()}/{part}".encode()).digest()[:4], "big") >> 1


def data(base: str, student: str) -> Data:
    """Return a student's data: sentiment, in the story world for a pocket model, else film reviews.

    No review is in two parts.

    Args:
        base: as `load_base` takes it.
        student: the student's id.

    Raises:
        ValueError: the id is empty.
        OSError: from ``datasets``, where the film reviews cannot be had.
    """
    train, dev, test = _parts(base, student)
    labels = _lesson(base).labels
    return Data(train, dev, [example.prompt for example in test], labels)


def answers(base: str, student: str) -> list[str]:
    """Return the verdicts on a student's blind reviews, for whoever grades."""
    return [example.answer for example in _parts(base, student)[2]]


def _lesson(base: str) -> lessons.Lesson:
    return lessons.POCKET if base in POCKET else lessons.lesson(base)


def _parts(base: str, student: str) -> list[list[Example]]:
    found: list[list[Example]] = []
    seen: set[str] = set()
    for split, n in SIZES.items():
        drawn = _lesson(base).sentiment(4 * n, seed_of(student, split), split)
        new = list({e.prompt: e for e in drawn if e.prompt not in seen}.values())[:n]
        seen |= {example.prompt for example in new}
        found.append(new)
    return found


def read_records(text: str) -> list[Record]:
    """Return the records in a text, one JSON object a line.

    Raises:
        ValueError: a line is no record, or its score is not from 0 to 1.
    """
    records = []
    for number, line in enumerate(text.strip().splitlines(), start=1):
        try:
            record = Record(**json.loads(line))
            whole = isinstance(record.seed, int) and isinstance(record.steps, int)
            good = whole and record.rate > 0 and 0 <= record.score <= 1
        except (TypeError, ValueError):
            good = False
        if not good:
            keys = ", ".join(f'"{key}"' for key in Record.__annotations__)
            raise ValueError(f"line {number}, {line[:80]!r}: expected a JSON object with {keys}")
        records.append(record)
    return records


def chosen(records: Iterable[Record]) -> dict[str, float]:
    """Return ``{method: its rate}``, the one that was run with the most seeds."""
    counts: dict[str, dict[float, int]] = {}
    for record in records:
        rates = counts.setdefault(record.method, {})
        rates[record.rate] = rates.get(record.rate, 0) + 1
    return {method: max(rates, key=lambda rate: rates[rate]) for method, rates in counts.items()}


def scores(records: Iterable[Record], method: str, rate: float) -> dict[int, float]:
    """Return ``{seed: score}`` of a method at a rate."""
    return {r.seed: r.score for r in records if (r.method, r.rate) == (method, rate)}


def problems(records: Iterable[Record], floors: Mapping[str, float]) -> list[str]:
    """Return what forbids a conclusion from the records, in sentences; none, if nothing does.

    Args:
        records: those of the search and those of the comparison.
        floors: the scores on ``dev`` that need no training: "majority", the share of the more frequent
            verdict, and "frozen", the base as it is.
    """
    records, found = list(records), []
    if missing := [name for name in FLOORS if not 0 < floors.get(name, 0) <= 1]:
        found.append(f"no floor {missing[0]!r}: a score means nothing without it")
    rates = chosen(records)
    if len(rates) < 2:
        found.append(f"{len(rates)} methods: a comparison needs two")
    if len(budgets := sorted({record.steps for record in records})) > 1:
        found.append(f"runs of {budgets} steps: one budget for all")
    runs = [(r.method, r.rate, r.seed) for r in records]
    if len(runs) > len(set(runs)):
        found.append("a run is there twice: one record for each method, rate and seed")
    for method, rate in rates.items():
        found += _of_search(records, method, rate)
    seeds = {method: set(scores(records, method, rate)) for method, rate in rates.items()}
    if len({frozenset(some) for some in seeds.values()}) > 1:
        found.append(f"other seeds for other methods: {seeds}; pairs need the same")
    means = [statistics.fmean(scores(records, *pair).values()) for pair in rates.items()]
    if means and min(means) >= CEILING:
        found.append(
            f"all means are at least {CEILING:.0%}: the task cannot tell the methods apart"
        )
    return found


def _of_search(records: list[Record], method: str, rate: float) -> list[str]:
    """Return what is wrong with the search for one method's rate, and with its seeds."""
    found, tried = [], sorted({r.rate for r in records if r.method == method})
    if len(tried) < FEWEST_RATES:
        found.append(f"{method}: {len(tried)} rates were tried, {FEWEST_RATES} are needed")
    elif rate in (tried[0], tried[-1]):
        found.append(f"{method}: its rate {rate:g} is at the edge of the grid {tried}; go on there")
    n = len(scores(records, method, rate))
    if n < FEWEST_SEEDS:
        found.append(f"{method}: {n} seeds at its rate {rate:g}, {FEWEST_SEEDS} are needed")
    grid = {each: scores(records, method, each) for each in tried}
    for seed in sorted(set.intersection(*(set(some) for some in grid.values()))):
        best = max(tried, key=lambda each: grid[each][seed])
        if grid[best][seed] > grid[rate][seed]:
            found.append(f"{method}: with seed {seed} the rate {best:g} was better than {rate:g}")
        return found
    return [*found, f"{method}: no seed was run at every rate, so the rates cannot be compared"]
