"""Take the README's picture of a page from the built site: needs Chromium, and `make book` before.

python book/tools/screenshot.py [PAGE [FILE [WIDTH [light|dark [TOP]]]]]
"""

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"


def take(page: str, file: str, width: int = 1280, scheme: str = "light", top: int = 0) -> None:
    """Save what a reader sees of one page, ``top`` pixels down, as a PNG 800 pixels high."""
    with sync_playwright() as playwright:
        chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        tab.goto((SITE / page).as_uri(), wait_until="load")
        tab.evaluate("window.MathJax && MathJax.startup.promise")
        tab.evaluate(f"window.scrollTo(0, {top})")
        tab.wait_for_timeout(500)
        tab.screenshot(path=file)
        browser.close()


if __name__ == "__main__":
    given = sys.argv[1:] + [None] * 5
    take(
        given[0] or "chapters/02_lora/lora_from_scratch.html",
        given[1] or str(ROOT / "book" / "_static" / "page.png"),
        int(given[2] or 1280),
        given[3] or "light",
        int(given[4] or 0),
    )
