"""`check_method`: every check on every architecture, and no traceback."""

import inspect
import random
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

from pedagogic_peft.core import validation
from pedagogic_peft.core.method import Method
from pedagogic_peft.core.verbs import attach
from pedagogic_peft.testing.checks import CHECKS
from pedagogic_peft.testing.models import ARCHITECTURES
from pedagogic_peft.testing.report import (
    FAILS,
    HOLDS,
    NOT_APPLICABLE,
    DoesNotApply,
    Failed,
    Finding,
    Report,
)
from pedagogic_peft.testing.subject import EXACT, FREE, NEAR, Subject, differences, snapshot

SLOW = "compile"


def check_method(
    method: Method | type[Method],
    *,
    start: str = EXACT,
    models: Sequence[str] = ARCHITECTURES,
    refuses: Sequence[str] = (),
    checks: Sequence[str] | None = None,
    compiled: bool = False,
    prepare: Callable[[Any], object] | None = None,
    raise_if_failed: bool = False,
) -> Report:
    """Check what every method promises, on small random models of several architectures.

    The checks are the library's own: see `pedagogic_peft.testing.checks`. A mistake of the method,
    an exception too, is a line of the report. All of it takes about a second an architecture on a
    CPU. Warnings are not shown, and the random numbers of the caller are left as they are.

    Args:
        method: hyper-parameters, or a class that can be made without any.
        start: what an untrained adaptation promises: "exact", the frozen model's logits bit for
            bit; "near", within 5 % of their norm; "free", nothing.
        models: names of architectures, some of `ARCHITECTURES`.
        refuses: those of the models on which the method has no meaning: `attach` has to raise a
            ValueError there and leave the model as it was.
        checks: names of checks, some of `CHECKS`; None means all of them, but for "compile".
        compiled: with all checks, `torch.compile` too; it takes a second or more an architecture.
        prepare: called with each fresh model before the method is attached, for a method that
            needs something there (`AdapterFusion` needs adapters). It has to do the same each time.
        raise_if_failed: raise `MethodFails` instead of returning a report that is not ok.

    Returns:
        A `Report`, with ``ok`` and ``failed``. Printed, it is a table, then every failure in words.

    Raises:
        TypeError: it is no method.
        ValueError: an unknown name of a model, a check or a start.
        MethodFails: with ``raise_if_failed``, if something fails.

    Example:
        >>> from pedagogic_peft import IA3
        >>> from pedagogic_peft.testing import check_method
        >>> report = check_method(IA3(), models=["llama"])
        >>> report.ok
        True
    """
    _check_names("models", models, ARCHITECTURES)
    _check_names("refuses", refuses, ARCHITECTURES)
    _check_names("checks", checks or (), CHECKS)
    validation.one_of(EXACT, NEAR, FREE)("start", start)
    names = [n for n in CHECKS if (n in checks if checks else compiled or n != SLOW)]
    if isinstance(method, type) and issubclass(method, Method):
        cls = method
        try:
            method = cls()
        except Exception as error:
            expected = f"{cls.__name__}() can be made: every hyper-parameter has a default."
            finding = _failure("hyper-parameters", "any", expected, error)
            return _returned(Report(cls.__name__, (finding,)), raise_if_failed)
    if not isinstance(method, Method):
        raise TypeError(f"method={method!r}: expected a method's hyper-parameters, such as LoRA()")
    findings: list[Finding] = []
    with _undisturbed():
        for model in dict.fromkeys([*models, *refuses]):
            on = Subject(method, model, start, prepare)
            findings += _refusal(on, names) if model in refuses else _findings(on, names)
    return _returned(Report(_described(method), tuple(findings)), raise_if_failed)


def examine(check: str, on: Subject) -> Finding:
    """Run one check on one architecture; whatever the method raises becomes a finding."""
    about = check, on.architecture
    expected = " ".join((inspect.getdoc(CHECKS[check]) or "").split())
    try:
        CHECKS[check](on)
    except DoesNotApply as reason:
        return Finding(*about, NOT_APPLICABLE, expected, str(reason))
    except Failed as failure:
        return Finding(*about, FAILS, expected, failure.seen, failure.look)
    except Exception as error:
        return _failure(*about, expected, error)
    return Finding(*about, HOLDS, expected)


def examine_refusal(on: Subject) -> Finding:
    """Check that `attach` refuses, with a ValueError, and leaves the model as it was."""
    about = "attaches", on.architecture
    expected = "attach refuses with a ValueError, as stated, and leaves the model as it was."
    model = on.bare()
    before = snapshot(model)
    try:
        attach(model, on.method)
    except ValueError as error:
        if changed := differences(before, snapshot(model)):
            look = "check everything before changing anything"
            return Finding(*about, FAILS, expected, f"it changed {changed[:3]}", look)
        return Finding(*about, NOT_APPLICABLE, expected, f"refused, as stated: {error}")
    except Exception as error:
        return _failure(*about, expected, error)
    look = "refuses=..., or what the method should refuse"
    return Finding(*about, FAILS, expected, "attach did not refuse", look)


def _findings(on: Subject, names: Sequence[str]) -> list[Finding]:
    first = examine("attaches", on)
    if first.verdict == FAILS:
        hint = f"{first.look}. If it has no meaning there, say refuses=[{on.architecture!r}]"
        return [replace(first, look=hint), *_left_out(on, names, "attach fails")]
    return [first, *(examine(name, on) for name in names if name != "attaches")]


def _refusal(on: Subject, names: Sequence[str]) -> list[Finding]:
    return [examine_refusal(on), *_left_out(on, names, "the method refuses this architecture")]


def _left_out(on: Subject, names: Sequence[str], why: str) -> list[Finding]:
    others = [name for name in names if name != "attaches"]
    return [Finding(name, on.architecture, NOT_APPLICABLE, "", why) for name in others]


def _failure(check: str, architecture: str, expected: str, error: Exception) -> Finding:
    """Return the finding of an exception: its message, and the line of the method it comes from."""
    seen = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...")
    return Finding(check, architecture, FAILS, expected, seen, _where(error))


def _where(error: Exception) -> str:
    """Return the innermost line that is neither torch's, transformers' nor a check's."""
    frames = traceback.extract_tb(error.__traceback__)
    others = tuple(str(Path(file).parent) for file in (torch.__file__, hf.__file__, __file__))
    own = [frame for frame in frames if not frame.filename.startswith(others)]
    last = own[-1] if own else frames[-1]
    return f"{last.name}, line {last.lineno}: {last.line}"


def _described(method: Method) -> str:
    """Return the method with the hyper-parameters that are not the defaults."""
    shown = [
        f"{f.name}={v!r}" for f in fields(method) if (v := getattr(method, f.name)) != f.default
    ]
    return f"{type(method).__name__}({', '.join(part for part in shown if '={}' not in part)})"


def _returned(report: Report, raise_if_failed: bool) -> Report:
    if raise_if_failed:
        report.raise_if_failed()
    return report


def _check_names(what: str, names: Sequence[str], known: Iterable[str]) -> None:
    if isinstance(names, str) or (wrong := [name for name in names if name not in known]):
        bad = names if isinstance(names, str) else wrong
        raise ValueError(f"{what}={bad!r}: expected a list of some of {', '.join(known)}")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Inside, no warning is shown; afterwards the random numbers go on as if nothing had been."""
    states, verbosity = (random.getstate(), np.random.get_state()), hf.logging.get_verbosity()
    hf.logging.set_verbosity_error()
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            hf.logging.set_verbosity(verbosity)
            random.setstate(states[0])
            np.random.set_state(states[1])
