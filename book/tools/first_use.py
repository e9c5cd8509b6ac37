"""Sphinx extension: link a term of the glossary where a page of a chapter first uses it.

An author links a term by hand where the word means something else first, with ``{term}``; that link is
taken as the first use. A word inside a longer term does not count as used, nor does one in a heading, in
code, in a formula, in another link, or in what a cell printed.
"""

import re
from collections.abc import Iterator

from docutils import nodes

# Words that mean something else as often: "attention head", "scaling out", the tensor `alpha`.
BY_HAND = {"head", "scaling", "alpha"}
NO_PROSE = (
    nodes.reference,
    nodes.literal,
    nodes.literal_block,
    nodes.title,
    nodes.math,
    nodes.math_block,
    nodes.raw,
    nodes.footnote,
    nodes.citation,
)


def terms_of(app) -> dict[str, tuple[str, str]]:
    """{term: (page, anchor)}."""
    objects = app.env.domaindata["std"]["objects"]
    return {name: place for (kind, name), place in objects.items() if kind == "term"}


def pattern(terms) -> re.Pattern:
    """Any of the terms, the longest that fits, as whole words, in the singular or with an s."""
    longest_first = sorted(map(plain, terms), key=len, reverse=True)
    words = "|".join(re.escape(term).replace(r"\ ", r"[\s-]+") for term in longest_first)
    return re.compile(rf"(?<![\w-])({words})s?(?![\w-])".replace("'", "['’]"), re.IGNORECASE)


def plain(text: str) -> str:
    return re.sub(r"[\s-]+", " ", text.replace("’", "'")).lower()


def name_of(text: str, terms) -> str:
    """The term that a match spells."""
    spelled = {plain(term): term for term in terms}
    return spelled.get(plain(text)) or spelled[plain(text).removesuffix("s")]


def prose(doctree) -> Iterator[nodes.Text | nodes.reference]:
    """The texts a term can be used in, and the links, in the order in which they are read."""

    def walk(node):
        for child in node.children:
            if isinstance(child, nodes.reference | nodes.Text):
                yield child
            elif not isinstance(child, NO_PROSE) and "cell_output" not in classes(child):
                yield from walk(child)

    def classes(node):
        return node.get("classes", []) if isinstance(node, nodes.Element) else []

    yield from walk(doctree)


def link_terms(app, doctree, page: str) -> None:
    """Replace the first use of each term by a link to the glossary."""
    if not page.startswith("chapters/"):
        return
    terms = terms_of(app)
    open_terms = {name: place for name, place in terms.items() if name not in BY_HAND}
    anchors = {anchor: name for name, (_, anchor) in terms.items()}
    uses = pattern(terms)
    for node in list(prose(doctree)):
        if isinstance(node, nodes.reference):
            to = node.get("refid") or node.get("refuri", "").partition("#")[2]
            open_terms.pop(anchors.get(to, ""), None)
            continue
        parts, rest = [], 0
        for found in uses.finditer(str(node)):
            name = name_of(found.group(), terms)
            if name in open_terms:
                where, anchor = open_terms.pop(name)
                uri = app.builder.get_relative_uri(page, where) + f"#{anchor}"
                shown = nodes.inline("", found.group(), classes=["xref", "std", "std-term"])
                parts.append(nodes.Text(str(node)[rest : found.start()]))
                parts.append(nodes.reference("", "", shown, refuri=uri, internal=True))
                rest = found.end()
        if parts:
            parts.append(nodes.Text(str(node)[rest:]))
            node.parent.replace(node, [part for part in parts if part != ""])


def setup(app) -> dict:
    app.connect("doctree-resolved", link_terms, priority=900)  # the authors' links exist now
    return {"parallel_read_safe": True, "parallel_write_safe": True}
