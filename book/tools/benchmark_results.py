"""Sphinx extension: the stored benchmarks, made into a chart and tables each time the site is built.

* ``{benchmark-chart}``: every measure that has a target, as a share of it.
* ``{benchmark-results}``: the same as tables, one a case; below each, what was missed and why.
* ``{benchmark-context}``: the measures without a target.
"""

import html
import json
import sys
from itertools import groupby
from pathlib import Path

from docutils import nodes
from reading import table
from sphinx.util.docutils import SphinxDirective

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER.parent))

from benchmarks import report  # noqa: E402

WIDTH, LEFT, END = 360, 8, 1.5  # of the chart, in its own units; where its axis ends, in targets
ROW = 34  # a line of words, and one of dots


def stored() -> list[dict]:
    """Return the records of every device."""
    files = sorted(FOLDER.glob("results-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def shares(records: list[dict]) -> dict[str, list[dict[str, float]]]:
    """{case and measure: of each setting the value and its quartiles, as shares of the target}."""
    found: dict[str, list[dict[str, float]]] = {}
    for record in records:
        for name, measure in record["measures"].items():
            if measure.get("at_most"):  # a target of none at all has no shares
                of_target = {
                    key: measure[key] / measure["at_most"]
                    for key in ("value", "low", "high")
                    if key in measure
                }
                found.setdefault(f"{record['case']}: {name}", []).append(of_target)
    return found


def chart(records: list[dict]) -> str:
    """A row for each case and measure: a dot for each setting, its quartiles a line, the target a rule."""
    rows = shares(records)
    height = ROW * len(rows) + 22

    def x(share: float) -> float:
        return round(LEFT + (WIDTH - 2 * LEFT) * min(max(share, 0), END) / END, 1)

    marks = [
        f'<text x="{x(at)}" y="{height - 4}" text-anchor="{anchor}">{words}</text>'
        for at, words, anchor in ((0, "0", "start"), (1, "target", "middle"))
    ]
    for i, (name, settings) in enumerate(rows.items()):
        y = ROW * i + 24
        marks.append(f'<text x="0" y="{ROW * i + 13}">{html.escape(name)}</text>')
        marks.append(
            f'<line x1="{LEFT}" x2="{WIDTH - LEFT}" y1="{y}" y2="{y}" stroke="currentColor" opacity=".2"/>'
            f'<line x1="{x(1)}" x2="{x(1)}" y1="{y - 7}" y2="{y + 7}" stroke="currentColor"/>'
        )
        for one in settings:
            missed = one["value"] > 1
            if "low" in one:
                ends = f'x1="{x(one["low"])}" x2="{x(one["high"])}" y1="{y}" y2="{y}"'
                marks.append(f'<line {ends} stroke="currentColor" opacity=".5"/>')
            fill = "#D55E00" if missed else "#0072B2"
            marks.append(f'<circle cx="{x(one["value"])}" cy="{y}" r="4" fill="{fill}"/>')
            if one["value"] > END:  # it stands at the edge, with its number
                words = f"{one['value']:.1f} of it"
                marks.append(f'<text x="{x(END) - 8}" y="{y + 4}" text-anchor="end">{words}</text>')
    values = [one["value"] for settings in rows.values() for one in settings]
    alt = (
        f"{len(values)} measures as shares of their targets. "
        f"{sum(value <= 1 for value in values)} lie at or left of the target, the farthest right at "
        f"{max(values):.2f} of it. The tables below have the numbers."
    )
    return (
        f'<svg class="chart" role="img" aria-label="{alt}" viewBox="0 0 {WIDTH} {height}" '
        f'font-size="12" fill="currentColor">{"".join(marks)}</svg>'
    )


class BenchmarkChart(SphinxDirective):
    def run(self):
        self.env.note_reread()
        return [nodes.raw("", chart(stored()), format="html")]


class BenchmarkResults(SphinxDirective):
    def run(self):
        self.env.note_reread()
        records = stored()
        rows = report.rows(records, FOLDER)
        met = sum(row[-1] == "met" for row in rows)
        words = f"{met} of {len(rows)} targets are met. {report.provenance(records)}"
        parts = [nodes.paragraph("", words)]
        for case, some in groupby(sorted(rows, key=lambda row: row[0]), key=lambda row: row[0]):
            parts += self.case(case, list(some))
        return parts

    def case(self, case: str, rows: list[list[str]]) -> list[nodes.Node]:
        """A case's table, and below it what was missed: a column of reasons would be wider than a phone."""
        lines = [[*row[1:5], row[-1].partition(":")[0]] for row in rows]
        missed: dict[str, list[str]] = {}
        for _, setting, measure, *_, verdict in rows:
            if verdict != "met":
                missed.setdefault(verdict.partition(": ")[2], []).append(f"{setting}, {measure}")
        reasons = nodes.bullet_list()
        for reason, where in missed.items():
            words = f"MISSED, {'; '.join(where)}: {reason}."
            reasons += nodes.list_item("", nodes.paragraph("", words))
        title = nodes.rubric("", case[0].upper() + case[1:])
        return [title, table([*report.HEAD[1:5], "result"], lines), *([reasons] if missed else [])]


class BenchmarkContext(SphinxDirective):
    def run(self):
        self.env.note_reread()
        return [table(report.HEAD[:4], report.context(stored()))]


def setup(app) -> dict:
    app.add_directive("benchmark-chart", BenchmarkChart)
    app.add_directive("benchmark-results", BenchmarkResults)
    app.add_directive("benchmark-context", BenchmarkContext)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
