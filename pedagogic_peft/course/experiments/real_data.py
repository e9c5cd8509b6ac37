"""The real data of the real benches: public sets, from a folder that the user names, or from the Hub.

The environment variable ``PEFT_BOOK_DATA`` names a folder that has one folder for each set, with one file
of JSON lines for each split. Without it the sets come from the Hugging Face Hub, by name.

None of them is part of this package. E2E's licence, CC BY-SA 4.0, allows to pass it on.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from pedagogic_peft.course.pocket.tasks import load_dataset

FOLDER = "PEFT_BOOK_DATA"
Row = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Set:
    """Where a set comes from.

    Attributes:
        columns: {our name: the Hub's}.
        splits: {our name, which is the file's: the Hub's}.
        hub: its name there; None if it has none.
        options: more arguments of ``load_dataset``.
    """

    columns: Mapping[str, str]
    splits: Mapping[str, str]
    hub: str | None
    options: Mapping[str, Any] = field(default_factory=dict)


SAME = {"train": "train", "valid": "validation", "test": "test"}
SETS = {
    "sst2": Set(
        {"text": "text", "label": "label"},
        {"train": "train", "dev": "validation", "test": "test"},
        "SetFit/sst2",
    ),
    "ag_news": Set(
        {"text": "text", "label": "label"},
        {"train": "train", "test": "test"},
        "fancyzhx/ag_news",
    ),
    # The Hub has it as a script, which `datasets` no longer runs, and as the tables made of it.
    "e2e": Set(
        {"source": "meaning_representation", "target": "human_reference"},
        {"dev": "validation", "test": "test"},
        "tuetschek/e2e_nlg",
        {"revision": "refs/convert/parquet"},
    ),
    "shakespeare": Set({"source": "source", "target": "target"}, SAME, None),
    "multi30k": Set({"en": "en", "de": "de"}, SAME, "bentrevett/multi30k"),
}


@cache
def rows(name: str, split: str) -> tuple[Row, ...]:
    """Return all rows of a split, in their order.

    Args:
        name: a key of `SETS`.
        split: a key of its ``splits``.

    Raises:
        KeyError: there is no such set or split.
        FileNotFoundError: the folder has no such file, or there is no folder and the set is not on the Hub.
        ValueError: a row lacks a column, or the file is empty; names it.
        ModuleNotFoundError, OSError: from `load_dataset`, where the Hub's set cannot be had.
    """
    the = SETS[name]
    hubs = the.splits[split]
    if folder := os.environ.get(FOLDER):
        return _from_file(Path(folder) / name / f"{split}.jsonl", the)
    if the.hub is None:
        raise FileNotFoundError(
            f"{name} is not on the Hub: set {FOLDER} to a folder with {name}/{split}.jsonl, one "
            f"JSON object with {', '.join(the.columns)} in each line"
        )
    found = load_dataset(the.hub, split=hubs, **the.options)
    return tuple({ours: row[theirs] for ours, theirs in the.columns.items()} for row in found)


def _from_file(path: Path, the: Set) -> tuple[Row, ...]:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there: {FOLDER} names a folder with one folder for each set; unset it to "
            "take the sets from the Hub"
        )
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            found.append({column: row[column] for column in the.columns})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with {', '.join(the.columns)}, not "
                f"{line[:60]!r}"
            ) from error
    if not found:
        raise ValueError(f"{path} is empty")
    return tuple(found)


def sample(of: Sequence[T], n: int, seed: int) -> list[T]:
    """Return n of them, drawn by the seed without repetition.

    Raises:
        ValueError: there are fewer.
    """
    if n > len(of):
        raise ValueError(f"{n} rows asked for, {len(of)} are there")
    return Random(seed).sample(list(of), n)
