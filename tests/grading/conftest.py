"""What both files of tests need: the assignments, built."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """All assignments, built; otter has run each solution against all tests."""
    where = tmp_path_factory.mktemp("built")
    names = sorted(path.stem for path in (ROOT / "assignments").glob("*.ipynb"))

    def build(name: str) -> None:
        subprocess.run(
            [sys.executable, "assignments/build.py", "--assignment", name, "--out", where],
            cwd=ROOT, check=True, capture_output=True, timeout=1800,
        )  # fmt: skip

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(build, names))
    return where
