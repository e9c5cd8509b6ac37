"""Judge the notebooks as on other processors, which torch's, oneDNN's and MKL's own switches imitate.

    make portable [PROCESSOR=name]

Each processor in `PROCESSORS` gets a whole run of ``make gate-outputs``. A table of what differed goes to
``_build/reports/portable.md``: the cells that failed, and the largest difference that a tolerance let pass.
Exits 1 if a cell failed anywhere. The switches choose the kernels that a processor without those instructions
takes; what one and the same instruction rounds differently on another maker's processor they can't imitate.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

SWITCHES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "OPENBLAS_CORETYPE")
PROCESSORS = {  # name: the switches' values; none: whatever this processor chooses by itself
    "mkl-avx2": ("avx2", "AVX2", "AVX2", "Haswell"),
    "sse": ("default", "SSE41", "COMPATIBLE", "Nehalem"),
    "own": (),
}
REPORTS = Path("_build/reports")


def judge(name: str) -> Path:
    """Run the gate as on this processor; return its report."""
    report = REPORTS / f"portable-{name}.xml"
    report.unlink(missing_ok=True)
    values = dict(zip(SWITCHES, PROCESSORS[name], strict=False))
    command = [
        "make",
        "gate-outputs",
        f"REPORT={report}",
        f"KERNELS={'given' if values else 'own'}",
    ]
    subprocess.run(command, env=os.environ | values)
    if not report.exists():
        sys.exit(f"{name}: the gate left no report at {report}")
    return report


def rows(report: Path) -> list[tuple[str, str, float]]:
    """Return (cell, "failed" or "passed", largest difference of its numbers) of each cell."""
    found = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        kept = {p.get("name"): p.get("value") for p in case.iter("property")}
        largest = json.loads(kept["numbers"])["largest"] if "numbers" in kept else 0.0
        failed = any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
        page = str(case.get("classname")).replace(".ipynb", "").replace(".", "/")
        found.append((f"{page} {case.get('name')}", "failed" if failed else "passed", largest))
    return found


def table(name: str, cells: list[tuple[str, str, float]]) -> str:
    """Return what this processor changed, in Markdown."""
    changed = [cell for cell in cells if cell[1] == "failed" or cell[2]]
    failed = sum(cell[1] == "failed" for cell in cells)
    within = len(changed) - failed
    head = f"## {name}\n\n{len(cells)} cells, {failed} failed, {within} within their tolerance.\n"
    lines = [f"| {where} | {how} | {largest:g} |" for where, how, largest in changed]
    return "\n".join([head, "| cell | | largest difference |", "|---|---|---|", *lines, ""])


def main(names: list[str]) -> int:
    if unknown := set(names) - set(PROCESSORS):
        sys.exit(f"PROCESSOR={' '.join(sorted(unknown))}: expected some of {', '.join(PROCESSORS)}")
    found = {name: rows(judge(name)) for name in names or PROCESSORS}
    text = "\n".join(table(name, cells) for name, cells in found.items())
    (REPORTS / "portable.md").write_text(
        f"# The notebooks on imitated processors\n\n{text}", encoding="utf-8"
    )
    print(text)
    return int(any(how == "failed" for cells in found.values() for _, how, _ in cells))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
