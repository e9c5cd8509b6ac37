"""Sphinx extension: the question bank, made from the notebooks each time the book is built.

It replaces the line ``<!-- the questions -->`` of book/question_bank.md. For every page of the contents it
takes the predict questions with their folded answers, and the exercises with their solutions and what
those printed. Nothing is copied by hand, so the bank is as right as the pages are.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import guesses
from guesses import PREDICT

PAGE, MARK = "book/question_bank", "<!-- the questions -->"
HEAD = "<b>Your answer.</b> Then compare."
ANSWER = re.compile(r"<details[^>]*>\s*<summary>.*?</summary>(.*?)</details>", re.DOTALL)
EXERCISE = re.compile(
    r"^\*\*(\d+\. [^*]*)\*\*\s*(.*?)(?=^\*\*\d+\.|^#|\Z)", re.DOTALL | re.MULTILINE
)


@dataclass
class Question:
    """A question and its answer, as Markdown."""

    kind: str  # "Predict", or an exercise's own name
    question: str
    answer: str
    cell: int  # where in the page it is asked


def questions_of(cells: list[dict[str, Any]]) -> list[Question]:
    """Return a notebook's questions, in order; a predict question without a folded answer is left out."""
    found: list[Question] = []
    open_question, exercises = None, False
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] != "markdown":
            continue
        exercises = re.search(r"^## Exercises", source, re.MULTILINE) is not None or (
            exercises and not re.search(r"^## ", source, re.MULTILINE)
        )
        if exercises:
            found += [
                Question(kind.rstrip("."), text.strip(), solution(cells[number + 1 :]), number)
                for kind, text in EXERCISE.findall(source)
            ]
            continue
        pieces = [(m.start(), m) for p in (PREDICT, ANSWER) for m in p.finditer(source)]
        for _, match in sorted(pieces, key=lambda piece: piece[0]):
            if match.re is PREDICT:
                open_question = (match["before"] + match["after"]).strip(), number
            elif open_question:
                text, asked = open_question
                found.append(Question("Predict", text, match[1].strip(), asked))
                open_question = None
    return found


def solution(cells: list[dict[str, Any]]) -> str:
    """Return the solution that comes next: its code and its printed output, or its text."""
    parts = []
    for cell in cells:
        if "solution" not in cell["metadata"].get("tags", []):
            break
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else fenced("python", source))
        for output in cell.get("outputs", []):
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            if output["output_type"] == "stream" or "image/png" not in output.get("data", {}):
                parts.append(fenced("text", "".join(text).rstrip()))
    return "\n\n".join(parts)


def fenced(language: str, text: str) -> str:
    """Return the text as a block of code."""
    return f"````{language}\n{text}\n````"


def with_absolute_links(text: str, folder: str) -> str:
    """Return Markdown that means the same on another page: links to files beside it made absolute."""
    text = re.sub(r"\{doc\}`([^`<]*<)?(?!/)([\w./-]+)(>?)`", rf"{{doc}}`\g<1>/{folder}/\2\3`", text)
    text = re.sub(r"\]\((?!https?:|/|#)([^)]+)\)", rf"](/{folder}/\1)", text)
    return re.sub(
        r"(\$\$) \([\w-]+\)$", r"\1", text, flags=re.MULTILINE
    )  # labels are the page's own


def bank(root: Path, pages: list[tuple[str, str]], asks: bool = True) -> Iterator[str]:
    """Yield the bank's Markdown for [(page, its title)], with fields for answers where scripts run."""
    declared, near = guesses.declared(root) if asks else {}, True
    for page, title in pages:
        cells = json.loads((root / f"{page}.ipynb").read_text(encoding="utf-8"))["cells"]
        questions, folder = questions_of(cells), page.rpartition("/")[0]
        if not questions:
            continue
        yield f"## {title}\n\nFrom {{doc}}`/{page}`.\n"
        if asks:
            yield '<p class="guess-score" role="status"></p>\n'
        for question in questions:
            text = with_absolute_links(question.question, folder)
            answer = with_absolute_links(question.answer, folder)
            yield f"**{question.kind}.** {text}\n"
            if entry := declared.get(page, {}).get(cells[question.cell].get("id")):
                form = guesses.form_at(page, cells, question.cell, entry, HEAD)
                yield (form if near else waiting(form)) + "\n"
            yield f"``````{{dropdown}} Answer\n{answer}\n``````\n"
        near = False


def waiting(form: str) -> str:
    """Return a form that costs a browser nothing until `guesses.js` sets it in place."""
    return f'<template class="guess">\n{form}\n</template>'


def pages_of(site_map: Any, root: Path) -> list[tuple[str, str]]:
    """Return (page, title) of the notebooks in the contents, in order."""
    found = []
    for document in site_map.values():
        for tree in document.subtrees:
            for item in tree.items:
                page = str(item)  # or a glob, or an address, which are no file
                if (root / f"{page}.ipynb").exists():
                    found.append((page, site_map[page].title or page))
    return found


def fill(app: Any, docname: str, source: list[str]) -> None:
    """Put the questions in the place of the mark."""
    if docname == PAGE:
        root = Path(app.srcdir)
        pages = pages_of(app.env.external_site_map, root)
        text = "\n".join(bank(root, pages, asks=app.builder.name != "epub"))
        source[0] = source[0].replace(MARK, text)


def setup(app: Any) -> dict[str, Any]:
    app.connect("source-read", fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
