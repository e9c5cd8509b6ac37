"""What users complain of when they save and load, and what happens here instead: never a silent mistake.

Checkpoints that do not fit the model are in test_checkpoint, processes killed at any moment in tests/faults.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.asserts import assert_as_before, snapshot
from helpers.models import build, gradients, logits, randomise
from safetensors.torch import load_file, save_file

from pedagogic_peft import (
    DoRA,
    LoRA,
    VeRA,
    attach,
    count_parameters,
    detach,
    load,
    save,
)
from pedagogic_peft.files.disk import remove_leftovers

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def saved(tmp_path):
    model = attach(build("gpt2"), LoRA(r=2))
    randomise(model)
    return save(model, tmp_path / "saved")


# "My new head was never trained" and "my head was not saved"


def test_a_saved_head_comes_back(tmp_path):
    model = attach(build("bert"), LoRA(modules_to_save=["classifier"]))
    randomise(model)
    back = load(build("bert"), save(model, tmp_path))
    assert torch.equal(logits(back, "bert"), logits(model, "bert"))


def test_what_would_be_trained_but_not_saved_is_named(tmp_path):
    model = attach(build("llama"), LoRA())
    model.model.norm.requires_grad_(True)
    with pytest.raises(ValueError, match="model.norm.weight.*modules_to_save"):
        save(model, tmp_path / "lost")
    assert not (tmp_path / "lost").exists()


# "The base was trained along"


def test_an_unfrozen_base_is_noticed_when_saving(tmp_path):
    model = attach(build("gpt2"), LoRA()).requires_grad_(True)
    with pytest.raises(ValueError, match="no adaptation has them"):
        save(model, tmp_path)


def test_so_is_the_original_of_a_module_whose_copy_is_trained(tmp_path):
    model = attach(build("gpt2"), LoRA(modules_to_save=["mlp"]))
    model.transformer.h[1].mlp.base.c_fc.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"1 \(transformer.h.1.mlp.c_fc.weight\) would be trained"):
        save(model, tmp_path)


# "0 trainable parameters after loading", "my counts are wrong"


def test_a_loaded_adaptation_trains(saved):
    model = load(build("gpt2"), saved)
    assert count_parameters(model).trainable == 2 * 2 * (32 + 96)
    assert all(".deltas.default." in name for name in gradients(model, "gpt2"))


# "A second adaptation under one name stacked silently"


def test_a_name_cannot_be_attached_twice(saved):
    model = load(build("gpt2"), saved)
    before = snapshot(model)
    for again in (lambda: attach(model, LoRA()), lambda: load(model, saved)):
        with pytest.raises(ValueError, match="'default' is there already"):
            again()
        assert_as_before(model, before)


# "The dtype or the device was not what I expected"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adaptations_are_float32_beside_any_base_and_load_from_any_file(dtype, saved):
    tensors = {key: value.to(dtype) for key, value in load_file(saved / TENSORS).items()}
    save_file(tensors, saved / TENSORS)
    model = load(build("gpt2").to(dtype), saved)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert logits(model, "gpt2").dtype == dtype


@pytest.mark.parametrize("method", [LoRA(), DoRA(), VeRA(r=8, save_projection=False)], ids=str)
def test_torchs_default_dtype_changes_neither_dtypes_nor_numbers(method, tmp_path):
    model = attach(build("gpt2"), method)
    randomise(model)
    save(model, tmp_path)
    torch.set_default_dtype(torch.bfloat16)
    try:
        new, back = attach(build("gpt2"), method), load(build("gpt2"), tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for m in (new, back) for p in m.parameters()} == {torch.float32}
    assert torch.equal(logits(back, "gpt2"), logits(model, "gpt2"))


# "The checkpoint was broken", or worse


def assert_refused(folder, words):
    model = build("gpt2")
    before = snapshot(model)
    with pytest.raises(ValueError, match=words):
        load(model, folder)
    assert_as_before(model, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(saved, value):
    tensors = load_file(saved / TENSORS)
    next(iter(tensors.values()))[0, 0] = value
    save_file(tensors, saved / TENSORS)
    assert_refused(saved, r"not finite.*lora_")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_pickle_is_never_opened(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (saved / TENSORS).write_bytes(pickle.dumps(Bomb()))
    assert_refused(saved, "not a whole safetensors file")
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 100, (2**60).to_bytes(8, "little") + b"{}", b"\x02\0\0\0\0\0\0\0{}"],
    ids=["empty", "noise", "endless header", "no tensors"],
)
def test_hostile_tensor_files_are_refused(saved, content):
    (saved / TENSORS).write_bytes(content)
    assert_refused(saved, "not a whole safetensors file|no tensors")


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"peft_type": ["LORA"]}'],
    ids=["empty", "list", "null", "nested", "not text", "type is a list"],
)
def test_hostile_configurations_are_refused(saved, content):
    (saved / CONFIG).write_bytes(content)
    assert_refused(saved, "not JSON|peft_type")


@pytest.mark.parametrize(
    "change",
    [
        {"r": 0},
        {"r": "8"},
        {"lora_alpha": -1},
        {"lora_dropout": 2},
        {"target_modules": 7},
        {"alpha_pattern": {"(": 1}},
        {"target_modules": "("},
        {"modules_to_save": 3},
        {"use_rslora": "yes"},
    ],
    ids=str,
)
def test_absurd_hyper_parameters_are_refused(saved, change):
    config = json.loads((saved / CONFIG).read_text()) | change
    (saved / CONFIG).write_text(json.dumps(config))
    assert_refused(saved, next(iter(change)).removeprefix("lora_"))


# "The process was killed while it saved, and both checkpoints were gone"


def save_for_ever(folder):
    """Return the number of a process that saves again and again, and what it writes a byte to after each.

    It is a fork, for it has everything imported already.
    """
    reads, writes = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            model = attach(build("gpt2"), LoRA(r=64, target_modules="all-linear"))
            while True:
                torch.manual_seed(0)
                randomise(model)
                save(model, folder)
                os.write(writes, b".")
        finally:
            os._exit(1)
    os.close(writes)
    return process, open(reads, "rb", buffering=0)


def kill(process, said):
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status)  # it had not ended by itself
    said.close()


@pytest.mark.parametrize("delay", [0.001, 0.004, 0.009, 0.02])
def test_killing_the_process_while_it_saves_leaves_a_whole_checkpoint(tmp_path, delay):
    process, said = save_for_ever(tmp_path / "saved")
    assert said.read(1) == b"."
    time.sleep(delay)
    kill(process, said)
    model = load(build("gpt2"), tmp_path / "saved")
    assert detach(model) is model


@pytest.mark.parametrize("moved", [0, 1])
def test_a_save_that_was_killed_between_its_two_files_is_whole(saved, monkeypatch, moved):
    """The new files count as soon as both are complete, however many are in place."""
    model = attach(build("gpt2"), LoRA(r=3, alpha=1))
    randomise(model)
    replace, done = os.replace, []

    def killed(source, target):
        if Path(source).exists() and len(done) == moved:
            raise KeyboardInterrupt
        replace(source, target)
        done.append(source)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        save(model, saved)
    for _ in range(2):  # as it was left, and after the next save has put it in place
        again = load(build("gpt2"), saved)
        assert torch.equal(logits(again, "gpt2"), logits(model, "gpt2"))
        save(again, saved)
        assert sorted(f.name for f in saved.iterdir()) == [CONFIG, TENSORS]


def test_two_processes_that_save_to_one_place_leave_a_whole_checkpoint(tmp_path):
    both = [save_for_ever(tmp_path / "saved") for _ in range(2)]
    for _, said in both:
        assert [said.read(1) for _ in range(20)] == [b"."] * 20
    for process, said in both:
        kill(process, said)
    load(build("gpt2"), tmp_path / "saved")


def test_a_configuration_that_belongs_to_other_tensors_is_pointed_out(saved):
    config = json.loads((saved / CONFIG).read_text()) | {"lora_alpha": 99}
    (saved / CONFIG).write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="edited.*or their saving was cut off"):
        load(build("gpt2"), saved)


def test_only_what_processes_left_that_have_ended_is_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = [f".saved.{ended.pid}", f".saved.{os.getpid()}", ".saved.notes", f".other.{ended.pid}"]
    for name in names:
        (tmp_path / name).write_text("half")
    (tmp_path / f".saved.more.{ended.pid}").mkdir()
    remove_leftovers(tmp_path / "saved")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
