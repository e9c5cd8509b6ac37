"""The question bank takes every predict question and every exercise of the pages."""

import json
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "book" / "tools"))

import question_bank  # noqa: E402

NOTEBOOKS = sorted((ROOT / "chapters").rglob("*.ipynb"))


def markdown(*sources):
    return [{"cell_type": "markdown", "metadata": {}, "source": s} for s in sources]


def code(source, output="", tags=("solution",)):
    outputs = [{"output_type": "stream", "name": "stdout", "text": output}]
    return {
        "cell_type": "code",
        "metadata": {"tags": list(tags)},
        "source": source,
        "outputs": outputs,
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_folded_answer_and_no_exercise_is_lost(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    questions = question_bank.questions_of(cells)
    predicted = [q for q in questions if q.kind == "Predict"]
    assert len(predicted) == text.count("<summary><b>Answer</b></summary>")
    solved = [c for c in cells if "solution" in c["metadata"].get("tags", [])]
    assert len(questions) - len(predicted) == len(solved)
    assert all(len(q.question) > 20 and len(q.answer) > 20 for q in questions)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_exercise_has_a_solution_that_the_gate_runs_and_compares(path):
    """`make gate` runs the page's cells and compares what they print with what is stored."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "".join("".join(c["source"]) + "\n\n" for c in cells if c["cell_type"] == "markdown")
    numbered = question_bank.EXERCISE.findall(text.split("## Exercises")[1].split("\n## ")[0])
    solved = [cell for cell in cells if "solution" in cell["metadata"].get("tags", [])]
    assert len(solved) == len(numbered) >= 3
    for cell in solved:
        marks = set(cell["metadata"]["tags"])
        assert cell["cell_type"] == "code" and cell["execution_count"] and cell["outputs"]
        assert not {tag for tag in marks if "nbval" in tag or tag == "raises-exception"}


def test_questions_answers_and_exercises():
    cells = [
        *markdown("## Sums\n\nA text.\n\nTake two. **Predict, then run.** What is 1 + 1?"),
        code("print(1 + 1)", "2\n", tags=()),
        *markdown("<details><summary><b>Answer</b></summary>\n\nTwo.\n\n</details>\n\n## More"),
        *markdown("## Exercises\n\n**1. Recall.** What is 2 + 2?"),
        code("print(2 + 2)", "4\n"),
        *markdown("## Summary\n\n**3. Not** an exercise."),
    ]
    predict, exercise = question_bank.questions_of(cells)
    assert (predict.question, predict.answer) == ("Take two. What is 1 + 1?", "Two.")
    assert exercise.kind == "1. Recall" and exercise.question == "What is 2 + 2?"
    assert "print(2 + 2)" in exercise.answer and "````text\n4\n" in exercise.answer


def test_links_hold_on_another_page():
    text = "{doc}`page`, {doc}`this <page>`, {doc}`/book/notation`, [x](a.ipynb), [y](https://z)"
    text += "\n$$ x $$ (eq-x)"
    moved = question_bank.with_absolute_links(text, "chapters/02")
    assert moved == (
        "{doc}`/chapters/02/page`, {doc}`this </chapters/02/page>`, {doc}`/book/notation`, "
        "[x](/chapters/02/a.ipynb), [y](https://z)\n$$ x $$"
    )


def test_fields_for_answers_are_only_where_scripts_run():
    pages = [
        ("chapters/02_lora/why_low_rank", "2.1"),
        ("chapters/02_lora/lora_from_scratch", "2.2"),
    ]
    asked, plain = ("\n".join(question_bank.bank(ROOT, pages, asks)) for asks in (True, False))
    assert asked.count("<form") > asked.count("<template") > 0 and "guess-score" in asked
    assert "<form" not in plain and "guess" not in plain and "{dropdown} Answer" in plain


def test_the_build_uses_it():
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["sphinx"]
    assert "question_bank" in config["local_extensions"]
    assert "question_bank" in config["config"]["extensions"]
    assert question_bank.MARK in (ROOT / f"{question_bank.PAGE}.md").read_text(encoding="utf-8")
