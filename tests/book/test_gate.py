"""Proof of the gate: the command that judges the notebooks fails on what must not be published.

`make gate` is the command `make test` runs; here it judges copies of notebooks elsewhere.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
TINY = ["import random\n\nrandom.seed(0)", "print(sum([20, 22]))", "[random.randint(0, 9), 7]"]
CHAPTERS = sorted((ROOT / "chapters").rglob("*.ipynb"))
FLAGSHIP = ROOT / "chapters" / "02_lora" / "lora_from_scratch.ipynb"

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


@pytest.fixture(scope="module")
def tiny() -> dict:
    """A small notebook, executed: what an author would commit."""
    cells = [nbformat.v4.new_code_cell(source) for source in TINY]
    metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    NotebookClient(notebook, kernel_name="python3", record_timing=False).execute()
    return notebook


def gate(folder: Path, **notebooks: dict) -> subprocess.CompletedProcess:
    """Judge notebooks, by their names, as `make test` judges the chapters."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, notebook in notebooks.items():
        (folder / f"{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    shutil.copy(ROOT / "chapters" / "conftest.py", folder)
    return make("gate", folder)


def make(target: str, folder: Path, **more: str) -> subprocess.CompletedProcess:
    """Judge a folder of notebooks."""
    report = folder.parent / "report.xml"  # not the one that the site's status page shows
    command = ["make", target, f"CHAPTERS={folder}", f"BIN={Path(sys.executable).parent}"]
    command += ["JOBS=0", f"REPORT={report}", *(f"{key}={value}" for key, value in more.items())]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "MAKE", "MFLAGS"))}
    return subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=300)


def change_a_digit(notebook: dict) -> None:
    output = notebook["cells"][1]["outputs"][0]
    output["text"] = output["text"].replace("42", "43")


def change_a_trained_number(notebook: dict) -> None:
    """Twice what the cell allows."""
    declare_a_tolerance(notebook, abs=0.5)
    notebook["cells"][1]["outputs"][0]["text"] = "43.0\n"


def change_a_count(notebook: dict) -> None:
    declare_a_tolerance(notebook, abs=0.5)
    change_a_digit(notebook)


def declare_a_tolerance(notebook: dict, **limits: float) -> None:
    """Let the second cell print 42.0, and a number with decimals differ."""
    notebook["cells"][1]["metadata"]["tolerance"] = limits | {"reason": "it is a test of the gate"}
    notebook["cells"][1]["source"] = "print(42.0)"
    notebook["cells"][1]["outputs"][0]["text"] = "42.0\n"


def raise_an_error(notebook: dict) -> None:
    notebook["cells"][1]["source"] = "raise RuntimeError('broken')"


def warn_of_something(notebook: dict) -> None:
    warn(notebook, "this will be removed in the next version")


def never_execute(notebook: dict) -> None:
    for cell in notebook["cells"]:
        cell.update(execution_count=None, outputs=[])


def warn(notebook: dict, text: str) -> None:
    """Let the last cell say something on stderr that is not stored."""
    cell = notebook["cells"][-1]
    cell["source"] = f"import sys\n\nprint({text!r}, file=sys.stderr)\n" + cell["source"]


def say_what_bitsandbytes_says_on_some_processors(notebook: dict) -> None:
    warn(notebook, "Failed to load CPU gemm_4bit_forward from kernels-community: No module named")


def stay_within_the_tolerance(notebook: dict) -> None:
    declare_a_tolerance(notebook, abs=0.5)
    notebook["cells"][1]["outputs"][0]["text"] = "42.4\n"


SPOILED = {
    change_a_digit: "Cell outputs differ",
    change_a_trained_number: "beyond the tolerance (abs 0.5): 43.0 -> 42.0",
    change_a_count: "Cell outputs differ",
    warn_of_something: "Unexpected output fields",
    raise_an_error: "Notebook cell execution failed",
}


def changed(notebook: dict, change: Callable[[dict], None]) -> dict:
    copied = json.loads(json.dumps(notebook))
    change(copied)
    return copied


def test_the_gate_lets_honest_notebooks_pass(tmp_path, tiny):
    near = changed(tiny, stay_within_the_tolerance)
    saying = changed(tiny, say_what_bitsandbytes_says_on_some_processors)
    judged = gate(tmp_path / "chapters", honest=tiny, near=near, saying=saying)
    assert judged.returncode == 0, judged.stdout + judged.stderr
    assert '"largest": 0.4' in (tmp_path / "report.xml").read_text().replace("&quot;", '"')


def test_a_page_that_differs_with_quick_kernels_is_judged_with_those_it_was_made_with(tmp_path):
    """It passes then, and the report says so of all its cells; with other kernels alone it fails."""
    folder = tmp_path / "chapters"
    folder.mkdir()
    asks = "import os\n\nprint(os.environ['MKL_CBWR'])"
    for name, source, said in (("kernels", asks, "COMPATIBLE"), ("other", "print(1)", "1")):
        output = nbformat.v4.new_output("stream", text=f"{said}\n")
        cell = nbformat.v4.new_code_cell(source, execution_count=1, outputs=[output])
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / f"{name}.ipynb")
    judged = make("gate-outputs", folder)
    assert judged.returncode == 0, judged.stdout
    assert "kernels.ipynb differed with quick kernels" in judged.stdout
    assert "other.ipynb differed" not in judged.stdout
    cases = list(ElementTree.parse(tmp_path / "report.xml").iter("testcase"))
    assert len(cases) == 2 and not any(case.find("failure") is not None for case in cases)
    assert make("gate-outputs", folder, KERNELS="own").returncode != 0


one_run = pytest.mark.xdist_group("spoiled pages")  # or each worker would make one of its own


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory, tiny) -> tuple[subprocess.CompletedProcess, dict[str, str]]:
    """What the gate says of one page for each fault, in one run, and of each page by its name."""
    folder = tmp_path_factory.mktemp("spoiled") / "chapters"
    pages = {spoil.__name__: changed(tiny, spoil) for spoil in [*SPOILED, never_execute]}
    judged = gate(folder, honest=tiny, **pages)
    said: dict[str, str] = dict.fromkeys(["honest", *pages], "")
    for case in ElementTree.parse(folder.parent / "report.xml").iter("testcase"):
        name = next(name for name in said if case.get("classname", "").split(".")[-2] == name)
        said[name] += "".join(failure.text or "" for failure in case.iter("failure"))
    return judged, said


@one_run
@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_the_gate_stops(spoiled, spoil: Callable[[dict], None]):
    judged, said = spoiled
    assert judged.returncode != 0
    assert SPOILED[spoil] in said[spoil.__name__] and not said["honest"]


@one_run
def test_the_gate_stops_a_page_that_was_never_executed(spoiled):
    """Which nbval would pass."""
    judged, said = spoiled
    assert not said["never_execute"]
    failed = re.findall(r"^FAILED .*test_it_was_executed_once\w+\[(.*)\]", judged.stdout, re.M)
    assert ["never_execute" in page for page in failed] == [True]


@one_run
def test_a_stage_that_fails_does_not_hide_the_next(spoiled):
    """The checks of the pages failed, and nbval ran all the same; the last line names both."""
    judged, said = spoiled
    last = judged.stdout.strip().splitlines()[-1]
    assert last == "failed: gate-pages gate-outputs (of gate-pages gate-outputs)"
    assert all(said[spoil.__name__] for spoil in SPOILED)


def test_the_gate_stops_a_page_of_the_book_with_one_changed_output(tmp_path):
    """The head of the real page, up to its first printed output, with one letter changed."""
    notebook = json.loads(FLAGSHIP.read_text(encoding="utf-8"))
    printed = head_until_first_print(notebook)
    printed["text"] = ["".join(printed["text"]) + "!"]
    judged = gate(tmp_path / "chapters", page=notebook)
    assert judged.returncode != 0
    assert "Cell outputs differ" in judged.stdout


PLANTED = {  # what is planted into a copy of a page: (a text of its code, what stands there then)
    "a typed verdict": ("06_practice/evaluating", "holds(smallest[3] > 0.05)", '"agrees"'),
    "one seed": ("05_comparison/forgetting", "comparisons=2)", "comparisons=2, fewest=1)"),
    "one score above another": (
        "05_comparison/claims",
        "Markdown(claims_table(rows))",
        "word = holds(runs(records, 'style', 'LoRA')[0]['test'] > 0.5)",
    ),
    "an edge that nobody names": ("04_soft_prompts/what_prompts_cannot_do", "edge", "end"),
}
REFUSED = {
    "a typed verdict": "'agrees' is typed",
    "one seed": "fewest is a number, at least 3",
    "one score above another": "judge an order of scores by verdict",
    "an edge that nobody names": "best rates of prompt_limits at an edge, and the page does not say so",
}


def test_the_gate_stops_claims_that_are_planted_into_copies_of_pages(tmp_path):
    folder = tmp_path / "chapters"
    for page, text, planted in PLANTED.values():
        copy = folder / f"{page}.ipynb"
        copy.parent.mkdir(parents=True, exist_ok=True)
        notebook = json.loads((ROOT / "chapters" / copy.relative_to(folder)).read_text("utf-8"))
        cells = [
            c
            for c in notebook["cells"]
            if c["cell_type"] == "code" and text in "".join(c["source"])
        ]
        assert cells, f"{page} has no {text!r} any more: plant elsewhere"
        for cell in cells:
            cell["source"] = "".join(cell["source"]).replace(text, planted)
        copy.write_text(json.dumps(notebook), encoding="utf-8")
    judged = make("gate-pages", folder)
    assert judged.returncode != 0
    for name, message in REFUSED.items():
        assert message in judged.stdout, name


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_page_prints_something_that_the_gate_compares(path):
    head_until_first_print(json.loads(path.read_text(encoding="utf-8")))


def head_until_first_print(notebook: dict) -> dict:
    """Cut the notebook after the first printed output that is compared; return that output."""
    for i, cell in enumerate(notebook["cells"]):
        compared = "nbval-ignore-output" not in cell["metadata"].get("tags", [])
        for output in cell.get("outputs", []):
            if compared and output["output_type"] == "stream":
                notebook["cells"] = notebook["cells"][: i + 1]
                return output
    pytest.fail("the page prints nothing that is compared")
