"""Sphinx extension: what a reader wants to know about a page, computed when the site is built.

* Under a chapter page's title: how long it takes to read, and the parts of the library it uses.
* On a reference page, under a class or function: the pages that build it and use it.
* ``{book-contents}``: the chapters with their pages, reading times and what each promises.
* ``{fact}``: in a line of text, ``minutes PAGE``, ``pages`` (how many) or ``hours`` (of reading in all).
* ``{notebook-status}``: each notebook with the result of the last test run, its time, and the versions.

sphinx-codeautolink links names in cells, but knows neither reading times nor which page builds what.
"""

import posixpath
import re
from pathlib import Path
from xml.etree import ElementTree

from describe import plain
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.util.docutils import SphinxDirective

WORDS_A_MINUTE = 200
SECONDS_A_LINE = 2  # of code
SECONDS_A_FIGURE = 15
LONGEST_PAGE, LONGEST_BOOK = 60, 600  # seconds to run, on two cores
REPORT = Path("_build") / "reports" / "notebooks.xml"  # `make gate` leaves it there
SAID_TIME = re.compile(r"^\s*\d+ minutes of reading\.\s*")  # in a notebook's box
IMPORTED = re.compile(r"^\s*from pedagogic_peft[\w.]* import \(?([\w\s,]+)\)?", re.MULTILINE)


class contents_placeholder(nodes.General, nodes.Element):
    """Where the contents go, once all pages are read."""


class fact_placeholder(nodes.General, nodes.Inline, nodes.Element):
    """Where a number goes, once all pages are read."""


def fact_role(name, rawtext, text, lineno, inliner, options=None, content=None):
    return [fact_placeholder(text=text)], []


def fact_of(what: str, facts: dict) -> str:
    """A fact in words."""
    name, _, page = what.partition(" ")
    if name == "minutes":
        return f"{facts[page]['minutes']} min"
    if name == "pages":
        return str(len(facts))
    if name == "hours":
        return f"about {round(sum(fact['minutes'] for fact in facts.values()) / 60)} hours"
    raise ValueError(f"{{fact}}`{what}`: expected minutes PAGE, pages or hours")


class BookContents(SphinxDirective):
    def run(self):
        return [contents_placeholder()]


class NotebookStatus(SphinxDirective):
    def run(self):
        self.env.note_reread()
        report = Path(self.env.srcdir) / REPORT
        if not report.exists():
            words = (
                "This copy of the site was built without running the notebooks afresh, so it has no "
                "table of them. In a clone of the repository, make gate followed by make book adds it."
            )
            return [nodes.paragraph("", words)]
        suite = suite_of(report)
        pages = there(by_page(suite), self.env.srcdir)
        titles = {page: toc(self.env).get(page) or page for page in pages}
        order = list(toc(self.env))
        rows = [
            [doc_link(page, titles[page]), n, f"{taken:.0f} s", "failed" if wrong else "passed"]
            for page, (n, taken, wrong) in sorted(
                pages.items(), key=lambda one: [*order, one[0]].index(one[0])
            )
        ]
        versions = ", ".join(versions_of(suite))
        when = (suite.get("timestamp") or "")[:10]
        head = ["page", "cells", "time", "result"]
        wrong = sum(row[-1] == "failed" for row in rows)
        summary = f"Run of {when}: {len(rows) - wrong} of {len(rows)} notebooks passed. {versions}."
        cost = costs({titles[page]: result for page, result in pages.items()})
        return [nodes.paragraph("", summary), nodes.paragraph("", cost), table(head, rows)]


class LastRun(SphinxDirective):
    """One line for the landing page, and nothing where the site was built without a run."""

    def run(self):
        self.env.note_reread()
        report = Path(self.env.srcdir) / REPORT
        if not report.exists():
            return []
        suite = suite_of(report)
        pages = there(by_page(suite), self.env.srcdir).values()
        passed = sum(not wrong for *_, wrong in pages)
        when = (suite.get("timestamp") or "")[:10]
        words = (
            f"Last tested on {when}: {passed} of {len(pages)} notebooks give their stored outputs. "
        )
        line = nodes.paragraph("", words, classes=["last-run"])
        line += doc_link("book/status", "Status").children
        return [line]


def suite_of(report: Path):
    return next(ElementTree.parse(report).getroot().iter("testsuite"))


def versions_of(suite) -> list[str]:
    """What ran: the run's own properties, not those of its cells."""
    return [f"{p.get('name')} {p.get('value')}" for p in suite.findall("properties/property")]


def doc_link(page: str, title: str) -> nodes.paragraph:
    """A link to a page, resolved (or refused) by Sphinx once all are read."""
    about = {"reftype": "doc", "refdomain": "std", "reftarget": f"/{page}", "refexplicit": True}
    return nodes.paragraph("", "", pending_xref("", nodes.inline("", title), **about))


def costs(pages: dict[str, tuple[int, float, int]]) -> str:
    """How long all notebooks took, and which took longer than a page should."""
    seconds = {page: taken for page, (_, taken, _) in pages.items()}
    total, slow = sum(seconds.values()), [p for p, taken in seconds.items() if taken > LONGEST_PAGE]
    within = "within" if total <= 2 * LONGEST_BOOK else "over"
    words = (
        f"All cells together took {total / 60:.1f} minutes, on two cores half of that: {within} "
    )
    words += f"the {LONGEST_BOOK // 60} minutes that the book may take. "
    return words + (
        f"Longer than {LONGEST_PAGE} s: {', '.join(sorted(slow))}."
        if slow
        else f"No page took longer than {LONGEST_PAGE} s."
    )


def by_page(suite) -> dict[str, tuple[int, float, int]]:
    """{page: (cells, seconds, failures)} from the cells that pytest reported."""
    pages = {}
    for case in suite.iter("testcase"):
        page = case.get("classname", "").replace(".ipynb", "").replace(".", "/")
        cells, seconds, wrong = pages.get(page, (0, 0.0, 0))
        failed = case.find("failure") is not None or case.find("error") is not None
        # A cell that is skipped stands behind one that did not finish.
        failed = failed or case.find("skipped") is not None
        pages[page] = (cells + 1, seconds + float(case.get("time", 0)), wrong + failed)
    return pages


def there(pages: dict, folder) -> dict:
    """The pages that the book has now: a report may be older than a notebook's new name."""
    return {page: of for page, of in pages.items() if (Path(folder) / f"{page}.ipynb").exists()}


def table(head: list, rows: list[list]) -> nodes.table:
    group = nodes.tgroup("", cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]
    for part, lines in ((nodes.thead(), [head]), (nodes.tbody(), rows)):
        for line in lines:
            row = nodes.row()
            for content in line:
                entry = nodes.entry()
                text = (
                    content
                    if isinstance(content, nodes.Node)
                    else nodes.paragraph("", str(content))
                )
                row += entry
                entry += text
            part += row
        group += part
    return nodes.table("", group, classes=["table"])


def read(app, doctree) -> None:
    """Measure a page, and note what of the library it builds and uses."""
    page = app.env.docname
    facts = app.env.__dict__.setdefault("book_facts", {})
    if not page.startswith("chapters/"):
        return
    code = [node for node in doctree.findall(nodes.literal_block) if is_input(node)]
    words = sum(
        len(node.astext().split())
        for node in doctree.findall(nodes.TextElement)
        if isinstance(node, nodes.paragraph | nodes.title)
    )
    lines = sum(node.astext().count("\n") + 1 for node in code)
    figures = sum(1 for _ in doctree.findall(nodes.image))
    seconds = 60 * words / WORDS_A_MINUTE + SECONDS_A_LINE * lines + SECONDS_A_FIGURE * figures
    cells = [node.get("cell_metadata", {}) for node in doctree.findall(nodes.container)]
    built = [name for cell in cells for name in as_list(cell.get("library", []))]
    used = {
        name.strip()
        for node in code
        for found in IMPORTED.findall(node.astext())
        for name in found.replace("\n", ",").split(",")
    }
    facts[page] = {
        "minutes": max(1, round(seconds / 60)),
        "built": built,
        "used": used - {""},
        "promise": promise_of(doctree),
    }


def promise_of(doctree) -> str:
    """What the first paragraph says the reader can do after the page."""
    first = next(doctree.findall(nodes.paragraph), nodes.paragraph())
    words = plain(first.astext())
    return words.removeprefix("After this page you can ").rstrip(".")


def is_input(node) -> bool:
    return "cell_input" in (node.parent.get("classes", []) if node.parent else [])


def as_list(value) -> list:
    return [value] if isinstance(value, str) else list(value)


def resolve(app, doctree, page: str) -> None:
    """Write the facts into the pages; the links exist now."""
    facts = getattr(app.env, "book_facts", {})
    for place in list(doctree.findall(contents_placeholder)):
        place.replace_self(contents(app, page, facts) if app.builder.format == "html" else [])
    for place in list(doctree.findall(fact_placeholder)):
        place.replace_self(nodes.Text(fact_of(place["text"], facts)))
    if app.builder.format != "html":
        return
    if page in facts:
        add_line(app, doctree, page, facts[page])
    if page.startswith("book/api/"):
        for described in doctree.findall(lambda node: node.tagname == "desc"):
            add_pages(app, page, described, facts)


def objects(app) -> dict[str, tuple[str, str]]:
    """{short name: (page, anchor)} of the library's documented classes and functions."""
    found = app.env.domaindata["py"]["objects"].items()
    return {
        name.rsplit(".", 1)[1]: (entry.docname, entry.node_id)
        for name, entry in found
        if name.startswith("pedagogic_peft.") and entry.objtype in ("class", "function")
    }


def link(app, page: str, to: str, text: str, anchor: str = "", code: bool = False):
    uri = app.builder.get_relative_uri(page, to) + (f"#{anchor}" if anchor else "")
    inner = nodes.literal("", text) if code else nodes.inline("", text)
    return nodes.reference("", "", inner, refuri=uri, internal=True)


def add_line(app, doctree, page: str, fact: dict) -> None:
    """Under the title: reading time, where to run the page, and links to the library's pages."""
    line = nodes.paragraph(
        "", f"About {fact['minutes']} minutes to read. ", classes=["reading-time"]
    )
    if app.builder.name == "html":  # not in the EPUB, which holds no notebooks
        line += nodes.inline(
            "",
            "",
            nodes.reference("", "Open in Colab", refuri=colab(app.config, page), internal=False),
            nodes.Text(" · "),
            nodes.reference("", "Download", refuri=downloaded(app, page), internal=True),
            nodes.Text("."),
            classes=["on-screen"],
        )
    known = objects(app)
    names = sorted(fact["used"] & set(known)) + [n.rsplit(".", 1)[1] for n in fact["built"]]
    names = [name for name in dict.fromkeys(names) if name in known]
    if names:
        line += nodes.Text(" In the library: ")
        for i, name in enumerate(names):
            target, anchor = known[name]
            line += [
                nodes.Text(", " if i else ""),
                link(app, page, target, name, anchor, code=True),
            ]
        line += nodes.Text(".")
    for text in list(doctree.findall(nodes.Text)):
        if SAID_TIME.match(text):  # the line says it
            text.parent.replace(text, nodes.Text(f" {SAID_TIME.sub('', text)}"))
    title = next(doctree.findall(nodes.title), None)
    if title is not None:
        title.parent.insert(title.parent.index(title) + 1, line)
        number = re.match(r"\d+(\.\d+)?\s", title_of(app, page))
        title.insert(0, nodes.Text(number.group() if number else ""))


def colab(config, page: str) -> str:
    """The address at which Colab opens a page's notebook."""
    theme = config.html_theme_options
    repository = theme["repository_url"].removeprefix("https://github.com/")
    branch = theme["repository_branch"]
    return f"https://colab.research.google.com/github/{repository}/blob/{branch}/{page}.ipynb"


def downloaded(app, page: str) -> str:
    """Where the site keeps a page's notebook, seen from the page."""
    return posixpath.relpath(f"_sources/{page}.ipynb", posixpath.dirname(page))


def add_pages(app, page: str, described, facts: dict) -> None:
    """Under a class or function: the pages that build it, and those that use it."""
    signature = described[0]
    if described.get("objtype") not in ("class", "function") or not signature.get("ids"):
        return
    full = signature["ids"][0]
    name = full.rsplit(".", 1)[-1]
    built = [where for where, fact in facts.items() if full in fact["built"]]
    used = [where for where, fact in facts.items() if name in fact["used"] and where not in built]
    line = nodes.paragraph("", "", classes=["taught-in"])
    for words, pages in (("Built in ", built), ("Used in ", used)):
        if pages:
            line += nodes.Text(f"{words}")
            for i, where in enumerate(sorted(pages)):
                line += [
                    nodes.Text(", " if i else ""),
                    link(app, page, where, title_of(app, where)),
                ]
            line += nodes.Text(". ")
    if len(line.children):
        described[-1].insert(0, line)


def title_of(app, page: str) -> str:
    return toc(app).get(page) or app.env.titles[page].astext()


def toc(app) -> dict[str, str]:
    """{page: its title in the contents}, in the contents' order."""
    return {page: entry.title or "" for page, entry in app.config.external_site_map.items()}


def contents(app, page: str, facts: dict) -> list[nodes.Node]:
    """Chapter by chapter: its pages, each with its reading time and its promise."""
    chapters = {}
    for where in toc(app):
        if where in facts:
            chapters.setdefault(where.split("/")[1], []).append(where)
    parts = []
    for folder, pages in chapters.items():
        number, name = folder.split("_", 1)
        title = {"lora": "LoRA"}.get(name, name.replace("_", " ").capitalize())
        lines = nodes.bullet_list(classes=["plain-list"])
        for where in pages:
            line = nodes.paragraph("", "", link(app, page, where, title_of(app, where)))
            line += nodes.Text(f" ({facts[where]['minutes']} min)")
            promise = nodes.paragraph("", facts[where]["promise"], classes=["promise"])
            lines += nodes.list_item("", line, promise)
        parts += [nodes.rubric("", f"{int(number)}\N{NO-BREAK SPACE}{title}"), lines]
    return parts


def setup(app) -> dict:
    app.add_node(contents_placeholder)
    app.add_node(fact_placeholder)
    app.add_role("fact", fact_role)
    app.add_directive("book-contents", BookContents)
    app.add_directive("notebook-status", NotebookStatus)
    app.add_directive("last-run", LastRun)
    app.connect("doctree-read", read)
    app.connect("doctree-resolved", resolve)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
