"""Sphinx extension: draw formulas when the site is built, so that a page needs no MathJax to show them.

MathJax itself draws them, from the PyPI package sphinx-mathjax-offline, in the JavaScript engine of
mini-racer. A page gets HTML, the same formula as MathML for screen readers, and one small style sheet for
the whole site, with fonts that hold only the characters the site uses. (sphinxcontrib-katex would need node.)
"""

import io
import json
import logging as python_logging
import re
import time
from base64 import b64encode
from importlib.metadata import distribution
from pathlib import Path

from docutils import nodes
from fontTools import subset
from fontTools.ttLib import TTFont
from sphinx.locale import _
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

PARTS = ("core", "adaptors/liteDOM", "input/tex", "output/chtml", "output/chtml/fonts/tex")
FONTS = "mathjax"  # what MathJax calls the folder of its fonts
# Only a screen reader meets the MathML; it takes no room.
HIDDEN = """
mjx-container { position: relative; font-size: 112%; }
mjx-container[display="true"] { display: block; text-align: center; margin: 1em 0; }
mjx-assistive-mml { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); white-space: nowrap; top: 0; left: 0; }
"""


class MathJax:
    """MathJax in a JavaScript engine of its own."""

    def __init__(self) -> None:
        from py_mini_racer import MiniRacer

        home = distribution("sphinx-mathjax-offline").locate_file("sphinx-mathjax-offline")
        self.folder = Path(home) / "static" / "mathjax"
        files = {f"/{part}.js": (self.folder / f"{part}.js").read_text("utf-8") for part in PARTS}
        self.engine = MiniRacer()
        self.engine.eval(
            "globalThis.global = globalThis;"
            "globalThis.setTimeout = (f) => { Promise.resolve().then(f); };"
            f"globalThis.FILES = {json.dumps(files)};"
            """globalThis.MathJax = {
              loader: {
                paths: { mathjax: "" },
                load: ["adaptors/liteDOM", "input/tex", "output/chtml"],
                require: (path) => { (0, eval)(FILES[path]); },
              },
              startup: { typeset: false },
              tex: { packages: { "[-]": ["noundefined", "autoload", "require"] } },
              chtml: { fontURL: "FONTS", adaptiveCSS: true },
            };""".replace("FONTS", FONTS)
        )
        self.engine.eval((self.folder / "startup.js").read_text("utf-8") + "\n;0")
        until = time.monotonic() + 60
        while self.engine.eval("typeof MathJax.tex2chtml") != "function":
            if time.monotonic() > until:
                raise RuntimeError("MathJax did not start within 60 s")
            time.sleep(0.02)

    def draw(self, tex: str, display: bool, html: bool = True) -> str:
        """Return one formula as HTML, or as MathML alone.

        Raises ValueError where MathJax does not understand it.
        """
        given = f"{json.dumps(tex)}, {{ display: {json.dumps(display)} }}"
        drawn = self.engine.eval(f"MathJax.startup.adaptor.outerHTML(MathJax.tex2chtml({given}))")
        mathml = self.engine.eval(f"MathJax.tex2mml({given})")
        if "<mjx-merror" in drawn or "<merror" in mathml:
            message = re.search(r'(?:data-mjx-error|title)="([^"]*)"', drawn + mathml)
            raise ValueError(f"formula {tex!r}: {message.group(1) if message else 'not TeX'}")
        if not html:
            return re.sub(r">\s+<", "><", mathml)
        drawn = drawn.replace("<mjx-math ", '<mjx-math aria-hidden="true" ', 1)
        mathml = re.sub(r">\s+<", "><", mathml)
        assistive = f"<mjx-assistive-mml>{mathml}</mjx-assistive-mml></mjx-container>"
        return drawn.replace("</mjx-container>", assistive)

    def style(self) -> str:
        """The style sheet of everything drawn so far."""
        return (
            self.engine.eval("MathJax.startup.adaptor.textContent(MathJax.chtmlStylesheet())")
            + HIDDEN
        )

    def close(self) -> None:
        """End the engine, whose thread would keep the process alive."""
        self.engine.close()


def mathjax(app) -> MathJax:
    if not hasattr(app, "_mathjax"):
        app._mathjax, app._formulas = MathJax(), {}
    return app._mathjax


def draw(translator, node, display: bool) -> str:
    """The formula of a node, in delimiters that no script looks for."""
    app, tex = translator.builder.app, node.astext().strip()
    if display and r"\\" in tex and not re.match(r"\\begin\{(align|gather|split|multline|eq)", tex):
        tex = rf"\begin{{split}}{tex}\end{{split}}"
    engine = mathjax(app)
    if (tex, display) not in app._formulas:
        try:
            app._formulas[tex, display] = engine.draw(tex, display, app.builder.name != "epub")
        except ValueError as error:
            logging.getLogger(__name__).warning(str(error), location=node)
            return translator.encode(tex)
    return app._formulas[tex, display]


def visit_math(translator, node):
    translator.body.append(translator.starttag(node, "span", "", CLASS="math"))
    translator.body.append(draw(translator, node, display=False) + "</span>")
    raise nodes.SkipNode


def visit_displaymath(translator, node):
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    if node["number"]:
        number = get_node_equation_number(translator, node)
        translator.body.append(f'<span class="eqno">({number})')
        translator.add_permalink_ref(node, _("Link to this equation"))
        translator.body.append("</span>")
    translator.body.append(draw(translator, node, display=True) + "</div>\n")
    raise nodes.SkipNode


def write_style(app, error) -> None:
    """Write the style sheet and the fonts once the last page is drawn."""
    if not hasattr(app, "_mathjax"):
        return
    try:
        if error is None and app.builder.format == "html":
            write_assets(app._mathjax, Path(app.outdir) / "_static")
    finally:
        app._mathjax.close()


def write_assets(engine: MathJax, static: Path) -> None:
    """Write the style sheet with its fonts inside, so that no formula changes its width when they come."""
    css = engine.style()
    letters = letters_by_family(css)
    face = re.compile(
        r'font-family: (MJX[\w-]+);\s*src: url\("(FONTS/([\w-]+)\.woff)"\)'.replace("FONTS", FONTS)
    )
    for family, url, name in face.findall(css):
        wanted = letters.get(family)
        if not wanted and family != "MJXZERO":
            css = re.sub(rf"@font-face [^{{}}]*\{{\s*font-family: {family};[^}}]*\}}", "", css)
            continue
        data = cut_font(
            engine.folder / "output/chtml/fonts/woff-v2" / f"{name}.woff", wanted or set()
        )
        inside = f"data:font/woff;base64,{b64encode(data).decode('ascii')}"
        css = css.replace(f'"{url}"', f'"{inside}"')
    css = re.sub(r"(@font-face /\* \d+ \*/ \{)", r"\1 font-display: block;", css)
    (static / "mathjax.css").write_text(re.sub(r"\s*\n\s*", " ", css), encoding="utf-8")


def letters_by_family(css: str) -> dict[str, set[str]]:
    """Which characters the style sheet takes from which font. Parts of large brackets are in S4."""
    letters = {}
    for selector, content in re.findall(r'([^{}]*)\{[^{}]*content: "((?:\\.|[^"])*)"', css):
        kind = re.search(r"mjx-c[0-9A-F]+(?:\.TEX-([\w-]+))?::before", selector)
        family = f"MJXTEX-{kind.group(1) or ''}".rstrip("-") if kind else "MJXTEX-S4"
        text = re.sub(r"\\([0-9A-Fa-f]+) ?", lambda code: chr(int(code.group(1), 16)), content)
        letters.setdefault(family, set()).update(text)
    return letters


def cut_font(file: Path, letters: set[str]) -> bytes:
    """A font with no other characters than these."""
    if file.stem == "MathJax_Zero":  # has a single one, which has no width
        return file.read_bytes()
    font, buffer = TTFont(file), io.BytesIO()
    options = subset.Options(flavor="woff", notdef_outline=True, layout_features=[])
    options.drop_tables += ["FFTM"]
    cutter = subset.Subsetter(options)
    cutter.populate(text="".join(sorted(letters)))
    cutter.subset(font)
    subset.save_font(font, buffer, options)
    return buffer.getvalue()


def setup(app) -> dict:
    python_logging.getLogger("fontTools").setLevel(python_logging.WARNING)
    app.add_html_math_renderer("prerendered", (visit_math, None), (visit_displaymath, None))
    app.add_css_file("mathjax.css")
    app.connect("build-finished", write_style)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
