"""The package for Otter and Gradescope, in an environment that holds what the package asks for and no more.

There `mamba env create -f environment.yml` runs in an image. Here pip installs the same lines into a new
virtual environment, with this machine's Python: what comes from conda is Python, pip and a server that
nothing of this needs. It takes minutes and, without pip's cache, a network.
"""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "assignments"))

import build  # noqa: E402

NAME = "lora"


@pytest.fixture(scope="module")
def assignment(tmp_path_factory) -> Path:
    """One assignment, built; its solution was not tried here."""
    where = tmp_path_factory.mktemp("assignment")
    return build.build(ROOT / "assignments" / f"{NAME}.ipynb", where, run_tests=False)


def installed(package: Path, where: Path) -> Path:
    """Install what the package's environment.yml asks of pip; return the new environment."""
    source = where / "source"
    with zipfile.ZipFile(package) as archive:
        archive.extractall(source)
    asked = yaml.safe_load((source / "environment.yml").read_text())["dependencies"]
    [lines] = [each["pip"] for each in asked if isinstance(each, dict)]
    assert lines.count(index := f"--extra-index-url {build.CPU_INDEX}") == 1
    lines.remove(index)  # where this machine gets torch is its own affair
    requirements = where / "requirements.txt"
    requirements.write_text("\n".join(lines).replace(build.UNPACKED, str(source)) + "\n")
    subprocess.run([sys.executable, "-m", "venv", where / "fresh"], check=True)
    # On PYTHONPATH pip would find this repository, and take the library for installed.
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [where / "fresh/bin/pip", "install", "--quiet", "--no-compile", "-r", requirements],
        check=True, timeout=1800, env=own,
    )  # fmt: skip
    return where / "fresh"


def test_the_reference_solution_gets_full_points_in_a_fresh_environment(assignment, tmp_path):
    [package] = (assignment / "autograder").glob("*.zip")
    fresh = installed(package, tmp_path)
    away = tmp_path / "away"  # nothing of this repository lies here
    away.mkdir()
    notebook = assignment / "autograder" / f"{NAME}.ipynb"
    bare = {"PATH": f"{fresh}/bin:/usr/bin:/bin", "HOME": str(away), "OMP_NUM_THREADS": "1"}
    where = "import pedagogic_peft; print(pedagogic_peft.__file__)"
    said = subprocess.run(
        [fresh / "bin/python", "-c", where], cwd=away, env=bare, capture_output=True, text=True
    )
    assert said.stdout.startswith(str(fresh)), said
    command = [fresh / "bin/otter", "run", notebook, "-a", package, "-o", away, "--no-logo"]
    done = subprocess.run(command, cwd=away, env=bare, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    tests = json.loads((away / "results.json").read_text())["tests"]
    scores = {test["name"]: test["score"] for test in tests if "score" in test}
    questions = json.loads((assignment / "assignment.json").read_text())["questions"]
    possible = {q["name"]: q["points"] for q in questions if not q["manual"]}
    assert sum(scores.values()) == sum(possible.values()) == 19, scores
