"""Cut a process off: it sees a Python, this book's package and its own notebook, and nothing else.

bubblewrap does it where it is installed. Elsewhere, and in containers that forbid a `/proc` of one's own,
`jail.sh` does the same with the tools that every Linux has.
"""

import os
import subprocess
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

SHELL = Path(__file__).with_name("jail.sh")
UNSHARE = (  # bubblewrap's --die-with-parent, too: a grader that is killed leaves no loop behind
    "setpriv --pdeathsig KILL unshare --user --map-root-user --mount --pid --fork --kill-child --net --ipc"
).split()
BUBBLEWRAP = "bwrap --unshare-all --die-with-parent --cap-drop ALL --proc /proc --dir /tmp".split()
SYSTEM = (
    "/usr /bin /sbin /lib /lib64 /etc/ld.so.cache /etc/alternatives /dev/null /dev/zero /dev/full "
    "/dev/random /dev/urandom /sys/devices/system/cpu"
).split()
Jail = Callable[[Path, Path, int, Iterable[str]], list[str]]


def by_bubblewrap(_: Path, home: Path, size: int, visible: Iterable[str]) -> list[str]:
    """What to put before a command, so that it sees ``visible``, and ``home`` as an empty folder.

    All is read-only but for ``home``, which may hold ``size`` bytes. There is no network, no other process
    can be seen, and no privilege is left.
    """
    binds = []
    for path in filter(os.path.lexists, visible):
        if os.path.islink(path):  # /bin -> usr/bin
            binds += ["--symlink", os.readlink(path), path]
        else:
            binds += ["--dev-bind" if path.startswith("/dev/") else "--ro-bind", path, path]
    inside = ["--size", str(size), "--tmpfs", str(home), "--remount-ro", "/", "--chdir", str(home)]
    return [*BUBBLEWRAP, *binds, *inside, "--"]


def by_unshare(root: Path, home: Path, size: int, visible: Iterable[str]) -> list[str]:
    """The same, in a new file system at ``root``; ``home`` has to be HOME in the environment."""
    root.mkdir(exist_ok=True)
    return [*UNSHARE, str(SHELL), str(root), str(size), *visible, "--"]


@cache
def jail() -> Jail | None:
    """The first way that works on this machine, or None."""
    empty = by_bubblewrap(Path(), Path("/tmp"), 2**20, SYSTEM)
    for way, trial in ((by_bubblewrap, empty), (by_unshare, UNSHARE)):
        try:
            if not subprocess.run([*trial, "true"], capture_output=True, timeout=30).returncode:
                return way
        except (OSError, subprocess.TimeoutExpired):
            pass
    return None
