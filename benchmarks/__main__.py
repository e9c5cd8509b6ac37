"""Run the benchmarks and print the table.

python -m benchmarks              # runs what is not stored yet, then prints the table
python -m benchmarks --again      # measures everything anew
python -m benchmarks "mixed rows" # some cases only
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import CASES
from benchmarks.measure import DEVICE
from pedagogic_peft.experiments.store import Cell, read, run_missing

RESULTS = Path(__file__).with_name(f"results-{DEVICE}.jsonl")


def run(case: str, setting: str) -> Cell:
    """Measure one cell."""
    measure, _, target = CASES[case]
    return measure(setting) | {"target": target}


def table(records: list[Cell]) -> str:
    """Return the results as a Markdown table; a target that was missed says so."""
    lines = ["| case | setting | ratio | target | | besides |", "|---|---|---|---|---|---|"]
    known = {"case", "setting", "ratio", "target", "date", "torch", "machine"}
    for record in records:
        met = "met" if record["ratio"] <= record["target"] else "**missed**"
        rest = ", ".join(f"{key}: {value}" for key, value in record.items() if key not in known)
        lines.append(
            f"| {record['case']} | {record['setting']} | {record['ratio']} "
            f"| ≤ {record['target']} | {met} | {rest} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser: Any = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"some of {list(CASES)}")
    parser.add_argument("--again", action="store_true", help="forget what is stored of these cases")
    chosen = parser.parse_args()
    if strange := set(chosen.cases) - set(CASES):
        parser.error(f"no such case: {sorted(strange)}; there are {list(CASES)}")
    wanted = chosen.cases or list(CASES)
    torch.set_num_threads(1)
    cells = [{"case": case, "setting": s} for case in wanted for s in CASES[case][1]]
    if chosen.again:
        kept = [record for record in read(RESULTS) if record["case"] not in wanted]
        RESULTS.write_text("".join(json.dumps(record) + "\n" for record in kept))
    print(table(run_missing(cells, run, RESULTS)))


if __name__ == "__main__":
    main()
