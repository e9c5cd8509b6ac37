"""What a jailed process can reach, tried with each of the two ways to jail it."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "assignments"))

import jail  # noqa: E402

WAYS = {"bwrap": jail.by_bubblewrap, "unshare": jail.by_unshare}
SIZE = 2**20
START = "import os, socket\nos.chdir(os.environ['HOME'])\n"


@pytest.fixture(params=WAYS)
def jailed(request, tmp_path):
    """What runs a command in the jail: what to put before it, its folder and its environment."""
    home, inside = tmp_path / "home", tmp_path / "in"
    home.mkdir()
    inside.mkdir()
    (inside / "given.txt").write_text("given")
    prefixes = {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix)}
    visible = [*jail.SYSTEM, *prefixes, str(inside)]
    command = WAYS[request.param](tmp_path / "root", home, SIZE, visible)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(home)}
    if (
        not shutil.which(command[0])
        or subprocess.run(
            [*command, "true"], cwd=home, env=environment, capture_output=True
        ).returncode
    ):
        pytest.skip(f"{request.param} is not on this machine, or does not work on it")
    return command, home, environment


@pytest.fixture
def run(jailed, tmp_path):
    """Run Python code in the jail; return what it printed, or the last line of its error."""
    command, home, environment = jailed

    def in_jail(code: str) -> str:
        python = os.path.realpath(sys.prefix) + "/bin/python"
        done = subprocess.run(
            [*command, python, "-c", START + f"FOLDER = {str(tmp_path)!r}\n{code}"],
            cwd=home, env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return (done.stdout or done.stderr).strip().split("\n")[-1]

    return in_jail


def test_it_sees_what_it_was_given_and_its_empty_home(run):
    assert run("print(open(FOLDER + '/in/given.txt').read(), os.listdir('.'))") == "given []"
    assert run("open('own', 'w').write('x'); print(open('own').read())") == "x"


def test_it_sees_no_other_file_and_no_other_process(run, tmp_path):
    (tmp_path / "secret").write_text("secret")
    assert run("print(os.listdir(FOLDER))") in ("['home', 'in']", "['in', 'home']")
    assert run(f"print(os.path.exists({str(ROOT / 'tests')!r}))") == "False"
    seen = "[n for n in os.listdir('/proc') if n.isdigit()]"
    assert int(run(f"print(len({seen}) if os.path.isdir('/proc') else 0)")) <= 2


@pytest.mark.parametrize("path", ["FOLDER + '/in/given.txt'", "'/new'", "'/etc/new'", "'/usr/new'"])
def test_it_writes_nowhere_else(run, path):
    assert "Read-only file system" in run(f"open({path}, 'w')")


def test_its_home_is_full_at_its_limit(run):
    assert "No space left on device" in run(f"open('big', 'wb').write(bytes({2 * SIZE}))")


def test_it_reaches_no_network(run):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        said = run(f"socket.create_connection(('127.0.0.1', {port}), timeout=3)")
    assert "refused" in said or "unreachable" in said


def test_it_has_no_privilege(run):
    assert "not permitted" in run("os.mkdir('new'); os.chroot('new')")
    assert run("os.kill(1, 9); print('alive')") in ("alive", "")


def test_it_ends_when_who_started_it_is_killed(jailed):
    command, home, environment = jailed
    own = "61.5"  # seconds: no other process sleeps so long
    start = f"import subprocess; subprocess.run({[*command, 'sleep', own]}, cwd={str(home)!r})"
    grader = subprocess.Popen([sys.executable, "-c", start], env=environment)
    assert within(30, lambda: sleeping(own)), "it did not start"
    grader.kill()
    grader.wait()
    assert within(30, lambda: not sleeping(own)), "it is still there"


def sleeping(seconds: str) -> bool:
    return subprocess.run(["pgrep", "-fx", f"sleep {seconds}"], capture_output=True).returncode == 0


def within(seconds: float, is_so) -> bool:
    ends = time.monotonic() + seconds
    while not (found := is_so()) and time.monotonic() < ends:
        time.sleep(0.1)
    return found
