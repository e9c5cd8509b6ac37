"""Sphinx extension: a figure that moves is a figure of the book, with a number and a caption below it.

What a notebook stored is HTML with a caption of its own, which JupyterLab and Colab show. Here the caption
becomes Sphinx's, which numbers it among the page's other figures, in every format. Beside the HTML the
notebook stored a picture of the first setting: that is the figure in the EPUB, and on the site where no
script runs (``img.still``; custom.css and layout.html). A drawing, which stands still, is its
HTML on the site, whose colours it takes, and its SVG in the EPUB.

``{moving-figure} chapters/.../page.ipynb`` shows the first such figure of a notebook on another page.
"""

import hashlib
import html
import json
import re
from base64 import b64decode
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

CAPTION = re.compile(r"<figcaption>(.*?)</figcaption>\n?", re.DOTALL)
NAME = re.compile(
    r'<figure class="(?:explorable|alive|drawing)"(?: data-alive="\w+")? data-figure="([\w-]+)">'
)
# What a figure says that it shows; a panel of book/alive says it above its stored results.
ALT = re.compile(
    r'class="stage" role="\w+" aria-label="([^"]*)"|class="alive-still">\s*<p>(.*?)</p>'
    r'|class="drawing"[^>]*>\s*<svg[^>]* aria-label="([^"]*)"'
)


def number(app, doctree) -> None:
    """Wrap every output that moves in a figure."""
    for bundle in list(doctree.findall(is_bundle)):
        moving = [raw for raw in bundle.findall(nodes.raw) if NAME.search(raw.astext())]
        if moving:
            wrap(doctree, bundle, moving[0], moves=app.builder.name != "epub")


def is_bundle(node) -> bool:
    return isinstance(node, nodes.container) and node.get("nb_element") == "mime_bundle"


def wrap(doctree, bundle, raw, moves: bool = True) -> None:
    text = raw.astext()
    stills = [still_of(image, text) for image in list(bundle.findall(nodes.image))[:1]]
    # One that was given no caption has the words that say what it shows.
    caption = CAPTION.search(text)
    raw.children = [nodes.Text(CAPTION.sub("", text))]
    raw.rawsource = ""
    figure = nodes.figure("", names=[NAME.search(text).group(1)])
    figure.source, figure.line = bundle.source, bundle.line
    doctree.note_implicit_target(figure, figure)
    bundle.replace_self(figure)
    if moves:  # a panel of book/alive shows its stored results without scripts
        stills = stills if 'class="explorable"' in text else []
    shown = [bundle, *stills] if moves else stills
    figure += [
        *shown,
        nodes.caption("", html.unescape(caption.group(1)) if caption else says_of(text)),
    ]


def says_of(text: str) -> str:
    return html.unescape(next(filter(None, ALT.search(text).groups())))


def still_of(image: nodes.image, text: str) -> nodes.image:
    """The picture that a notebook stored beside the HTML, which says what it shows."""
    still = image.deepcopy()
    still["alt"] = says_of(text)
    still["classes"] = ["still"]
    return still


class MovingFigure(SphinxDirective):
    required_arguments = 1

    def run(self):
        source = self.arguments[0]
        self.env.note_dependency(source)
        stored = json.loads((Path(self.env.srcdir) / source).read_text(encoding="utf-8"))
        outputs = [out for cell in stored["cells"] for out in cell.get("outputs", [])]
        stored = [out["data"] for out in outputs if "image/png" in out.get("data", {})]
        for data in stored:
            text = "".join(data.get("text/html", ""))
            if NAME.search(text):
                still = still_of(self.picture(data["image/png"]), text)
                moving = [nodes.raw("", text, format="html")]
                return (moving if self.env.app.builder.name != "epub" else []) + [still]
        raise self.error(f"{source} has no figure that moves")

    def picture(self, png: str) -> nodes.image:
        """A stored picture as a file, where MyST-NB keeps its own and by the same kind of name."""
        data = b64decode("".join(png))
        folder = Path(self.env.app.outdir).parent / "jupyter_execute"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{hashlib.sha256(data).hexdigest()}.png"
        file.write_bytes(data)
        return nodes.image(uri=f"/{file.relative_to(self.env.srcdir).as_posix()}")


def setup(app) -> dict:
    app.add_directive("moving-figure", MovingFigure)
    app.connect("doctree-read", number)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
