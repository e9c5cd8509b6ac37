"""Build the site into _build/html: whole, or not at all.

    make book

The old site goes first, and the new one is made in a folder of its own, which takes its place by one renaming
when every page, style sheet and font is written. So whatever ends a build, even a kill or a full disk, leaves
no site that only looks finished.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
NEW = ROOT / "_build" / ".html"
LOCK = ROOT / "_build" / ".html.lock"
# Any warning is an error, and any name that leads nowhere a warning.
COMMAND = "build . --toc book/_toc.yml -W --keep-going -n --path-output".split()


def wait_for(lock) -> None:
    """Wait until no other build runs, nor what a killed one started."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Another build of the site is running: waiting for its end", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def build(lock) -> int:
    """Build; return what jupyter-book returned."""
    shutil.rmtree(NEW, ignore_errors=True)  # a build that was killed left it
    NEW.mkdir()
    if SITE.exists():
        os.rename(SITE, NEW / "old")
    command = [Path(sys.executable).with_name("jupyter-book"), *COMMAND, NEW]
    done = subprocess.run(command, cwd=ROOT, pass_fds=[lock.fileno()])  # it holds the lock too
    if done.returncode == 0:
        os.rename(NEW / "_build" / "html", SITE)
    shutil.rmtree(NEW)
    return done.returncode


if __name__ == "__main__":
    SITE.parent.mkdir(exist_ok=True)
    with LOCK.open("w") as lock:
        wait_for(lock)
        if status := build(lock):
            sys.exit(status)
    print(f"The site is whole, in {SITE}")
