"""The tools that build the site: formulas drawn, rules kept, selectors split, reports read."""

import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

TOOLS = Path(__file__).parents[2] / "book" / "tools"
sys.path.insert(0, str(TOOLS))  # they use each other


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


def test_a_page_that_was_renamed_since_the_report_is_left_out(tmp_path):
    (tmp_path / "chapters").mkdir()
    (tmp_path / "chapters" / "new.ipynb").touch()
    pages = {"chapters/new": (1, 1.0, 0), "chapters/old": (1, 1.0, 0)}
    assert load("reading").there(pages, tmp_path) == {"chapters/new": (1, 1.0, 0)}


def test_the_longest_term_is_the_one_that_is_used():
    tool = load("first_use")
    terms = ["prefix", "prefix tuning", "full fine-tuning", "McNemar's test", "rank"]
    found = [
        tool.name_of(use.group(), terms)
        for use in tool.pattern(terms).finditer(
            "Prefix\ntuning and prefixes, full fine-tuning, prefix, McNemar’s test, low-rank, ranks, ranking"
        )
    ]
    assert found == ["prefix tuning", "full fine-tuning", "prefix", "McNemar's test", "rank"]


def test_a_first_use_is_linked_once_and_only_in_prose():
    from types import SimpleNamespace

    from docutils import nodes

    tool = load("first_use")
    objects = {("term", "rank"): ("book/glossary", "term-rank")}
    objects[("term", "seed")] = ("book/glossary", "term-seed")
    app = SimpleNamespace(
        env=SimpleNamespace(domaindata={"std": {"objects": objects}}),
        builder=SimpleNamespace(get_relative_uri=lambda page, to: f"../{to}.html"),
    )
    code, link = nodes.literal("", "rank"), nodes.reference("", "the seed", refuri="x#term-seed")
    text = nodes.paragraph(
        "", "", code, nodes.Text(" of rank 2, rank 3, "), link, nodes.Text(" seed")
    )
    page = nodes.section("", nodes.title("", "Rank"), text)
    tool.link_terms(app, page, "chapters/02_lora/page")
    made = [node["refuri"] for node in page.findall(nodes.reference)]
    assert made == ["../book/glossary.html#term-rank", "x#term-seed"]
    assert text.astext() == "rank of rank 2, rank 3, the seed seed"


def test_a_figure_waits():
    tool = load("lighten")
    body = "<figure>\n</figure>\n<script>\n(() => {\nconst data = 1;</script><script>other</script>"
    waiting = tool.FIGURE.sub(r'\1<script type="text/figure">', body)
    assert waiting.count("text/figure") == 1 and "<script>other" in waiting


def test_a_figure_with_much_data_waits_in_a_file(tmp_path):
    tool, kept = load("lighten"), '<script type="text/figure">(() => {})();</script>'
    long = f'<script type="text/figure">(() => {{ {"0," * tool.LONGEST_SCRIPT} }})();</script>'
    made = tool.WAITING.sub(lambda found: tool.aside(found, tmp_path / "figures"), kept + long)
    (file,) = (tmp_path / "figures").iterdir()
    assert made == f'{kept}<script type="text/figure" data-from="{file.stem}"></script>'
    assert f'["{file.stem}"] = () => {{(() => {{ 0,' in file.read_text(encoding="utf-8")


def test_a_figure_that_moves_gets_a_caption_that_is_numbered():
    from types import SimpleNamespace

    from docutils import nodes
    from docutils.utils import new_document

    tool, page = load("moving_figures"), new_document("page")
    site, epub = (SimpleNamespace(builder=SimpleNamespace(name=name)) for name in ("html", "epub"))
    stage = '<div class="stage" role="img" aria-label="What it shows."></div>'
    for name, caption in (("fig-1", "<figcaption>A &amp; B.</figcaption>\n"), ("fig-2", "")):
        start = f'<figure class="explorable" data-figure="{name}">'
        bundle = nodes.container(nb_element="mime_bundle")
        bundle += nodes.raw("", f"{start}{stage}{caption}</figure>", format="html")
        bundle += nodes.image(uri="still.png")
        page += bundle
    page += nodes.container("", nodes.raw("", "<table></table>"), nb_element="mime_bundle")
    print_page = page.deepcopy()
    tool.number(site, page)
    figures = list(page.findall(nodes.figure))
    assert [figure[-1].astext() for figure in figures] == ["A & B.", "What it shows."]
    assert all(figure["ids"] and "figcaption" not in figure[0].astext() for figure in figures)
    assert all(figure[1]["alt"] == "What it shows." for figure in figures), "no still"
    tool.number(epub, print_page)
    figures = list(print_page.findall(nodes.figure))
    assert [len(figure) for figure in figures] == [2, 2], "only a picture and its caption"


@pytest.mark.parametrize(("builder", "kinds"), [("html", ["container"]), ("epub", ["image"])])
def test_a_figure_in_which_the_reader_trains_has_one_still_and_a_caption(builder, kinds):
    from types import SimpleNamespace

    from docutils import nodes
    from docutils.utils import new_document

    from pedagogic_peft.course.figures import alive

    tool, page = load("moving_figures"), new_document("page")
    bundle = nodes.container(nb_element="mime_bundle")
    bundle += [nodes.raw("", alive("lora").html, format="html"), nodes.image(uri="still.png")]
    page += bundle
    tool.number(SimpleNamespace(builder=SimpleNamespace(name=builder)), page)
    [figure] = page.findall(nodes.figure)
    assert figure[-1].astext() == "Train it yourself: a LoRA of pocket-gpt on reviews."
    assert [part.tagname for part in figure[:-1]] == kinds
    if builder == "epub":
        assert figure[0]["alt"].startswith("A LoRA (r = 8, α = 16)")


@pytest.mark.parametrize(("builder", "kinds"), [("html", ["container"]), ("epub", ["image"])])
def test_a_drawing_is_a_figure_once(builder, kinds):
    from types import SimpleNamespace

    from docutils import nodes
    from docutils.utils import new_document

    from pedagogic_peft.course.figures import drawing

    tool, page, made = load("moving_figures"), new_document("page"), drawing("lora")
    bundle = nodes.container(nb_element="mime_bundle")
    bundle += [nodes.raw("", made.html, format="html"), nodes.image(uri="drawing.svg")]
    page += bundle
    tool.number(SimpleNamespace(builder=SimpleNamespace(name=builder)), page)
    [figure] = page.findall(nodes.figure)
    assert [part.tagname for part in figure[:-1]] == kinds
    assert figure[-1].astext() == made.text.splitlines()[0]
    if builder == "epub":
        assert figure[0]["alt"] == made.text.splitlines()[1]


def test_the_sites_address_leads_on(tmp_path):
    landing = tmp_path / "book" / "index.html"
    landing.parent.mkdir()
    card = '<meta property="og:title" content="PEFT" />'
    landing.write_text(f"<head>{card}<title>PEFT &amp; you</title></head>", encoding="utf-8")
    front = load("lighten").lead_to(landing, tmp_path)
    assert card in front and "0; url=book/index.html" in front and ">PEFT &amp; you</a>" in front


def test_the_audit_asks_for_what_the_checks_in_a_browser_ask_for():
    asked = json.loads((TOOLS.parents[1] / "lighthouserc.json").read_text())["ci"]["assert"]
    floors = {name: wanted for name, (_, wanted) in asked["assertions"].items()}
    assert all(level == "error" for level, _ in asked["assertions"].values())
    assert floors["categories:accessibility"]["minScore"] == 1
    assert floors["categories:performance"]["minScore"] == 0.95
    assert floors["total-byte-weight"]["maxNumericValue"] == 600_000


def rerun(path: Path) -> bytes:
    config = ["--config", TOOLS / "nbconvert_config.py"]
    command = [sys.executable, "-m", "nbconvert", "--inplace", *config, path]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return path.read_bytes()


def test_a_notebook_that_is_run_again_is_the_same_file(tmp_path):
    """Whatever an editor added, and however its output came in."""
    source = "import sys\nprint(1)\nsys.stdout.flush()\nprint(2)"
    left = {"collapsed": False, "execution": {"iopub.status.busy": "now"}, "tags": ["solution"]}
    page = new_notebook(cells=[new_markdown_cell("# A"), new_code_cell(source, metadata=left)])
    page.metadata = {"language_info": {"name": "python", "version": "3.0"}}
    nbformat.write(page, tmp_path / "page.ipynb")
    once = rerun(tmp_path / "page.ipynb")
    assert rerun(tmp_path / "page.ipynb") == once
    made = json.loads(once)
    assert made["metadata"]["language_info"].keys() == {"file_extension", "name", "pygments_lexer"}
    assert made["cells"][1]["metadata"] == {"tags": ["solution"]}
    assert [output["text"] for output in made["cells"][1]["outputs"]] == [["1\n", "2\n"]]


def test_a_notebook_that_raises_is_left_as_it_was(tmp_path):
    path = tmp_path / "page.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0")]), path)
    before = path.read_bytes()
    with pytest.raises(subprocess.CalledProcessError):
        rerun(path)
    assert path.read_bytes() == before


def test_a_report_becomes_a_line_of_the_landing_page(tmp_path):
    reading = load("reading")
    report = tmp_path / reading.REPORT
    env = types.SimpleNamespace(srcdir=tmp_path, note_reread=lambda: None)
    assert reading.LastRun.run(types.SimpleNamespace(env=env)) == [], "no run, no line"
    report.parent.mkdir(parents=True)
    report.write_text(
        '<testsuites><testsuite timestamp="2026-11-29T12:00:00">'
        '<properties><property name="python" value="3.11.7"/></properties>'
        '<testcase classname="chapters.a.ipynb" time="1">'
        '<properties><property name="numbers" value="{}"/></properties></testcase>'
        '<testcase classname="chapters.b.ipynb" time="1"><failure/></testcase>'
        "</testsuite></testsuites>"
    )
    (tmp_path / "chapters").mkdir()
    for name in "ab":
        (tmp_path / "chapters" / f"{name}.ipynb").touch()
    (line,) = reading.LastRun.run(types.SimpleNamespace(env=env))
    assert line.astext().startswith("Last tested on 2026-11-29: 1 of 2 notebooks give")
    assert line.astext().endswith("Status")
    assert reading.versions_of(reading.suite_of(report)) == ["python 3.11.7"], "not what cells note"


def test_the_status_page_names_pages_that_take_too_long():
    costs = load("reading").costs
    quick, slow = (10, 30.0, 0), (10, 90.0, 0)
    assert "within the 10 minutes" in costs({"a": quick}) and "No page" in costs({"a": quick})
    assert costs({"a": quick, "b": slow}).endswith("Longer than 60 s: b.")
    assert "over the 10 minutes" in costs({str(i): slow for i in range(14)})


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("import copy\nfrom torch import nn\n\nuse_style()", "setup"),
        (
            "try:\n    import pedagogic_peft\nexcept ModuleNotFoundError:\n    %pip install -q x",
            "setup",
        ),
        ("import peft\n\nmodel = peft.get_peft_model(base, config)\nprint(model(x))", None),
        ("fig, ax = plt.subplots()\nax.plot(x)\nplt.show()", "figure"),
        (
            "U, S, V = svd(W)\nshare = S.cumsum(0) / S.sum()\nassert share[7] > 0.9\nplt.plot(share)",
            None,
        ),
        ("bars_explorable(\n    slider, bars,\n)", "figure"),
        ("from pedagogic_peft.course.figures import drawing\n\ndrawing('lora')", "figure"),
        ("rows = [1]\nMarkdown(claims_table(rows))", "table"),
        ('SCRIPT = """\nconst a = 1;\nconst b = 2;\nreturn a;\n"""', "script"),
        ("def norm(x, axis):\n    return x.sum(axis)", None),
    ],
)
def test_what_a_cell_does_is_read_off_its_statements(source, kind):
    assert load("folds").kind_of(source) == kind


def test_set_up_is_one_fold_and_a_class_of_the_library_stays_open():
    def code(source, **metadata):
        return {"cell_type": "code", "source": source, "metadata": metadata, "outputs": []}

    cells = [code("import a"), code("import b"), code("import c", library="m.C"), code("x = 1")]
    made = load("folds").fold(cells)
    assert [cell["source"] for cell in made] == ["import a\n\nimport b", "import c", "x = 1"]
    assert [cell["metadata"].get("tags") for cell in made] == [["hide-input"], None, None]
    assert made[0]["metadata"]["mystnb"]["code_prompt_show"] == "Show the imports and the set-up"


def test_a_printed_table_keeps_its_columns_and_a_line_may_wrap():
    outputs = load("outputs")
    start = (
        '<div class="output stream highlight-myst-ansi notranslate"><div class="highlight"><pre>'
    )
    table = outputs.PRINTED.sub(outputs.dress, f"{start}<span></span>a   1  2\nbb  22  3\n</pre>")
    assert "columns" in table and "--letters: 9" in table and "stacked" not in table
    lines = outputs.PRINTED.sub(outputs.dress, f"{start}<span></span>one &lt; two\n\nthree\n</pre>")
    assert lines.count('<span class="l">') == 3 and "columns" not in lines
    # One gap a line: a name and a sentence, which may wrap.
    lines = outputs.PRINTED.sub(outputs.dress, f"{start}<span></span>a  b c\nd  e f\n</pre>")
    assert lines.count('<span class="l">') == 2 and "columns" not in lines


def test_the_names_of_a_wide_table_stand_above_their_numbers_on_a_narrow_screen():
    outputs = load("outputs")
    start = '<div class="output stream"><div class="highlight"><pre><span></span>'
    rows = ["x" * 30 + "  accuracy  loss", "a < b".ljust(30) + "      0.50  1.25"]
    rows += ["c".ljust(30) + "      0.60  1.50" + " " * 8 + "end", " " * 30 + "      0.70  1.00"]
    made = outputs.PRINTED.sub(
        outputs.dress, start + "\n".join(rows).replace("<", "&lt;") + "</pre>"
    )
    assert "stacked" in made and made.count('class="named"') == 4 and made.count('"no-name"') == 1
    assert '<span class="name">a &lt; b' in made
    again = outputs.html.unescape(outputs.TAG.sub("", made)).rstrip("\n").split("\n")
    assert again == rows, "what is shown is what was printed"
    assert int(outputs.re.search(r"--letters: (\d+)", made).group(1)) < 40


def test_a_sentence_below_the_rows_of_a_wide_table_is_no_name():
    lines = ["ab".ljust(20) + "  " + "1  2  " * 8, "cd".ljust(20) + "  " + "3  4  " * 8, "total"]
    made = load("outputs").stack([*lines, "a sentence that is longer than a name"], 22)
    assert made.count('class="name"') == 3 and made.count('class="sentence"') == 1
    assert '<span class="sentence">a sentence that is longer than a name</span>' in made


def test_a_page_is_described_by_its_first_paragraph():
    from docutils import nodes
    from docutils.utils import new_document

    page = new_document("page")
    page += nodes.paragraph("", "About 9 minutes to read.", classes=["reading-time"])
    page += nodes.paragraph("", "", nodes.strong("", "After this page\nyou can set "))
    page[-1] += nodes.math("", r"\alpha")
    assert load("describe").described(page, 300) == "After this page you can set α"
    assert load("describe").described(page, 20) == "After this page you …"


def test_numbers_of_figures_start_anew_on_every_page():
    from types import SimpleNamespace

    given = {"a": {"figure": {"f": (8,), "g": (9,)}}, "b": {"displaymath": {"e": (5,)}}, "c": {}}
    titles = {"a": "2.2 LoRA", "b": None, "c": "7 Conclusion"}
    site_map = {page: SimpleNamespace(title=title) for page, title in titles.items()}
    app = SimpleNamespace(config=SimpleNamespace(external_site_map=site_map))
    load("page_numbers").number_by_page(app, SimpleNamespace(toc_fignumbers=given))
    assert given["a"]["figure"] == {"f": (2, 2, 1), "g": (2, 2, 2)}
    assert given["b"]["displaymath"] == {"e": (1,)}


def test_cards_hold_terms_papers_and_equations_without_links():
    cards_of = load("cards").cards_of
    told = '<dd><p>Of <a href="x">BA</a>.</p></dd>'
    term = f'<dl><dt id="term-rank">rank<a class="headerlink" href="#">#</a></dt>{told}</dl>'
    assert cards_of("book/glossary", f"<main>{term}</main>") == {
        "book/glossary#term-rank": "<p>Of BA.</p>"
    }
    paper = '<div class="citation" id="id3"><span class="label">[H]</span><p>Hu.</p></div>'
    assert cards_of("book/references", f"<main>{paper}</main>") == {
        "book/references#id3": "<p>Hu.</p>"
    }
    formula = '<div class="math" id="equation-lora"><span class="eqno">(1)</span><b>BA</b></div>'
    assert cards_of("chapters/a", f"<main>{formula}</main>") == {
        "chapters/a#equation-lora": "<b>BA</b>"
    }


def test_a_page_as_markdown_has_its_code_and_what_it_printed(tmp_path):
    from nbformat.v4 import new_output

    cell = new_code_cell("print(1)", outputs=[new_output("stream", text="1\n")])
    nbformat.write(new_notebook(cells=[new_markdown_cell("# A"), cell]), tmp_path / "page.ipynb")
    made = load("site_files").markdown(tmp_path, "page")
    assert made == "# A\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n"
