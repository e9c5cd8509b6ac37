"""The pages in a browser, with every request to another host refused and counted.

It needs Chromium or Chrome on the machine (CHROMIUM names another one); without, it is skipped.
"""

import os
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "_build" / "html"
PAGES = sorted(
    str(path.relative_to(SITE))
    for part in ("book", "chapters")
    for path in (SITE / part).rglob("*.html")
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)

pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no Chromium found: apt-get install chromium, or set CHROMIUM"
)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def tab(request, browser, address):
    """A tab that refuses other hosts. It collects what it refused and what the console reported."""
    context = browser.new_context(
        color_scheme=request.param, viewport={"width": 390, "height": 844}, has_touch=True
    )
    tab = context.new_page()
    tab.refused, tab.complaints, tab.scheme = [], [], request.param

    def decide(route):
        if route.request.url.startswith((address, "data:", "blob:")):
            return route.continue_()
        tab.refused.append(route.request.url)
        return route.abort()

    tab.route("**/*", decide)
    tab.on(
        "console",
        lambda message: tab.complaints.append(message.text) if message.type == "error" else None,
    )
    tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.on(
        "response",
        lambda r: tab.complaints.append(f"{r.status} {r.url}") if r.status >= 400 else None,
    )
    yield tab
    context.close()


@pytest.mark.parametrize("page", PAGES)
def test_page(tab, address, page):
    tab.goto(f"{address}/{page}", wait_until="load")
    check_formulas(tab)
    check_width(tab)
    check_figures(tab)
    assert tab.evaluate("document.documentElement.dataset.theme") == tab.scheme
    assert not tab.refused, "requests to other hosts"
    assert not tab.complaints, "errors in the console"


def check_formulas(tab) -> None:
    """Every formula is drawn, and no dollar sign is left over."""
    if tab.locator(".math").count():
        tab.wait_for_selector("mjx-container", timeout=20_000)
        tab.evaluate("MathJax.startup.promise")
        assert tab.locator("mjx-merror").count() == 0, "a formula with an error"
        assert tab.locator(".math:not(:has(mjx-container))").count() == 0, "a formula not drawn"
    assert "$$" not in tab.locator("article").inner_text()


def check_width(tab) -> None:
    """On a phone the page does not scroll sideways."""
    wide = tab.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert wide <= 0, f"{wide} px wider than the screen"


def check_figures(tab) -> None:
    """Every control moves by keyboard, and the figure changes with it."""
    for figure in tab.locator("figure.explorable").all():
        assert figure.locator("output").inner_text(), "a figure that says nothing"
        controls = figure.locator("[name]").all()
        assert controls, "a figure without controls"
        for control in controls:
            before = shown(figure)
            seen = {before} | {shown(figure) for _ in moves(control)}
            assert len(seen) > 1, f"control {control.get_attribute('name')} changes nothing"
        check_calculator(figure)


def moves(control):
    """Move one control by keyboard to other places, stopping at each of them."""
    control.focus()
    if control.get_attribute("type") == "checkbox":
        control.press("Space")
        yield
        return
    slider = control.get_attribute("type") == "range"
    for key in ("Home", "End") if slider else ("Home", "ArrowDown", "End"):
        control.press(key)
        yield
    if slider:
        control.press("ArrowLeft")
        yield
        assert control.input_value() != control.get_attribute("max"), "an arrow key does nothing"


def check_calculator(figure) -> None:
    """A calculator's formula gives what the page's Python gave."""
    differing = figure.evaluate(
        """(figure) => {
        const inputs = [...figure.querySelectorAll("[name]")], wrong = [];
        for (const [positions, parts] of figure.draw(figure.read()).checks ?? []) {
            inputs.forEach((input, i) => {
                if (input.type === "checkbox") input.checked = Boolean(positions[i]);
                else input.value = positions[i];
            });
            const found = figure.draw(figure.read()).parts;
            for (const name of new Set([...Object.keys(parts), ...Object.keys(found)]))
                if (!(Math.abs(found[name] - parts[name]) <= 1e-6 * Math.abs(parts[name])))
                    wrong.push([positions, name, parts[name], found[name]]);
        }
        return wrong;
    }"""
    )
    assert not differing, f"JavaScript and Python disagree: {differing[:3]}"


def shown(figure) -> str:
    """What the figure shows and says: mark-up, pixels of its canvases, and its sentence."""
    pixels = "stage => [...stage.querySelectorAll('canvas')].map(c => c.toDataURL()).join()"
    stage = figure.locator(".stage")
    said = figure.locator("output").inner_text()
    return said + stage.inner_html() + stage.evaluate(pixels)
