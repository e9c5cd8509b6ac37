"""Measure built pages with Lighthouse, as a phone and as a desktop: needs node and Chromium.

python book/tools/audit.py        # three pages that stand for the others
python book/tools/audit.py all    # every page: about 25 minutes on a quiet machine
python book/tools/audit.py PAGE ...

Lighthouse comes from npm, in the version named here. Fails where a score is below its floor, and writes the
scores to _build/reports/lighthouse.md. Lighthouse slows the processor fourfold to play a phone, which is
right for a machine of benchmark index 1500; a slower machine is slowed less. Below an index of 750 (a small
machine, or a busy one) the score for performance says more about the machine than about the page: it is
printed, and not judged. A page that falls short is measured up to three times, and its best run counts.
"""

import json
import os
import shutil
import subprocess
import sys

from serve import SITE, start

VERSION = "12.8.2"
FLOORS = {"performance": 95, "best-practices": 95, "accessibility": 100}
FORMS = {"mobile": [], "desktop": ["--preset=desktop"]}
RUNS = 3
JUDGES_SPEED = 750  # the least benchmark index
PHONE = 1500 / 4  # the benchmark index of the phone that Lighthouse plays
REPORT = SITE.parent / "reports" / "lighthouse.md"
# What a report says besides the scores: {heading: (Lighthouse's audit, the unit's divisor, digits)}.
FACTS = {
    "LCP (s)": ("largest-contentful-paint", 1000, 1),
    "TBT (ms)": ("total-blocking-time", 1, 0),
    "CLS": ("cumulative-layout-shift", 1, 3),
    "kB": ("total-byte-weight", 1000, 0),
}


def representative() -> list[str]:
    """The landing page, the heaviest notebook page, and a page of the reference."""
    notebooks = sorted((SITE / "chapters").rglob("*.html"), key=lambda path: path.stat().st_size)
    heaviest = str(notebooks[-1].relative_to(SITE))
    return ["book/index.html", heaviest, "book/api/lora.html"]


def all_pages() -> list[str]:
    """Every page but the redirection at the root; the landing page first."""
    found = [str(path.relative_to(SITE)) for path in sorted(SITE.rglob("*.html"))]
    skipped = ("_static/", "index.html")
    return sorted((page for page in found if not page.startswith(skipped)), key=order)


def order(page: str) -> tuple:
    """The landing page, the book, the chapters, then search, indexes and sources."""
    parts = ("book/index.html", "book/", "chapters/")
    return (next((i for i, part in enumerate(parts) if page.startswith(part)), 9), page)


def run(url: str, form: str, slowdown: float) -> dict:
    """Lighthouse's report on one page."""
    command = [
        "npx",
        "--yes",
        f"lighthouse@{VERSION}",
        url,
        *FORMS[form],
        "--output=json",
        "--quiet",
    ]
    command += ["--chrome-flags=--headless=new --no-sandbox --disable-gpu"]
    command += [f"--only-categories={','.join(FLOORS)}"]
    if form == "mobile":
        command.append(f"--throttling.cpuSlowdownMultiplier={slowdown:.2f}")
    chrome = os.environ.get("CHROMIUM") or shutil.which("chromium") or ""
    environment = os.environ | ({"CHROME_PATH": chrome} if chrome else {})
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)


def measure(url: str, form: str, slowdown: float) -> tuple[dict[str, int], list[str]]:
    """The scores of one page, from 0 to 100, and the facts behind them as text."""
    report = run(url, form, slowdown)
    scores = {name: round(100 * report["categories"][name]["score"]) for name in FLOORS}
    audits = report["audits"]
    facts = [
        f"{audits[name].get('numericValue', 0) / unit:.{digits}f}"
        for name, unit, digits in FACTS.values()
    ]
    if not good(scores):
        failing = [
            name
            for name, audit in audits.items()
            if audit.get("score") is not None and audit["score"] < 0.9
        ]
        print(f"  {form} {scores}: {', '.join(failing)}", flush=True)
    return scores, facts


def good(scores: dict[str, int]) -> bool:
    return all(scores[name] >= floor for name, floor in FLOORS.items())


def best(url: str, form: str, slowdown: float) -> tuple[dict[str, int], list[str]]:
    """The run with the best performance of up to three, and the best of each other score."""
    scores, facts = measure(url, form, slowdown)
    for _ in range(RUNS - 1):
        if good(scores):
            break
        again, its_facts = measure(url, form, slowdown)
        if again["performance"] > scores["performance"]:
            facts = its_facts
        scores = {name: max(scores[name], again[name]) for name in FLOORS}
    return scores, facts


def write(rows: list[list]) -> None:
    """The table of all scores so far, as Markdown."""
    head = ["page", "form", *FLOORS, *FACTS]
    lines = [head, ["---"] * len(head), *rows]
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    table = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
    REPORT.write_text(table + "\n", encoding="utf-8")


def main(pages: list[str]) -> None:
    if not shutil.which("npx"):
        sys.exit("no npx on this machine: install node (nodejs.org), or leave the audit out")
    unknown = [page for page in pages if not (SITE / page).exists()]
    if unknown:
        sys.exit(f"not in {SITE}: {', '.join(unknown)}")
    server, short, rows = start(), [], []
    address = f"http://127.0.0.1:{server.server_port}"
    index = run(f"{address}/{pages[0]}", "mobile", 4)["environment"]["benchmarkIndex"]
    slowdown = min(4, max(1, index / PHONE))
    if index < JUDGES_SPEED:
        print("a slow or busy machine: performance is printed, not judged", flush=True)
        FLOORS["performance"] = 0
    print(f"benchmark index {index:.0f}: the processor is slowed {slowdown:.1f} times", flush=True)
    for page in pages:
        for form in FORMS:
            scores, facts = best(f"{address}/{page}", form, slowdown)
            print(f"{page} ({form}): {scores}", flush=True)
            rows.append([page, form, *scores.values(), *facts])
            write(rows)
            short += [f"{page} {form} {n}" for n, floor in FLOORS.items() if scores[n] < floor]
    server.shutdown()
    if short:
        sys.exit(f"below the floor {FLOORS}: {'; '.join(short)}")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(all_pages() if given == ["all"] else given or representative())
