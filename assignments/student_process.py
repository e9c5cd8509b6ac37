"""The process a submission runs in: executes the notebook's cells, then answers the grader's looks.

    python student_process.py SOCKET NOTEBOOK MEMORY SECONDS

A look is the code of a small function that the grader sends. It runs here, with the names the
notebook defined, and what it returns goes back as plain values (`wire.py`). The tests themselves,
and what they expect, never enter this process. `grade.py` starts it, in a jail.
"""

import json
import marshal
import os
import resource
import signal
import socket
import sys
import types
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from typing import Any

import wire


def main() -> None:
    """Run the submission; end when the grader hangs up."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    memory, seconds = int(sys.argv[3]), int(sys.argv[4])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(sys.argv[2], encoding="utf-8-sig") as file:
        cells = [c for c in json.load(file)["cells"] if c["cell_type"] == "code"]
    os.chdir(os.environ["HOME"])
    os.mkdir("tests")  # notebooks look for the folder
    shell = quiet_shell()
    errors = []
    for number, cell in enumerate(cells, start=1):
        error = run_cell(shell, "".join(cell["source"]), seconds)
        if error:
            errors.append(f"code cell {number}: {error}")
    wire.send(connection, wire.pack({"errors": errors}))
    while True:
        try:
            request = wire.receive(connection)
        except EOFError:
            os._exit(0)  # also past threads that the notebook left behind
        wire.send(connection, answer(request, shell.user_ns, seconds))


def quiet_shell() -> Any:
    """Return an IPython shell that keeps no history, in which `grader.check` does nothing."""
    from IPython.core.history import HistoryManager
    from IPython.core.interactiveshell import InteractiveShell

    HistoryManager.enabled = False
    otter = types.ModuleType("otter")
    otter.__spec__ = ModuleSpec("otter", None)  # notebooks look whether otter is installed

    class Notebook:  # what a student's notebook calls
        def __init__(self, *given: Any, **named: Any) -> None: ...

        def check(self, *given: Any, **named: Any) -> None: ...

        check_all = export = check

    otter.Notebook = Notebook  # type: ignore[attr-defined]
    sys.modules["otter"] = otter
    shell = InteractiveShell.instance()
    shell.colors = "NoColor"
    return shell


@contextmanager
def at_most(seconds: int) -> Any:
    """Raise a TimeoutError in the block when it computes for longer.

    It counts processor time, so that a busy machine costs nobody a cell. The grader's own limit, on the
    clock, is outside of this process.
    """

    def ring(*_: Any) -> None:
        raise TimeoutError(f"computed for more than {seconds} s")

    signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def run_cell(shell: Any, source: str, seconds: int) -> str | None:
    """Run one cell; return what went wrong."""
    try:
        with at_most(seconds):
            result = shell.run_cell(source)
        error = result.error_before_exec or result.error_in_exec
    except BaseException as raised:
        error = raised
    return describe(error) if error else None


def describe(error: BaseException) -> str:
    """Return one line."""
    return f"{type(error).__name__}: {str(error)[:300]}".removesuffix(": ")


def answer(request: bytes, names: dict[str, Any], seconds: int) -> bytes:
    """Return what a look saw, or what the student's code raised."""
    code, given = marshal.loads(request)
    try:
        with at_most(seconds):
            return wire.pack({"value": types.FunctionType(code, names)(*given)})
    except BaseException as error:
        return wire.pack({"error": describe(error)})


if __name__ == "__main__":
    main()
