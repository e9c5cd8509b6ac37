"""Checks of hyper-parameters: each raises one clear error that names the value."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any


def check_whole(what: str, value: Any, least: int = 1) -> None:
    """Raise a ValueError unless the value is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{what}={value!r}: expected a whole number, at least {least}")


def check_positive(what: str, value: Any) -> None:
    """Raise a ValueError unless the value is a finite number greater than 0."""
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{what}={value!r}: expected a number greater than 0")


def check_probability(what: str, value: Any) -> None:
    """Raise a ValueError unless 0 <= value < 1."""
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{what}={value!r}: expected a probability, 0 <= {what} < 1")


def check_flag(what: str, value: Any) -> None:
    """Raise a TypeError unless the value is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{what}={value!r}: expected True or False")


def check_choice(what: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{what}={value!r}: expected one of {', '.join(choices)}")


def check_pattern(what: str, pattern: Any, check_value: Callable[[str, Any], None]) -> None:
    """Raise an error unless this is a dict of {regular expression: good value}."""
    if not isinstance(pattern, Mapping):
        raise TypeError(f"{what}={pattern!r}: expected a dict, {{end of a path: value}}")
    for key, value in pattern.items():
        check_regex(what, key)
        check_value(f"{what}[{key!r}]", value)


def check_regex(what: str, value: str) -> None:
    """Raise a ValueError unless the string is a regular expression."""
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{what}={value!r} is not a regular expression: {error}") from None


def names(what: str, value: Any) -> tuple[str, ...]:
    """Return the list of module names as a tuple, so that a frozen object stays as it is.

    Raises:
        TypeError: it is no list or tuple of strings.
    """
    if not isinstance(value, list | tuple) or not all(isinstance(n, str) and n for n in value):
        raise TypeError(f"{what}={value!r}: expected a list of module names")
    return tuple(value)


def targets(what: str, value: Any) -> tuple[str, ...] | str | None:
    """Return `target_modules` as given, a list as a tuple.

    Raises:
        TypeError, ValueError: it is no list of names, no regular expression and not None.
    """
    if isinstance(value, str):
        check_regex(what, value)
        return value
    return None if value is None else names(what, value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
