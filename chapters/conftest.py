"""How the gate judges a cell, where that is more than nbval does by itself.

* Outputs are compared letter by letter. A cell whose numbers come from training or from 16-bit arithmetic may
  declare a tolerance in its metadata, since processors round differently:
  ``{"tolerance": {"abs": 0.02, "reason": "..."}}``. Then numbers with decimals may differ by that much, and
  nothing else may: words, whole numbers, how many there are. With ``"whole": 1`` whole numbers may too, where
  results are printed without decimals.
* What bitsandbytes says when it is imported on a processor with AVX-512 is left out (`NOISE`): every page
  that imports peft would say it there, and only there.
* A notebook stops at the first cell that raises or times out: what follows would only repeat it. Outputs that
  differ do not stop it, so that one run shows every difference.
"""

import json
import os
import platform
import re
from collections.abc import Iterator
from importlib.metadata import version

import pytest

os.environ["PEDAGOGIC_PEFT_GATE"] = "1"  # a run that differs from the stored one is an error here
VERSIONS = ("torch", "transformers", "peft", "numpy")
NOISE = "Failed to load CPU gemm_4bit_forward from kernels-community"
# A number, with the spaces that align it: 12.5, -3, 1,024, 2e-05.
NUMBER = re.compile(r" *[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)? *")


def numbers(text: str) -> list[str]:
    return NUMBER.findall(text)


def value(number: str) -> float:
    return float(number.strip().replace(",", "").replace("\u2212", "-"))


def distance(stored: str, new: str) -> float:
    """Return how far two written numbers are apart, without the noise of binary fractions."""
    return round(abs(value(stored) - value(new)), 12)


def allowed(stored: str, new: str, tolerance: dict) -> float:
    """Return how far this number may be from the stored one: one without decimals is exact, as counts are."""
    decimals = any(mark in number for number in (stored, new) for mark in ".e")
    return tolerance.get("abs" if decimals else "whole", 0.0)


def pairs(stored: str, new: str) -> list[tuple[str, str]] | None:
    """Return the numbers of two texts, paired in order, or None where the texts differ in anything else."""
    if NUMBER.sub("#", stored) != NUMBER.sub("#", new):
        return None
    return list(zip(numbers(stored), numbers(new), strict=True))


def settle(stored: str, new: str, tolerance: dict) -> str:
    """Return the new text with every number that is near enough written as in the stored one."""
    near = iter(pairs(stored, new) or [(number, number) for number in numbers(new)])

    def choose(match: re.Match) -> str:
        old, here = next(near)
        return old if distance(old, here) <= allowed(old, here, tolerance) else match[0]

    return NUMBER.sub(choose, new)


def texts(stored: list, new: list) -> Iterator[tuple[dict, str, str]]:
    """Yield (holder, key, stored text) for every text of the new outputs that has a stored counterpart."""
    for old, output in zip(stored, new, strict=False):
        for before, holder in ((old, output), (old.get("data", {}), output.get("data", {}))):
            for key in holder:
                if key.startswith("text") and isinstance(before.get(key), str):
                    yield holder, key, before[key]


def compare(cell, new: list, stored: list) -> bool:
    """Compare a cell's outputs: numbers within its tolerance, all else letter by letter."""
    tolerance = cell.cell.metadata.get("tolerance", {})
    new = [output for output in new if not output.get("text", "").startswith(NOISE)]
    new, stored = cell.sanitize_outputs(new), cell.sanitize_outputs(stored)
    found = [(holder, key, old, holder[key]) for holder, key, old in texts(stored, new)]
    for holder, key, old, text in found if tolerance else ():
        holder[key] = settle(old, text, tolerance)
    same = type(cell).compare_outputs(cell, new, stored)
    apart = [(a, b) for *_, old, text in found for a, b in pairs(old, text) or () if distance(a, b)]
    report = {
        "tolerance": tolerance,
        "largest": max((distance(*pair) for pair in apart), default=0.0),
    }
    cell.user_properties.append(("numbers", json.dumps(report)))
    if not same:
        beyond = [
            f"{a.strip()} -> {b.strip()}"
            for a, b in apart
            if distance(a, b) > allowed(a, b, tolerance)
        ]
        limits = ", ".join(f"{k} {tolerance[k]}" for k in ("abs", "whole") if k in tolerance)
        cell.comparison_traceback.append(
            f"Stored -> new, beyond the tolerance ({limits or 'none: exact'}): "
            + ("; ".join(beyond) or "no number")
        )
    return same


def pytest_itemcollected(item):
    if hasattr(item, "cell_num"):
        item.compare_outputs = lambda new, stored, skip_compare=None: compare(item, new, stored)


@pytest.hookimpl(trylast=True)  # after the report is there
def pytest_configure(config):
    """Write the versions into the report from which the book's status page is made."""
    from _pytest.junitxml import xml_key

    report = config.stash.get(xml_key, None)
    if report is not None:
        report.add_global_property("Python", platform.python_version())
        for name in VERSIONS:
            report.add_global_property(name, version(name).split("+")[0])


def pytest_runtest_makereport(item, call):
    if call.excinfo is None or not hasattr(item, "cell_num"):
        return
    if not call.excinfo.errisinstance(pytest.skip.Exception) and not _only_differs(call.excinfo):
        item.parent.stopped_at = item.cell_num


def pytest_runtest_setup(item):
    stopped_at = getattr(item.parent, "stopped_at", None)
    if stopped_at is not None:
        pytest.skip(f"cell {stopped_at} did not finish")


def _only_differs(failure) -> bool:
    return str(failure.value) == "Cell outputs differ"  # nbval's words
