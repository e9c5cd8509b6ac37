"""Grade a folder of submitted notebooks: one line of a CSV, and a page of feedback, for each.

    make grade SUBMISSIONS=folder [ASSIGNMENT=lora] [GRADES=folder] [LIMIT=900] [JOBS=1]
               [ROSTER=roster.csv] [MANUAL=to_read.csv] [AGAIN=1]

The tests are otter-grader's test files, from the packages that `make assignments` built, and otter
runs them and counts the points. Only the submission is kept apart. otter's own runner executes the
tests inside the student's kernel and believes the pickle that comes back, so a notebook that replaces
a few of otter's functions gets full points. Here the notebook runs in a process of its own
(`student_process.py`), without the tests. A test asks that process to run a small function with the
student's names, gets plain values back, and judges them in this process.
"""

import argparse
import ast
import csv
import hashlib
import json
import marshal
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradebook
import wire
from feedback import feedback_page, one_line
from jail import SYSTEM, jail

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PACKAGE = ROOT / "pedagogic_peft"
LARGEST = 20 * 2**20  # bytes of a notebook
NO_JAIL = (
    "This machine does not let a process be cut off from files and network (Linux with unprivileged "
    "user namespaces is needed, or bubblewrap that root installed). Grade in a virtual machine or a "
    "privileged container; or, for submissions that you trust not to cheat, say ISOLATION=limits, which "
    "keeps the limits on time, memory and output, and the tests out of their process"
)


@dataclass(frozen=True)
class Limits:
    """What a submission may use, and whether it is jailed ("jail") or only limited ("limits")."""

    seconds: int = 900  # on the clock, for all its cells and looks together
    cell_seconds: int = 180  # of processor time, for one cell or look; then the next one runs
    memory: int = 4  # GiB of address space for each of its processes; torch alone takes about two
    output: int = 2**20  # bytes; nothing printed is kept, and more than this is told
    disk: int = 512 * 2**20  # bytes of files
    isolation: str = "jail"


class Stopped(Exception):
    """The submission's process is not there any more; says why."""


class StudentError(Exception):
    """The submission's code raised; says what."""


class Submission:
    """A running submission. `look` asks it; `close` ends it."""

    def __init__(self, notebook: bytes, limits: Limits):
        self.limits, self.why, self.printed = limits, "", 0
        self.deadline = time.monotonic() + limits.seconds
        self.folder = Path(tempfile.mkdtemp(prefix="submission-"))
        self.connection, theirs = socket.socketpair()
        try:
            self.process = self._start(notebook, theirs)
        finally:
            theirs.close()
        self.reader = threading.Thread(target=self._swallow, daemon=True)
        self.reader.start()
        try:
            self.errors = [str(error) for error in self._receive()["errors"]]
        except (Stopped, KeyError, TypeError):
            self.errors = []
            self.why = self.why or "its process sent nonsense"

    def _start(self, notebook: bytes, theirs: socket.socket) -> subprocess.Popen[bytes]:
        """Start the process, with nothing of this process's environment."""
        inside = self.folder / "in"
        inside.mkdir()
        for file in (HERE / "student_process.py", HERE / "wire.py"):
            shutil.copy(file, inside)
        (inside / "submission.ipynb").write_bytes(notebook)
        python, limits = os.path.realpath(sys.prefix) + "/bin/python", self.limits
        arguments = (
            theirs.fileno(),
            inside / "submission.ipynb",
            limits.memory * 2**30,
            limits.cell_seconds,
        )
        command = [python, "-u", str(inside / "student_process.py"), *map(str, arguments)]
        home = self.folder / "home"
        home.mkdir()
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": f"{inside}:{ROOT}",
            "HOME": str(home),
            "TMPDIR": str(home),
            "IPYTHONDIR": str(home),
            "MPLCONFIGDIR": str(home),
            "USER": "student",
            "MPLBACKEND": "Agg",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONHASHSEED": "0",
            "HF_HUB_OFFLINE": "1",
            "LANG": "C.UTF-8",
        } | {k: v for k in ("OMP_NUM_THREADS", "ATEN_CPU_CAPABILITY") if (v := os.environ.get(k))}
        if limits.isolation == "jail":
            prefixes = {os.path.realpath(p) for p in (sys.prefix, sys.base_prefix)}
            ours = [*(p for p in prefixes if not p.startswith("/usr")), str(PACKAGE), str(inside)]
            way = jail() or sys.exit(NO_JAIL)
            visible = [*SYSTEM, *ours]
            command = [*way(self.folder / "root", home, limits.disk, visible), *command]
        return subprocess.Popen(
            command,
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )

    def _swallow(self) -> None:
        """Read what it prints, so that it never waits for us; keep none of it."""
        assert self.process.stdout is not None
        while piece := self.process.stdout.read1(2**16):
            self.printed += len(piece)

    def look(self, what: Callable[..., Any], *given: Any) -> Any:
        """Run the code of ``what`` in the submission's process; return the plain value it returned.

        Raises:
            StudentError: it raised there.
            Stopped: the process is gone, or was stopped for taking too long.
        """
        if self.why:
            raise Stopped(self.why)
        try:
            self.connection.settimeout(self._left())
            wire.send(self.connection, marshal.dumps((what.__code__, given)))
        except OSError:
            self._stop()
        reply = self._receive()
        if not isinstance(reply, dict) or not reply.keys() & {"value", "error"}:
            raise StudentError("the answer is no value")
        if "error" in reply:
            raise StudentError(one_line(reply["error"]))
        return reply["value"]

    def _receive(self) -> Any:
        try:
            self.connection.settimeout(self._left())
            return wire.unpack(wire.receive(self.connection))
        except ValueError as error:
            self._stop(f"its process sent {error}")
        except (EOFError, OSError):
            self._stop()

    def _left(self) -> float:
        return max(self.deadline - time.monotonic(), 0.001)

    def _stop(self, why: str = "") -> None:
        """End the process and raise `Stopped`."""
        late = time.monotonic() >= self.deadline
        code = None if late else self.process.wait(timeout=5) if self._ended(5) else None
        self.why = why or (
            f"stopped: it ran longer than {self.limits.seconds} s"
            if late
            else f"its process ended by itself (exit status {code}); out of memory?"
        )
        self.close()
        raise Stopped(self.why)

    def _ended(self, seconds: float) -> bool:
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """End the process and all it started, and delete its files."""
        self.connection.close()
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.reader.join(timeout=5)
        shutil.rmtree(self.folder, ignore_errors=True)


# --- from a notebook to a line of the table -------------------------------------------------------


@dataclass(frozen=True)
class Package:
    """A built assignment: its questions, and the source of their tests."""

    name: str
    title: str
    questions: list[dict[str, Any]]  # name, points, manual
    reserved: list[str]  # what of the library the exercise asks to write
    tests: dict[str, str]


def read_package(folder: Path) -> Package:
    """Read what `make assignments` built in this folder."""
    about = json.loads((folder / "assignment.json").read_text(encoding="utf-8"))
    [archive] = (folder / "autograder").glob("*.zip")
    with zipfile.ZipFile(archive) as files:
        names = [n for n in files.namelist() if re.fullmatch(r"tests/\w+\.py", n)]
        tests = {Path(name).stem: files.read(name).decode() for name in names}
    return Package(folder.name, about["title"], about["questions"], about["reserved"], tests)


@dataclass
class Grade:
    """What one submission gets."""

    submission: str
    assignment: str = ""
    status: str = "graded"
    points: dict[str, float] = field(default_factory=dict)
    possible: float = 0
    to_read: float = 0  # points of the written questions
    hints: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    written: dict[str, str] = field(default_factory=dict)
    seconds: int = 0
    data_of: str = ""  # the id that its data were made for, where each student has their own


def run_tests(package: Package, look: Callable[..., Any]) -> Iterator[tuple[str, float, list[str]]]:
    """Run otter's test files; yield each question's name, its points, and the hints of what failed."""
    from otter.test_files.exception_test import ExceptionTestFile

    class TestFile(ExceptionTestFile):
        def _generate_error_message(self, error: Exception, context: int = 0) -> str:
            hints.append(hint_of(error))  # otter's own message cuts quotes off the text's ends
            return hints[-1]

    for question in package.questions:
        if question["manual"]:
            continue
        hints: list[str] = []
        file = TestFile.from_string(package.tests[question["name"]])
        file.run({"look": look})
        yield question["name"], file.score, list(dict.fromkeys(hints))


def hint_of(error: Exception) -> str:
    """Return what a failed test tells the student."""
    kind, text = type(error).__name__, str(error)
    if kind != "AssertionError" and re.search(r"\b(NoneType|ellipsis)\b", text):
        why = "is something still to be written, or is a `return` missing?"
        return one_line(f"your code gave no value here: {why} ({text})")
    told = {"AssertionError": "", "StudentError": "your code raised ", "Stopped": ""}
    return one_line(told.get(kind, f"the answer could not be judged ({kind}): ") + text)


def grade_one(
    path: Path, name: str, packages: Mapping[str, Package], wanted: str, limits: Limits
) -> Grade:
    """Grade one file."""
    grade, start = Grade(name), time.monotonic()
    try:
        content, notebook, package = opened(path, packages, wanted)
    except ValueError as error:
        grade.status = str(error)
        return grade
    cells = notebook["cells"]
    grade.assignment = package.name
    grade.possible = sum(q["points"] for q in package.questions if not q["manual"])
    grade.to_read = sum(q["points"] for q in package.questions if q["manual"])
    grade.written = {
        q["name"]: written_answer(cells, q["name"]) for q in package.questions if q["manual"]
    }
    submission = Submission(content, limits)
    try:
        for question, points, hints in run_tests(package, submission.look):
            grade.points[question] = points
            grade.hints[question] = hints
        grade.data_of = data_of(package, submission.look)
    finally:
        submission.close()
    grade.status = submission.why or "graded"
    grade.notes = [one_line(re.sub("<ipython-input[^>]*>, ", "", e)) for e in submission.errors[:3]]
    if not any(cell["cell_type"] == "code" and cell["source"].strip() for cell in cells):
        grade.notes.append("it has no code")
    if (language := language_of(notebook)) != "python":
        grade.notes.append(f"its kernel is for {one_line(language)}; it was run as Python")
    if submission.printed > limits.output:
        grade.notes.append(f"printed {submission.printed / 1e6:.1f} MB")
    if used := reserved_names(cells, package.reserved):
        grade.notes.append(
            f"read this one: it uses {', '.join(used)}, which it was to write itself"
        )
    grade.seconds = round(time.monotonic() - start)
    return grade


def opened(
    path: Path, packages: Mapping[str, Package], wanted: str
) -> tuple[bytes, dict[str, Any], Package]:
    """Return the bytes of a submission, its notebook, and its assignment.

    Raises:
        ValueError: it is no notebook, or nobody knows of which assignment.
    """
    try:
        content = content_of(path)
        notebook = read_notebook(content)
    except ValueError as error:
        raise ValueError(f"not a notebook: {one_line(error)}") from None
    package = packages.get(wanted) or recognise(path, notebook["cells"], packages)
    if package is None:
        known = ", ".join(packages)
        raise ValueError(f"unknown of which assignment: write one of {known} into the file's name")
    return content, notebook, package


def data_of(package: Package, look: Callable[..., Any]) -> str:
    """Return the id that a submission's data were made for; nothing where all have the same data."""

    def named() -> str:
        return str(STUDENT)  # type: ignore[name-defined]  # noqa: F821 - the submission's

    if not any("STUDENT" in test for test in package.tests.values()):
        return ""
    try:
        return one_line(look(named))
    except (StudentError, Stopped):
        return ""


def content_of(path: Path) -> bytes:
    """Return the bytes of a file, or of the only notebook in a zip file, as a system may pack it.

    Raises:
        ValueError: there is none, or one that is too large, or a link, which would lead out of the folder.
    """
    if path.is_symlink():
        raise ValueError("a link to another file")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"larger than {LARGEST // 2**20} MB")
    content = path.read_bytes()
    if not content:
        raise ValueError("an empty file")
    return only_notebook(path) if content.startswith(b"PK") else content


def only_notebook(packed: Path) -> bytes:
    """Return the bytes of the only notebook in a zip file; raises as `content_of`."""
    try:
        with zipfile.ZipFile(packed) as archive:
            names = [n for n in archive.namelist() if n.endswith(".ipynb") and is_seen(Path(n))]
            if len(names) != 1:
                raise ValueError(f"a zip file with {len(names)} notebooks, expected one")
            if archive.getinfo(names[0]).file_size > LARGEST:  # no more than this is read
                raise ValueError(f"larger than {LARGEST // 2**20} MB")
            return archive.read(names[0])
    except (zipfile.BadZipFile, OSError, RuntimeError, zlib.error) as error:
        raise ValueError(f"a zip file that cannot be read ({error})") from None


def is_seen(path: Path) -> bool:
    """Tell whether a path is none of those that systems leave behind (.DS_Store, __MACOSX)."""
    return not any(part.startswith((".", "__")) for part in path.parts)


def read_notebook(content: bytes) -> dict[str, Any]:
    """Return a notebook, each of its cells with its source as one string.

    Raises:
        ValueError: it is no notebook.
    """
    try:
        notebook = json.loads(content.decode("utf-8-sig"))
        if "worksheets" in notebook:
            raise ValueError("its format is of before 2015; open it in Jupyter and save it")
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
            cell["cell_type"], cell.setdefault("metadata", {})
        return {"metadata": {}} | notebook
    except UnicodeDecodeError:
        raise ValueError("no text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error})") from None
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"JSON of another form ({type(error).__name__}: {error})") from None


def language_of(notebook: Mapping[str, Any]) -> str:
    """Return the language that a notebook names, in small letters; Python where it names none."""
    metadata = notebook["metadata"]
    for key, name in (("kernelspec", "language"), ("language_info", "name")):
        told = metadata.get(key) if isinstance(metadata, dict) else None
        if isinstance(told, dict) and told.get(name):
            return str(told[name]).lower()
    return "python"


def recognise(
    path: Path, cells: list[dict[str, Any]], packages: Mapping[str, Package]
) -> Package | None:
    """Return the assignment whose title the notebook has, or whose name its file has."""
    text = "\n".join(c["source"] for c in cells if c["cell_type"] == "markdown")
    titled = [p for p in packages.values() if f"# {p.title}" in text.splitlines()]
    named = [p for p in packages.values() if p.name in path.stem]
    found = titled or named
    return found[0] if len(found) == 1 else None


def written_answer(cells: list[dict[str, Any]], name: str) -> str:
    """Return what stands in the cell of a written question."""
    for before, cell in zip(cells, cells[1:], strict=False):
        if f"<!-- {name} -->" in before["source"]:
            return str(cell["source"])
    return "(the cell was not found)"


def reserved_names(cells: list[dict[str, Any]], reserved: list[str]) -> list[str]:
    """Return which of the names are imported in the notebook: a sign for the reader, no proof."""
    used = set()
    for cell in cells:
        try:
            tree = ast.parse(cell["source"]) if cell["cell_type"] == "code" else ast.Module([], [])
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                used |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
            elif isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Attribute):
                used.add(ast.unparse(node))
    return sorted(name for name in reserved if name in used)


def find_submissions(folder: Path) -> dict[str, Path]:
    """Return {name: file}: every file but hidden ones, named by its path, if it can be without the ending."""
    files = {
        str(p.relative_to(folder)): p
        for p in sorted(folder.rglob("*"))
        if (p.is_file() or p.is_symlink()) and is_seen(p.relative_to(folder))
    }
    short = {name: name.removesuffix(".ipynb") for name in files}
    return {name if short[name] in files else short[name]: path for name, path in files.items()}


def write_table(grades: list[Grade], path: Path) -> None:
    """Write the CSV."""
    questions = list(dict.fromkeys(f"{g.assignment}/{q}" for g in grades for q in g.points))
    head = ["submission", "assignment", "points", "possible", "to read", "status"]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*head, *questions, "notes", "hints", "seconds"])
        for g in grades:
            own = {f"{g.assignment}/{q}": f"{points:g}" for q, points in g.points.items()}
            told = [(q, hint) for q, some in g.hints.items() for hint in some if hint != g.status]
            hints = " | ".join(f"{question}: {hint}" for question, hint in told)
            total = f"{sum(g.points.values()):g}"
            line = [
                one_line(g.submission),
                g.assignment,
                total,
                f"{g.possible:g}",
                f"{g.to_read:g}",
            ]
            line += [g.status, *(own.get(q, "") for q in questions), "; ".join(g.notes), hints]
            table.writerow([*line, g.seconds])


def page_names(submissions: Iterable[str]) -> dict[str, str]:
    """Return for each submission the name of its page: safe, short, and no other's."""
    safe = {name: re.sub(r"[^\w.-]+", "_", name) for name in submissions}
    count = Counter(name.casefold() for name in safe.values())
    for name, page in safe.items():
        if (
            count[page.casefold()] > 1 or len(page) > 50
        ):  # letters of up to four bytes; 255 may be had
            own = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
            safe[name] = f"{page[:50]}-{own}"
    return safe


# --- a second run grades what is new ----------------------------------------------------------------


def fingerprints(
    files: Mapping[str, Path], packages: Mapping[str, Package], wanted: str, limits: Limits
) -> dict[str, str]:
    """Return for each submission what its grade depends on: its bytes, tests, library and limits."""
    shared = hashlib.sha256(repr((sorted(packages.items()), wanted, limits)).encode())
    for path in sorted([*PACKAGE.rglob("*.py"), *HERE.glob("*.py")]):
        shared.update(path.read_bytes())
    found = {}
    for name, path in files.items():
        own = shared.copy()
        own.update(b"" if path.is_symlink() else path.read_bytes())
        found[name] = own.hexdigest()
    return found


def remembered(path: Path, prints: Mapping[str, str]) -> dict[str, Grade]:
    """Return the grades of an earlier run that still hold; one that was stopped is tried again."""
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    grades = {name: Grade(**record["grade"]) for name, record in records.items()}
    return {
        name: grade
        for name, grade in grades.items()
        if records[name]["print"] == prints.get(name) and grade.status == "graded"
    }


def remember(path: Path, grades: Mapping[str, Grade], prints: Mapping[str, str]) -> None:
    """Write all grades for `remembered`."""
    records = {n: {"print": prints[n], "grade": asdict(grade)} for n, grade in grades.items()}
    new = path.with_suffix(".new")
    new.write_text(json.dumps(records, indent=1), encoding="utf-8")
    new.replace(path)


def main() -> None:
    """Grade all, print a line for each, write the table, the feedback and the gradebook."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("submissions", type=Path)
    parser.add_argument("--built", type=Path, default=ROOT / "_build" / "assignments")
    parser.add_argument("--assignment", default="")
    parser.add_argument("--out", type=Path, default=ROOT / "_build" / "grades")
    parser.add_argument("--roster", type=Path)
    parser.add_argument("--manual", type=Path)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--seconds", type=int, default=Limits.seconds)
    parser.add_argument("--cell-seconds", type=int, default=Limits.cell_seconds)
    parser.add_argument("--memory", type=int, default=Limits.memory)
    parser.add_argument("--isolation", choices=["jail", "limits"], default="jail")
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    packages = {
        f.parent.name: read_package(f.parent) for f in sorted(given.built.glob("*/assignment.json"))
    }
    if given.assignment and given.assignment not in packages:
        sys.exit(f"ASSIGNMENT={given.assignment}: expected one of {', '.join(sorted(packages))}")
    found = find_submissions(given.submissions)
    if not found:
        sys.exit(f"SUBMISSIONS={given.submissions}: no file there")
    try:  # before anything is graded, which takes long
        roster, owner, read = read_staff_files(given, found, packages)
    except gradebook.Refused as error:
        sys.exit(str(error))
    limits = Limits(given.seconds, given.cell_seconds, given.memory, isolation=given.isolation)
    given.out.mkdir(parents=True, exist_ok=True)
    grades = grade_all(found, packages, limits, given)
    for name, student in owner.items():
        grades[name].notes += gradebook.of_another(grades[name], student)
    write_table(list(grades.values()), given.out / "grades.csv")
    print(f"{given.out / 'grades.csv'}: {len(grades)} submissions")
    if roster:
        of = gradebook.one_each(grades.values(), owner)
        left = gradebook.not_graded(grades.values(), owner, of)
        book = gradebook.Gradebook(roster, packages, of, read, left)
        print(*gradebook.write_all(book, given.out), sep="\n")


def read_staff_files(given: Any, found: Mapping[str, Path], packages: Mapping[str, Package]) -> Any:
    """Return the roster, whose each submission is, and the points that a person gave."""
    if not given.roster:
        if given.manual:
            raise gradebook.Refused(f"MANUAL={given.manual}: needs ROSTER=roster.csv")
        return {}, {}, {}
    roster = gradebook.read_roster(given.roster)
    manual = given.manual or given.out / "to_read.csv"
    there = given.manual or manual.exists()
    read = gradebook.read_points(manual, roster, packages) if there else {}
    owner = gradebook.owners(found, roster)
    gradebook.one_each(ungraded(found, packages, given.assignment), owner)
    return roster, owner, read


def ungraded(
    found: Mapping[str, Path], packages: Mapping[str, Package], wanted: str
) -> Iterator[Grade]:
    """Yield each submission whose assignment is known."""
    for name, path in found.items():
        try:
            yield Grade(name, opened(path, packages, wanted)[2].name)
        except ValueError:
            pass


def grade_all(
    found: Mapping[str, Path], packages: Mapping[str, Package], limits: Limits, given: Any
) -> dict[str, Grade]:
    """Grade what no earlier run has graded already; return all, in the order of ``found``."""
    store = given.out / "grades.json"
    prints, pages = fingerprints(found, packages, given.assignment, limits), page_names(found)
    grades = {} if given.again else remembered(store, prints)
    new = {name: path for name, path in found.items() if name not in grades}
    if grades:
        print(f"{len(grades)} were graded before, {len(new)} are new (AGAIN=1 grades all)")
    if new and limits.isolation == "jail" and not jail():
        sys.exit(NO_JAIL)
    work = partial(grade_one, packages=packages, wanted=given.assignment, limits=limits)
    with ProcessPoolExecutor(given.jobs) as pool:
        for grade in pool.map(work, new.values(), new.keys()):
            grades[grade.submission] = grade
            points = f"{sum(grade.points.values()):g} of {grade.possible:g}"
            print(f"{one_line(grade.submission)}: {points}, {grade.status}", flush=True)
            page = given.out / f"{pages[grade.submission]}.md"
            page.write_text(feedback_page(grade), encoding="utf-8")
            remember(store, grades, prints)  # a run that is stopped goes on here
    return {name: grades[name] for name in found}


if __name__ == "__main__":
    main()
