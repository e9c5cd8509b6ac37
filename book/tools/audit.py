"""Measure some built pages with Lighthouse, as a phone and as a desktop: needs node and Chromium.

python book/tools/audit.py [PAGE ...]

Lighthouse comes from npm, in the version named here. Fails where a score is below its floor. Lighthouse
slows the processor fourfold to play a phone, which is right for a machine of benchmark index 1500; a slower
machine is slowed less. Below an index of 750 (a small machine, or a busy one) the score for performance says
more about the machine than about the page: it is printed, and not judged. A page that falls short is measured
up to three times, and its best run counts.
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


def representative() -> list[str]:
    """The landing page, the heaviest notebook page, and a page of the reference."""
    notebooks = sorted((SITE / "chapters").rglob("*.html"), key=lambda path: path.stat().st_size)
    heaviest = str(notebooks[-1].relative_to(SITE))
    return ["book/index.html", heaviest, "book/api/lora.html"]


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


def measure(url: str, form: str, slowdown: float) -> dict[str, int]:
    """The scores of one page, from 0 to 100."""
    report = run(url, form, slowdown)
    scores = {name: round(100 * report["categories"][name]["score"]) for name in FLOORS}
    failing = [
        audit["id"]
        for audit in report["audits"].values()
        if audit.get("score") is not None and audit["score"] < 0.9
    ]
    if any(scores[name] < floor for name, floor in FLOORS.items()):
        print(f"  {form} {scores}: {', '.join(failing)}", flush=True)
    return scores


def best(url: str, form: str, slowdown: float) -> dict[str, int]:
    scores = dict.fromkeys(FLOORS, 0)
    for _ in range(RUNS):
        scores = {
            name: max(scores[name], found) for name, found in measure(url, form, slowdown).items()
        }
        if all(scores[name] >= floor for name, floor in FLOORS.items()):
            break
    return scores


def main(pages: list[str]) -> None:
    if not shutil.which("npx"):
        sys.exit("no npx on this machine: install node (nodejs.org), or leave the audit out")
    server, short = start(), []
    address = f"http://127.0.0.1:{server.server_port}"
    index = run(f"{address}/{pages[0]}", "mobile", 4)["environment"]["benchmarkIndex"]
    slowdown = min(4, max(1, index / PHONE))
    if index < JUDGES_SPEED:
        print("a slow or busy machine: performance is printed, not judged", flush=True)
        FLOORS["performance"] = 0
    print(f"benchmark index {index:.0f}: the processor is slowed {slowdown:.1f} times", flush=True)
    for page in pages:
        for form in FORMS:
            scores = best(f"{address}/{page}", form, slowdown)
            print(f"{page} ({form}): {scores}", flush=True)
            short += [f"{page} {form} {n}" for n, floor in FLOORS.items() if scores[n] < floor]
    server.shutdown()
    if short:
        sys.exit(f"below the floor {FLOORS}: {'; '.join(short)}")


if __name__ == "__main__":
    main(sys.argv[1:] or representative())
