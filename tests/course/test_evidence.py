"""Intervals over seeds, and the verdicts that follow from them."""

import numpy as np
import pytest

from pedagogic_peft.course import evidence
from pedagogic_peft.course.evidence import Difference, Verdict, holds, paired, together, verdict


def test_a_paired_interval_is_students():
    a, b = {s: 1.0 + s for s in range(5)}, {s: 0.9 + s + 0.01 * s for s in range(5)}
    found = paired(a, b)
    differences = np.array([a[s] - b[s] for s in range(5)])
    half = 2.776445 * differences.std(ddof=1) / 5**0.5
    assert found.mean == pytest.approx(differences.mean())
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half))
    assert found.seeds == 5


def test_a_difference_can_be_had_in_points():
    assert f"{100 * Difference(0.1, -0.05, 0.25, 5):+.0f}" == "+10 (-5 to +25)"
    assert -1 * Difference(1, 0, 3, 5) == Difference(-1, -3, 0, 5)


def test_only_seeds_that_both_have_are_paired():
    a, b = dict.fromkeys(range(7), 2.0), dict.fromkeys(range(2, 9), 1.0)
    assert paired(a, b).seeds == 5
    with pytest.raises(
        ValueError, match=r"4 seeds have both scores \(\[0, 1, 2, 3\]\); .* at least 5"
    ):
        paired(a, dict.fromkeys(range(4), 1.0))


def test_more_comparisons_make_a_wider_interval():
    a, b = {0: 1.0, 1: 2.0, 2: 3.0, 3: 5.0, 4: 4.0}, dict.fromkeys(range(5), 0.0)
    one, many = paired(a, b), paired(a, b, comparisons=20)
    assert many.low < one.low < one.mean < one.high < many.high
    with pytest.raises(ValueError, match="comparisons=0"):
        paired(a, b, comparisons=0)


def test_equal_methods_are_rarely_told_apart():
    """Of twenty comparisons of equal methods one in twenty families holds a false alarm."""
    rng = np.random.default_rng(0)
    families = 400
    alarms = 0
    for _ in range(families):
        found = [
            evidence.interval(list(rng.normal(size=5) - rng.normal(size=5)), 20) for _ in range(20)
        ]
        alarms += any(d.low > 0 or d.high < 0 for d in found)
    assert alarms / families < 0.09


@pytest.mark.parametrize(
    ("low", "high", "claim", "margin", "word"),
    [
        (0.1, 0.3, "greater", 0, "agrees"),
        (-0.1, 0.3, "greater", 0, "undecided"),
        (-0.3, -0.1, "greater", 0, "disagrees"),
        (0.1, 0.3, "less", 0, "disagrees"),
        (-0.3, -0.1, "less", 0, "agrees"),
        (0.0, 0.0, "greater", 0, "disagrees"),
        (-0.01, 0.01, "equal", 0.02, "agrees"),
        (-0.01, 0.03, "equal", 0.02, "undecided"),
        (0.03, 0.05, "equal", 0.02, "disagrees"),
        (0.01, 0.05, "greater", 0.02, "undecided"),
    ],
)
def test_a_verdict_follows_from_the_interval(low, high, claim, margin, word):
    difference = Difference((low + high) / 2, low, high, 5)
    assert verdict(difference, claim, margin) == word
    elsewhere = verdict(difference, claim, margin, elsewhere=True)
    assert elsewhere == ("cannot be tested here" if word == "disagrees" else word)


@pytest.mark.parametrize(
    ("low", "high", "claim", "word"),
    [
        (0.1, 0.3, "greater", "undecided"),
        (-0.3, -0.1, "greater", "undecided"),
        (-0.3, -0.1, "less", "undecided"),
        (-0.01, 0.01, "equal", "agrees"),
        (0.3, 0.5, "equal", "undecided"),
    ],
)
@pytest.mark.parametrize("seeds", [3, 4])
def test_which_of_two_is_better_is_undecided_with_fewer_than_five_seeds(
    seeds, low, high, claim, word
):
    difference = Difference((low + high) / 2, low, high, seeds)
    assert verdict(difference, claim, 0.02) == verdict(difference, claim, 0.02, True) == word


def test_two_seeds_are_no_number():
    one, other = {0: 1.0, 1: 2.0}, {0: 0.5, 1: 1.0}
    with pytest.raises(ValueError, match="fewest=2: at least 3"):
        paired(one, other, fewest=2)
    with pytest.raises(ValueError, match="2 differences: at least 3"):
        evidence.interval([0.5, 1.0])


def test_a_claim_that_cannot_be_judged_is_an_error():
    difference = Difference(0, -1, 1, 5)
    with pytest.raises(ValueError, match="claim='better'"):
        verdict(difference, "better")
    with pytest.raises(ValueError, match="margin=0"):
        verdict(difference, "equal")


def test_parts_make_a_whole():
    yes, no = holds(True), holds(False)
    assert holds(False, elsewhere=True) == "cannot be tested here"
    assert together([yes, yes]) == "agrees"
    assert together([yes, evidence.UNDECIDED]) == "undecided"
    assert together([yes, no, evidence.UNDECIDED]) == "disagrees"
    assert together([yes, evidence.CANNOT_BE_TESTED, evidence.UNDECIDED]) == "cannot be tested here"
    with pytest.raises(ValueError, match="no verdicts"):
        together([])


def test_a_table_takes_no_typed_verdict():
    table = evidence.claims_table([("it holds", "1", holds(True))])
    assert table.splitlines()[2] == "| it holds | 1 | agrees |"
    with pytest.raises(TypeError, match="'agrees' for 'it holds' is no Verdict"):
        evidence.claims_table([("it holds", "1", "agrees")])
    assert isinstance(together([holds(True)]), Verdict)


def test_a_task_is_at_its_ceiling_when_its_best_methods_are():
    assert evidence.at_ceiling([1.0, 0.99, 0.98, 0.2])
    assert not evidence.at_ceiling([1.0, 0.99, 0.9, 0.2])
