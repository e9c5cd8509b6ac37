"""What others measured: the file is whole, and ranks are compared as scipy compares them."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from pedagogic_peft.course import field
from pedagogic_peft.course.experiments import comparison


def test_the_file_holds_what_the_source_says():
    found = {(row.method, row.setting): row for row in field.rows()}
    assert len(found) == len(field.rows()) == 25
    full, lora = found["full fine-tuning", "lr 1e-5"], found["LoRA", "r 32 on q and v"]
    assert (full.accuracy, full.trained, full.memory) == (0.472, 3_212_749_824, 38.9)
    assert (lora.accuracy, lora.forgetting, lora.minutes) == (0.478, 0.050, 15.7)
    assert lora.error == pytest.approx(0.0138, abs=1e-4)
    assert all(0 < row.accuracy < 1 and row.forgetting > 0 for row in field.rows())


def test_the_methods_of_the_bench_are_named_as_the_bench_names_them():
    named = {row.ours for row in field.rows() if row.ours}
    assert named <= comparison.METHODS.keys() and len(named) == 9


def test_the_best_or_the_first_run_stands_for_a_method():
    best, first = field.accuracies(), field.accuracies("first")
    assert best.keys() == first.keys()
    assert (best["prompt tuning"], first["prompt tuning"]) == (0.343, 0.057)
    assert (best["LoRA"], first["LoRA"]) == (0.513, 0.478)
    assert all(best[name] >= first[name] for name in best)
    with pytest.raises(ValueError, match="setting='last'"):
        field.accuracies("last")


def test_the_rank_correlation_is_spearmans():
    rng = np.random.default_rng(3)
    a = {str(i): float(x) for i, x in enumerate(rng.integers(5, size=12))}  # with ties
    b = {str(i): float(x) for i, x in enumerate(rng.normal(size=13))}
    found = field.rank_correlation(a, b, draws=500)
    expected = spearmanr(list(a.values()), list(b.values())[:12])
    assert found.value == pytest.approx(expected.statistic)
    assert found.methods == 12 and found.low <= found.value <= found.high
    assert found.p == pytest.approx(expected.pvalue, abs=0.1)
    assert f"{found:+.1f}" == f"{found.value:+.1f} ({found.low:+.1f} to {found.high:+.1f})"


def test_one_of_several_correlations_has_a_wider_interval():
    rng = np.random.default_rng(3)
    a, b = ({str(i): float(x) for i, x in enumerate(rng.normal(size=12))} for _ in range(2))
    alone, among = (field.rank_correlation(a, b, comparisons=n) for n in (1, 5))
    assert among.low < alone.low < alone.high < among.high and among.value == alone.value
    with pytest.raises(ValueError, match="comparisons=0: count this one too"):
        field.rank_correlation(a, b, comparisons=0)


def test_equal_orders_correlate_and_are_rarely_chance():
    a = {str(i): float(i) for i in range(9)}
    found = field.rank_correlation(a, {name: x**3 for name, x in a.items()}, draws=500)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1)) and found.p < 0.01
    assert field.rank_correlation(a, {n: -x for n, x in a.items()}, draws=50).value == (
        pytest.approx(-1)
    )


def test_too_few_methods_or_no_order_is_an_error():
    a = {str(i): float(i) for i in range(5)}
    with pytest.raises(ValueError, match=r"3 methods are in all \(\['0', '1', '2'\]\)"):
        field.rank_correlation(a, {str(i): 1.0 for i in range(3)})
    with pytest.raises(ValueError, match="no order to compare"):
        field.rank_correlation(a, dict.fromkeys(a, 1.0))


def test_a_difference_of_correlations_takes_the_same_methods_for_both():
    rng = np.random.default_rng(3)
    a, b, c = ({str(i): float(x) for i, x in enumerate(rng.normal(size=12))} for _ in range(3))
    found = field.difference_of_correlations(a, b, c, draws=300)
    one, two = (field.rank_correlation(each, c, draws=50) for each in (a, b))
    assert found.value == pytest.approx(one.value - two.value) and found.methods == 12
    assert found.low < found.value < found.high
    wider = field.difference_of_correlations(a, b, c, draws=300, comparisons=6)
    assert wider.low < found.low and found.high < wider.high
    itself = field.difference_of_correlations(a, a, c, draws=50)
    assert (itself.value, itself.low, itself.high) == (0, 0, 0)


def test_draws_without_an_order_are_left_out():
    a = {str(i): float(i == 0) for i in range(4)}  # a third of the draws has nothing but zeros
    found = field.rank_correlation(a, {str(i): float(i) for i in range(4)}, draws=200)
    assert -1 <= found.low <= found.high <= 1
