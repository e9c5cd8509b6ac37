"""Sphinx extension: the stored benchmarks as tables, made each time the site is built.

* ``{benchmark-results}``: each measure that has a target: met, or MISSED and why.
* ``{benchmark-context}``: the measures without a target.
"""

import json
import sys
from pathlib import Path

from docutils import nodes
from reading import table
from sphinx.util.docutils import SphinxDirective

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER.parent))

from benchmarks import report  # noqa: E402


def stored() -> list[dict]:
    """Return the records of every device."""
    files = sorted(FOLDER.glob("results-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


class BenchmarkResults(SphinxDirective):
    def run(self):
        self.env.note_reread()
        records = stored()
        rows = report.rows(records, FOLDER)
        met = sum(row[-1] == "met" for row in rows)
        words = f"{met} of {len(rows)} targets are met. {report.provenance(records)}"
        return [nodes.paragraph("", words), table(report.HEAD, rows)]


class BenchmarkContext(SphinxDirective):
    def run(self):
        self.env.note_reread()
        return [table(report.HEAD[:4], report.context(stored()))]


def setup(app) -> dict:
    app.add_directive("benchmark-results", BenchmarkResults)
    app.add_directive("benchmark-context", BenchmarkContext)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
