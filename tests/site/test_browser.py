"""Every page in a browser, in both themes, with every request to another host refused and counted."""

import json
from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "_build" / "html"
PAGES = (
    sorted(  # but the site's address, which leads to the landing page, and the page for the lost
        str(path.relative_to(SITE))
        for path in SITE.rglob("*.html")
        if "_static" not in path.parts and path not in (SITE / "index.html", SITE / "404.html")
    )
)
HEAVIEST = 600_000  # bytes over the wire, at first view
MOST_SHIFT = 0.05  # of layout, half of what Chromium calls good; a font that arrives moves a line
# What waits for a guess (test_guesses.py) is judged as the rest is.
UNFOLD = "document.documentElement.classList.add('unfolded')"
COLOURS = ["color-contrast", "link-in-text-block"]
# What WCAG 2.2 AA asks for, and what axe calls good practice.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.mark.parametrize("page", PAGES)
def test_page(tab, address, axe, page):
    tab.goto(f"{address}/{page}", wait_until="load")
    tab.wait_for_timeout(100)
    tab.evaluate(UNFOLD)
    assert tab.weight <= HEAVIEST, f"{tab.weight:,} bytes over the wire"
    assert tab.weight > 10_000, "the weight was not measured"
    check_reading(tab)
    check_formulas(tab)
    check_pictures(tab)
    check_width(tab)
    check_accessibility(tab, axe)
    check_figures(tab)
    assert tab.evaluate("document.documentElement.dataset.theme") == tab.scheme
    assert not tab.refused, "requests to other hosts"
    assert not tab.complaints, "errors in the console"


def test_every_kind_of_figure_moves(tab, address, axe):
    """Also the kinds that no page has yet; and a calculator whose two formulas differ is caught."""
    figures = "".join(figure.html for figure in one_of_each_kind())
    tab.goto(f"{address}/search.html")
    tab.evaluate("html => { window.page = html; }", figures)
    tab.evaluate(
        "document.querySelector('#search-results').replaceChildren("
        "document.createRange().createContextualFragment(window.page))"
    )
    assert tab.locator("figure.explorable[data-ready]").count() == 7
    check_width(tab)
    check_accessibility(tab, axe)
    check_figures(tab)
    assert not tab.complaints and not tab.refused
    wrong = calculator("return { weights: at.n / 2, state: 8 * at.n * (at.on ? 1 : 0) };")
    tab.evaluate("html => { window.page = html; }", wrong.html)
    tab.evaluate(
        "document.querySelector('#search-results').replaceChildren("
        "document.createRange().createContextualFragment(window.page))"
    )
    with pytest.raises(AssertionError, match="disagree"):
        check_calculator(tab.locator("figure.explorable"))


def calculator(formula: str):
    from pedagogic_peft.course import figures

    return figures.calculator_explorable(
        lambda n, on: {"weights": 2 * n, "state": 8 * n * on},
        formula,
        [figures.Slider("n", "parameters", [1, 7]), figures.Check("on", "train", start=1),
         figures.Select("card", "card", [16, 80])],
        alt="Memory by part, for a model size.", unit="GB", limit="card",
    )  # fmt: skip


def one_of_each_kind():
    import numpy as np

    from pedagogic_peft.course import figures as f

    steps, alt = f.Slider("k", "steps", [1, 2, 3]), "A figure made for this test only."
    box = [
        f.Box("x", "x", "data", 0),
        f.Box("w", "W", "frozen", 1),
        f.Box("a", "A", "trained", 1, 1),
    ]
    yield f.rank_explorable(np.arange(12.0).reshape(3, 4) ** 2, 3)
    yield f.bars_explorable(steps, {"up": [1, 2, 3], "down": [3, 2, 1]}, "abc", alt=alt)
    yield f.heatmap_explorable(
        lambda k, two: f.HeatMap(
            ["head 1"], ["the", "dog", "ran"] * 6, [[k, two, 0] * 6], f"k={k}"
        ),
        [steps, f.Check("two", "two")],
        alt=alt,
    )
    yield f.curves_explorable(
        lambda k: f.Curves({"loss": [(1, k), (2, 2 * k)], "other": [(1, 1), (2, 1)]}, f"k={k}"),
        [steps], x="step", y="loss (nats)", alt=alt,
    )  # fmt: skip
    yield f.diagram_explorable(
        lambda k: f.Diagram(box[: k if k > 1 else 2], [("x", "w")], f"{k} parts"), [steps], alt=alt
    )
    yield calculator("return { weights: 2 * at.n, state: 8 * at.n * (at.on ? 1 : 0) };")
    yield f.chooser_explorable(
        [f.Select("data", "examples", ["few", "many"])],
        lambda data: [("LoRA", True, [f"{data} examples"]), ("full", False, ["too large"])],
        alt=alt,
    )


def check_reading(tab) -> None:
    """Read from top to bottom: what waits for the reader comes, and nothing shifts in the window.

    In the dark it is leafed through, so that all is drawn: what shifts, the light page has shown.
    """
    step = tab.viewport_size["height"] // (2 if tab.scheme == "light" else 1)
    tab.evaluate(
        """async (step) => {
            for (let y = 0; y < document.documentElement.scrollHeight; y += step) {
                scrollTo({ top: y, behavior: "instant" });
                await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
            }
        }""",
        step,
    )
    tab.wait_for_timeout(100)
    tab.wait_for_function("!document.querySelector('script[type=\"text/figure\"][data-from]')")
    waiting = tab.locator("figure.explorable:not([data-ready])").count()
    assert not waiting, f"{waiting} figures are not drawn"
    shift = tab.evaluate("window.shift")
    assert tab.scheme == "dark" or shift <= MOST_SHIFT, f"the layout shifted by {shift:.3f}"


def check_formulas(tab) -> None:
    """Every formula is drawn, and no dollar sign is left over."""
    assert tab.locator(".math:not(:has(mjx-math))").count() == 0, "a formula not drawn"
    assert tab.locator("mjx-math").count() == tab.locator("mjx-assistive-mml math").count()
    if tab.locator("mjx-math").count():
        assert tab.evaluate("document.fonts.check('16px MJXTEX')"), "the formulas' font is missing"
    assert "$$" not in tab.locator("main").inner_text()


def check_pictures(tab) -> None:
    """Every picture arrives when the reader comes to it."""
    tab.evaluate("document.querySelectorAll('img').forEach((img) => { img.loading = 'eager'; })")
    tab.wait_for_function("[...document.images].every((img) => img.complete)", timeout=120_000)
    broken = tab.evaluate(
        "[...document.images].filter((img) => !img.naturalWidth).map((img) => img.src)"
    )
    assert not broken, f"broken pictures: {broken}"


def check_width(tab) -> None:
    """On a phone the page does not scroll sideways."""
    wide = tab.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert wide <= 0, f"{wide} px wider than the screen"


def check_accessibility(tab, axe) -> None:
    """axe-core finds nothing. In the dark only colours can differ from what the light page showed."""
    tab.keyboard.press("Shift")  # who takes the keyboard reaches every box that scrolls
    tab.add_style_tag(content="section { content-visibility: visible !important; }")  # look at all
    tab.evaluate(axe)
    violations = tab.evaluate(JUDGE, [RULES, COLOURS, tab.scheme == "light"])
    assert not violations, json.dumps(violations, indent=1, ensure_ascii=False)


# axe asks of every letter what lies behind it, which takes half a minute on a long page. What it finds
# follows from the styles of an element and of all around it, so two elements of each combination do.
JUDGE = """async ([tags, colours, whole]) => {
    const seen = {}, some = [];
    for (const one of document.body.querySelectorAll("*")) {
        const written = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!written || !one.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
        const own = getComputedStyle(one);
        const styles = [one.closest("a") !== null, getComputedStyle(one.parentElement).color, own.color,
            own.fontSize, own.fontWeight, own.textDecorationLine, own.textShadow];
        for (let around = one; around; around = around.parentElement) {
            const style = getComputedStyle(around);
            styles.push([style.backgroundColor, style.backgroundImage, style.opacity, style.filter].join());
        }
        const key = styles.join("|").replaceAll("rgba(0, 0, 0, 0),none,1,none|", "");
        seen[key] = (seen[key] ?? 0) + 1;
        if (seen[key] <= 2) some.push(one);
    }
    const resultTypes = ["violations"], only = { type: "rule", values: colours };
    const found = await axe.run({ include: some }, { runOnly: only, resultTypes });
    const rules = Object.fromEntries(colours.map((rule) => [rule, { enabled: false }]));
    const runOnly = { type: "tag", values: tags };
    const rest = whole ? await axe.run(document, { runOnly, rules, resultTypes }) : { violations: [] };
    return [...found.violations, ...rest.violations].map((found) => ({
        rule: found.id, count: found.nodes.length,
        first: found.nodes.slice(0, 3).map((node) => [node.html.slice(0, 200), node.failureSummary]),
    }));
}"""


@pytest.mark.parametrize(
    ("planted", "rule"),
    [
        ("<p style='color: #999'>Hardly to be seen.</p>", "color-contrast"),
        ("<div style='opacity: 0.4'><p>Faded by what is around it.</p></div>", "color-contrast"),
        ("<p style='background: #777'>On grey.</p>", "color-contrast"),
        ("<p>Many words before a <a href='#x' style='color: #333; text-decoration: none'>link</a>.</p>",
         "link-in-text-block"),
        ("<img src='data:,'>", "image-alt"),
    ],
)  # fmt: skip
def test_axe_sees_what_is_planted_into_a_page(tab, address, axe, planted, rule):
    if tab.scheme == "dark":
        pytest.skip("once is enough")
    tab.goto(f"{address}/book/glossary.html", wait_until="load")
    tab.evaluate(
        "html => { document.querySelector('article p').insertAdjacentHTML('afterend', html); }",
        planted,
    )
    with pytest.raises(AssertionError, match=rule):
        check_accessibility(tab, axe)


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
