"""The stored results as rows of a table. Needs nothing but Python: the site's build uses it too."""

import tomllib
from pathlib import Path
from typing import Any

HEAD = ["case", "setting", "measure", "measured (quartiles)", "target", ""]
Record = dict[str, Any]


def rows(records: list[Record], folder: Path) -> list[list[str]]:
    """Return a row for each measure that has a target: met, or MISSED and why.

    Args:
        records: the stored results.
        folder: where reasons.toml is: {case: {measure: reason}}.
    """
    reasons = tomllib.loads((folder / "reasons.toml").read_text(encoding="utf-8"))
    found = []
    for record in records:
        for name, measure in record["measures"].items():
            if "at_most" in measure:
                verdict = "met"
                if missed(measure):
                    verdict = f"MISSED: {reasons.get(record['case'], {}).get(name, 'unexplained')}"
                target = f"≤ {measure['at_most']:g}"
                found.append(
                    [record["case"], record["setting"], name, shown(measure), target, verdict]
                )
    return found


def context(records: list[Record]) -> list[list[str]]:
    """Return a row for each measure without a target."""
    return [
        [record["case"], record["setting"], name, shown(measure)]
        for record in records
        for name, measure in record["measures"].items()
        if "at_most" not in measure
    ]


def provenance(records: list[Record]) -> str:
    """Return where and when the records were made, in a sentence."""
    dates = sorted({record["date"] for record in records})
    processors = sorted({record["processor"] for record in records})
    versions = {f"torch {record['torch']}" for record in records}
    for record in records:
        versions |= {f"{name} {number}" for name, number in record["versions"].items()}
    when = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    return f"Measured {when} on {', '.join(processors)}, one thread; {', '.join(sorted(versions))}."


def missed(measure: dict[str, float]) -> bool:
    """Tell whether a measure is over its target."""
    return measure["value"] > measure["at_most"]


def shown(measure: dict[str, float]) -> str:
    """Return the value with its quartiles, if it has them."""
    spread = f" ({measure['low']:.3g} to {measure['high']:.3g})" if "low" in measure else ""
    return f"{measure['value']:.3g}{spread}"


def markdown(records: list[Record], folder: Path) -> str:
    """Return the rows as a Markdown table."""
    lines = [HEAD, ["---"] * len(HEAD), *rows(records, folder)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
