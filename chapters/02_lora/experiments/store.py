"""Run the cells of an experiment that are not stored yet, one line of JSON for each.

A run that is killed loses at most the cell it was at: the next run goes on from there.
"""

import json
import platform
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

Cell = dict[str, Any]


def read(path: Path) -> list[Cell]:
    """Return the stored records; a last line that was cut off by a crash is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def run_missing(cells: Sequence[Cell], run: Callable[..., Cell], path: Path) -> list[Cell]:
    """Run ``run(**cell)`` for each cell that has no record, and return all records.

    A record is the cell, what ``run`` returned, and where it was made.
    """
    records = read(path)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    done = [{key: record.get(key) for key in cells[0]} for record in records]
    made = {"date": str(date.today()), "torch": torch.__version__, "machine": platform.machine()}
    for cell in tqdm([cell for cell in cells if cell not in done], desc=path.stem):
        records.append(cell | run(**cell) | made)
        with path.open("a") as file:
            file.write(json.dumps(records[-1]) + "\n")
    return records
