"""Stop a notebook at the first cell that raises or times out: what follows would only repeat it.

Outputs that differ do not stop it, so that one run shows every difference.
"""

import platform
from importlib.metadata import version

import pytest

VERSIONS = ("torch", "transformers", "peft", "numpy")


@pytest.hookimpl(trylast=True)  # after the report is there
def pytest_configure(config):
    """Write the versions into the report from which the book's status page is made."""
    from _pytest.junitxml import xml_key

    report = config.stash.get(xml_key, None)
    if report is not None:
        report.add_global_property("Python", platform.python_version())
        for name in VERSIONS:
            report.add_global_property(name, version(name).split("+")[0])


def pytest_runtest_makereport(item, call):
    if call.excinfo is None or not hasattr(item, "cell_num"):
        return
    if not call.excinfo.errisinstance(pytest.skip.Exception) and not _only_differs(call.excinfo):
        item.parent.stopped_at = item.cell_num


def pytest_runtest_setup(item):
    stopped_at = getattr(item.parent, "stopped_at", None)
    if stopped_at is not None:
        pytest.skip(f"cell {stopped_at} did not finish")


def _only_differs(failure) -> bool:
    return str(failure.value) == "Cell outputs differ"  # nbval's words
