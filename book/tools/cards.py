"""Sphinx extension: what a link to a term, a paper or an equation leads to, shown without leaving the page.

When all pages are written, definitions, references and equations are collected in one script, which custom.js
loads the first time that a reader points at such a link. Links work without it. (sphinx-tippy and
sphinx-hoverxref take their scripts from other hosts.)
"""

import json
from pathlib import Path

from lxml import html
from reading import toc

# {what is looked for: where, as XPath; the id is the element's own or that of the term before it}
FOUND = (
    ("book/glossary", "//dt[@id]/following-sibling::dd[1]"),
    ("book/references", "//div[@class='citation'][@id]"),
    ("", "//div[contains(concat(' ', @class, ' '), ' math ')][@id]"),
)
DROPPED = ".//a[@class='headerlink'] | .//span[@class='label'] | .//span[@class='eqno']"


def cards_of(page: str, text: str) -> dict[str, str]:
    """{page#anchor: what stands there, as HTML without links of its own}."""
    tree, cards = html.fromstring(text), {}
    for where, query in FOUND:
        if where in ("", page):
            for element in tree.xpath(query):
                names = element.get("id") or element.xpath("string(preceding-sibling::dt[1]/@id)")
                cards[f"{page}#{names}"] = inside(element)
    return cards


def inside(element) -> str:
    for dropped in element.xpath(DROPPED):
        dropped.drop_tree()
    for link in element.xpath(".//a"):
        link.drop_tag()
    parts = [html.tostring(child, encoding="unicode") for child in element]
    return ((element.text or "") + "".join(parts)).strip()


def write_cards(app, error) -> None:
    if error is not None or app.builder.name != "html":
        return
    cards = {}
    for page in toc(app):
        file = Path(app.outdir) / f"{page}.html"
        if file.exists() and not page.startswith("book/api"):
            cards |= cards_of(page, file.read_text("utf-8"))
    text = f"window.CARDS = {json.dumps(cards, ensure_ascii=False)};\n"
    (Path(app.outdir) / "_static" / "cards.js").write_text(text, encoding="utf-8")


def setup(app) -> dict:
    app.connect("build-finished", write_cards, priority=950)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
