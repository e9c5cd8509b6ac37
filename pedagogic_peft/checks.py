"""Checks of hyper-parameters: each returns the value, or raises one clear error that names it."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def check_whole(what: str, value: Any, least: int = 1) -> int:
    """Return the value if it is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{what}={value!r}: expected a whole number, at least {least}")
    return value


def check_positive(what: str, value: Any, zero: bool = False) -> Any:
    """Return the value if it is a finite number greater than 0, or 0 where that is allowed."""
    if not (_is_number(value) and 0 < value < math.inf or (zero and value == 0)):
        raise ValueError(f"{what}={value!r}: expected a number greater than 0")
    return value


def check_optional(what: str, value: Any, check: Callable[[str, Any], Any]) -> Any:
    """Return None, or what another check returns."""
    return None if value is None else check(what, value)


def check_probability(what: str, value: Any) -> Any:
    """Return the value if 0 <= value < 1; a ValueError otherwise."""
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{what}={value!r}: expected a probability, 0 <= {what} < 1")
    return value


def check_flag(what: str, value: Any) -> bool:
    """Return the value if it is True or False; a TypeError otherwise."""
    if not isinstance(value, bool):
        raise TypeError(f"{what}={value!r}: expected True or False")
    return value


def check_choice(what: str, value: Any, choices: Sequence[Any]) -> Any:
    """Return the value if it is one of the choices."""
    if value not in choices:
        raise ValueError(f"{what}={value!r}: expected one of {', '.join(map(str, choices))}")
    return value


def check_pattern(
    what: str, pattern: Any, check_value: Callable[[str, Any], Any]
) -> Mapping[str, Any]:
    """Raise an error unless this is a dict of {regular expression: good value}."""
    if not isinstance(pattern, Mapping):
        raise TypeError(f"{what}={pattern!r}: expected a dict, {{end of a path: value}}")
    for key, value in pattern.items():
        check_regex(what, key)
        check_value(f"{what}[{key!r}]", value)
    return pattern


def check_regex(what: str, value: str) -> str:
    """Raise a ValueError unless the string is a regular expression."""
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{what}={value!r} is not a regular expression: {error}") from None
    return value


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
