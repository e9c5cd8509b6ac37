"""Run the cells of an experiment that are not stored yet, one line of JSON for each.

A run that is killed loses at most the cell it was at: the next run goes on from there.
"""

import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tqdm import tqdm

Cell = dict[str, Any]


def read(path: Path) -> list[Cell]:
    """Return the stored records; a last line that was cut off by a crash is left out."""
    if not path.exists():
        return []
    *lines, _ = path.read_text().split("\n")  # a whole line ends with a newline
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError:
            raise ValueError(
                f"{path}, line {number} is no JSON: {line[:60]!r}. Delete it"
            ) from None
    return records


def results(
    path: Path, base: str, cells: Callable[[str], Sequence[Cell]], run: Callable[..., Cell]
) -> list[Cell]:
    """Return an experiment's records for a base: those that ship with the package, for pocket-gpt.

    For another base they are made, which takes long: ``run(**cell, base=base)`` for each of
    ``cells(base)`` that is missing in a file in the current folder.
    """
    if base == "pocket-gpt":
        return read(path)
    own = Path(f"{path.stem}-{base.strip('/').replace('/', '-')}.jsonl")
    return run_missing(cells(base), partial(run, base=base), own)


def run_missing(
    cells: Sequence[Cell], run: Callable[..., Cell], path: Path, processes: int = 1
) -> list[Cell]:
    """Run ``run(**cell)`` for each cell that has no record, and return all records.

    A record is the cell, what ``run`` returned, and where it was made.

    Args:
        processes: how many cells to run at once, each on one core; ``run`` is a function of a module
            then. The records stand in the order in which they end.
    """
    lock = FileLock(path.with_suffix(".lock"))  # another process may append to the same file
    with lock:
        _remove_cut_off_line(path)
        records = read(path)
    done = [{key: record.get(key) for key in cells[0]} for record in records]
    made = {"date": str(date.today()), "torch": torch.__version__, "machine": platform.machine()}
    todo = [cell for cell in cells if cell not in done]
    for cell, found in tqdm(_each(todo, run, processes), desc=path.stem, total=len(todo)):
        records.append(cell | found | made)
        with lock, path.open("ab") as file:
            file.write(json.dumps(records[-1]).encode() + b"\n")
    return records


def _each(
    cells: Sequence[Cell], run: Callable[..., Cell], processes: int
) -> Iterator[tuple[Cell, Cell]]:
    """Yield every cell with what ``run`` made of it."""
    if processes == 1:
        yield from ((cell, run(**cell)) for cell in cells)
        return
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    try:
        futures = {pool.submit(run, **cell): cell for cell in cells}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _remove_cut_off_line(path: Path) -> None:
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
