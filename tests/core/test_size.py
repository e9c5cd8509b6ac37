"""The library stays small enough to read: its code is counted, and what importing it costs.

A line of code is one with a token that is no comment and no docstring; a statement over three lines
counts three. What there is to read is `core` and `methods`: nothing there imports anything of the other
folders (test_arrows.py), so these are exempt. They are counted and printed all the same (pytest -s).
"""

import ast
import io
import os
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pedagogic_peft"
READ = ("core", "methods")  # what a student reads
LIBRARY = sorted(path for wing in (*READ, "files") for path in (PACKAGE / wing).glob("*.py"))
LIBRARY += [PACKAGE / "training" / "adalora_budget.py"]
MOST = 2_000  # lines of code, for the methods in 15 files
A_METHOD = 120  # as many more for each file more
SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def lines_of_code(source: str) -> set[int]:
    """Return the numbers of the lines with code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SKIPPED | {tokenize.ENDMARKER}:
            lines.update(range(token.start[0], token.end[0] + 1))
    with_docstring = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in (n for n in ast.walk(ast.parse(source)) if isinstance(n, with_docstring)):
        if ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def test_the_count_leaves_out_comments_docstrings_and_blank_lines():
    source = '"""Doc\nstring."""\n\n# comment\nx = [\n    1,  # one\n]\n\ndef f():\n    "Doc."\n'
    assert lines_of_code(source) == {5, 6, 7, 9}


def lines_of(*wings: str) -> int:
    """Return the lines of code in folders of the package."""
    paths = [path for wing in wings for path in (PACKAGE / wing).rglob("*.py")]
    return sum(len(lines_of_code(path.read_text("utf-8"))) for path in paths)


def test_the_library_can_be_read_in_an_evening():
    counts = {wing: lines_of(wing) for wing in ("core", "methods", "files", "training", "course")}
    print("\nlines of code:", counts, "to read:", lines_of(*READ))
    more = len(list((PACKAGE / "methods").glob("*.py"))) - 1 - 15
    assert lines_of(*READ) <= MOST + A_METHOD * max(more, 0), counts


@pytest.mark.parametrize("page", ["README.md", "book/api/index.md"])
def test_the_number_that_is_told_is_the_number_that_is_counted(page):
    text = (PACKAGE.parent / page).read_text(encoding="utf-8")
    [told] = re.findall(r"about ([\d,]+) lines of code", text)
    assert int(told.replace(",", "")) == round(lines_of(*READ), -2)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_each_methods_mathematics_is_short(path):
    """The class that computes (a delta, a budget, a quantised map) has at most 60 lines of code."""
    source = path.read_text("utf-8")
    code = lines_of_code(source)
    for node in (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef)):
        bases = {ast.unparse(base) for base in node.bases}
        if bases & {"Method", "PromptMethod", "LoRA", "BottleneckAdapter"} or node.name == "Method":
            continue  # hyper-parameters
        here = code & set(range(node.lineno, node.end_lineno + 1))
        assert len(here) <= 60, f"{node.name}: {len(here)}"


def test_importing_it_costs_hardly_more_than_importing_torch(tmp_path):
    """CPU time, in one fresh process, compiled before: 0.1 s more at most, and a tenth of torch's own."""
    program = (
        "import time; t0 = time.process_time(); import torch; t1 = time.process_time();"
        "import pedagogic_peft; print(t1 - t0, time.process_time() - t1)"
    )
    own = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    own["PYTHONPYCACHEPREFIX"] = str(
        tmp_path
    )  # the first process compiles, as an installation does
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=own
        )
    torch_alone, ours = map(float, run.stdout.split())
    assert ours < 0.1 + 0.1 * torch_alone
