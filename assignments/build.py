"""Build the student versions and the autograder packages from the master notebooks, with otter.

    make assignments [ASSIGNMENT=lora] [ASSIGNMENTS_URL=https://...]

For each master: ``NAME/student`` (notebook, visible tests, and both as a zip), ``NAME/autograder`` (the
solved notebook, and the zip that `make grade`, ``otter run``, ``otter grade`` and Gradescope take) and
``NAME/assignment.json`` (what is worth how much). otter runs the solutions against all tests while it
builds, and fails where one does not pass.

The zip brings what the tests need: its ``environment.yml`` names torch and this library, which lies in it
as a wheel, so that an autograder needs neither this repository nor an address of it.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
URL_LINE = 'ZIP_URL = ""'  # in every master's set-up cell; the address is filled in here
# Where `otter grade` and Gradescope unpack the package (Otter's `autograder_dir`; Gradescope's
# "Autograder specifications", https://gradescope-autograders.readthedocs.io/en/latest/specs/).
UNPACKED = "/autograder/source"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # torch without CUDA, a tenth of the size
PINNED = ("torch", "transformers", "peft")  # whose versions can change what a test sees


def masters(name: str = "") -> list[Path]:
    """Return the master notebooks, or the one of this name.

    Raises:
        SystemExit: there is none of this name.
    """
    found = sorted(HERE.glob("*.ipynb"))
    if name and name not in {path.stem for path in found}:
        sys.exit(f"ASSIGNMENT={name}: expected one of {', '.join(p.stem for p in found)}")
    return [path for path in found if name in ("", path.stem)]


def describe(master: Path) -> dict[str, Any]:
    """Return the title, the questions with their points, and the names a student is to write."""
    notebook = nbformat.read(master, as_version=4)
    title = notebook.cells[1].source.splitlines()[0].removeprefix("# ")
    questions = []
    for cell in notebook.cells:
        if cell.cell_type == "raw" and cell.source.startswith("# BEGIN QUESTION"):
            config = yaml.safe_load(cell.source)
            points = config["points"]
            points = sum(points) if isinstance(points, list) else points
            questions.append(
                {"name": config["name"], "points": points, "manual": config.get("manual", False)}
            )
    return {"title": title, "questions": questions, "reserved": notebook.metadata["reserved"]}


@cache
def library() -> tuple[str, bytes]:
    """Return this library's wheel: its name and its bytes."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.mkdir()  # a copy: building leaves files beside what it builds
        for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-TEXT"):
            shutil.copy(ROOT / name, source)
        shutil.copytree(
            ROOT / "pedagogic_peft",
            source / "pedagogic_peft",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
        subprocess.run(
            [*command, "--no-build-isolation", "-w", folder, str(source)],
            check=True,
            env=os.environ | {"PIP_CONSTRAINT": os.devnull},
        )
        [wheel] = Path(folder).glob("*.whl")
        return wheel.name, wheel.read_bytes()


def requirements(wheel: str) -> list[str]:
    """Return what pip has to install beside otter, for the tests and the solutions."""
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    ours = f"pedagogic-peft[notebooks] @ file://{UNPACKED}/files/{wheel}"
    return [f"--extra-index-url {CPU_INDEX}", *(f"{name}=={pins[name]}" for name in PINNED), ours]


def with_settings(master: Path, url: str, wheel: str) -> nbformat.NotebookNode:
    """Return the master with the address of the students' zip file and the autograder's requirements.

    Raises:
        ValueError: it has no line for the address.
    """
    notebook = nbformat.read(master, as_version=4)
    [setup] = [c for c in notebook.cells if URL_LINE in c.source] or [None]
    if setup is None:
        raise ValueError(f"{master.name} lacks the line {URL_LINE}")
    if url:
        address = f'ZIP_URL = "{url.rstrip("/")}/{master.stem}.zip"'
        setup.source = setup.source.replace(URL_LINE, address)
    config = yaml.safe_load(notebook.cells[0].source)
    config |= {"requirements": requirements(wheel), "autograder_files": [wheel]}
    notebook.cells[0].source = f"# ASSIGNMENT CONFIG\n{yaml.safe_dump(config, width=1000)}"
    return notebook


def build(master: Path, where: Path, url: str = "", run_tests: bool = True) -> Path:
    """Build one assignment; return its folder.

    Args:
        master: the master notebook.
        where: the folder for all assignments.
        url: address of the folder where the instructor will put the students' zip files, for Colab.
        run_tests: whether otter runs the solutions against the tests.
    """
    from otter.assign import main as otter_assign

    folder = where.resolve() / master.stem
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wheel, content = library()
    (folder / wheel).write_bytes(content)
    source = folder / master.name  # otter reads all this from here
    nbformat.write(with_settings(master, url, wheel), source)
    before = Path.cwd()
    try:
        os.chdir(folder)
        otter_assign(str(source), str(folder), no_pdfs=True, no_run_tests=not run_tests)
    finally:
        os.chdir(before)
        source.unlink()
        (folder / wheel).unlink()
    (folder / "assignment.json").write_text(json.dumps(describe(master), indent=1) + "\n")
    student = folder / "student"
    for path in (*folder.rglob(".OTTER_LOG"), *folder.rglob("__pycache__")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with zipfile.ZipFile(student / f"{master.stem}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in student.rglob("*") if p.suffix in (".ipynb", ".py")):
            archive.write(path, path.relative_to(student))
    return folder


def main() -> None:
    """Build what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assignment", default="")
    parser.add_argument("--url", default="")
    parser.add_argument("--out", type=Path, default=ROOT / "_build" / "assignments")
    given = parser.parse_args()
    for master in masters(given.assignment):
        folder = build(master, given.out, given.url)
        points = json.loads((folder / "assignment.json").read_text())["questions"]
        total = sum(question["points"] for question in points)
        print(f"{folder}: {len(points)} questions, {re.sub('[.]0$', '', str(total))} points")


if __name__ == "__main__":
    main()
