"""Sphinx extension: an EPUB that readers open and epubcheck passes.

Sphinx's own builder names pages from the contents' folder (``book/../chapters/...``), so that its list of
files and its reading order do not meet; it takes what notebooks printed as HTML for XML; it names style
sheets that extensions write later; and it does not say which files hold formulas and drawings.
"""

import posixpath
import re
from pathlib import Path

from lxml import etree, html
from sphinx.builders.epub3 import Epub3Builder

XHTML, SVG = "http://www.w3.org/1999/xhtml", "http://www.w3.org/2000/svg"
DECLARED = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE html>\n'
# No reader runs scripts, and a fold says once what it holds.
DROPPED = "//script | //noscript | //style[@scoped] | //comment() | //summary/p[contains(@class, 'expanded')]"
HOLDS = {"<math": "mathml", "<svg": "svg"}


class BookEpub(Epub3Builder):
    def get_toc(self) -> None:
        super().get_toc()
        for node in self.refnodes:
            node["refuri"] = posixpath.normpath(node["refuri"])

    def handle_finish(self) -> None:
        for path in sorted(Path(self.outdir).rglob(f"*{self.out_suffix}")):
            path.write_text(as_xml(path.read_text("utf-8"), path.parent), encoding="utf-8")
        super().handle_finish()

    def build_content(self) -> None:
        super().build_content()
        path = Path(self.outdir) / "content.opf"
        path.write_text(with_properties(path.read_text("utf-8"), path.parent), encoding="utf-8")


def as_xml(text: str, folder: Path) -> str:
    """A page as XHTML: every element closed and where it may stand, no script, no file that is not there."""
    parser = html.HTMLParser(encoding="utf-8")
    page = html.document_fromstring(text.encode("utf-8"), parser=parser)
    for element in page.xpath(DROPPED):
        if element.getparent() is not None:  # a comment may stand before everything
            element.drop_tree()
    for element in page.xpath("//link[@href]"):
        if not (folder / element.get("href").partition("?")[0]).exists():
            element.drop_tree()
    for element in page.xpath("//summary//p"):
        element.tag = "span"
    for element in page.iter(etree.Element):
        for name in [name for name in element.attrib if ":" in name and name != "epub:type"]:
            del element.attrib[name]
    for drawing in page.xpath("//svg"):
        drawing.set("xmlns", SVG)
        if drawing.get("viewbox"):  # HTML does not tell capitals apart, XML does
            drawing.set("viewBox", drawing.attrib.pop("viewbox"))
    page.set("xmlns", XHTML)
    return DECLARED + etree.tostring(page, method="xml", encoding="unicode")


def with_properties(package: str, folder: Path) -> str:
    """The list of files, in which those with a formula or a drawing say so."""

    def mark(item: re.Match) -> str:
        text = (folder / item.group(2)).read_text("utf-8")
        held = " ".join(name for tag, name in HOLDS.items() if tag in text)
        return f'{item.group(1)} properties="{held}"/>' if held else item.group(0)

    return re.sub(
        r'(<item id="epub-\d+" href="([^"]*\.xhtml)" media-type="[^"]*") />', mark, package
    )


def setup(app) -> dict:
    app.add_builder(BookEpub, override=True)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
