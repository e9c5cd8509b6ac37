"""A sweep that is killed goes on with the cells that are missing, and ends with the same records."""

import errno
import json
import os
import signal

import pytest
import torch
from helpers.models import build

from faults import killing
from pedagogic_peft import LoRA, attach, train
from pedagogic_peft.course.experiments.store import read, run_missing

CELLS = [{"r": r, "lr": lr} for r in (1, 2, 3) for lr in (1e-3, 1e-2)]


def cell(r, lr):
    """A real training run, as in every experiment."""
    model = build("gpt2")
    torch.manual_seed(r)
    examples = [{"input_ids": [3 + i, 4, 5], "labels": [3 + i, 4, 5]} for i in range(6)]
    return {
        "loss": train(attach(model, LoRA(r=r)), examples, steps=3, lr=lr, progress=False)[-1][
            "loss"
        ]
    }


def test_a_sweep_killed_at_any_moment_ends_as_one_that_was_not(tmp_path):
    whole, file = tmp_path / "whole.jsonl", tmp_path / "runs.jsonl"
    longest = killing.seconds(lambda: run_missing(CELLS, cell, whole))
    for moment in killing.moments(longest):
        file.unlink(missing_ok=True)
        killing.run(lambda: run_missing(CELLS, cell, file), kill_after=moment)
        assert killing.run(lambda: run_missing(CELLS, cell, file)) == 0
        assert file.read_bytes() == whole.read_bytes()
    assert sorted(f.name for f in tmp_path.glob("*.json*")) == ["runs.jsonl", "whole.jsonl"]


def test_a_record_cut_off_at_any_byte_is_made_again(tmp_path):
    file = tmp_path / "runs.jsonl"
    run_missing(CELLS[:3], lambda r, lr: {"square": r * r}, file)
    content, ran = file.read_bytes(), []
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(last, len(content)):
        file.write_bytes(content[:end])
        run_missing(CELLS[:3], lambda r, lr: ran.append(r) or {"square": r * r}, file)
        assert file.read_bytes() == content
    assert len(ran) == len(content) - last


def test_a_full_disk_stops_the_sweep_and_loses_one_cell(tmp_path):
    import resource

    file = tmp_path / "runs.jsonl"
    run_missing(CELLS, lambda r, lr: {"square": r * r}, file)
    whole, size = file.read_bytes(), len(file.read_bytes())
    file.unlink()

    def job():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
        with pytest.raises(OSError) as caught:
            run_missing(CELLS, lambda r, lr: {"square": r * r}, file)
        assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)

    assert killing.run(job) == 0
    assert 0 < file.stat().st_size <= size // 2
    run_missing(CELLS, lambda r, lr: {"square": r * r}, file)
    assert file.read_bytes() == whole


def test_two_sweeps_into_one_file_lose_no_record(tmp_path):
    file = tmp_path / "runs.jsonl"
    for _ in range(max(1, killing.REPEATS // 5)):
        file.unlink(missing_ok=True)
        processes = []
        for seeds in (range(0, 100), range(100, 200)):
            if (process := os.fork()) == 0:
                for seed in seeds:  # each call reads the file anew
                    run_missing([{"seed": seed}], lambda seed: {"text": "x" * 500}, file)
                os._exit(0)
            processes.append(process)
        assert [os.waitpid(process, 0)[1] for process in processes] == [0, 0]
        assert sorted(record["seed"] for record in read(file)) == list(range(200))


def test_a_line_that_is_no_record_is_named(tmp_path):
    file = tmp_path / "runs.jsonl"
    file.write_text(json.dumps({"seed": 0}) + '\n{"seed": 1, "sq{"seed": 2}\n')
    with pytest.raises(ValueError, match=r"runs.jsonl, line 2 is no JSON: '\{\"seed\": 1"):
        read(file)
