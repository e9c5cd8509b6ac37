"""A class's project: data of one's own, and the rules that records must keep."""

import json

import pytest

from pedagogic_peft.course import project
from pedagogic_peft.course.project import Record

FLOORS = {"majority": 0.5, "frozen": 0.6}
GRIDS = {"A": (0.001, 0.01, 0.1), "B": (0.003, 0.03, 0.3)}


def good() -> list[Record]:
    """Two methods, three rates at seed 0, four seeds more at the middle one."""
    found = []
    for method, rates in GRIDS.items():
        for rate, score in zip(rates, (0.7, 0.8, 0.6), strict=True):
            found.append(Record(method, rate, 0, 60, score))
        found += [Record(method, rates[1], seed, 60, 0.7 + seed / 50) for seed in range(1, 5)]
    return found


def test_an_id_has_one_seed_for_each_part():
    assert project.seed_of("u123") == project.seed_of(" u123 ")
    assert project.seed_of("u123", "train") != project.seed_of("u123", "test")
    assert project.seed_of("u123") != project.seed_of("u124")
    assert 0 <= project.seed_of("u123") < 2**31
    for empty in ("", "  "):
        with pytest.raises(ValueError, match="the id that the roster has"):
            project.seed_of(empty)


@pytest.mark.parametrize("base", ["pocket-gpt", "pocket-gpt-tiny"])
def test_a_student_has_data_that_nobody_else_has(base):
    mine, again, other = (project.data(base, student) for student in ("ann", "ann", "ben"))
    assert mine == again and mine.blind != other.blind and mine.train != other.train
    assert [len(mine.train), len(mine.dev), len(mine.blind)] == list(project.SIZES.values())
    parts = [{e.prompt for e in mine.train}, {e.prompt for e in mine.dev}, set(mine.blind)]
    assert sum(map(len, parts)) == len(set.union(*parts)), "a review is in two parts"


def test_the_blind_reviews_have_answers_for_who_grades():
    answers = project.answers("pocket-gpt", "ann")
    data = project.data("pocket-gpt", "ann")
    assert len(answers) == len(data.blind) and set(answers) == set(data.labels)
    assert all(isinstance(review, str) for review in data.blind)


def test_records_are_read():
    text = "\n".join(json.dumps(vars(record)) for record in good())
    assert project.read_records(f"\n{text}\n") == good()
    assert project.read_records("  ") == []


@pytest.mark.parametrize(
    "line",
    [
        "LoRA 0.01 0.8",
        '{"method": "A", "rate": 0.1, "seed": 0, "steps": 60}',
        '{"method": "A", "rate": 0.1, "seed": 0, "steps": 60, "score": 80}',
        '{"method": "A", "rate": -1, "seed": 0, "steps": 60, "score": 0.8}',
        '{"method": "A", "rate": "x", "seed": 0, "steps": 60, "score": 0.8}',
        '{"method": "A", "rate": 0.1, "seed": 0.5, "steps": 60, "score": 0.8}',
        "[]",
    ],
)
def test_what_is_no_record_is_refused_with_its_line(line):
    text = json.dumps(vars(good()[0])) + "\n" + line
    with pytest.raises(ValueError, match="line 2, .*expected a JSON object with"):
        project.read_records(text)


def test_good_records_allow_a_conclusion():
    assert project.problems(good(), FLOORS) == []
    assert project.chosen(good()) == {"A": 0.01, "B": 0.03}
    assert sorted(project.scores(good(), "A", 0.01)) == [0, 1, 2, 3, 4]


def changed(change) -> list[Record]:
    return [new for record in good() if (new := change(record))]


@pytest.mark.parametrize(
    "records, floors, said",
    [
        (good(), {"majority": 0.5}, "no floor 'frozen'"),
        (good(), {"majority": 0.0, "frozen": 0.6}, "no floor 'majority'"),
        (good()[:7], FLOORS, "1 methods: a comparison needs two"),
        (good()[:-1] + [Record("B", 0.03, 4, 90, 0.8)], FLOORS, "runs of [60, 90] steps"),
        (good() + good()[-1:], FLOORS, "a run is there twice"),
        (changed(lambda r: r if r.rate != 0.1 else None), FLOORS, "A: 2 rates were tried, 3"),
        (
            changed(lambda r: r if r.rate != 0.1 else Record("A", 0.0001, 0, 60, 0.6)),
            FLOORS,
            "A: its rate 0.01 is at the edge of the grid",
        ),
        (good()[:-1], FLOORS, "B: 4 seeds at its rate 0.03, 5 are needed"),
        (good()[:-1] + [Record("B", 0.03, 9, 60, 0.8)], FLOORS, "other seeds for other methods"),
        (
            changed(lambda r: r if r.rate != 0.1 else Record("A", 0.1, 0, 60, 0.85)),
            FLOORS,
            "A: with seed 0 the rate 0.1 was better than 0.01",
        ),
        (
            changed(lambda r: r if r.rate != 0.1 else Record("A", 0.1, 7, 60, 0.6)),
            FLOORS,
            "A: no seed was run at every rate",
        ),
        (
            changed(
                lambda r: Record(r.method, r.rate, r.seed, 60, 0.6 + 0.4 * (r.rate in (0.01, 0.03)))
            ),
            FLOORS,
            "all means are at least 98%: the task cannot tell the methods apart",
        ),
    ],
)
def test_what_forbids_a_conclusion_is_said(records, floors, said):
    assert any(said in problem for problem in project.problems(records, floors))


def test_no_records_are_no_crash():
    assert project.problems([], {})
