"""Sphinx extension: ``{tolerances}``, a table of the cells whose numbers may differ from the stored ones."""

import json
from pathlib import Path

from docutils import nodes
from reading import doc_link, table, toc
from sphinx.util.docutils import SphinxDirective


class Tolerances(SphinxDirective):
    def run(self):
        self.env.note_reread()  # it reads other pages' notebooks
        rows = []
        for page, title in toc(self.env).items():
            path = Path(self.env.srcdir) / f"{page}.ipynb"
            for cell in json.loads(path.read_text("utf-8"))["cells"] if path.exists() else ():
                if about := cell["metadata"].get("tolerance"):
                    number = f"[{cell['execution_count']}]"
                    rows.append(
                        [doc_link(page, title or page), number, limits(about), about["reason"]]
                    )
        if not rows:
            return [nodes.paragraph("", "No cell declares a tolerance.")]
        made = table(["page", "cell", "may differ by", "why"], rows)
        made["classes"].append("last-below")  # on a phone
        return [made]


def limits(tolerance: dict) -> str:
    """Return a tolerance in words: "0.02; whole numbers by 1"."""
    words = [f"{tolerance['abs']:g}"] if "abs" in tolerance else []
    words += [f"whole numbers by {tolerance['whole']:g}"] if "whole" in tolerance else []
    return "; ".join(words)


def setup(app) -> dict:
    app.add_directive("tolerances", Tolerances)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
