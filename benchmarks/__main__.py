"""Run the benchmarks that are not stored yet, and print the table: `make bench`.

python -m benchmarks              # all cases
python -m benchmarks "mixed rows" # some cases only
python -m benchmarks --again …    # measure them anew
"""

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks import cases
from benchmarks.measure import DEVICE
from benchmarks.report import markdown
from pedagogic_peft.course.experiments.store import Cell, read, run_missing

FOLDER = Path(__file__).parent
RESULTS = FOLDER / f"results-{DEVICE}.jsonl"


def run(case: str, setting: str) -> Cell:
    """Measure one cell; a measure that has a target carries it."""
    chosen = cases.CASES[case]
    found = chosen.measure(setting)
    for name, at_most in chosen.targets.items():
        found["measures"][name]["at_most"] = at_most
    packages = ("transformers", "peft", "pedagogic_peft")
    return found | {"processor": processor(), "versions": {p: version(p) for p in packages}}


def processor() -> str:
    """Return the name of the GPU or of the processor."""
    if DEVICE == "cuda":
        return torch.cuda.get_device_name()
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser: Any = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"some of {list(cases.CASES)}")
    parser.add_argument("--setting", help="only the settings that contain this")
    parser.add_argument("--again", action="store_true", help="forget what is stored of these")
    chosen = parser.parse_args()
    if strange := set(chosen.cases) - set(cases.CASES):
        parser.error(f"no such case: {sorted(strange)}; there are {list(cases.CASES)}")
    torch.set_num_threads(1)
    cells = [
        {"case": case, "setting": setting}
        for case in chosen.cases or cases.CASES
        for setting in cases.CASES[case].settings
        if (chosen.setting or "") in setting
    ]
    if chosen.again:
        stored = [r for r in read(RESULTS) if {k: r[k] for k in ("case", "setting")} not in cells]
        RESULTS.write_text("".join(json.dumps(record) + "\n" for record in stored))
    print(markdown(run_missing(cells, run, RESULTS), FOLDER))


if __name__ == "__main__":
    main()
