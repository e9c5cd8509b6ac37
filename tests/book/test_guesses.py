"""Every question says how it is answered, and every answer is what the page's cells printed."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "book" / "tools"))

import guesses  # noqa: E402

DECLARED = guesses.declared(ROOT)
PAGES = sorted(
    str(path.relative_to(ROOT).with_suffix("")) for path in (ROOT / "chapters").rglob("*.ipynb")
)
ALL = [(page, cell) for page, entries in DECLARED.items() for cell in entries]


def cells_of(page):
    return json.loads((ROOT / f"{page}.ipynb").read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("page", PAGES)
def test_every_question_has_a_declared_form(page):
    asking = {
        cell["id"]
        for cell in cells_of(page)
        if cell["cell_type"] == "markdown" and "**Predict" in "".join(cell["source"])
    }
    assert asking <= DECLARED[page].keys(), "declare the form of the answer in book/guesses"
    questions = [cell for cell in DECLARED[page] if cell in asking]
    assert len(questions) == len(asking)


@pytest.mark.parametrize(("page", "cell"), ALL)
def test_an_answer_is_what_the_cells_printed(page, cell):
    """A number is found there, a choice has its evidence there; so neither goes stale."""
    cells = cells_of(page)
    at = [one["id"] for one in cells].index(cell)
    entry = DECLARED[page][cell]
    assert guesses.form_at(page, cells, at, entry)
    behind = guesses.printed(guesses.cells_behind(cells, entry, at))
    for ask, right in zip(entry["asks"], guesses.answers(entry, behind), strict=True):
        if "number" in ask:
            assert right in behind and guesses.value_of(right) is not None
        if "choice" in ask:
            assert all(isinstance(one, str) for one in ask["choice"]), "quote Yes, No and numbers"
            assert len(set(ask["choice"])) == len(ask["choice"]) >= 2
            assert "seen" in ask or entry.get("hides") == [], "what shows that it is right?"
    if not guesses.PREDICT.search("".join(cells[at]["source"])):
        assert "hint" in entry, "an exercise has a hint"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_gets_its_forms_and_folds_what_answers_them(page):
    entries, cells = DECLARED[page], cells_of(page)
    made = guesses.add_to(page, cells_of(page), entries)
    text = "\n".join("".join(cell["source"]) for cell in made)
    assert text.count('<form class="guess') == len(entries)
    for cell in cells:
        asks = cell["id"] in entries and "**Predict" in "".join(cell["source"])
        if asks and entries[cell["id"]].get("hides") != []:
            name = guesses.name_of(page, cell["id"])
            folded = [one for one in made if name in one["metadata"].get("tags", [])]
            assert folded and all(one["outputs"] for one in folded[-1:])
            assert f'href="#{name}"' in text
    for form in re.findall(r"<form.*?</form>", text, re.DOTALL):
        assert "\n\n" not in form, "Markdown would end the HTML there"


def question(source="Two. **Predict, then run.** What is 1 + 1?\n\nMore.", output="2 or so\n"):
    outputs = [{"output_type": "stream", "name": "stdout", "text": output}]
    return [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": source},
        {"cell_type": "code", "id": "b", "metadata": {}, "source": "1 + 1", "outputs": outputs},
        {"cell_type": "markdown", "id": "c", "metadata": {}, "source": ANSWER},
    ]


ANSWER = "<details><summary><b>Answer</b></summary>\n\nTwo.\n\n</details>"


def test_a_form_stands_behind_its_question_and_the_output_is_folded():
    entry = {"asks": [{"ask": "The sum", "number": r"(\d+) or", "unit": "%"}]}
    asked, cell, waits, answer = guesses.add_to("chapters/1/sums", question(), {"a": entry})
    assert re.match(r"Two\..*\n\n<form [^>]*>\n.*</form>\n\nMore\.$", asked["source"], re.DOTALL)
    assert 'data-answer="2" data-value="2.0" data-near="5"' in asked["source"]
    assert cell["metadata"]["tags"] == ["guessed", "guess-sums-a"]
    assert 'data-guess="guess-sums-a"' in waits["source"]
    assert answer["source"].startswith('<details class="guess-answer" data-guess="guess-sums-a">')


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        ({"number": r"exactly (\d)"}, "not in what the cells printed"),
        ({"number": r"(or) so"}, "could not convert"),
        ({"choice": ["two", "three"], "right": "four"}, "expected one of"),
        ({"choice": ["two", "three"], "right": "two", "seen": "three"}, "not in what the cells"),
        ({}, "expected one of number, choice, free"),
    ],
)
def test_an_entry_that_does_not_fit_says_so(ask, words):
    with pytest.raises(ValueError, match=f"(?s)sums#a.*{words}"):
        guesses.add_to("chapters/1/sums", question(), {"a": {"asks": [{"ask": "The sum"} | ask]}})


def test_a_cell_that_is_gone_says_so():
    with pytest.raises(ValueError, match="no cell has the id z"):
        guesses.add_to("chapters/1/sums", question(), {"z": {"asks": []}})


def test_the_build_uses_it_and_the_epub_does_not():
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["sphinx"]
    assert "guesses" in config["local_extensions"] and "guesses" in config["config"]["extensions"]
    ebook = (ROOT / "book" / "tools" / "ebook.py").read_text(encoding="utf-8")
    assert '"guesses")' in ebook
