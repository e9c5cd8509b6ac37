"""The stored experiments: complete, and made by scripts that can be stopped and resumed."""

import importlib
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "chapters" / "02_lora" / "experiments"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@pytest.mark.parametrize("name", ["lora_grid", "lora_family"])
def test_every_run_of_the_experiment_is_stored_once(script, name):
    cells, records = script(name).cells(), script("store").read(FOLDER / f"{name}.jsonl")
    stored = [{key: record[key] for key in cells[0]} for record in records]
    assert len(records) == len(cells)
    assert all(cell in stored for cell in cells)
    assert all({"date", "torch", "trainable"} <= record.keys() for record in records)


def test_a_stopped_experiment_goes_on_where_it_was(script, tmp_path):
    store, path, ran = script("store"), tmp_path / "runs.jsonl", []
    cells = [{"seed": seed} for seed in range(4)]

    def run(seed):
        ran.append(seed)
        if ran == [0, 1, 2]:
            raise KeyboardInterrupt
        return {"square": seed * seed}

    with pytest.raises(KeyboardInterrupt):
        store.run_missing(cells, run, path)
    path.write_text(path.read_text() + '{"seed": 2, "squ')  # killed while it wrote
    records = store.run_missing(cells, run, path)
    assert ran == [0, 1, 2, 2, 3]
    assert [record["square"] for record in records] == [0, 1, 4, 9]
    assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]
