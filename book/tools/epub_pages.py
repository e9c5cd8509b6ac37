"""Sphinx extension: an EPUB that readers open and epubcheck passes.

Sphinx's own builder names pages from the contents' folder (``book/../chapters/...``), so that its list of
files and its reading order do not meet; it takes what notebooks printed as HTML for XML; and it does not say
which files hold formulas.
"""

import posixpath
import re
from pathlib import Path

from lxml import etree, html
from sphinx.builders.epub3 import Epub3Builder

XHTML = "http://www.w3.org/1999/xhtml"
DECLARED = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE html>\n'
# Attributes and elements that browsers forgive and XHTML does not have.
NO_ATTRIBUTES = ("border", "scoped", "align", "valign", "width", "height", "loading")


class BookEpub(Epub3Builder):
    def get_toc(self) -> None:
        super().get_toc()
        for node in self.refnodes:
            node["refuri"] = posixpath.normpath(node["refuri"])

    def handle_page(self, pagename, *args, **more) -> None:
        super().handle_page(pagename, *args, **more)
        path = Path(self.outdir) / f"{pagename}{self.out_suffix}"
        if path.exists():  # an index that is not used is not written
            path.write_text(as_xml(path.read_text("utf-8")), encoding="utf-8")

    def build_content(self) -> None:
        super().build_content()
        path = Path(self.outdir) / "content.opf"
        path.write_text(with_formulas(path.read_text("utf-8"), Path(self.outdir)), encoding="utf-8")


def as_xml(text: str) -> str:
    """A page as XHTML: every element closed, every attribute with a value, no script."""
    page = html.document_fromstring(text.encode("utf-8"), parser=html.HTMLParser(encoding="utf-8"))
    for element in page.xpath("//script | //noscript | //style[@scoped] | //comment()"):
        element.drop_tree()
    for element in page.iter(etree.Element):
        for name in list(element.attrib):
            if name.startswith("xml:") or (":" in name and name != "epub:type"):
                del element.attrib[name]
    page.attrib.pop("xmlns", None)
    page.set("xmlns", XHTML)
    return DECLARED + etree.tostring(page, method="xml", encoding="unicode")


def with_formulas(package: str, folder: Path) -> str:
    """The list of files, in which those with a formula say so."""

    def mark(item: re.Match) -> str:
        holds = "<math" in (folder / item.group(2)).read_text("utf-8")
        return f'{item.group(1)} properties="mathml"/>' if holds else item.group(0)

    return re.sub(r'(<item id="[^"]*" href="([^"]*\.xhtml)" media-type="[^"]*") />', mark, package)


def setup(app) -> dict:
    app.add_builder(BookEpub, override=True)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
