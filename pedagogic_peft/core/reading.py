"""Whether a model calls a part, or reads the part's weight and computes with it itself.

An adaptation acts where a module is called. Some models never call a part: they hand its weight to
a kernel. Nothing but their code tells, so this reads it: as bytecode, which is always there.
"""

import dis
import inspect
from collections.abc import Iterator
from functools import cache
from types import CodeType
from typing import Any

from torch import nn

READ = {"weight", "bias"}
# How a forward calls its parts without their names.
ALL = {"children", "named_children", "modules", "named_modules", "_modules", "get_submodule"}
# What may be asked of a weight without using its values.
TOLD = {*"device dim dtype is_cuda is_meta itemsize ndim numel requires_grad shape size".split()}


@cache
def uses(holder: Any, part: str) -> frozenset[str]:
    """Return what a class does with its part of this name: some of "weight", "bias" and "call".

    "call" is all but reading an attribute: the part may be called wherever it is handed on to.
    """
    codes = _functions(holder) if part else []
    found = {"call" for code in codes if code.co_name == "forward" and ALL & {*code.co_names}}
    for code in codes:
        words = [*map(_word, _instructions(code)), "", ""] if part in code.co_names else []
        for i, word in enumerate(words):
            if word != "." + part or words[i - 2] in ("isinstance", "hasattr"):
                continue
            asked = words[i + 1].removeprefix(".")
            if asked == words[i + 1] or asked == "forward":
                found.add("call")
            elif asked in READ and words[i + 2].removeprefix(".") not in TOLD:
                found.add(asked)
    return frozenset(found)


@cache
def takes_value(code: CodeType, at: int) -> bool:
    """Tell whether the attribute read there is used: not only asked for what is in `TOLD`."""
    after = (_word(step) for step in _instructions(code) if step.offset > at)
    return next(after, "").removeprefix(".") not in TOLD


def _word(step: dis.Instruction) -> str:
    """Return ".name" where an attribute is read, the name of a variable that is not local, or ""."""
    if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
        return f".{step.argval}"
    return str(step.argval) if step.opname == "LOAD_GLOBAL" else ""


def _instructions(code: CodeType) -> list[dis.Instruction]:
    return [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]


@cache
def _functions(holder: Any) -> list[CodeType]:
    """Return the code of a class's methods, without those that only set the weights."""
    newest: dict[str, CodeType] = {}
    codes: list[CodeType] = []
    for kind in holder.__mro__[: holder.__mro__.index(nn.Module)]:
        for name, member in vars(kind).items():
            code = getattr(inspect.unwrap(member), "__code__", None) if callable(member) else None
            if code is None or (name in newest and "super" not in newest[name].co_names):
                continue  # no function, or overridden
            newest[name] = code
            codes += [] if "init" in name else _with_inner(code)
    return codes


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of a function and of the functions that are defined inside it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _with_inner(inner)
