"""Shared by all tests: one thread and fixed seeds, so that results do not depend on the machine."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

torch.set_num_threads(1)

LONGEST = (
    "tests/faults/test_book.py",
    "tests/book/test_another_base.py",
    "tests/book/test_gate.py",
)


def pytest_collection_modifyitems(config, items):
    """The longest first, or at the end one core would work on them while the others wait."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
    if config.getoption("loadgroup", False):  # in a worker
        keep_groups_together(items)


def keep_groups_together(items):
    """Write a test's group behind its id, where the scheduler looks: pytest 9.2 ignores what xdist sets."""
    from _pytest.nodeid import coerce_node_id

    for item in items:
        mark = item.get_closest_marker("xdist_group")
        if mark and not item.nodeid.endswith(ending := f"@{mark.args[0]}"):
            item._id = coerce_node_id(item.nodeid + ending)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def pytest_collection_finish(session):
    """What is imported by now stays: accelerate collects garbage after each training, over all of it."""
    gc.collect()
    gc.freeze()
