"""What is written can be read: on a phone nothing is too small, and in no figure do words lie over words."""

from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "_build" / "html"
CHAPTERS = sorted(str(path.relative_to(SITE)) for path in (SITE / "chapters").rglob("*.html"))
SMALLEST = 9.5  # pixels, of any letter
SMALLEST_DRAWN = (
    13.6  # pixels of a picture: 7 points at 140 to the inch, as its smallest labels have
)
LANDING = "book/index.html"
DRAWN = "article :is(figure.explorable, svg.chart, figure.drawing svg)"


@pytest.fixture
def phone(browser, address):
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    tab = context.new_page()
    tab.set_default_timeout(30_000)
    yield tab
    context.close()


def all_drawn(tab, url: str) -> None:
    tab.goto(url, wait_until="load")
    tab.add_style_tag(content="section { content-visibility: visible !important; }")
    tab.evaluate("dispatchEvent(new Event('beforeprint')); dispatchEvent(new Event('afterprint'));")
    tab.evaluate("document.documentElement.classList.add('unfolded')")  # what waits for a guess
    tab.wait_for_timeout(200)


@pytest.mark.parametrize("page", [LANDING, "book/benchmarks.html", *CHAPTERS])
def test_no_letter_is_too_small_and_no_words_lie_over_words(phone, address, page):
    all_drawn(phone, f"{address}/{page}")
    small = phone.evaluate(SMALL, SMALLEST)
    assert not small, f"smaller than {SMALLEST} px: {small[:5]}"
    for figure in phone.locator(
        "article figure.explorable, article svg.chart, article figure.drawing svg"
    ).all():
        for _ in ends_of(figure):
            found = figure.evaluate(COLLIDING)
            assert not found, f"{page}: {found[:5]}"


def ends_of(figure):
    """The figure as it starts, then with each control at either end."""
    yield
    for control in figure.locator("input[type=range]").all():
        for key in ("Home", "End"):
            control.press(key)
            yield


@pytest.mark.parametrize("page", CHAPTERS)
def test_a_picture_opens_in_a_window_where_its_labels_are_large_enough(phone, address, page):
    all_drawn(phone, f"{address}/{page}")
    pictures = phone.locator("article :is(.cell_output, figure) img[width]:not(.still)")
    buttons = phone.locator("article button.enlarge")
    assert buttons.count() == pictures.count()
    for button in buttons.all():
        button.tap()
        window = phone.locator("dialog.enlarged[open]")
        scale = window.locator("img").evaluate(
            "img => img.getBoundingClientRect().width / img.naturalWidth"
        )
        assert scale * SMALLEST_DRAWN >= SMALLEST
        window.locator("button").tap()
        assert not phone.locator("dialog.enlarged").count(), "it does not close"


@pytest.mark.parametrize("page", ["book/benchmarks.html", "book/status.html"])
def test_every_column_of_a_table_is_in_sight_on_a_phone(phone, address, page):
    phone.goto(f"{address}/{page}", wait_until="load")
    phone.add_style_tag(content="section { content-visibility: visible !important; }")
    hidden = phone.evaluate(
        """[...document.querySelectorAll("article table")].filter((table) =>
            table.querySelector("tr:first-child > :last-child").getBoundingClientRect().right > innerWidth)
            .map((table) => table.textContent.slice(0, 40))"""
    )
    assert not hidden


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_printed_has_one_colour(browser, address, scheme):
    tab = browser.new_page(color_scheme=scheme)
    tab.goto(f"{address}/chapters/02_lora/why_low_rank.html", wait_until="load")
    colours = tab.evaluate(
        """[...new Set([...document.querySelectorAll(".cell_output .stream pre > :is(.l, .named)")]
            .map((line) => getComputedStyle(line).color))]"""
    )
    tab.close()
    assert len(colours) == 1, colours


# Text that is seen, smaller than asked for; that of a drawing as the drawing is scaled.
SMALL = """(least) => {
    const found = [], passed = "mjx-container, script, style, .headerlink, sup, sub";
    const walk = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const one = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
        if (!text || !one.checkVisibility() || one.closest(passed)) continue;
        const drawn = one.ownerSVGElement ? one.getScreenCTM() : { a: 1, b: 0 };
        const size = parseFloat(getComputedStyle(one).fontSize) * Math.hypot(drawn.a, drawn.b);
        if (size < least) found.push([size.toFixed(1), text.slice(0, 40)]);
    }
    return found;
}"""

# Words of a drawing that overlap, or that leave it. What is turned is left out: its box is larger than it.
COLLIDING = """(figure) => {
    const common = (one, two, low, high) => Math.min(one[high], two[high]) - Math.max(one[low], two[low]);
    const drawings = figure.matches("svg") ? [figure] : [...figure.querySelectorAll(".stage svg")];
    return drawings.flatMap((svg) => {
        const edge = svg.getBoundingClientRect();
        const texts = [...svg.querySelectorAll("text:not([transform])")]
            .filter((one) => one.textContent.trim())
            .map((one) => [one.textContent, one.getBoundingClientRect()]);
        const out = texts.filter(([, box]) => box.left < edge.left - 1 || box.right > edge.right + 1)
            .map(([text]) => `cut off: ${text}`);
        const over = ([, one], [, two]) => common(one, two, "left", "right") > 2 &&
            common(one, two, "top", "bottom") > 0.35 * Math.min(one.height, two.height);
        const pairs = texts.flatMap((one, i) => texts.slice(i + 1).filter((two) => over(one, two))
            .map((two) => `${one[0]} over ${two[0]}`));
        return [...out, ...pairs];
    });
}"""
