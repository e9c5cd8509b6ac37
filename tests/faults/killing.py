"""Run a job in a process of its own, and end that process when it expects it least."""

import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

REPEATS = int(os.environ.get("FAULTS", "4"))  # `make faults` asks for 50
BUILDS = int(os.environ.get("FAULTS", "2"))  # of the site, each with a whole one after it
LIMIT = 120  # seconds that a job may take


def run(job: Callable[[], Any], kill_after: float | None = None) -> int | None:
    """Return the exit status of a fork that runs the job (0: it returned), None if it was killed.

    A fork has everything imported already, so that the moments are spread over the job itself.
    """
    process = os.fork()
    if process == 0:
        status = 1
        # tqdm's own lock is one for all forks: a child that is killed with it would keep it for good.
        tqdm.set_lock(threading.RLock())
        try:
            job()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    ends = time.monotonic() + (LIMIT if kill_after is None else kill_after)
    while time.monotonic() < ends:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            assert not os.WIFSIGNALED(status) or os.WTERMSIG(status) == signal.SIGKILL, status
            return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        time.sleep(0.0005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert kill_after is not None, f"the job took over {LIMIT} s"
    return None


def seconds(job: Callable[[], Any]) -> float:
    """Return how long the job takes undisturbed, in a fork."""
    start = time.monotonic()
    assert run(job) == 0
    return time.monotonic() - start


def moments(longest: float, repeats: int = REPEATS) -> list[float]:
    """Return moments to kill at, at random in each of as many equal parts of the time."""
    chance = random.Random(os.urandom(8))
    return [longest * (i + chance.random()) / repeats for i in range(repeats)]


def killed_at(monkeypatch: Any, owner: Any, name: str, call: int, before: bool) -> None:
    """From now on a process kills itself at this call of ``owner.name``, before or after it."""
    original, calls = getattr(owner, name), []

    def deadly(*args: Any, **options: Any) -> Any:
        calls.append(name)
        if before and len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **options)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    monkeypatch.setattr(owner, name, deadly)
