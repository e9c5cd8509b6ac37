"""The library stays small enough to read: its code is counted, and what importing it costs.

A line of code is one with a token that is no comment and no docstring; a statement over three lines
counts three. Counted are the methods, the verbs and what they stand on. Not counted is what the book
needs besides: base models, the training loop, measures of memory, the story world, experiments, figures.
"""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pedagogic_peft"
WINGS = ("core", "methods", "files")
LIBRARY = sorted(path for wing in WINGS for path in (PACKAGE / wing).glob("*.py"))
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


def test_the_library_can_be_read_in_an_evening():
    counts = {path.name: len(lines_of_code(path.read_text("utf-8"))) for path in LIBRARY}
    assert sum(counts.values()) <= 2_462, counts


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_each_methods_mathematics_is_short(path):
    """The class that computes (a delta, a budget, a quantised map) has at most 60 lines of code."""
    source = path.read_text("utf-8")
    code = lines_of_code(source)
    for node in (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef)):
        bases = {ast.unparse(base) for base in node.bases}
        if bases & {"Method", "PromptMethod", "LoRA", "BottleneckAdapter"} or node.name == "Method":
            continue  # hyper-parameters and checkpoints
        here = code & set(range(node.lineno, node.end_lineno + 1))
        assert len(here) <= 60, f"{node.name}: {len(here)}"


def test_importing_it_costs_hardly_more_than_importing_torch():
    """CPU time, in one fresh process: at most 0.1 s more, and a tenth of torch's own for slow ones."""
    program = (
        "import time; t0 = time.process_time(); import torch; t1 = time.process_time();"
        "import pedagogic_peft; print(t1 - t0, time.process_time() - t1)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    torch_alone, ours = map(float, run.stdout.split())
    assert ours < 0.1 + 0.1 * torch_alone
