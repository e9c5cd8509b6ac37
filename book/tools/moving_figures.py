"""Sphinx extension: a figure that moves is a figure of the book, with a number and a caption below it.

What a notebook stored is HTML with a caption of its own, which JupyterLab and Colab show. Here the caption
becomes Sphinx's, which numbers it among the page's other figures, in every format.

``{moving-figure} chapters/.../page.ipynb`` shows the first such figure of a notebook on another page.
"""

import html
import json
import re
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import only
from sphinx.util.docutils import SphinxDirective

CAPTION = re.compile(r"<figcaption>(.*?)</figcaption>\n?", re.DOTALL)
NAME = re.compile(
    r'<figure class="(?:explorable|alive)"(?: data-alive="\w+")? data-figure="([\w-]+)">'
)
ALT = re.compile(r'class="stage" role="\w+" aria-label="([^"]*)"')


def number(app, doctree) -> None:
    """Wrap every output that moves in a figure."""
    for bundle in list(doctree.findall(is_bundle)):
        moving = [raw for raw in bundle.findall(nodes.raw) if NAME.search(raw.astext())]
        if moving:
            wrap(doctree, bundle, moving[0])


def is_bundle(node) -> bool:
    return isinstance(node, nodes.container) and node.get("nb_element") == "mime_bundle"


def wrap(doctree, bundle, raw) -> None:
    text = raw.astext()
    # One that was given no caption has the words that say what it shows.
    caption = CAPTION.search(text) or ALT.search(text)
    raw.children = [nodes.Text(CAPTION.sub("", text))]
    raw.rawsource = ""
    figure = nodes.figure("", names=[NAME.search(text).group(1)])
    figure.source, figure.line = bundle.source, bundle.line
    doctree.note_implicit_target(figure, figure)
    bundle.replace_self(figure)
    figure += [bundle, nodes.caption("", html.unescape(caption.group(1)))]


class MovingFigure(SphinxDirective):
    required_arguments = 1

    def run(self):
        source = self.arguments[0]
        self.env.note_dependency(source)
        stored = json.loads((Path(self.env.srcdir) / source).read_text(encoding="utf-8"))
        outputs = [out for cell in stored["cells"] for out in cell.get("outputs", [])]
        texts = ["".join(out.get("data", {}).get("text/html", "")) for out in outputs]
        figure = next((text for text in texts if NAME.search(text)), None)
        if figure is None:
            raise self.error(f"{source} has no figure that moves")
        return [only("", nodes.raw("", figure, format="html"), expr="builder_html")]


def setup(app) -> dict:
    app.add_directive("moving-figure", MovingFigure)
    app.connect("doctree-read", number)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
