"""Build the student versions and the autograder packages from the master notebooks, with otter.

    make assignments [ASSIGNMENT=lora] [ASSIGNMENTS_URL=https://...]

For each master: ``NAME/student`` (notebook, visible tests, and both as a zip), ``NAME/autograder`` (the
solved notebook, and the zip that `make grade`, ``otter run``, ``otter grade`` and Gradescope take) and
``NAME/assignment.json`` (what is worth how much). otter runs the solutions against all tests while it
builds, and fails where one does not pass.
"""

import argparse
import json
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
URL_LINE = 'ZIP_URL = ""'  # in every master's set-up cell; the address is filled in here


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
    source = folder / master.name  # otter reads the address from here
    text = master.read_text(encoding="utf-8")
    assert json.dumps(URL_LINE)[1:-1] in text, f"{master.name} lacks the line {URL_LINE}"
    address = f'ZIP_URL = "{url.rstrip("/")}/{master.stem}.zip"' if url else URL_LINE
    source.write_text(text.replace(json.dumps(URL_LINE)[1:-1], json.dumps(address)[1:-1]))
    before = Path.cwd()
    try:
        os.chdir(folder)
        otter_assign(str(source), str(folder), no_pdfs=True, no_run_tests=not run_tests)
    finally:
        os.chdir(before)
        source.unlink()
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
