"""What survives `make mutants` has an explanation, and that is of the code as it is."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_each_explained_survivor_is_still_in_the_code():
    entries = tomllib.loads((ROOT / "tests" / "survivors.toml").read_text())["survivor"]
    assert len({(e["file"], e["was"], e["now"]) for e in entries}) == len(entries)
    for entry in entries:
        lines = [line.strip() for line in (ROOT / entry["file"]).read_text().splitlines()]
        assert all(line in lines for line in entry["was"].strip().splitlines()), entry
        assert entry["now"].strip() != entry["was"].strip() and len(entry["why"]) > 20
