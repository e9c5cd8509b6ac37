"""Each check of test_notebooks.py refuses the one thing it is there for, and passes a clean cell."""

import re

import pytest
import test_notebooks as checks

from pedagogic_peft.course.figures import rank_explorable


def cell(source="x = 1", outputs=(), number=1, **metadata) -> dict:
    return {
        "cell_type": "code",
        "source": source,
        "outputs": list(outputs),
        "execution_count": number,
        "metadata": metadata,
    }


def shown(**data) -> dict:
    """An output of these forms: shown(html=..., png=...)."""
    names = {"html": "text/html", "png": "image/png", "plain": "text/plain"}
    data = {names[key]: value for key, value in data.items()}
    return {"output_type": "display_data", "data": data, "metadata": {}}


def printed(text: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": [text]}


MOVING = rank_explorable([[1, 2], [3, 5]], 2).html
FIRST = "class First:\n    def two(self):\n        return 2"
LINEAR = {"library": "pedagogic_peft.methods.lora.LoRALinear"}

REFUSED = {
    "test_it_was_executed_once_from_top_to_bottom": [cell(number=None), cell(number=2), None],
    "test_no_output_is_an_error_or_on_stderr": [
        cell(outputs=[{"output_type": "error", "ename": "ValueError"}]),
        cell(outputs=[printed("hello", "stderr")]),
    ],
    "test_no_output_belongs_to_one_machine_or_one_moment": [
        cell(outputs=[printed("/home/reader/model")]),
        cell(outputs=[printed("UserWarning: old")]),
        cell(outputs=[{"output_type": "error", "traceback": ["File /home/reader/lora.py:31"]}]),
        cell(outputs=[shown(plain="<Model at 0x7f00deadbeef>")]),
        cell(outputs=[shown(html="made on 2026-01-02")]),
    ],
    "test_no_output_loads_anything_from_outside": [
        cell(outputs=[shown(html='<script src="https://cdn.org/x.js"></script>')]),
        cell(outputs=[shown(html="<img src=//elsewhere.org/x.png>")]),
        cell(outputs=[shown(html="<style>p {background: url(https://a.org/b.png)}</style>")]),
    ],
    "test_no_cell_ends_in_a_semicolon": [cell("plot(x);\n")],
    "test_no_cell_is_too_long": [cell("x = 1\n" * 25 + "x")],
    "test_every_picture_has_an_alternative_text": [
        cell(outputs=[shown(png="iVBOR")]),
        cell(outputs=[shown(png="iVBOR")], mystnb={"image": {"alt": "figure 1"}}),
    ],
    "test_a_figure_that_moves_is_as_it_was_made": [
        cell(outputs=[shown(html=re.sub(r'"errors":\[[0-9]', '"errors":[7', MOVING))])
    ],
    "test_an_output_that_is_not_compared_says_why": [
        cell(tags=["nbval-ignore-output"]),
        cell(tags=["nbval-skip"], reason="it takes very long"),
        cell("# NBVAL_IGNORE_OUTPUT\nx = 1"),
    ],
    "test_what_it_shows_of_the_library_is_the_library": [
        cell("class LoRALinear:\n    pass", **LINEAR),
        cell("x = 1", **LINEAR),
    ],
}

PASSED = [
    cell(outputs=[printed("accuracy 0.93"), shown(html='<a href="https://arxiv.org">paper</a>')]),
    cell(
        "plt.show()", [shown(png="iVBOR")], 2, mystnb={"image": {"alt": "The loss against steps."}}
    ),
    cell("figure", [shown(html=MOVING, png="iVBOR", plain="A figure.")], 3),
    cell("time()", [printed("3 s")], 4, tags=["nbval-ignore-output"], reason="times differ"),
    cell("1 / 0", [{"output_type": "error", "ename": "E"}], 5, tags=["raises-exception"]),
]


@pytest.mark.parametrize(
    ("name", "bad"), [(name, bad) for name, cells in REFUSED.items() for bad in cells]
)
def test_refused(name, bad):
    with pytest.raises(AssertionError):
        getattr(checks, name)([bad] if bad else [])


@pytest.mark.parametrize("name", REFUSED)
def test_passed(name):
    getattr(checks, name)(PASSED)


def test_comments_and_docstrings_do_not_count():
    longer = FIRST.replace(":\n    def", ':\n    """Doc."""\n\n    # why\n    def')
    assert checks.definition(FIRST, "First") == checks.definition(longer, "First")


def test_a_changed_statement_counts():
    changed = FIRST.replace("return 2", "return 3")
    assert checks.definition(FIRST, "First") != checks.definition(changed, "First")
