"""Measure some built pages with Lighthouse, as a phone and as a desktop: needs node and Chromium.

python book/tools/audit.py [PAGE ...]

Lighthouse comes from npm, in the version named here. Fails where a score is below its floor. A busy
machine is slow, so a page that falls short is measured up to three times, and its best run counts.
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


def representative() -> list[str]:
    """The landing page, the heaviest notebook page, and a page of the reference."""
    notebooks = sorted((SITE / "chapters").rglob("*.html"), key=lambda path: path.stat().st_size)
    heaviest = str(notebooks[-1].relative_to(SITE))
    return ["book/index.html", heaviest, "book/api/lora.html"]


def measure(url: str, form: str) -> dict[str, int]:
    """The scores of one page, from 0 to 100."""
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
    chrome = os.environ.get("CHROMIUM") or shutil.which("chromium") or ""
    environment = os.environ | ({"CHROME_PATH": chrome} if chrome else {})
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    report = json.loads(done.stdout)
    scores = {name: round(100 * report["categories"][name]["score"]) for name in FLOORS}
    failing = [
        audit["id"]
        for audit in report["audits"].values()
        if audit.get("score") is not None and audit["score"] < 0.9
    ]
    if any(scores[name] < floor for name, floor in FLOORS.items()):
        print(f"  {form} {scores}: {', '.join(failing)}", flush=True)
    return scores


def best(url: str, form: str) -> dict[str, int]:
    scores = dict.fromkeys(FLOORS, 0)
    for _ in range(RUNS):
        scores = {name: max(scores[name], found) for name, found in measure(url, form).items()}
        if all(scores[name] >= floor for name, floor in FLOORS.items()):
            break
    return scores


def main(pages: list[str]) -> None:
    if not shutil.which("npx"):
        sys.exit("no npx on this machine: install node (nodejs.org), or leave the audit out")
    server, short = start(), []
    for page in pages:
        for form in FORMS:
            scores = best(f"http://127.0.0.1:{server.server_port}/{page}", form)
            print(f"{page} ({form}): {scores}", flush=True)
            short += [f"{page} {form} {n}" for n, floor in FLOORS.items() if scores[n] < floor]
    server.shutdown()
    if short:
        sys.exit(f"below the floor {FLOORS}: {'; '.join(short)}")


if __name__ == "__main__":
    main(sys.argv[1:] or representative())
