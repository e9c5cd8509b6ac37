"""Checks of hyper-parameters: each returns the value, or raises one clear error that names it.

Also the warning of those that are legal and yet seem a mistake.
"""

import math
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[str, Any], Any]  # (name of the hyper-parameter, value): the value to keep


def expect(good: object, what: str, value: Any, expected: str) -> Any:
    """Return the value if it is good; a ValueError otherwise."""
    if not good:
        raise ValueError(f"{what}={value!r}: expected {expected}")
    return value


def whole(what: str, value: Any, least: int = 0) -> Any:
    """Return the value if it is a whole number of at least ``least``."""
    good = isinstance(value, int) and not isinstance(value, bool) and value >= least
    return expect(good, what, value, f"a whole number, at least {least}")


def count(what: str, value: Any) -> Any:
    """Return the value if it is a whole number of at least 1."""
    return whole(what, value, least=1)


def number(what: str, value: Any) -> Any:
    """Return the value if it is a finite number of at least 0."""
    return expect(_is_finite(value) and value >= 0, what, value, "a number, at least 0")


def positive(what: str, value: Any) -> Any:
    """Return the value if it is a finite number greater than 0."""
    return expect(_is_finite(value) and value > 0, what, value, "a number greater than 0")


def probability(what: str, value: Any) -> Any:
    """Return the value if 0 <= value < 1."""
    good = _is_finite(value) and 0 <= value < 1
    return expect(good, what, value, f"a probability, 0 <= {what} < 1")


def flag(what: str, value: Any) -> Any:
    """Return the value if it is True or False."""
    return expect(isinstance(value, bool), what, value, "True or False")


def one_of(*choices: Any) -> Check:
    """Return a check that the value is one of the choices."""
    expected = f"one of {', '.join(map(str, choices))}"
    return lambda what, value: expect(value in choices, what, value, expected)


def names(what: str, value: Any) -> tuple[str, ...]:
    """Return the list of names as a tuple, so that a frozen object stays as it is."""
    good = isinstance(value, list | tuple) and all(isinstance(n, str) and n for n in value)
    return tuple(expect(good, what, value, "a list of module names"))


def targets(what: str, value: Any) -> Any:
    """Return `target_modules`: a list of names as a tuple, a regular expression as it is."""
    return regex(what, value) if isinstance(value, str) else names(what, value)


def layers(what: str, value: Any) -> tuple[int, ...]:
    """Return the numbers of layers, counted from 0, as a tuple."""
    expect(isinstance(value, list | tuple), what, value, "a list of layer numbers")
    return tuple(whole(what, layer) for layer in value)


def regex(what: str, value: str) -> str:
    """Return the string if it is a regular expression."""
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{what}={value!r} is not a regular expression: {error}") from None
    return value


def pattern(check: Check) -> Check:
    """Return a check that the value is a dict {regular expression: value that passes ``check``}."""

    def check_all(what: str, value: Any) -> Any:
        expect(isinstance(value, Mapping), what, value, "a dict, {end of a path: value}")
        return {regex(what, key): check(f"{what}[{key!r}]", one) for key, one in value.items()}

    return check_all


def warn(message: str) -> None:
    """Warn, and point at the line from which the library was called."""
    level = 1
    while sys._getframe(level).f_globals["__name__"].startswith("pedagogic_peft."):
        level += 1
    warnings.warn(message, stacklevel=level + 1)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
