"""A training run that was killed goes on from its checkpoint and ends with the same bits."""

import errno
import json
import os

import pytest
import torch
from helpers.models import build

from faults import killing
from pedagogic_peft import LoRA, attach, train

EXAMPLES = [{"input_ids": ids, "labels": ids} for i in range(30) for ids in [[3 + i % 40, 4, 5, 6]]]
OPTIONS = {"steps": 40, "batch_size": 4, "lr": 1e-2, "progress": False, "checkpoint_every": 3}


def fresh():
    model = build("gpt2")
    torch.manual_seed(5)
    return attach(model, LoRA(r=4, dropout=0.2))


def result(model, history):
    tensors = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    return tensors, list(history)


def accuracy(model):
    return {"probe": float(torch.rand(()))}  # an evaluation that draws random numbers


def finish(folder, **options):
    """Train, and leave the result where another process finds it."""
    model = fresh()
    options = OPTIONS | {"evaluate": accuracy, "eval_every": 7} | options
    history = train(model, EXAMPLES, checkpoint=folder / "run.pt", **options)
    torch.save(result(model, history), folder / "new")
    os.replace(folder / "new", folder / "result.pt")


def same(one, other):
    (a, history), (b, again) = one, other
    return history == again and a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def undisturbed():
    model = fresh()
    options = OPTIONS | {"evaluate": accuracy, "eval_every": 7}
    return result(model, train(model, EXAMPLES, **options))


def test_a_run_killed_at_any_moment_ends_as_one_that_was_not(tmp_path, undisturbed):
    (tmp_path / "whole").mkdir()
    longest, resumed = killing.seconds(lambda: finish(tmp_path / "whole")), 0
    for i, moment in enumerate(killing.moments(longest)):
        folder = tmp_path / str(i)
        folder.mkdir()
        killing.run(lambda folder=folder: finish(folder), kill_after=moment)
        resumed += (folder / "run.pt").exists()
        assert killing.run(lambda folder=folder: finish(folder)) == 0
        assert same(torch.load(folder / "result.pt"), undisturbed)
        assert {file.name for file in folder.iterdir()} == {"run.pt", "result.pt"}
    assert resumed > 0  # or nothing was tested


def test_a_run_killed_again_and_again_comes_to_its_end(tmp_path, undisturbed):
    longest = killing.seconds(lambda: finish(tmp_path, checkpoint_every=1))
    for file in tmp_path.iterdir():
        file.unlink()
    for _ in range(100):
        if killing.run(lambda: finish(tmp_path, checkpoint_every=1), longest * 0.6) == 0:
            break
    assert same(torch.load(tmp_path / "result.pt"), undisturbed)


@pytest.mark.parametrize("call, before", [(1, True), (1, False), (2, True), (2, False)])
@pytest.mark.parametrize("owner, name", [(torch, "save"), (os, "fsync"), (os, "replace")])
def test_a_kill_at_any_step_of_storing(
    tmp_path, undisturbed, monkeypatch, owner, name, call, before
):
    with monkeypatch.context() as patch:
        killing.killed_at(patch, owner, name, call, before)
        assert killing.run(lambda: finish(tmp_path)) is None
    finish(tmp_path)
    assert same(torch.load(tmp_path / "result.pt"), undisturbed)


def test_a_finished_run_is_only_read(tmp_path, undisturbed):
    finish(tmp_path)
    state = (tmp_path / "run.pt").read_bytes()
    model = fresh()
    history = train(model, EXAMPLES, checkpoint=tmp_path / "run.pt", **OPTIONS)
    assert same(result(model, history), undisturbed)
    assert (tmp_path / "run.pt").read_bytes() == state


def test_the_random_numbers_after_a_resumed_run_are_those_after_a_whole_one(tmp_path):
    draws = []
    for checkpoint in (None, tmp_path / "run.pt", tmp_path / "run.pt"):
        train(fresh(), EXAMPLES, checkpoint=checkpoint, **OPTIONS)
        draws.append(torch.rand(3).tolist())
    assert draws[0] == draws[1] == draws[2]


# Claim: what goes wrong has one clear error, and the last good state is kept


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(tmp_path):
    file = tmp_path / "run.pt"
    model = fresh()
    weight = next(p for p in model.parameters() if p.requires_grad)

    def collate(rows, calls=[]):  # noqa: B006 (it counts)
        from pedagogic_peft.training.train import pad_collate

        calls.append(1)
        if len(calls) == 9:
            weight.data[0] = torch.nan
        return pad_collate()(rows)

    with pytest.raises(FloatingPointError, match=r"nan at step [89]\..*has the state of step 6"):
        train(model, EXAMPLES, checkpoint=file, collate_fn=collate, **OPTIONS)
    state = torch.load(file, weights_only=True)
    assert state["step"] == 6
    assert all(t.isfinite().all() for t in state["tensors"].values())
    history = train(fresh(), EXAMPLES, checkpoint=file, **OPTIONS | {"lr": 1e-3})
    assert [record["step"] for record in history] == list(range(1, 41))
    assert history[6]["lr"] < history[5]["lr"] / 5  # it goes on with the smaller rate


def test_parameters_that_are_not_finite_are_not_stored(tmp_path):
    model = fresh()
    train(model, EXAMPLES, checkpoint=tmp_path / "run.pt", **OPTIONS | {"steps": 3})
    before = (tmp_path / "run.pt").read_bytes()

    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            self.param_groups[0]["params"][0].data.fill_(float("inf"))

    broken = Broken([p for p in model.parameters() if p.requires_grad], lr=1.0)
    options = OPTIONS | {"steps": 1, "optimizer": broken}
    with pytest.raises(FloatingPointError, match=r"lora_.* is not finite after step 1\. None"):
        train(model, EXAMPLES, checkpoint=tmp_path / "other.pt", **options)
    assert not (tmp_path / "other.pt").exists()
    assert (tmp_path / "run.pt").read_bytes() == before


def test_a_full_disk_is_an_oserror_and_the_last_state_is_whole(tmp_path, monkeypatch):
    file, save, calls = tmp_path / "run.pt", torch.save, []

    def full(state, target):
        calls.append(state["step"])
        if len(calls) == 3:
            target.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(state, target)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        train(fresh(), EXAMPLES, checkpoint=file, **OPTIONS)
    assert torch.load(file, weights_only=True)["step"] == 6
    assert [f.name for f in tmp_path.iterdir()] == ["run.pt"]


@pytest.mark.parametrize("change", ["steps", "batch_size", "seed", "examples", "rank"])
def test_the_state_of_another_run_is_refused(tmp_path, change):
    train(fresh(), EXAMPLES, checkpoint=tmp_path / "run.pt", **OPTIONS)
    options = OPTIONS | ({change: 7} if change in ("steps", "batch_size", "seed") else {})
    examples = EXAMPLES[:7] if change == "examples" else EXAMPLES
    model = attach(build("gpt2"), LoRA(r=3)) if change == "rank" else fresh()
    found = "tensors: others" if change == "rank" else rf"{change}: \d+ there, 7 here"
    with pytest.raises(ValueError, match=rf"of another run \({found}\)"):
        train(model, examples, checkpoint=tmp_path / "run.pt", **options)
    assert not model.training and not hasattr(model, "_is_accelerate_prepared")


def test_a_file_that_is_no_state_is_refused(tmp_path):
    for content in (b"", b"text", json.dumps({"step": 3}).encode()):
        (tmp_path / "run.pt").write_bytes(content)
        with pytest.raises(ValueError, match="run.pt is not the whole state of a training run"):
            train(fresh(), EXAMPLES, checkpoint=tmp_path / "run.pt", **OPTIONS)
    torch.save([1, 2], tmp_path / "run.pt")
    with pytest.raises(ValueError, match="not the whole state"):
        train(fresh(), EXAMPLES, checkpoint=tmp_path / "run.pt", **OPTIONS)


def test_the_state_executes_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harm"),))

    torch.save({"run": {}, "step": 1, "tensors": Evil()}, tmp_path / "run.pt")
    with pytest.raises(ValueError, match="not the whole state"):
        train(fresh(), EXAMPLES, checkpoint=tmp_path / "run.pt", **OPTIONS)
    assert not (tmp_path / "harm").exists()


def test_a_state_with_hooks_that_have_their_own_is_refused(tmp_path):
    for hook in ("before_step", "after_step"):
        options = OPTIONS | {"checkpoint": tmp_path / "run.pt", hook: lambda step: None}
        with pytest.raises(ValueError, match="would not be in it"):
            train(fresh(), EXAMPLES, **options)
    with pytest.raises(ValueError, match="checkpoint_every=0"):
        train(fresh(), EXAMPLES, **OPTIONS | {"checkpoint_every": 0})
