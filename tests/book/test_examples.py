"""Every public name has an example that runs, and every snippet of the reference runs when it is pasted."""

import doctest
import inspect
import re
from pathlib import Path

import pytest
from readme_renderer import markdown

import pedagogic_peft
from pedagogic_peft.testing import check_method

ROOT = Path(__file__).parents[2]
PUBLIC = {name: getattr(pedagogic_peft, name) for name in pedagogic_peft.__all__}
PUBLIC |= {"check_method": check_method}
PAGES = sorted((ROOT / "book").rglob("*.md"))  # test_book.py runs the README's
SNIPPETS = {
    f"{path.relative_to(ROOT)}-{number}": snippet
    for path in PAGES
    for number, snippet in enumerate(
        re.findall(r"^```python\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S), 1
    )
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """What an example saves is saved here; what it draws is not shown."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_an_example_that_runs(name, capsys):
    text = inspect.getdoc(PUBLIC[name]) or ""
    own = vars(PUBLIC[name]).get("__doc__") if inspect.isclass(PUBLIC[name]) else text
    assert own and ">>>" in own, f"{name} has no example in its docstring: add one under Example:"
    # Nothing is defined beforehand: a reader pastes it into an empty notebook.
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    runner = doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    runner.run(example)
    assert not runner.failures, capsys.readouterr().out


@pytest.mark.parametrize("name", PUBLIC)
def test_an_example_imports_what_it_shows(name):
    shown, text = PUBLIC[name].__name__, inspect.getdoc(PUBLIC[name])
    assert re.search(rf"^\s*>>> from pedagogic_peft.* import .*\b{shown}\b", text, re.M), name


@pytest.mark.parametrize("where", SNIPPETS)
def test_a_snippet_runs_when_it_is_pasted(where):
    exec(compile(SNIPPETS[where], where, "exec"), {"__name__": "__main__"})


def test_the_pages_have_snippets():
    assert len(SNIPPETS) >= 7


# --- the README, where only the README is ------------------------------------------------------------


def test_the_readme_leads_somewhere_from_everywhere():
    """PyPI shows the README alone, so that a relative link leads nowhere."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links and [link for link in links if not link.startswith(("https://", "#"))] == []
    ours = [link for link in links if "/pedagogic-peft/blob/main/" in link or "/raw/main/" in link]
    for link in ours:
        assert (ROOT / link.split("/main/")[1]).is_file(), f"{link}: no such file here"


def test_the_readme_renders_as_pypi_renders_it():
    page = markdown.render((ROOT / "README.md").read_text(encoding="utf-8"))
    assert page and "<table" not in page.split("<h1")[0] and "Use the library" in page
    assert "<pre" in page and "<img" in page
