"""Sphinx extension: what search engines and social cards say of a page is what it promises.

That is its first paragraph. sphinxext-opengraph takes all the text there is from the top, which here begins
with the reading time and the links below the title, and has no setting for that.
"""

import html
import re
import unicodedata

from docutils import nodes
from sphinxext import opengraph

GREEK = re.compile(r"\\(alpha|beta|gamma|lambda)\b")


def described(doctree: nodes.document, length: int, _: set[str] = frozenset()) -> str:
    """The first paragraph as plain text, cut between two words."""
    for paragraph in doctree.findall(nodes.paragraph):
        if "reading-time" not in paragraph["classes"] and paragraph.astext().strip():
            return shortened(plain(paragraph.astext()), length)
    return ""


def plain(text: str) -> str:
    def letter(found: re.Match) -> str:
        return unicodedata.lookup(f"GREEK SMALL LETTER {found.group(1)}")

    return re.sub(r"\s+", " ", GREEK.sub(letter, text)).strip()


def shortened(text: str, length: int) -> str:
    text = html.escape(text, quote=False)  # it becomes an attribute, which the caller quotes
    return text if len(text) <= length else text[:length].rpartition(" ")[0].rstrip(",;:") + " …"


def setup(app) -> dict:
    opengraph.get_description = described
    return {"parallel_read_safe": True, "parallel_write_safe": True}
