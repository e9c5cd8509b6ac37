"""The checks of the built site. They are not collected where there is no site.

Those in a browser need Chromium or Chrome on the machine (CHROMIUM names another one). Without one they are
skipped, but where BROWSER_CHECKS=required, as in continuous integration, they fail.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
sys.path.insert(0, str(ROOT / "book" / "tools"))
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)

if not (SITE / "index.html").exists():
    collect_ignore_glob = ["test_*.py"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """A file is for one worker, as its tests share what they read; only the pages in a browser are spread."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name != "test_browser.py":
            item.add_marker(pytest.mark.xdist_group(item.path.name))


@pytest.fixture(scope="session")
def address():
    from serve import start

    server = start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    if not CHROMIUM:
        needed = os.environ.get("BROWSER_CHECKS") == "required"
        (pytest.fail if needed else pytest.skip)(
            "no Chromium: apt-get install chromium, or set CHROMIUM"
        )
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def axe() -> str:
    import axe_playwright_python

    return (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8")


@pytest.fixture(scope="session")
def contexts(browser):
    """One context a theme: a phone with its own cache."""
    made = {
        scheme: browser.new_context(
            color_scheme=scheme, viewport={"width": 390, "height": 844}, has_touch=True
        )
        for scheme in ("light", "dark")
    }
    yield made
    for context in made.values():
        context.close()


@pytest.fixture(params=["light", "dark"])
def tab(request, contexts, address):
    """A tab that refuses other hosts. It collects what it refused and what the console reported."""
    tab = contexts[request.param].new_page()
    tab.set_default_timeout(30_000)  # a busy machine
    tab.refused, tab.complaints, tab.scheme, tab.weight = [], [], request.param, 0

    def decide(route):
        tab.refused.append(route.request.url)
        return route.abort()

    def add(event):
        tab.weight += event["encodedDataLength"]

    tab.route(lambda url: not url.startswith((address, "data:", "blob:")), decide)
    tab.on(
        "console",
        lambda message: tab.complaints.append(message.text) if message.type == "error" else None,
    )
    tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.on(
        "response",
        lambda r: tab.complaints.append(f"{r.status} {r.url}") if r.status >= 400 else None,
    )
    tab.network = tab.context.new_cdp_session(tab)
    tab.network.send("Network.enable")
    tab.network.send("Network.setCacheDisabled", {"cacheDisabled": True})
    tab.network.on("Network.loadingFinished", add)
    tab.add_init_script(
        "window.shift = 0; new PerformanceObserver((list) => { for (const entry of "
        "list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value; })"
        ".observe({ type: 'layout-shift', buffered: true });"
    )
    yield tab
    tab.close()
