"""The rule by which a learning rate is chosen."""

import pytest

from pedagogic_peft.course.experiments import search

GRID = (0.001, 0.01, 0.1, 1.0, 10.0)


def record(rate, val, seed=0, loss=1.0):
    return {"rate": rate, "val": val, "val_loss": loss, "seed": seed}


def after(values, seed=0):
    return search.wanted([record(r, v, seed) for r, v in values.items()], GRID, 0.1)


def test_it_starts_with_three_rates_and_goes_on_at_an_edge():
    assert after({}) == [(0.01, 0), (0.1, 0), (1.0, 0)]
    assert after({0.01: 0.2, 0.1: 0.5}) == [(1.0, 0)]
    assert after({0.01: 0.2, 0.1: 0.5, 1.0: 0.9}) == [(10.0, 0)]
    assert after({0.01: 0.9, 0.1: 0.5, 1.0: 0.2}) == [(0.001, 0)]


def test_the_end_of_the_grid_is_an_error():
    with pytest.raises(ValueError, match="the best rate, 10, is at the end of the grid"):
        after({0.01: 0.2, 0.1: 0.5, 1.0: 0.9, 10.0: 1.0})


@pytest.mark.parametrize("values", [(0.2, 0.5, 0.9), (0.9, 0.5, 0.2), (0.2, 0.5)])
def test_a_best_rate_at_an_edge_is_an_error(values):
    records = [record(rate, value) for rate, value in zip(GRID, values, strict=False)]
    with pytest.raises(ValueError, match="at the edge of what was tried .* run the rates beyond"):
        search.best_rate(records)
    assert search.at_edge(records)
    assert search.best_rate(records, edge=True) == search.leading(records)[0]


def test_two_rates_get_all_selecting_seeds_and_a_lucky_one_loses():
    records = [record(r, v) for r, v in {0.01: 0.2, 0.1: 0.8, 1.0: 0.9, 10.0: 0.1}.items()]
    more = search.wanted(records, GRID, 0.1)
    assert more == [(1.0, 1), (1.0, 2), (0.1, 1), (0.1, 2)]
    assert search.best_rate(records) == 1.0
    records += [record(rate, 0.8 if rate == 0.1 else 0.3, seed) for rate, seed in more]
    assert search.best_rate(records) == 0.1 and search.wanted(records, GRID, 0.1) == []
    assert not search.at_edge(records)


def test_the_loss_decides_between_equal_scores_only():
    records = [record(0.01, 0.5, loss=0.1), record(0.1, 0.6, loss=3.0), record(1.0, 0.6, loss=2.0)]
    assert search.leading(records) == [1.0, 0.1, 0.01]


def test_what_diverged_is_never_chosen():
    records = [record(0.01, 0.4), record(0.1, 0.5), record(1.0, None, loss=None)]
    assert search.best_rate(records) == 0.1
    with pytest.raises(ValueError, match="none trained without diverging"):
        search.best_rate([record(1.0, None, loss=None)])


def test_later_seeds_do_not_choose():
    scores = {0.01: 0.3, 0.1: 0.5, 1.0: 0.4}
    records = [record(rate, scores[rate], s) for s in (0, 1, 2) for rate in scores]
    records += [record(1.0, 1.0, s) for s in (3, 4)]
    assert search.best_rate(records) == 0.1


def test_the_two_leading_rates_and_what_hung_on_the_choice():
    records = [record(0.01, 0.2), record(0.1, 0.5), record(1.0, 0.6), record(1.0, 0.8, seed=2)]
    records += [record(1.0, 0.0, seed=3)]  # chooses nothing
    found = search.two_leading(records, ("val", "rate"))
    assert list(found) == [1.0, 0.1]
    assert found[1.0] == pytest.approx([0.7, 1.0]) and found[0.1] == [0.5, 0.1]
