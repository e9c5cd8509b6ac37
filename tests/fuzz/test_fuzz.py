"""The fuzzer's inputs, a few of them: `make fuzz` tries 100,000. Hypothesis shrinks what it finds."""

import json
import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.mutations import mutated
from fuzz.promises import Target, watched
from fuzz.seeds import join, seeds

KINDS = sorted(seeds())


@pytest.fixture(scope="module")
def targets():
    return {kind: Target(seed) for kind, seed in seeds().items()}


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(KINDS), number=st.integers(0, 2**32))
def test_any_input_keeps_the_promises(targets, tmp_path_factory, kind, number):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    targets[kind].hold(folder, mutated(targets[kind].seed, random.Random(f"{kind} {number}")))


@pytest.mark.parametrize("kind", KINDS)
def test_an_unchanged_seed_loads(targets, tmp_path, kind):
    seed, target = seeds()[kind], targets[kind]
    loaded = target.loaded
    config = json.dumps(seed.config).encode()
    tensors = join(seed.header, seed.data) if seed.header else seed.data
    target.hold(tmp_path, dict(zip(seed.files, (config, tensors), strict=True)))
    assert target.loaded == loaded + 1


# The watch itself can fail: what it must notice, it notices.


def open_elsewhere():
    open("/etc/passwd").close()


def call_the_system():
    os.system("true")


def take_too_long():
    while True:
        pass


def take_too_much():
    import torch

    torch.empty(2**31)


@pytest.mark.parametrize(
    "harm, error",
    [
        (open_elsewhere, "open /etc/passwd"),
        (call_the_system, "os.system"),
        (take_too_long, "took more than"),
        (take_too_much, "alloc"),
    ],
)
def test_the_watch_notices(tmp_path, harm, error):
    with pytest.raises((AssertionError, RuntimeError), match=error), watched(tmp_path):
        harm()
