"""The tools that build the site: formulas drawn, rules kept, selectors split, reports read."""

import importlib.util
from pathlib import Path
from xml.etree import ElementTree

import pytest

TOOLS = Path(__file__).parents[1] / "book" / "tools"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


@pytest.fixture(scope="module")
def engine():
    engine = load("prerender_math").MathJax()
    yield engine
    engine.close()


def test_a_formula_is_drawn_and_said(engine):
    drawn = engine.draw(r"\Delta W = \frac{\alpha}{r} B A", display=True)
    assert drawn.count("<mjx-mfrac") == 1
    assert '<mjx-math aria-hidden="true"' in drawn
    assert "<mfrac>" in drawn and "<mjx-assistive-mml><math" in drawn
    assert "\\frac" not in drawn
    assert engine.draw("x", display=False, html=False).startswith("<math")


@pytest.mark.parametrize("tex", [r"\frac{a}{", r"\nosuchcommand", r"\begin{align} a", "x_a_b"])
def test_a_formula_with_an_error_is_refused(engine, tex):
    with pytest.raises(ValueError, match="formula"):
        engine.draw(tex, display=True)


@pytest.mark.parametrize(
    ("selector", "kept"),
    [
        ("html body", True),
        (".used", True),
        (".used .gone", False),
        ("#gone", False),
        ("a:not(.gone)", True),
        (".used:is(.gone, :hover)", True),
        (r".used\:odd", False),
        ('.used[data-x=".gone"]', True),
        ("::selection", True),
    ],
)
def test_only_a_rule_that_can_match_is_kept(selector, kept):
    assert load("lighten").can_match(selector, {"used"}) is kept


def test_selectors_are_split_at_their_own_commas():
    assert load("lighten").split("a, b:is(c, d), e[f=','] ") == ["a", "b:is(c, d)", "e[f=',']"]


def test_a_report_counts_failures_by_page():
    suite = ElementTree.fromstring(
        """<testsuite>
        <testcase classname="chapters.02_lora.page.ipynb" name="Cell 0" time="1.5"/>
        <testcase classname="chapters.02_lora.page.ipynb" name="Cell 1" time="2"><failure/></testcase>
        <testcase classname="chapters.02_lora.page.ipynb" name="Cell 2" time="0"><skipped/></testcase>
        <testcase classname="chapters.03.other.ipynb" name="Cell 0" time="1"/></testsuite>"""
    )
    assert load("reading").by_page(suite) == {
        "chapters/02_lora/page": (3, 3.5, 2),
        "chapters/03/other": (1, 1.0, 0),
    }
