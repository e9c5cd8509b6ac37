"""The buttons above the page do something, on a phone, on a tablet and on a desk."""

import pytest

PAGE = "chapters/02_lora/lora_from_scratch.html"
SCREENS = {"phone": (390, 844), "tablet": (820, 1180), "desk": (1440, 900)}
# What a reader would notice: what is open, what is seen where, the theme, what has the keyboard, full screen.
STATE = """() => {
    const places = [...document.querySelectorAll(
        "dialog, .bd-sidebar-primary, .bd-sidebar-secondary, .dropdown-menu")].map((one) => {
        const { left, width } = one.getBoundingClientRect();
        return [one.open ?? "", one.checkVisibility(), Math.round(left), Math.round(width)].join();
    });
    const root = document.documentElement;
    return [...places, root.dataset.theme, root.dataset.mode, document.activeElement.name ?? "",
        Boolean(document.fullscreenElement)].join(" ");
}"""


@pytest.fixture(params=SCREENS)
def screen(request, browser, address):
    width, height = SCREENS[request.param]
    context = browser.new_context(
        viewport={"width": width, "height": height}, has_touch=request.param != "desk"
    )
    tab = context.new_page()
    tab.set_default_timeout(30_000)
    tab.press = "tap" if request.param != "desk" else "click"
    tab.goto(f"{address}/{PAGE}", wait_until="load")
    yield tab
    context.close()


def state(tab) -> str:
    tab.wait_for_timeout(700)  # side bars slide
    return tab.evaluate(STATE)


def buttons(tab):
    return tab.locator(".bd-header-article button:visible")


def test_every_visible_button_of_the_header_changes_something(screen, address):
    names = [button.get_attribute("aria-label") for button in buttons(screen).all()]
    assert len(names) >= 4
    for i, name in enumerate(names):
        screen.goto(f"{address}/{PAGE}", wait_until="load")
        before = state(screen)
        getattr(buttons(screen).nth(i), screen.press)()
        assert state(screen) != before, f"the button {name!r} does nothing"


@pytest.mark.parametrize("kind", ["primary", "secondary"])
def test_a_side_bar_opens_and_closes(screen, kind):
    toggle = screen.locator(f".bd-header-article .{kind}-toggle:visible")
    if not toggle.count():
        pytest.skip("its side bar stands beside the page")
    bar = screen.locator(
        f".bd-sidebar-{kind}, #pst-{kind}-sidebar-modal .sidebar-{kind}-items__start"
    )
    before = state(screen)
    getattr(toggle, screen.press)()
    opened = state(screen)
    assert opened != before
    modal = screen.locator(f"#pst-{kind}-sidebar-modal[open]")
    if modal.count():
        links = modal.locator("a:visible")
        assert links.count() > 3, "an empty menu"
        screen.keyboard.press("Escape")
    else:
        assert bar.count()
        getattr(toggle, screen.press)()
    assert state(screen) == before, "it does not close"


def test_no_button_is_covered_by_what_another_says_of_itself(screen):
    toggle = screen.locator(".bd-header-article .secondary-toggle:visible")
    if not toggle.count():
        pytest.skip("its side bar stands beside the page")
    getattr(toggle, screen.press)()
    screen.wait_for_timeout(700)
    screen.keyboard.press("Escape")
    getattr(screen.locator(".bd-header-article .search-button:visible").first, screen.press)()
    screen.locator("#pst-search-dialog[open]").wait_for()
