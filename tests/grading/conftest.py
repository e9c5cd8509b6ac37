"""What both files of tests need: the assignments, built."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """All assignments, built; otter has run each solution against all tests."""
    where = tmp_path_factory.mktemp("built")
    subprocess.run(
        [sys.executable, "assignments/build.py", "--out", where],
        cwd=ROOT, check=True, capture_output=True, timeout=900,
    )  # fmt: skip
    return where
