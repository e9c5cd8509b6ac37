"""SmolLM2's adaptations that are stored with the book: it says all of a record in one plain sentence.

    python -m pedagogic_peft.course.experiments.real_adaptations    # what is missing

Each is one run of the bench `real_decoder` on the task "records" with the first seed, at the first rate of
that method's search. It is an example to load and to look at, no measurement of the method: one rate, one
seed. It is kept in half precision beside this file, in a folder with the licence of what it learned from,
and so are the rows that pages train on. A run takes a quarter of an hour.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pedagogic_peft import save, train
from pedagogic_peft.course.experiments import real_data, real_decoder
from pedagogic_peft.course.experiments.real_bench import alone, clocked, costs, of_like_length
from pedagogic_peft.course.experiments.store import Cell, read, run_missing

RESULTS = Path(__file__).with_name("real_adaptations.jsonl")
FOLDER = Path(__file__).with_name("real_adaptations")
ROWS = FOLDER / "rows.jsonl"  # some of E2E's, for a few steps in a page
TASK, SEED = "records", 0
METHODS = {"LoRA, q and v": "lora", "Pfeiffer": "adapter", real_decoder.PREFIX: "prefix"}
SHIPPED = 60  # rows in the file


def run(method: str, rate: float, seed: int, steps: int, base: str = real_decoder.BASE) -> Cell:
    """Train an adaptation, store it, and return its scores, beside those of the frozen base."""
    torch.set_num_threads(1)
    model, tokenizer = real_decoder.prepare(TASK, method, seed, base)
    rows = training_rows(seed)
    examples = real_decoder.encode(tokenizer, TASK, rows)
    size = real_decoder.TASKS[TASK].batch_size
    batches = of_like_length(examples, size, seed, tokenizer.pad_token_id)
    cost = costs(model, batches)
    with clocked(cost):
        history = train(
            model,
            batches,
            steps=steps,
            batch_size=1,
            collate_fn=alone,
            lr=rate,
            seed=seed,
            progress=False,
        )
    store(model, FOLDER / METHODS[method])
    losses = [round(record["loss"], 4) for record in history]
    return scores(model, tokenizer) | {"losses": losses} | cost


def training_rows(seed: int) -> list[Any]:
    """Return the rows of the bench's run."""
    return real_data.sample(
        real_decoder.parts(TASK)[0], real_decoder.N, real_decoder.TRAINING + seed
    )


def scores(model: Any, tokenizer: Any) -> Cell:
    """Return the bench's scores on the rows that rank, and what the model writes for the first ones."""
    ranking = real_decoder.parts(TASK)[2]
    _, loss = real_decoder.score(model, tokenizer, TASK, ranking)
    found = real_decoder.text_scores(model, tokenizer, TASK, ranking)
    found |= {"loss": loss, "kept": real_decoder.kept(model, tokenizer)}
    return {key: round(value, 4) for key, value in found.items()}


def store(model: Any, folder: Path) -> None:
    """Save the adaptation in float16, which `load` reads back into float32."""
    save(model, folder)
    path = folder / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        half = {key: file.get_tensor(key).half() for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    save_file(half, path, metadata)


def write_rows(path: Path = ROWS) -> None:
    """Store the first rows of the first run, for the pages."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in training_rows(SEED)[:SHIPPED]]
    path.write_text("".join(lines), encoding="utf-8")


def rows() -> list[Cell]:
    """Return the rows that are stored, each with its ``source`` and ``target``."""
    return read(ROWS)


def cells() -> list[Cell]:
    """Return every run."""
    return [
        {
            "method": method,
            "rate": real_decoder.METHODS[method][1],
            "seed": SEED,
            "steps": real_decoder.STEPS,
        }
        for method in METHODS
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    chosen = parser.parse_args().methods
    write_rows()
    run_missing([cell for cell in cells() if cell["method"] in chosen], run, RESULTS)
