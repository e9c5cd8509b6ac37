"""What survives `make mutants` is explained, of the code as it is; and every test judges, or says why not."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
WINGS = ("core", "methods", "files", "training", "course", "faults")
# Tests that `make mutants` does not run: those of files, pages and costs, and the slowest.
LEFT_OUT = {
    "core": {"arrows", "costs", "independence", "offloaded", "size", "walks"},
    "methods": {"matrix"},
    "files": {"other_architectures"},
    "course": {
        "again",
        "bases",
        "comparison",
        "experiments",
        "fake_gpu",
        "real_benches",
    },
    "faults": {"book", "sweeps"},
}


def test_a_new_file_of_tests_is_among_those_that_judge_mutants():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutmut"]
    there = {
        str(path.relative_to(ROOT))
        for wing in WINGS
        for path in (ROOT / "tests" / wing).glob("test_*.py")
        if path.stem.removeprefix("test_") not in LEFT_OUT.get(wing, ())
    }
    assert set(settings["pytest_add_cli_args_test_selection"]) == there


def test_each_explained_survivor_is_still_in_the_code():
    entries = tomllib.loads((ROOT / "tests" / "survivors.toml").read_text())["survivor"]
    assert len({(e["file"], e["was"], e["now"]) for e in entries}) == len(entries)
    for entry in entries:
        lines = [line.strip() for line in (ROOT / entry["file"]).read_text().splitlines()]
        assert all(line in lines for line in entry["was"].strip().splitlines()), entry
        assert entry["now"].strip() != entry["was"].strip() and len(entry["why"]) > 20
