"""What others measured on a real model, to stand beside what the book measured on its pocket models.

The numbers are Hugging Face PEFT's own comparison (repository huggingface/peft, folder
method_comparison/MetaMathQA, as of commit 5d602fdb in the summer of 2026): Llama-3.2-3B, trained on
MetaMathQA for 5,000 steps of 4 examples in bfloat16, tested on the 1,319 problems of GSM8K. Every row is
one run of one seed at one learning rate, mostly 1e-4 and not searched. They are copied here with their
source; none was measured by this book.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pedagogic_peft.course.evidence import LEVEL

DATA: Final = Path(__file__).with_name("field.jsonl")
PROBLEMS: Final = 1319  # of the test set


@dataclass(frozen=True)
class Row:
    """One run of the comparison.

    Attributes:
        method: its name.
        ours: the name of the method in `experiments.comparison`; empty if the bench has none such.
        setting: what is special to this run.
        trained: how many parameters were trained.
        accuracy: share of the test problems that were solved.
        forgetting: by how many nats per token the loss on Wikipedia's text rose.
        memory: peak of the GPU's memory, in gigabytes.
        minutes: of training.
    """

    method: str
    ours: str
    setting: str
    trained: int
    accuracy: float
    forgetting: float
    memory: float
    minutes: float

    @property
    def error(self) -> float:
        """Standard error of the accuracy: that of a share of `PROBLEMS`."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / PROBLEMS)


def rows() -> list[Row]:
    """Return all runs, in the order of the file."""
    lines = DATA.read_text(encoding="utf-8").splitlines()
    return [Row(**json.loads(line)) for line in lines]


def accuracies(setting: str = "best") -> dict[str, float]:
    """Return {method of the bench: accuracy}.

    Args:
        setting: which run to take where a method has several: "best" or "first" by the order of the
            file, which is the comparison's default if it has one.

    Raises:
        ValueError: ``setting`` is neither.
    """
    if setting not in ("best", "first"):
        raise ValueError(f"setting={setting!r}: 'best' or 'first'")
    found: dict[str, float] = {}
    for row in rows():
        if row.ours and (row.ours not in found or setting == "best"):
            found[row.ours] = max(row.accuracy, found.get(row.ours, 0.0))
    return found


@dataclass(frozen=True)
class Estimate:
    """A number that methods decide, and how well it is known.

    Attributes:
        value: the number.
        low, high: an interval by resampling the methods, of 95 % unless it is one of several.
        methods: how many there are.
    """

    value: float
    low: float
    high: float
    methods: int

    def __format__(self, spec: str) -> str:
        """Write "value (low to high)", each with the format ``spec``."""
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


@dataclass(frozen=True)
class Correlation(Estimate):
    """A rank correlation, Spearman's, from -1 to 1.

    Attributes:
        p: how often a random order of one side correlates at least as strongly, of either sign.
    """

    p: float


def rank_correlation(
    a: Mapping[str, float],
    b: Mapping[str, float],
    draws: int = 5000,
    seed: int = 0,
    comparisons: int = 1,
) -> Correlation:
    """Return Spearman's rank correlation of two scores over the methods that both have.

    The interval is the bootstrap's over methods (Efron and Tibshirani, "An Introduction to the
    Bootstrap", 1993, percentile method): what would another choice of such methods give? With ten
    methods it is rough, rather too narrow than too wide. The p-value is by permutation.

    Args:
        a, b: {method: score}.
        draws: how many resamplings, and how many permutations.
        seed: of both.
        comparisons: among how many correlations of one conclusion this is one; the interval is the wider
            for it, as in `evidence.paired`.

    Raises:
        ValueError: fewer than four methods are in both, all scores of one side are equal, or
            ``comparisons`` is below 1.
    """
    x, y = _of_all(a, b)
    rng = np.random.default_rng(seed)
    drawn = _resampled(rng, len(x), draws)
    low, high = _ends(_spearman(x[drawn], y[drawn]), comparisons)
    value = float(_spearman(x, y))
    shuffled = np.array([rng.permutation(y) for _ in range(draws)])
    as_strong = np.abs(_spearman(np.broadcast_to(x, shuffled.shape), shuffled)) >= abs(value) - 1e-9
    p = (1 + int(as_strong.sum())) / (1 + draws)
    return Correlation(value, low, high, len(x), p)


def difference_of_correlations(
    a: Mapping[str, float],
    b: Mapping[str, float],
    outcome: Mapping[str, float],
    draws: int = 1000,
    seed: int = 0,
    comparisons: int = 1,
) -> Estimate:
    """Return by how much the rank correlation of ``a`` with the outcome is above that of ``b``.

    The methods are drawn anew for both correlations together (see `rank_correlation`), for the two have
    their methods in common, and the difference of two intervals would be too wide.

    Args:
        a, b: {method: score}, the two that foretell.
        outcome: {method: score}, what is foretold.
        draws: how many resamplings.
        seed: of the draws.
        comparisons: as in `rank_correlation`.

    Raises:
        ValueError: as in `rank_correlation`, of the methods that all three have.
    """
    x, y, z = _of_all(a, b, outcome)
    drawn = _resampled(np.random.default_rng(seed), len(x), draws)
    apart = _spearman(x[drawn], z[drawn]) - _spearman(y[drawn], z[drawn])
    low, high = _ends(apart, comparisons)
    return Estimate(float(_spearman(x, z) - _spearman(y, z)), low, high, len(x))


def _of_all(*sides: Mapping[str, float]) -> list[NDArray[np.float64]]:
    """Return the scores of the methods that all sides have, in one order."""
    names = sorted(set.intersection(*(set(side) for side in sides)))
    if len(names) < 4:
        raise ValueError(f"{len(names)} methods are in all ({names}); a rank needs at least 4")
    found = [np.array([side[name] for name in names], dtype=np.float64) for side in sides]
    if any(np.ptp(scores) == 0 for scores in found):
        raise ValueError("all scores of one side are equal: there is no order to compare")
    return found


def _resampled(rng: np.random.Generator, methods: int, draws: int) -> NDArray[np.int64]:
    """Return which methods each draw takes, with repetitions: (draws, methods)."""
    return np.array([rng.integers(methods, size=methods) for _ in range(draws)])


def _ends(values: NDArray[np.float64], comparisons: int) -> tuple[float, float]:
    """Return the ends of the percentile interval; a draw without an order says nothing."""
    if comparisons < 1:
        raise ValueError(f"comparisons={comparisons}: count this one too, so at least 1")
    tail = 100 * (1 - LEVEL) / (2 * comparisons)
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the correlation of the ranks along the last axis; NaN where one side is all equal."""
    from scipy.stats import rankdata

    x, y = (rankdata(side, axis=-1) for side in (x, y))
    x, y = (side - side.mean(-1, keepdims=True) for side in (x, y))
    with np.errstate(invalid="ignore"):
        found: NDArray[np.float64] = (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return found
