"""Run the notebooks under nbval and compare every output with the stored one.

    python tests/book/gate_outputs.py [--jobs N] [--report FILE] [--quick-first] FOLDER or NOTEBOOK ...

The stored outputs were made with MKL's kernels that every x86-64 processor has, which are two to three times
slower than those for AVX2. With ``--quick-first`` the quick ones run first. A page that differs with them,
beyond what its tolerances allow, is judged again with the kernels it was made with, and only that counts.
Exits 1 if a page failed.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

NBVAL = [
    *("-q", "--dist", "loadfile", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=300"),
    *("--nbval-sanitize-with", "tests/nbval.cfg"),
]
QUICK = {"MKL_CBWR": "AVX2"}
OTHERWISE = "{} differed with quick kernels, and is judged with those it was made with."


def judge(
    pages: list[str], jobs: str, report: Path, kernels: dict[str, str], but: list[Path]
) -> int:
    """Judge the pages but some, leave a report of them and return pytest's exit code."""
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", *NBVAL, "-n", jobs, f"--junitxml={report}"]
    command += [f"--ignore={page}" for page in but]
    return subprocess.run([*command, *pages], env=os.environ | kernels).returncode


def notebooks(given: list[str]) -> list[Path]:
    """Return the notebooks of the folders and files that were named."""
    paths = [Path(each) for each in given]
    return [n for p in paths for n in (sorted(p.rglob("*.ipynb")) if p.is_dir() else [p])]


def is_of(case: ElementTree.Element, page: Path) -> bool:
    """Tell whether a case of junit, of class ``chapters.02_lora.page.ipynb``, is a cell of this page."""
    return ".".join(page.resolve().parts).endswith(f".{case.get('classname')}")


def failed(report: Path, pages: list[Path]) -> list[Path]:
    """Return the pages that have a cell which did not pass."""
    cases = [
        case
        for case in ElementTree.parse(report).getroot().iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return [page for page in pages if any(is_of(case, page) for case in cases)]


def replace(report: Path, again: Path, pages: list[Path]) -> None:
    """Put what a second report says of these pages into the place of what the first one said."""
    tree = ElementTree.parse(report)
    suite = tree.getroot().find("testsuite")
    assert suite is not None
    for case in list(suite):
        if any(is_of(case, page) for page in pages):
            suite.remove(case)
    suite.extend(ElementTree.parse(again).getroot().iter("testcase"))
    tree.write(report, encoding="utf-8", xml_declaration=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pages", nargs="+")
    parser.add_argument("--jobs", default="auto")
    parser.add_argument("--report", type=Path, default=Path("_build/reports/notebooks.xml"))
    parser.add_argument("--quick-first", action="store_true")
    asked = parser.parse_args()
    if not asked.quick_first:
        return judge(asked.pages, asked.jobs, asked.report, {}, but=[])
    code = judge(asked.pages, asked.jobs, asked.report, QUICK, but=[])
    every = notebooks(asked.pages)
    differed = failed(asked.report, every) if code == 1 else []
    if not differed:
        return code
    for page in differed:
        print(OTHERWISE.format(page), flush=True)
    again = asked.report.with_suffix(".again.xml")
    same = [page for page in every if page not in differed]
    code = judge(asked.pages, asked.jobs, again, {}, but=same)
    replace(asked.report, again, differed)
    return code


if __name__ == "__main__":
    sys.exit(main())
