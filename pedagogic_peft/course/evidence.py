"""What a number of seeds allows to say: intervals, corrected comparisons, and verdicts that are computed.

A verdict is one of four words. "agrees": the interval of the difference lies where the claim says.
"disagrees": it lies elsewhere. "undecided": it reaches into both. "cannot be tested here": it lies
elsewhere, but the paper had another size of model, other data or another budget, and a small model does
not refute a large one.

Which of two is better needs five seeds: of fewer the verdict is "undecided", whatever the interval says.
A difference of fewer than three is no number at all, and an error.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

FEWEST_SEEDS: Final = 5  # for "A is better than B"
FEWEST_AT_ALL: Final = 3  # for a number in a sentence
LEVEL: Final = 0.95
CEILING: Final = 0.98  # of a share that is right


class Verdict(str):
    """One of the four words, made by `verdict` or `holds`; a table of claims takes no other text."""


AGREES, DISAGREES = Verdict("agrees"), Verdict("disagrees")
UNDECIDED, CANNOT_BE_TESTED = Verdict("undecided"), Verdict("cannot be tested here")


@dataclass(frozen=True)
class Difference:
    """A mean difference over paired seeds, and the interval that holds it.

    Attributes:
        mean, low, high: in the unit of the scores.
        seeds: how many pairs.
        comparisons: among how many this is one; the interval is the wider for it.
    """

    mean: float
    low: float
    high: float
    seeds: int
    comparisons: int = 1

    def __format__(self, spec: str) -> str:
        """Write "mean (low to high)", each with the format ``spec``."""
        return f"{self.mean:{spec}} ({self.low:{spec}} to {self.high:{spec}})"

    def __rmul__(self, factor: float) -> "Difference":
        """Return it in another unit: ``100 * difference`` of shares is in points."""
        ends = sorted((factor * self.low, factor * self.high))
        return replace(self, mean=factor * self.mean, low=ends[0], high=ends[1])


def paired(
    a: Mapping[int, float], b: Mapping[int, float], comparisons: int = 1, fewest: int = FEWEST_SEEDS
) -> Difference:
    """Return the mean of ``a - b`` over the seeds that both have, with its interval.

    The interval is Student's for paired differences. Of ``comparisons`` such intervals all hold their
    true difference with 95 % probability at least: each is taken at 1 - 0.05 / comparisons (Bonferroni;
    Dunn, "Multiple comparisons among means", JASA 56, 1961).

    Args:
        a, b: {seed: score}.
        comparisons: how many differences the page looks at for one conclusion.
        fewest: the least number of pairs; three at least.

    Raises:
        ValueError: there are fewer pairs than ``fewest``, that is below 3, or ``comparisons`` below 1.
    """
    if fewest < FEWEST_AT_ALL:
        raise ValueError(
            f"fewest={fewest}: at least {FEWEST_AT_ALL}, for an interval to say anything"
        )
    if comparisons < 1:
        raise ValueError(f"comparisons={comparisons}: count this one too, so at least 1")
    seeds = sorted(a.keys() & b.keys())
    if len(seeds) < fewest:
        raise ValueError(
            f"{len(seeds)} seeds have both scores ({seeds}); a conclusion needs at least {fewest}"
        )
    return interval([a[seed] - b[seed] for seed in seeds], comparisons)


def interval(differences: Sequence[float], comparisons: int = 1) -> Difference:
    """Return the mean of independent differences with Student's interval, corrected as in `paired`.

    Raises:
        ValueError: there are fewer than three.
    """
    from scipy.stats import t

    n = len(differences)
    if n < FEWEST_AT_ALL:
        raise ValueError(
            f"{n} differences: at least {FEWEST_AT_ALL}, for an interval to say anything"
        )
    mean = statistics.fmean(differences)
    quantile = float(t.ppf(1 - (1 - LEVEL) / (2 * comparisons), n - 1))
    half = quantile * statistics.stdev(differences) / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, n, comparisons)


def verdict(
    difference: Difference, claim: str, margin: float = 0.0, elsewhere: bool = False
) -> Verdict:
    """Judge a claim about a difference by its interval.

    Args:
        difference: see `paired`. Of fewer than five seeds it is undecided which of the two is better;
            that they are equal within ``margin`` three can say.
        claim: "greater" (the difference is above ``margin``), "less" (below ``-margin``), or "equal"
            (within ``margin`` of zero).
        margin: in the unit of the scores; "equal" needs one.
        elsewhere: whether the paper's model, data or budget were others than here. What would disagree
            "cannot be tested here" then.

    Raises:
        ValueError: ``claim`` is none of the three, ``margin`` is negative, or "equal" has no margin.
    """
    if claim not in ("greater", "less", "equal"):
        raise ValueError(f"claim={claim!r}: one of 'greater', 'less', 'equal'")
    if margin < 0 or (claim == "equal" and margin == 0):
        raise ValueError(f"margin={margin}: a positive number says what still counts as equal")
    low, high = difference.low, difference.high
    if claim == "less":
        low, high = -high, -low
    if claim == "equal":
        inside, outside = -margin <= low and high <= margin, high < -margin or low > margin
    else:
        inside, outside = low > margin, high <= margin
    enough = (
        getattr(difference, "seeds", FEWEST_SEEDS) >= FEWEST_SEEDS
    )  # a correlation has no seeds
    if inside and (enough or claim == "equal"):
        return AGREES
    if outside and enough:
        return CANNOT_BE_TESTED if elsewhere else DISAGREES
    return UNDECIDED


def holds(condition: bool, elsewhere: bool = False) -> Verdict:
    """Judge a claim about exact things, such as counts and equal tensors: it agrees or it does not.

    Args:
        condition: what the cell computed.
        elsewhere: as in `verdict`.
    """
    if condition:
        return AGREES
    return CANNOT_BE_TESTED if elsewhere else DISAGREES


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict on a claim that has several parts.

    It agrees if all parts do, and disagrees if one does. Otherwise it cannot be tested here if one part
    cannot, and is undecided if none is of that kind.

    Raises:
        ValueError: there are no parts.
    """
    if not verdicts:
        raise ValueError("no verdicts: a claim has at least one part")
    if all(each == AGREES for each in verdicts):
        return AGREES
    for word in (DISAGREES, CANNOT_BE_TESTED):
        if word in verdicts:
            return word
    return UNDECIDED


def claims_table(rows: Sequence[tuple[str, str, Verdict]]) -> str:
    """Return a Markdown table: the claim, what the page measured, the verdict.

    Args:
        rows: claim with its citation, the measurement as text, and the verdict.

    Raises:
        TypeError: a verdict was typed, and not made by `verdict`, `holds` or `together`.
    """
    lines = ["| the claim | measured here | verdict |", "|---|---|---|"]
    for claim, measured, word in rows:
        if not isinstance(word, Verdict):
            raise TypeError(
                f"{word!r} for {claim!r} is no Verdict: compute it by evidence.verdict or holds"
            )
        lines.append(f"| {claim} | {measured} | {word} |")
    return "\n".join(lines)


def at_ceiling(scores: Sequence[float], ceiling: float = CEILING) -> bool:
    """Tell whether the best methods all reach the ceiling, so that a task cannot tell them apart.

    Args:
        scores: the mean scores of all methods, as shares from 0 to 1.
        ceiling: what counts as reached. The best quarter, three at least, must reach it.
    """
    best = sorted(scores, reverse=True)[: max(3, len(scores) // 4)]
    return min(best) >= ceiling
