"""What every notebook must be before its outputs are worth comparing.

nbval passes a notebook that was never executed, and looks at no figure: these checks do both.
CHAPTERS names the folder to judge; the default is the book's own chapters.
"""

import ast
import importlib
import inspect
import json
import os
import re
import textwrap
from pathlib import Path

import pytest

CHAPTERS = Path(os.environ.get("CHAPTERS") or Path(__file__).parents[2] / "chapters").resolve()
NOTEBOOKS = [p for p in sorted(CHAPTERS.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
LARGEST = 2_000_000  # bytes
LONGEST_CELL = 25  # lines

MACHINE = re.compile(
    r"/(home|root|tmp|Users|content|work|usr|opt)/|[A-Z]:\\\\|site-packages|ipykernel_\d"
    r"|\bat 0x[0-9a-f]{6,}|\w*Warning\b|\b20\d\d-\d\d-\d\d\b"
)
OUTSIDE = re.compile(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//|@import|url\(\s*["']?https?:""")
PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")


def test_there_are_notebooks_to_judge():
    assert NOTEBOOKS, f"no notebook in {CHAPTERS}"


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: str(path.relative_to(CHAPTERS)))
def path(request) -> Path:
    return request.param


@pytest.fixture
def notebook(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def code(notebook) -> list[dict]:
    """The code cells that are not empty, each with its source as one string."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        cell["source"] = "".join(cell["source"])
    return [cell for cell in cells if cell["source"].strip()]


def outputs_of(cells: list[dict]):
    """Yield (cell, output, {mime type: text}) for every stored output."""
    for cell in cells:
        for output in cell["outputs"]:
            data = {mime: "".join(text) for mime, text in output.get("data", {}).items()}
            if output["output_type"] == "stream":
                data[output["name"]] = "".join(output["text"])
            if output["output_type"] == "error":
                data["text/traceback"] = "\n".join(output.get("traceback", []))
            yield cell, output, data


def name_of(cell: dict) -> str:
    return f"cell [{cell['execution_count']}] {cell['source'].splitlines()[0][:60]!r}"


def tags_of(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def test_it_was_executed_once_from_top_to_bottom(code):
    assert code, "no code cell: nothing to check"
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), (
        "run make run"
    )


def test_its_kernel_is_plain_python(notebook):
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


def test_no_output_is_an_error_or_on_stderr(code):
    for cell, output, data in outputs_of(code):
        if not {"raises-exception", "nbval-raises-exception"} & set(tags_of(cell)):
            assert output["output_type"] != "error", f"{name_of(cell)} raised {output.get('ename')}"
        assert "stderr" not in data, f"{name_of(cell)} wrote to stderr: {data['stderr'][:200]}"


def test_no_output_belongs_to_one_machine_or_one_moment(code):
    for cell, _, data in outputs_of(code):
        for mime, text in data.items():
            if mime.startswith(("text/", "stdout")):
                found = MACHINE.search(PICTURE.sub("", text))
                assert not found, f"{name_of(cell)}: {found.group()!r} in its {mime}"


def test_no_output_loads_anything_from_outside(code):
    for cell, _, data in outputs_of(code):
        html = data.get("text/html", "")
        # A link that the reader may click is fine; what loads by itself is not.
        found = OUTSIDE.search(re.sub(r"<a\s[^>]*>", "", html))
        assert not found, f"{name_of(cell)}: {found.group()!r}"


def test_no_cell_ends_in_a_semicolon(code):
    for cell in code:  # nbval would see another output than the stored one
        assert not cell["source"].rstrip().endswith(";"), f"{name_of(cell)}: use plt.show()"


def test_no_cell_is_too_long(code):
    for cell in code:
        lines = cell["source"].count("\n") + 1
        assert lines <= LONGEST_CELL, f"{name_of(cell)} has {lines} lines, at most {LONGEST_CELL}"


def test_what_its_first_cell_installs_it_imports(code):
    """On Colab the first cell finds no library: what it installs needs its name afterwards."""
    source = code[0]["source"]
    install, imported = source.find("%pip install"), source.rfind("    import pedagogic_peft")
    assert install < 0 or imported > install, "after %pip install: import pedagogic_peft"
    assert install < 0 or "%pip uninstall -q -y torchao" in source, "peft refuses Colab's torchao"


def test_it_is_not_too_large(path):
    assert path.stat().st_size <= LARGEST, f"{path.stat().st_size} bytes"


def test_every_picture_has_an_alternative_text(code):
    for cell, _, data in outputs_of(code):
        if "image/png" in data and "text/html" not in data:
            alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt) >= 20, (
                f'{name_of(cell)}: metadata mystnb: {{"image": {{"alt": "..."}}}}'
            )


def test_a_figure_that_moves_is_as_it_was_made(code):
    """Its data are not compared letter by letter, but its id is the hash of all it holds."""
    import hashlib

    for cell, _, data in outputs_of(code):
        html = data.get("text/html", "")
        for figure in re.findall(r'data-figure="(fig-[0-9a-f]{10})"', html):
            digest = hashlib.sha256(html.replace(figure, "@ID@").encode()).hexdigest()[:10]
            assert figure == f"fig-{digest}", f"{name_of(cell)}: edited by hand; run make run"
            page = (
                Path(__file__).parents[2]
                / "pedagogic_peft"
                / "course"
                / "explorables"
                / "page.html"
            )
            ending = page.read_text(encoding="utf-8").strip().split("@SCRIPT@")[1]
            assert html.endswith(ending.replace("@ID@", figure)), (
                f"{name_of(cell)}: made by an older pedagogic_peft.course.figures; run make run"
            )


def test_an_output_that_is_not_compared_says_why(code):
    for cell in code:
        marks = [tag for tag in tags_of(cell) if tag in ("nbval-ignore-output", "nbval-skip")]
        comment = re.search(
            r"#\s*(NBVAL_(IGNORE_OUTPUT|SKIP)|PYTEST_VALIDATE_IGNORE_OUTPUT)", cell["source"]
        )
        assert not comment, f"{name_of(cell)}: use the tag nbval-ignore-output, and give a reason"
        assert "nbval-skip" not in marks, f"{name_of(cell)} is never run"
        if marks:
            reason = cell["metadata"].get("reason", "")
            assert len(reason) >= 10, f'{name_of(cell)}: metadata "reason" says why it is ignored'


def test_what_it_shows_of_the_library_is_the_library(code):
    """A cell with metadata {"library": "module.Name"} defines Name just as the library does."""
    for cell in code:
        named = cell["metadata"].get("library", [])
        for dotted in [named] if isinstance(named, str) else named:
            module, name = dotted.rsplit(".", 1)
            source = textwrap.dedent(
                inspect.getsource(getattr(importlib.import_module(module), name))
            )
            left_out = cell["metadata"].get("without", [])  # methods that another page shows
            shown, real = definition(cell["source"], name), definition(source, name, left_out)
            assert shown == real, (
                f"{name_of(cell)} and {dotted} differ:\n{shown}\n--- library:\n{real}"
            )


def definition(source: str, name: str, left_out: list[str] | tuple[str, ...] = ()) -> str:
    """Return the class or function as bare statements: no comments, docstrings or ``left_out`` methods."""
    for node in ast.parse(source).body:
        if getattr(node, "name", None) == name:
            methods = [getattr(part, "name", None) for part in node.body]
            assert set(left_out) <= set(methods), f"{name} has no {left_out}"
            node.body = [p for p, m in zip(node.body, methods, strict=True) if m not in left_out]
            return ast.unparse(_bare(node))
    raise AssertionError(f"no definition of {name}")


def _bare(node):
    for part in ast.walk(node):
        if isinstance(part, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(part) is not None:
            part.body = part.body[1:] or [ast.Pass()]
    return node
