"""Saving an adaptation: killed, on a full disk, by two at once, in a folder that may not be written."""

import errno
import itertools
import json
import os
import resource
import signal
import warnings

import pytest
import torch
from helpers.models import build

from faults import killing
from pedagogic_peft import LoRA, attach, load, save

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def adapted(r):
    """A model whose tensors and configuration both tell which one it is."""
    model = attach(build("gpt2"), LoRA(r=r, alpha=10 * r))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.fill_(r / 8)
    return model


def which(folder):
    """Return the r of the adaptation in the folder, after checking that all of it is of that one."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no doubt is left about which files belong together
        model = load(build("gpt2"), folder)
    delta = model.transformer.h[0].attn.c_attn.deltas["default"]
    r, alpha = delta.lora_A.weight.shape[0], model._adaptations.methods["default"].alpha
    values = {v for p in delta.parameters() for v in p.detach().flatten().tolist()}
    assert (alpha, values) == (10 * r, {r / 8})
    return r


def leftovers(folder):
    return {file.name for file in folder.iterdir()} - {CONFIG, TENSORS}


@pytest.fixture
def saved(tmp_path):
    save(adapted(2), tmp_path)
    return tmp_path


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_one_whole(saved):
    models = [adapted(r) for r in (2, 3, 4)]

    def job():
        for model in itertools.cycle(models):
            save(model, saved)

    for moment in killing.moments(0.2):
        assert killing.run(job, kill_after=0.001 + moment) is None
        assert which(saved) in (2, 3, 4)
        save(models[1], saved)
        assert which(saved) == 3
        assert leftovers(saved) == set()


MOMENTS = [("rename", 1, True), ("rename", 1, False)]  # nothing, or all of it has happened
MOMENTS += [("replace", call, before) for call in (1, 2) for before in (True, False)]


@pytest.mark.parametrize(("function", "call", "before"), MOMENTS)
@pytest.mark.parametrize("r", [2, 3])  # the same configuration again, or another
def test_a_kill_before_or_after_each_step(saved, monkeypatch, function, call, before, r):
    with monkeypatch.context() as patch:
        killing.killed_at(patch, os, function, call + 2 * (function == "replace"), before)
        assert killing.run(lambda: save(adapted(r), saved)) is None
    assert which(saved) == (2 if (function, before) == ("rename", True) else r)
    for again in (4, 2):
        save(adapted(again), saved)
        assert which(saved) == again
    assert leftovers(saved) == set()


def test_two_kills_between_the_two_files_in_a_row(saved, monkeypatch):
    for r in (3, 4):
        with monkeypatch.context() as patch:
            killing.killed_at(patch, os, "rename", 1, before=False)
            assert killing.run(lambda r=r: save(adapted(r), saved)) is None
        assert which(saved) == r
    assert json.loads((saved / CONFIG).read_text())["r"] == 3  # the next save put it in place


def test_a_kill_in_the_first_save_leaves_nothing_or_all(tmp_path, monkeypatch):
    for before in (True, False):
        with monkeypatch.context() as patch:
            killing.killed_at(patch, os, "rename", 1, before)
            assert (
                killing.run(lambda folder=tmp_path / str(before): save(adapted(3), folder)) is None
            )
    assert which(tmp_path / "False") == 3
    with pytest.raises(FileNotFoundError, match="has no adapter_"):
        load(build("gpt2"), tmp_path / "True")
    save(adapted(4), tmp_path / "True")
    assert which(tmp_path / "True") == 4
    assert leftovers(tmp_path / "True") == set()


def test_two_processes_that_save_to_one_folder_leave_one_of_their_adaptations(saved):
    models = {r: adapted(r) for r in (2, 3, 4)}

    def job(r):
        for _ in range(20):
            save(models[r], saved)

    for _ in range(max(1, killing.REPEATS // 5)):
        processes = []
        for r in (3, 4):
            if (process := os.fork()) == 0:
                try:
                    job(r)
                finally:
                    os._exit(0)
            processes.append(process)
        assert [os.waitpid(process, 0)[1] for process in processes] == [0, 0]
        r = which(saved)
        assert r in (3, 4)
        assert json.loads((saved / CONFIG).read_text())["r"] == r
        assert leftovers(saved) == set()


def too_large(limit):
    """From now on no file of this process can be longer, as on a disk that gets full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@pytest.mark.parametrize("limit", [0, 100, 700, 2000])
def test_a_disk_that_gets_full_is_an_error_and_the_old_files_stay(saved, limit):
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    assert max(map(len, before.values())) > limit

    def job():
        too_large(limit)
        with pytest.raises(OSError) as caught:
            save(adapted(4), saved)
        assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)

    assert killing.run(job) == 0
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before


def test_a_folder_that_may_not_be_written_is_an_error_that_names_it(saved):
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    saved.chmod(0o555)

    def job():
        for folder in (saved, *list(saved.parents)[:3]):
            folder.chmod(0o755 if folder != saved else 0o555)
        if os.getuid() == 0:  # nothing is forbidden to root
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        with pytest.raises(PermissionError, match=saved.name):
            save(adapted(4), saved)
        with pytest.raises(PermissionError, match="inside"):
            save(adapted(4), saved / "inside")
        assert which(saved) == 2  # another user can read it all the same

    assert killing.run(job) == 0
    saved.chmod(0o755)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before


def test_a_configuration_edited_by_hand_counts_and_is_pointed_out(saved):
    config = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text(json.dumps(config | {"lora_alpha": 99}))
    with pytest.warns(UserWarning, match="was edited after these tensors were saved"):
        model = load(build("gpt2"), saved)
    assert model._adaptations.methods["default"].alpha == 99
    assert torch.isfinite(model.transformer.h[0].attn.c_attn.deltas["default"].delta_weight()).all()
