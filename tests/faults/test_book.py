"""A build of the site that is killed leaves no site that looks finished, and the next build is whole.

The book here has few pages, but each kind of them; `make book`, the settings and the tools are the real ones.
"""

import base64
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from faults import killing

pytestmark = pytest.mark.xdist_group("one build")  # so that the undisturbed build is made once

ROOT = Path(__file__).parents[2]
REAL = ["Makefile", "_config.yml", "book/_static", "book/_templates", "book/alive", "book/tools"]
REAL += [
    "book/references.bib",
    "book/references.md",
    "book/status.md",
    "book/benchmarks.md",
    "book/question_bank.md",
]
REAL += ["benchmarks", "README.md", "CONTRIBUTING.md"]
PAGES = ["references", "status", "benchmarks", "question_bank", "words"]


def notebook():
    """A page with a formula, a figure, a question and an exercise, all with stored outputs."""
    drawn = io.BytesIO()
    Image.new("RGB", (60, 40), "steelblue").save(drawn, "PNG")
    figure = {"image/png": base64.b64encode(drawn.getvalue()).decode(), "text/plain": ["a figure"]}
    shown = {"mystnb": {"image": {"alt": "A rectangle."}}}
    question = "**Predict:** what is it?\n\n<details><summary>Answer</summary>Two.</details>"
    cells = [
        new_markdown_cell(
            "# A page\n\nOf low rank, with $\\Delta W = B A$ {cite}`hu2022lora`.\n\n" + question
        ),
        new_code_cell(
            "print(1 + 1)",
            execution_count=1,
            outputs=[new_output("stream", name="stdout", text="2\n")],
        ),
        new_code_cell(
            "draw()",
            execution_count=2,
            metadata=shown,
            outputs=[new_output("display_data", figure)],
        ),
        new_markdown_cell("## Exercises\n\n**1. Easy.** What is $2 + 2$?"),
        new_markdown_cell("Four.", metadata={"tags": ["solution", "hide-cell"]}),
    ]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return new_notebook(cells=cells, metadata=kernel)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    for name in REAL:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (folder / name).parent.mkdir(exist_ok=True)
        copy(ROOT / name, folder / name)
    (folder / "chapters" / "01_one").mkdir(parents=True)
    nbformat.write(notebook(), folder / "chapters" / "01_one" / "page.ipynb")
    (folder / "book" / "index.md").write_text(
        "# A book\n\n```{book-contents}\n```\n\n$$\nh = W_0 x + B A x\n$$\n"
    )
    (folder / "book" / "words.md").write_text("# Words\n\n```{glossary}\nrank\n  A number.\n```\n")
    parts = [
        {"caption": "One", "chapters": [{"file": "chapters/01_one/page", "title": "1.1 A page"}]},
        {"caption": "Two", "chapters": [{"file": f"book/{page}"} for page in PAGES]},
    ]
    toc = {"format": "jb-book", "root": "book/index", "parts": parts}
    (folder / "book" / "_toc.yml").write_text(yaml.safe_dump(toc))
    return folder


def make(book, target="book"):
    """Start make as `make book` does, all of it a group of processes of its own."""
    stamp = ROOT / ".venv" / ".installed"  # nothing is to be installed
    command = ["make", "-o", str(stamp), f"VENV={ROOT / '.venv'}"]
    command += [f"BIN={Path(sys.executable).parent}", target]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SOURCE_DATE_EPOCH": "1700000000"}
    for name in ("MAKEFLAGS", "MAKELEVEL"):
        environment.pop(name, None)
    return subprocess.Popen(
        command,
        cwd=book,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(book):
    output, _ = (process := make(book)).communicate(timeout=killing.LIMIT)
    assert process.returncode == 0, output.decode()[-3000:]


def content(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def sources(book):
    skipped = ("_build", "book/tools/__pycache__", "benchmarks/__pycache__")
    return {name: text for name, text in content(book).items() if not name.startswith(skipped)}


def await_orphans(group):
    """Wait until no process of the group is left."""
    ends = time.monotonic() + killing.LIMIT
    while time.monotonic() < ends:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(book):
    """The site of a build that was left alone, the sources, and how long it took."""
    before, start = sources(book), time.monotonic()
    finish(book)
    seconds = time.monotonic() - start
    site = content(book / "_build" / "html")
    assert {"index.html", "chapters/01_one/page.html", "_static/book.css"} <= site.keys()
    assert sources(book) == before
    return site, before, seconds


def test_a_build_killed_at_any_moment_leaves_no_half_site_and_the_next_is_whole(book, undisturbed):
    site, before, longest = undisturbed
    html = book / "_build" / "html"
    for number, moment in enumerate(killing.moments(longest, killing.BUILDS)):
        process = make(book)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            if number % 3:  # all at once, as when the power fails
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                assert not html.exists() or content(html) == site
            else:  # make alone: what it started goes on, beside the next build
                process.kill()
                process.wait()  # or it would stay in its group, as a zombie
        finish(book)
        await_orphans(process.pid)
        process.communicate()
        assert content(html) == site
        assert sources(book) == before


def test_a_killed_build_leaves_nothing_that_is_checked_and_the_next_clears_up(book, undisturbed):
    site, _, longest = undisturbed
    process, html = make(book), book / "_build" / "html"
    new = html.parent / ".html" / "_build" / "html"
    while not list(new.glob("**/*.html")):  # until the first page is written
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not html.exists()
    output, _ = (check := make(book, "check-site")).communicate()
    assert check.returncode and b"run make book first" in output
    finish(book)
    assert content(html) == site
    assert {f.name for f in html.parent.iterdir()} == {"html", ".html.lock"}


def test_a_build_that_fails_leaves_no_site(book, undisturbed):
    page = book / "book" / "words.md"
    whole = page.read_text()
    page.write_text(whole + "\nA {doc}`/page/that/is/nowhere`.\n")
    try:
        output, _ = (process := make(book)).communicate()
    finally:
        page.write_text(whole)
    assert process.returncode and b"page/that/is/nowhere" in output
    assert {f.name for f in (book / "_build").iterdir()} <= {".html.lock"}
    finish(book)
    assert content(book / "_build" / "html") == undisturbed[0]
