"""Build and grade as course staff do, by the commands, with submissions that mean no good.

`make test-assignments` runs this. A submission stands in a folder of its own, outside of the repository.
"""

import csv
import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
ASSIGNMENTS = sorted(path.stem for path in (ROOT / "assignments").glob("*.ipynb"))
# Wrong answers to the parts that train; tests/book/test_assignments.py tries the others.
WRONG = {
    f"{path.stem}-{name}": (path.stem, patch)
    for path in sorted((ROOT / "tests" / "wrong_answers").glob("*.toml"))
    for name, patch in tomllib.loads(path.read_text(encoding="utf-8")).items()
    if "experiment" in patch
}


def grade(built: Path, submissions: Path, *options: str) -> dict[str, dict[str, str]]:
    """Grade a folder; return the lines of the table by submission."""
    out = submissions.with_name(submissions.name + "-grades")
    command = [sys.executable, "assignments/grade.py", submissions, "--built", built, "--out", out]
    subprocess.run([*command, *options], cwd=ROOT, check=True, capture_output=True, timeout=1800)
    with (out / "grades.csv").open(newline="", encoding="utf-8") as file:
        lines = {line["submission"]: line for line in csv.DictReader(file)}
    assert all((out / f"{name}.md").exists() for name in lines)
    return lines


@pytest.fixture(scope="session")
def handed_in(built, tmp_path_factory) -> Path:
    """Solutions, untouched student versions, and solutions with a wrong experiment; beside, a roster."""
    folder = tmp_path_factory.mktemp("honest")
    for name in ASSIGNMENTS:
        for kind, source in (("solved", "autograder"), ("untouched", "student")):
            notebook = (built / name / source / f"{name}.ipynb").read_bytes()
            (folder / f"{kind}-{name}.ipynb").write_bytes(notebook)
    for case, (name, patch) in WRONG.items():
        notebook = nbformat.read(built / name / "autograder" / f"{name}.ipynb", as_version=4)
        [cell] = [c for c in notebook.cells if patch["old"] in c.source]
        cell.source = cell.source.replace(patch["old"], patch["new"])
        nbformat.write(notebook, folder / f"{case}.ipynb")
    lines = [
        f"u{number},Student {number},u{number}@uni.example,{path.stem}"
        for number, path in enumerate(sorted(folder.iterdir()), start=1000)
    ]
    roster = "\n".join(["id,name,email,submission", *lines])
    folder.with_name("roster.csv").write_text(roster, encoding="utf-8")
    return folder


OPTIONS = ("--jobs", "2", "--seconds", "1800")


@pytest.fixture(scope="session")
def honest(built, handed_in) -> dict[str, dict[str, str]]:
    """The table for them all."""
    return grade(built, handed_in, *OPTIONS, "--roster", str(handed_in.with_name("roster.csv")))


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_the_solution_gets_full_points(name, honest):
    line = honest[f"solved-{name}"]
    assert line["status"] == "graded" and line["hints"] == ""
    assert line["points"] == line["possible"] != "0"
    if name == "project":  # the master's data are those of no student
        assert line["notes"].startswith("read this one: its data are those of 'student-0'")
    else:
        assert line["notes"] == ""


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_the_untouched_version_gets_nothing(name, honest):
    line = honest[f"untouched-{name}"]
    assert line["status"] == "graded" and line["assignment"] == name
    assert line["points"] == "0", line


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_experiment_loses_its_points_with_its_hint(case, honest):
    name, patch = WRONG[case]
    line, right = honest[case], honest[f"solved-{name}"]
    questions = [column for column in right if column.startswith(f"{name}/") and right[column]]
    lost = {q.split("/")[1]: float(right[q]) - float(line[q]) for q in questions}
    assert {q: points for q, points in lost.items() if points} == patch["loses"], line["hints"]
    assert patch["hint"] in line["hints"]


def test_the_gradebook_holds_what_the_tests_and_a_person_gave(built, handed_in, honest):
    """What was read is merged by a second run, which grades nothing again."""
    roster = handed_in.with_name("roster.csv")
    out = handed_in.with_name(handed_in.name + "-grades")
    with (out / "to_read.csv").open(newline="", encoding="utf-8-sig") as file:
        to_read = list(csv.DictReader(file))
    assert len(to_read) == sum(line["assignment"] != "" for line in honest.values())
    for line in to_read:
        line["points"] = line["possible"]
    with (out / "to_read.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(to_read[0]))
        table.writeheader()
        table.writerows(to_read)
    start = time.monotonic()
    again = grade(built, handed_in, *OPTIONS, "--roster", str(roster))
    assert time.monotonic() - start < 120 and again == honest
    names = {line["id"]: line["submission"] for line in csv.DictReader(roster.open())}
    for name in ASSIGNMENTS:
        for kind in ("tests", "written"):
            with (out / "gradebook" / f"canvas_{name}_{kind}.csv").open(newline="") as file:
                _, most, *lines = list(csv.reader(file))
            points = {names[line[2]]: line[-1] for line in lines}
            assert points[f"solved-{name}"] == most[-1] != "0"
        assert points[f"untouched-{name}"] == most[-1], "what a person gave does not hang on tests"


def test_every_assignment_has_a_wrong_experiment():
    assert {name for name, _ in WRONG.values()} == set(ASSIGNMENTS)


def test_otter_alone_gives_the_solution_the_same(built, honest, tmp_path):
    """So the package serves `otter run`, `otter grade` and Gradescope too."""
    result = otter_run(built / "lora", built / "lora" / "autograder" / "lora.ipynb", tmp_path)
    assert f"{sum(result.values()):g}" == honest["solved-lora"]["points"]


def otter_run(package: Path, notebook: Path, where: Path) -> dict[str, float]:
    [archive] = (package / "autograder").glob("*.zip")
    command = [
        sys.executable,
        "-m",
        "otter",
        "run",
        notebook,
        "-a",
        archive,
        "-o",
        where,
        "--no-logo",
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    tests = json.loads((where / "results.json").read_text())["tests"]
    return {test["name"]: test["score"] for test in tests if "score" in test}


# --- submissions that mean no good ------------------------------------------------------------------

FORGE = """
import otter.test_files.exception_test as kind
kind.ExceptionTestFile.run = lambda self, env: setattr(
    self, "test_case_results",
    [kind.TestCaseResult(test_case=case, message="", passed=True) for case in self.test_cases],
)
"""
LIE = """
import builtins, os, pickle, sys, torch
torch.allclose = torch.equal = lambda *a, **k: True
torch.Tensor.__eq__ = torch.Tensor.__ge__ = torch.Tensor.__lt__ = lambda *a: True
builtins.sum = builtins.abs = lambda *a, **k: 0
for name in ("results.json", "results.pkl", "grades.csv"):
    for folder in (".", "..", os.environ["TMPDIR"]):
        open(os.path.join(folder, name), "w").write("points: 100") if os.access(folder, os.W_OK) else 0
class Anything:
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return self
LoRALinear = merge_lora = add_lora = largest_rank = Anything()
"""
SNOOP = """
import glob, os
found = []
for pattern in ("ROOT/assignments/*.ipynb", "ROOT/tests/**", "ROOT/.git", "BUILT/**", "/proc/*/environ"):
    for path in glob.glob(pattern, recursive=True):
        try:
            text = open(path, errors="replace").read() if os.path.isfile(path) else path
        except OSError:
            continue
        if "BEGIN SOLUTION" in text or "test_case" in text or "MARKER" in text:
            found.append(path)
raise RuntimeError(f"found {len(found)} files")
"""
NETWORK = """
import socket
try:
    socket.create_connection(("127.0.0.1", PORT), timeout=3)
except OSError as error:  # refused by a network of its own, or there is none
    raise RuntimeError("no network") from error
raise RuntimeError("reached the network")
"""
NONSENSE = """
import os
for fd in range(3, 60):
    try:
        os.write(fd, b"\\xff" * 4000)
    except OSError:
        pass
"""
HOSTILE = {
    "loops": "while True: pass",
    "loops_deaf": "import signal\nsignal.signal(signal.SIGPROF, signal.SIG_IGN)\nwhile True: pass",
    "eats_memory": "import torch\nkept = []\nwhile True: kept.append(torch.ones(10**7))",
    "prints": "for _ in range(3000): print('x' * 10_000)",
    "fills_the_disk": "with open('big', 'wb') as f:\n    while True: f.write(bytes(10**7))",
    "exits": "import os\nos._exit(0)",
    "kills": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.kill(-1, signal.SIGKILL)",
    "talks_nonsense": NONSENSE,
    "forges": FORGE,
    "lies": LIE,
    "snoops": SNOOP,
    "calls_home": NETWORK,
    "writes_outside": "open('ROOT/pedagogic_peft/planted.py', 'w').write('')",
}  # fmt: skip


@pytest.fixture(scope="session")
def hostile(built, tmp_path_factory) -> dict[str, dict[str, str]]:
    """The table for the hostile submissions: the untouched LoRA assignment, and a cell more at its end."""
    import socket

    folder = tmp_path_factory.mktemp("hostile")
    student = nbformat.read(built / "lora" / "student" / "lora.ipynb", as_version=4)
    code = [
        c
        for c in student.cells
        if c.cell_type == "code" and "experiment" not in c.metadata.get("tags", [])
    ]
    student.cells = [student.cells[0], *code]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        for name, source in HOSTILE.items():
            notebook = nbformat.from_dict(student)
            source = (
                source.replace("ROOT", str(ROOT)).replace("BUILT", str(built)).replace("PORT", port)
            )
            cells = [*student.cells, nbformat.v4.new_code_cell(source)]
            notebook = nbformat.v4.new_notebook(cells=cells, metadata=student.metadata)
            nbformat.write(notebook, folder / f"{name}.ipynb")
        (folder / "essay.ipynb").write_text("My dog ate it.")
        os.environ["SECRET"] = "MARKER"
        start = time.monotonic()
        limits = "--seconds", "180", "--cell-seconds", "20", "--memory", "3"
        lines = grade(built, folder, *limits, "--jobs", "2")
    assert time.monotonic() - start < 190 * (len(HOSTILE) + 1)
    return lines


def test_every_hostile_submission_has_a_line_and_no_points(hostile):
    assert set(hostile) == set(HOSTILE) | {"essay"}
    assert {name: line["points"] for name, line in hostile.items() if line["points"] != "0"} == {}


@pytest.mark.parametrize(
    "name, column, text",
    [
        ("loops", "notes", "TimeoutError: computed for more than 20 s"),
        ("loops_deaf", "status", "stopped: it ran longer than 180 s"),
        ("eats_memory", "notes", "can't allocate memory"),
        ("prints", "notes", "printed 30.0 MB"),
        ("fills_the_disk", "notes", "No space left on device"),
        ("exits", "status", "its process ended by itself (exit status 0)"),
        ("talks_nonsense", "status", "its process sent"),
        ("essay", "status", "not a notebook"),
        ("snoops", "notes", "RuntimeError: found 0 files"),
        ("calls_home", "notes", "RuntimeError: no network"),
        ("writes_outside", "notes", "OSError: [Errno 30] Read-only file system"),
    ],
)
def test_the_line_says_what_happened(name, column, text, hostile):
    assert text in hostile[name][column], hostile[name]


def test_nothing_was_planted_in_the_library(hostile):
    assert not (ROOT / "pedagogic_peft" / "planted.py").exists()


def test_otter_alone_believes_a_forger(built, tmp_path):
    """Why `make grade` keeps tests and submission in two processes."""
    student = nbformat.read(built / "lora" / "student" / "lora.ipynb", as_version=4)
    student.cells.insert(0, nbformat.v4.new_code_cell(FORGE))
    nbformat.write(student, tmp_path / "forger.ipynb")
    scores = otter_run(built / "lora", tmp_path / "forger.ipynb", tmp_path)
    assert sum(scores.values()) == 19
