"""A stored run, run again on a page: the gate insists that it comes out alike, a reader is told if not.

Another version of torch, another processor and a GPU round differently, and training carries that on. On
such a machine a page should go on; in the gate, which runs where the records were made, it should stop.
"""

import os

import torch

GATE = "PEDAGOGIC_PEFT_GATE"  # set by `make gate` and `make run` alone


def as_stored(alike: bool, what: str) -> None:
    """Say in words what differs from the stored run, if it does, and go on; in the gate, stop.

    Args:
        alike: whether the run made here came out as the stored one, by the caller's own tolerance.
        what: both numbers, in words: ``"after 100 steps the loss is 0.99, stored 1.02"``.

    Raises:
        AssertionError: they differ, and the environment variable ``PEDAGOGIC_PEFT_GATE`` is set.
    """
    if alike:
        return
    if os.environ.get(GATE):
        raise AssertionError(f"not as stored: {what}")
    device = "a GPU" if torch.cuda.is_available() else "a CPU"
    print(
        f"Not as stored: {what}. The stored run was made by another version of torch or on other "
        f"hardware (here: torch {torch.__version__}, {device}), which round differently, and training "
        "carries that on. What this page says is about the stored runs; go on."
    )
