"""What the book is built with: pinned, hashed, and workflows that may do no more than they must."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def pins(file: Path) -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\;]+)", file.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def test_the_lock_has_the_versions_that_are_tested_here():
    locked, tested = pins(ROOT / "requirements.lock"), pins(ROOT / "constraints.txt")
    assert len(locked) > 200
    both = locked.keys() & tested.keys()
    assert len(both) > 0.95 * len(tested)
    assert {n: locked[n] for n in both} == {n: tested[n] for n in both}, "run make lock"


def test_every_package_of_the_lock_has_a_hash():
    entries = re.split(r"\n(?=[A-Za-z])", (ROOT / "requirements.lock").read_text().strip())
    assert [
        e.split("\n")[0] for e in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}", e)
    ] == []


def test_what_pyproject_asks_for_is_in_the_lock():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    names = {canonicalize_name(Requirement(line).name) for line in wanted} - {project["name"]}
    assert names - pins(ROOT / "requirements.lock").keys() == set(), "run make lock"


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_uses_commits_and_few_permissions(file):
    workflow = yaml.safe_load(file.read_text())
    assert workflow["permissions"] == {}  # a job without its own has none
    for name, job in workflow["jobs"].items():
        assert "permissions" in job and "timeout-minutes" in job, name
        for step in job["steps"]:
            if used := step.get("uses"):
                assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", used), used
            if "actions/checkout@" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False
