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
class Correlation:
    """A rank correlation, and how well it is known.

    Attributes:
        value: Spearman's correlation, from -1 to 1.
        low, high: an interval by resampling the methods, of 95 % unless it is one of several.
        p: how often a random order of one side correlates at least as strongly, of either sign.
        methods: how many both sides have.
    """

    value: float
    low: float
    high: float
    p: float
    methods: int

    def __format__(self, spec: str) -> str:
        """Write "value (low to high)", each with the format ``spec``."""
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


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
    if comparisons < 1:
        raise ValueError(f"comparisons={comparisons}: count this one too, so at least 1")
    names = sorted(a.keys() & b.keys())
    if len(names) < 4:
        raise ValueError(f"{len(names)} methods are in both ({names}); a rank needs at least 4")
    x, y = (np.array([side[name] for name in names]) for side in (a, b))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("all scores of one side are equal: there is no order to compare")
    rng = np.random.default_rng(seed)
    value = _spearman(x, y)
    resampled = [rng.integers(len(names), size=len(names)) for _ in range(draws)]
    found = [_spearman(x[i], y[i]) for i in resampled if np.ptp(x[i]) and np.ptp(y[i])]
    tail = 100 * (1 - LEVEL) / (2 * comparisons)
    low, high = np.percentile(found, [tail, 100 - tail])
    shuffled = [abs(_spearman(x, rng.permutation(y))) for _ in range(draws)]
    p = (1 + sum(each >= abs(value) - 1e-9 for each in shuffled)) / (1 + draws)
    return Correlation(value, float(low), float(high), p, len(names))


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return the correlation of the ranks; equal scores share the mean of their ranks."""
    return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])


def _ranks(x: NDArray[np.float64]) -> NDArray[np.float64]:
    less = np.sum(x[:, None] > x, axis=1)
    equal = np.sum(x[:, None] == x, axis=1)
    return np.asarray(less + (equal + 1) / 2, dtype=np.float64)
