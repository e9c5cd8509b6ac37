"""Numbers of a page are compared as numbers where its cell says so, and only there; all else is exact."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("gate", ROOT / "chapters" / "conftest.py")
gate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gate)


def same(stored: str, new: str, **tolerance: float) -> bool:
    return gate.settle(stored, new, tolerance) == stored


@pytest.mark.parametrize(
    ("stored", "new", "tolerance", "expected"),
    [
        ("loss 5.59", "loss 5.60", {"abs": 0.02}, True),
        ("loss 5.59", "loss 5.62", {"abs": 0.02}, False),
        ("loss 5.59", "cost 5.59", {"abs": 0.02}, False),  # a word
        ("loss 5.59", "loss 5.59 5.59", {"abs": 0.02}, False),  # how many there are
        ("16 steps: 0.93", "17 steps: 0.93", {"abs": 2.0}, False),  # a count is exact
        ("16 steps: 0.93", "17 steps: 0.93", {"abs": 2.0, "whole": 1}, True),
        ("accuracy 93%", "accuracy 92%", {"whole": 1}, True),
        ("accuracy 93%", "accuracy 91%", {"whole": 1}, False),
        ("[ 9.95]", "[10.02]", {"abs": 0.1}, True),  # one column wider, one space fewer
        ("1,309,280 numbers", "1,309,281 numbers", {"abs": 5}, False),
        ("2.0e-05", "2.1e-05", {"abs": 1e-6}, True),
        ("2.0e-05", "3.0e-05", {"abs": 1e-6}, False),
        ("-0.01", "0.01", {"abs": 0.02}, True),
        ("\u22120.5", "-0.5", {"abs": 0.02}, True),  # a minus sign is a minus sign
        ("nan", "0.5", {"abs": 1.0}, False),
        ("True 0.5", "False 0.5", {"abs": 1.0}, False),
    ],
)
def test_numbers_within_the_tolerance_are_the_stored_ones(stored, new, tolerance, expected):
    assert same(stored, new, **tolerance) == expected


def cells() -> list:
    """Every cell of the book that declares a tolerance."""
    found = []
    for path in sorted((ROOT / "chapters").rglob("*.ipynb")):
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            if "tolerance" in cell["metadata"]:
                name = f"{path.stem}-{cell['execution_count']}"
                found.append(pytest.param(cell, id=name))
    return found


def texts(cell: dict) -> list[str]:
    parts = []
    for output in cell["outputs"]:
        parts += ["".join(output["text"])] if "text" in output else []
        data = output.get("data", {}).items()
        parts += ["".join(text) for mime, text in data if mime in ("text/plain", "text/markdown")]
    return parts


@pytest.mark.parametrize("cell", cells())
def test_a_tolerance_says_how_much_and_why(cell):
    tolerance = cell["metadata"]["tolerance"]
    assert set(tolerance) <= {"abs", "whole", "reason"} and set(tolerance) - {"reason"}
    assert all(tolerance[key] > 0 for key in set(tolerance) - {"reason"})
    assert len(tolerance["reason"]) >= 20
    assert "nbval-ignore-output" not in cell["metadata"].get("tags", [])
    limits = [
        bool(gate.allowed(n, n, tolerance)) for text in texts(cell) for n in gate.numbers(text)
    ]
    assert any(limits), "no number of its outputs may differ: drop the tolerance"


@pytest.mark.parametrize("cell", cells())
def test_a_change_twice_as_large_is_found(cell):
    """Each number of the stored output in turn, a word, and a number more: each is a failure."""
    tolerance = cell["metadata"]["tolerance"]
    for text in texts(cell):
        for match in gate.NUMBER.finditer(text):
            number = match[0].strip()
            step = 2 * gate.allowed(number, number, tolerance) or 1
            planted = text[: match.start()] + shifted(match[0], step) + text[match.end() :]
            assert gate.settle(text, planted, tolerance) != text, (number, step)
        assert gate.settle(text, text + " no", tolerance) != text
        assert gate.settle(text, text + " 7", tolerance) != text


def shifted(number: str, step: float) -> str:
    """Return the number, written with as many decimals or more, larger by a step."""
    moved = gate.value(number) + step
    decimals = any(mark in number for mark in ".e")
    return number.replace(number.strip(), f"{moved:.12g}" if decimals else f"{round(moved)}")
