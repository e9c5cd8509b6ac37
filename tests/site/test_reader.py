"""What a reader does with the site, offline: search, go by keyboard alone, touch, print."""

import re
from pathlib import Path
from urllib.parse import quote

import pytest

SITE = Path(__file__).parents[2] / "_build" / "html"
PAGE = (
    "chapters/02_lora/lora_from_scratch.html"  # has a figure that moves, folds, formulas and tables
)
CHAPTERS = sorted(str(path.relative_to(SITE)) for path in (SITE / "chapters").rglob("*.html"))
PAPER = {"width": 673, "height": 980}  # A4 within the margins, in CSS pixels
# Everything that the Tab key should reach, but for the members of a group of radio buttons.
STOPS = "a[href], button, input, select, summary, [tabindex='0']"


@pytest.fixture
def desk(browser, address):
    """A tab of a desktop's size, which knows no other host."""
    tab = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
    tab.set_default_timeout(30_000)  # a busy machine
    tab.route(lambda url: not url.startswith((address, "data:", "blob:")), lambda r: r.abort())
    yield tab
    tab.close()


@pytest.mark.parametrize("words", ["rank", "LoRA", "prefix mask"])
def test_search_finds_leads_and_marks(tab, address, words):
    tab.goto(f"{address}/search.html?q={quote(words)}")
    found = tab.locator("#search-results ul.search > li")
    tab.wait_for_function("document.querySelector('#search-results .search-summary')?.innerText")
    assert found.count() >= 3
    assert tab.locator("#search-results .highlighted").count(), "no word is marked in the results"
    first = found.first.locator("a").first
    title = first.inner_text()
    first.click()
    tab.wait_for_url(lambda url: "search.html" not in url)
    name = re.sub(r"^[\d.]+ ", "", title.split(">")[0]).strip()  # the page's, without its number
    assert name[:20].lower() in tab.title().lower()
    marked = {text.lower() for text in tab.locator("article .highlighted").all_text_contents()}
    assert all(any(word.lower() in text for text in marked) for word in words.split()), marked
    assert not tab.refused and not tab.complaints


def test_the_search_quotes_prose(desk, address):
    """Not the list of contents above it."""
    desk.goto(f"{address}/search.html")
    page = "<main role='main'><nav>Contents</nav><article><p id='a'>Prose</p></article></main>"
    text = "page => [Search.htmlToText(page, null), Search.htmlToText(page, '#a')]"
    assert desk.evaluate(text, page) == ["Prose", "Prose"]


def test_the_theme_does_not_look_at_all_boxes(desk, address):
    """To lay them all out costs a quarter of a second on a phone; custom.js looks at those that are near."""
    desk.goto(f"{address}/{PAGE}", wait_until="networkidle")
    assert desk.locator("article pre[tabindex='0']").count() < desk.locator("article pre").count()
    assert not desk.locator("pre[tabindex='-1']").count()


def test_the_search_field_opens_by_keyboard(desk, address):
    desk.goto(f"{address}/{PAGE}")
    desk.keyboard.press("Control+k")
    assert desk.evaluate("document.activeElement.name") == "q"
    desk.keyboard.press("Escape")
    assert not desk.locator("#pst-search-dialog[open]").count(), "Escape does not close it"
    desk.keyboard.press("Control+k")
    desk.keyboard.type("alpha")
    desk.keyboard.press("Enter")
    desk.wait_for_url("**/search.html?q=alpha")
    desk.locator("#search-results ul.search > li").first.wait_for()


def test_search_that_finds_nothing_says_so(desk, address):
    desk.goto(f"{address}/search.html?q=xyzzyplugh")
    desk.wait_for_function("document.querySelector('#search-results .search-summary')?.innerText")
    assert "Nothing was found" in desk.locator("#search-results").inner_text()


@pytest.mark.parametrize("page", [PAGE, "book/index.html", "search.html?q=rank"])
def test_tab_reaches_everything_and_is_seen(desk, address, page):
    """Tab goes through the whole page and out of it; where it stands can be seen."""
    desk.goto(f"{address}/{page}", wait_until="networkidle")
    desk.add_style_tag(content="* { transition: none !important; }")  # seen at once
    desk.keyboard.press("Tab")  # boxes that scroll can be reached from the first key on
    expected = desk.evaluate(
        f"""() => [...document.querySelectorAll("{STOPS}")].filter((one) =>
            one.checkVisibility({{ visibilityProperty: true }}) && one.tabIndex >= 0 &&
            (one.type !== "radio" || one.matches("label:first-of-type > *"))).length"""
    )
    seen, hidden = 0, []
    while (stop := desk.evaluate(STOP))["tag"] != "BODY":
        assert not stop["again"], f"Tab is trapped at {stop}"
        seen += 1
        if not (stop["mark"] and stop["inside"]):
            hidden.append(stop)
        desk.keyboard.press("Tab")
    assert not hidden, f"{len(hidden)} of {seen} stops are not seen: {hidden[:5]}"
    assert seen >= expected - 2, f"{seen} of {expected} were reached"


# What has the keyboard, whether it was met before, whether it looks other than without, and is in sight.
STOP = """() => {
    const one = document.activeElement;
    const look = () => [one, one.parentElement, one.firstElementChild].filter(Boolean).map((part) => {
        const { outlineStyle, outlineWidth, boxShadow, textDecorationLine, textDecorationThickness,
            backgroundColor, borderColor } = getComputedStyle(part);
        return [outlineStyle === "none" ? "" : outlineStyle + outlineWidth, boxShadow, textDecorationLine,
            textDecorationThickness, backgroundColor, borderColor].join();
    }).join();
    const again = Boolean(one.wasMet);
    if (one === document.body) return { tag: "BODY" };
    one.wasMet = true;
    const box = one.getBoundingClientRect();
    const inside = box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
    const focused = look();
    one.blur();
    const mark = focused !== look();
    one.focus({ preventScroll: true });
    return { tag: one.tagName, name: one.outerHTML.slice(0, 120), again, mark, inside };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_there_before_the_scripts(browser, address, scheme):
    """Or the page is first laid out without colours and borders, and shifts when they come."""
    tab = browser.new_page(color_scheme=scheme)
    tab.route("**/*.js*", lambda route: route.abort())
    tab.goto(f"{address}/{PAGE}")
    assert tab.evaluate("document.documentElement.dataset.theme") == scheme
    tab.close()


def test_a_theme_is_chosen_by_keyboard_and_stays(desk, address):
    desk.goto(f"{address}/{PAGE}")
    theme = "document.documentElement.dataset.theme"
    button = desk.locator("button.theme-switch-button").last
    button.focus()
    seen = set()
    for _ in range(3):
        desk.keyboard.press("Enter")
        seen.add(desk.evaluate(theme))
    assert seen == {"light", "dark"}
    while desk.evaluate(theme) != "dark":
        desk.keyboard.press("Space")
    desk.reload()
    assert desk.evaluate(theme) == "dark"


def test_a_fold_opens_and_closes_by_keyboard(desk, address):
    desk.goto(f"{address}/{PAGE}")
    folds = desk.locator("article details:not(.explorable details) > summary:visible")
    assert folds.count() >= 3
    for fold in folds.all():
        for key, opened in (("Enter", True), ("Space", False)):
            fold.focus()
            desk.keyboard.press(key)
            assert fold.evaluate("fold => fold.parentElement.open") is opened


def test_a_figure_moves_by_touch(tab, address):
    tab.goto(f"{address}/{PAGE}", wait_until="load")
    tab.evaluate("document.documentElement.classList.add('unfolded')")  # it waits for a guess
    figure = tab.locator("figure.explorable").first
    # A section is laid out when it comes near, and what is below moves: a reader would scroll on, too.
    tab.wait_for_function("""() => {
        const figure = document.querySelector("figure.explorable");
        figure.scrollIntoView({ block: "center", behavior: "instant" });
        return figure.hasAttribute("data-ready");
    }""")
    slider, said = figure.locator("input[type=range]").first, figure.locator("output")
    size, before = slider.bounding_box(), said.inner_text()
    assert size["height"] >= 24, "smaller than what WCAG asks of a target"
    slider.tap(position={"x": 0.8 * size["width"], "y": size["height"] / 2})
    assert said.inner_text() != before


@pytest.mark.parametrize("page", ["book/index.html", "book/api/lora.html", *CHAPTERS])
def test_paper_shows_all_of_it(browser, address, page):
    """On paper nothing is cut off, folds are open, figures that move stand still with their settings."""
    tab = browser.new_page(viewport=PAPER, color_scheme="dark")
    tab.set_default_timeout(30_000)
    tab.goto(f"{address}/{page}", wait_until="load")
    fonts = "[...document.fonts].filter((font) => font.family.includes('MJX'))"
    tab.wait_for_function(
        f"{fonts}.every((font) => font.status === 'loaded')"
    )  # or formulas are blank
    held = "[...document.querySelectorAll('script[data-from]')]"
    tab.wait_for_function(f"{held}.every((one) => window.FIGURES?.[one.dataset.from])")
    tab.emulate_media(media="print", color_scheme="dark")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    tab.evaluate("document.querySelectorAll('img').forEach((img) => { img.loading = 'eager'; })")
    tab.wait_for_function("[...document.images].every((img) => img.complete)")
    shown = tab.evaluate(ON_PAPER)
    assert not shown["cut"], f"cut off: {shown['cut']}"
    assert not shown["closed"], f"{shown['closed']} folds are closed"
    assert not shown["faint"], "what was unfolded fades in too late"
    assert not shown["bars"], f"parts of the screen are printed: {shown['bars']}"
    assert not shown["waiting"], "a figure is not drawn"
    assert not shown["hide"], "paper hides nothing"
    assert shown["theme"] == "light", "light letters on white paper"
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    assert not tab.locator("article details[open]:not(.explorable *)").count(), "folds stay open"
    tab.close()


ON_PAPER = """() => {
    const within = (query) => [...document.querySelectorAll(query)].filter((one) => one.checkVisibility());
    const wide = (one) => one.scrollWidth > one.clientWidth + 2 && getComputedStyle(one).display !== "inline";
    const out = (one) => one.getBoundingClientRect().right > document.documentElement.clientWidth + 2;
    return {
        cut: within("article :is(pre, table, img, svg, canvas, div.math, .scroll, .cell_output, " +
            ".table-wrapper, .pst-scrollable-table-container)").filter((one) => wide(one) || out(one))
            .map((one) => one.outerHTML.replace(/<style.*?<.style>/s, "").slice(0, 160)),
        closed: document.querySelectorAll("article details:not([open], .explorable *)").length,
        faint: within("article details *").filter((one) => getComputedStyle(one).opacity < 1).length,
        bars: within(".bd-sidebar, nav, button, footer.prev-next-footer, .explorable input[type=range]")
            .map((one) => one.outerHTML.slice(0, 80)),
        waiting: document.querySelectorAll("figure.explorable:not([data-ready])").length,
        hide: within("details.hide > summary:not(.tag_solution *)").length,
        theme: document.documentElement.dataset.theme,
    };
}"""
