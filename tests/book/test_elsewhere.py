"""The runner of pages elsewhere (`make colab`, `make gpu`): what it calls an error, and what a difference."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from elsewhere import __main__ as elsewhere

ROOT = Path(__file__).parents[2]


def page(*cells: tuple[str, str, dict]) -> dict:
    """A notebook of (source, printed text, metadata)."""
    made = nbformat.v4.new_notebook()
    for number, (source, text, metadata) in enumerate(cells):
        outputs = [nbformat.v4.new_output("stream", text=text)] if text else []
        made.cells.append(nbformat.v4.new_code_cell(source, outputs=outputs, metadata=metadata))
        made.cells[-1].id = f"c{number}"
    return made


@pytest.fixture
def judge(monkeypatch):
    return elsewhere.gate()


NEAR = {"tolerance": {"abs": 0.1, "reason": "trained"}}


def test_a_number_within_the_cells_tolerance_is_no_difference(judge):
    stored, new = page(("a", "loss 1.02\n", NEAR)), page(("a", "loss 0.99\n", NEAR))
    assert elsewhere.compare(stored, new, judge) == ([], [])


def test_what_lies_beyond_is_told_with_both_numbers(judge):
    stored, new = page(("a", "loss 1.02\n", NEAR)), page(("a", "loss 0.12\n", NEAR))
    [said] = elsewhere.compare(stored, new, judge)[1]
    assert "1.02 -> 0.12" in said


def test_a_sentence_about_the_stored_run_is_told(judge):
    stored, new = (
        page(("a", "1.0\n", {})),
        page(("a", "2.0\nNot as stored: 2.0, stored 1.0.\n", {})),
    )
    [said] = elsewhere.compare(stored, new, judge)[1]
    assert "Not as stored: 2.0" in said


def test_an_error_is_one_unless_the_page_means_it(judge):
    stored, new = (page(("a", "", {}), ("b", "", {"tags": ["raises-exception"]})) for _ in range(2))
    for cell in new.cells:
        cell.outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="torchao")]
    [error] = elsewhere.compare(stored, new, judge)[0]
    assert "code cell 0" in error and "ValueError: torchao" in error


def test_what_pip_says_in_a_first_cell_is_no_difference(judge):
    stored, new = (page(("%pip install -q it", text, {})) for text in ("", "restart the kernel\n"))
    assert elsewhere.compare(stored, new, judge) == ([], [])


def test_a_page_runs_in_a_kernel_with_an_emulated_gpu(tmp_path):
    source = "import torch, os; print(torch.ones(2, device='cuda').device, len(os.listdir()))"
    mixed = "torch.ones(2, device='cuda') + torch.ones(2)"
    nbformat.write(
        page((source, "", {}), (mixed, "", {}), ("print(1)", "", {})), tmp_path / "in.ipynb"
    )
    program = ROOT / "tests" / "elsewhere" / "execute.py"
    command = [
        sys.executable,
        program,
        tmp_path / "in.ipynb",
        tmp_path / "out.ipynb",
        tmp_path / "w",
    ]
    subprocess.run([*command, "--emulate-gpu"], check=True, capture_output=True, timeout=300)
    first, second, third = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    assert "".join(first["outputs"][0]["text"]) == "cuda:0 0\n"
    assert "same device" in second["outputs"][0]["evalue"]
    assert third["outputs"] and third["metadata"]["seconds"] >= 0


def test_without_an_accelerator_a_gpu_run_says_what_to_do():
    command = [sys.executable, ROOT / "tests" / "elsewhere", "gpu", "--gpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode and "EMULATED=1" in done.stderr
