"""Predict, then reveal: by keyboard, kept by this browser; on paper and without scripts nothing is folded."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
sys.path.insert(0, str(ROOT / "book" / "tools"))
sys.path.insert(0, str(Path(__file__).parent))

import guesses  # noqa: E402
from test_browser import check_accessibility, check_width  # noqa: E402

PAGE = "chapters/02_lora/lora_from_scratch"
COUNT, CHOICE = (f"#{guesses.name_of(PAGE, cell)}" for cell in ("7719a1c7", "972a67c4"))
RANK = f"#{guesses.name_of(PAGE, 'b7103ca2')}"  # an exercise
DECLARED = guesses.declared(ROOT)
BANK = "book/question_bank"
# The outputs that a reader who has not guessed can't see, and those that can be seen.
FOLDED = ".tag_guessed:not(.shown) .cell_output"


def questions_of(page: str) -> list[str]:
    cells = json.loads((ROOT / f"{page}.ipynb").read_text(encoding="utf-8"))["cells"]
    asking = [cell["id"] for cell in cells if "**Predict" in "".join(cell["source"])]
    return [f"#{guesses.name_of(page, cell)}" for cell in asking]


def open_page(tab, address, page):
    tab.goto(f"{address}/{page}.html", wait_until="networkidle")
    look_at_all(tab)


def look_at_all(tab):
    tab.add_style_tag(content="section { content-visibility: visible !important; }")


def folded(tab, form: str):
    return tab.locator(f".tag_{form[1:]} .cell_output")


@pytest.mark.parametrize("page", DECLARED)
def test_every_question_folds_what_answers_it_and_shows_it_when_asked(tab, address, page):
    if tab.scheme == "dark":
        pytest.skip("once is enough")
    open_page(tab, address, page)
    assert tab.locator("form.guess").count() == len(DECLARED[page])
    for form in questions_of(page):
        output = folded(tab, form)
        assert not output.locator("visible=true").count(), f"{form}: shown before a guess"
        tab.locator(f"{form} .guess-show").click()
        assert output.locator("visible=true").count() == output.count()
        answer = tab.locator(f"details[data-guess='{form[1:]}']")
        assert not answer.count() or answer.evaluate("fold => fold.open")
    assert not tab.locator(FOLDED).count()
    tab.evaluate("localStorage.clear()")
    assert not tab.complaints and not tab.refused


def test_a_number_is_guessed_by_keyboard_and_kept(tab, address, axe):
    open_page(tab, address, PAGE)
    output, said = folded(tab, COUNT), tab.locator(f"{COUNT} .guess-said")
    assert not output.is_visible()
    first = tab.get_by_label("Parameters that are trained")
    first.focus()
    tab.keyboard.press("Enter")
    assert "first" in said.inner_text() and not output.is_visible()
    tab.keyboard.type("many")
    tab.keyboard.press("Enter")
    assert '"many" is no number' in said.inner_text() and not output.is_visible()
    first.fill("")
    tab.keyboard.type("200,000")
    tab.keyboard.press("Tab")
    tab.keyboard.type("7")
    tab.keyboard.press("Enter")
    assert output.is_visible()
    lines = said.locator("p").all_inner_texts()
    assert lines[0].endswith("You said 200,000. It printed 97,792: 2 times as much.")
    assert lines[1].endswith("You said 7\u00a0%. It printed 6.95\u00a0%: near enough.")
    assert tab.evaluate("document.activeElement.className") == "guess-said", "the keyboard is lost"
    assert said.get_attribute("role") == "status"
    assert tab.locator(f"details[data-guess='{COUNT[1:]}']").evaluate("fold => fold.open")
    check_width(tab)
    check_accessibility(tab, axe)
    tab.reload(wait_until="networkidle")
    look_at_all(tab)
    assert output.is_visible()
    assert said.locator("p").all_inner_texts() == lines and first.input_value() == "200,000"
    tab.locator(f"{COUNT} .guess-again").click()
    assert not output.is_visible() and first.input_value() == ""
    tab.reload(wait_until="networkidle")
    look_at_all(tab)
    assert not output.is_visible()
    assert not tab.complaints and not tab.refused


def test_a_choice_is_made_by_keyboard(tab, address):
    open_page(tab, address, PAGE)
    tab.locator(f"{CHOICE} [type=radio]").first.focus()
    tab.keyboard.press("Space")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    said = tab.locator(f"{CHOICE} .guess-said")
    assert "You said: B. So it is." in said.inner_text()
    assert folded(tab, CHOICE).is_visible()
    tab.evaluate("localStorage.clear()")


def test_an_exercise_checks_and_does_not_give_the_answer_away(tab, address):
    open_page(tab, address, PAGE)
    said = tab.locator(f"{RANK} .guess-said")
    fields = tab.locator(f"{RANK} [type=text]")
    fields.first.fill("5")
    fields.first.press("Enter")
    assert "5: not yet, too high." in said.inner_text() and "hint" in said.inner_text()
    tab.locator(f"{RANK} summary").press("Enter")
    assert tab.locator(f"{RANK} details p").is_visible()
    fields.first.fill("4")
    fields.last.fill("19")
    fields.last.press("Enter")
    assert [line[-9:] for line in said.locator("p").all_inner_texts()] == ["4: right.", "9: right."]
    tab.evaluate("localStorage.clear()")


def test_the_question_bank_counts_what_was_answered_on_any_page(tab, address, axe):
    open_page(tab, address, PAGE)
    tab.locator(f"{CHOICE} [type=radio]").nth(1).check()
    tab.locator(f"{CHOICE} [type=text]").fill("Nothing would move.")
    tab.locator(f"{CHOICE} [type=submit]").click()
    open_page(tab, address, BANK)
    score = tab.locator("section", has=tab.locator(CHOICE)).last.locator(".guess-score")
    assert score.inner_text().startswith("Answered 1 of ")
    assert score.inner_text().endswith(", 1 of them right.")
    assert "So it is." in tab.locator(f"{CHOICE} .guess-said").inner_text()
    answer = tab.locator(f"{CHOICE} + details")
    assert answer.evaluate("fold => fold.open"), "the answer is not explained"
    other = tab.locator(f"{COUNT} + details")
    assert not other.evaluate("fold => fold.open")
    tab.locator(f"{COUNT} .guess-show").click()
    assert other.evaluate("fold => fold.open")
    check_width(tab)
    check_accessibility(tab, axe)
    tab.evaluate("localStorage.clear()")


def test_a_form_of_the_question_bank_is_set_when_the_reader_comes_near(tab, address):
    open_page(tab, address, BANK)
    last = tab.locator("section:has(> .guess-score)").last
    waiting, counted = last.locator("template.guess").count(), last.locator(".guess-score")
    assert waiting and not last.locator("form.guess").count()
    assert counted.text_content() == f"Answered 0 of {waiting}."
    last.scroll_into_view_if_needed()
    last.locator("form.guess").first.wait_for()
    assert last.locator("form.guess").count() == waiting and not last.locator("template").count()
    last.locator(".guess-show").first.click()
    assert last.locator("form.guess + details").first.evaluate("fold => fold.open")
    assert counted.text_content().startswith("Answered 1 of ")
    tab.evaluate("localStorage.clear()")


def test_no_section_of_the_question_bank_is_taller_than_the_room_it_is_given(tab, address):
    if tab.scheme == "dark":
        pytest.skip("once is enough")
    open_page(tab, address, BANK)
    for section in tab.locator("section:has(> .guess-score)").all():
        section.scroll_into_view_if_needed()
        tall, room = section.evaluate("""section => [section.getBoundingClientRect().height,
            parseFloat(getComputedStyle(section).getPropertyValue("--far"))]""")
        assert tall <= room, section.get_attribute("id")


@pytest.mark.parametrize("page", DECLARED)
def test_without_scripts_nothing_is_folded(browser, address, page):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(f"{address}/{page}.html", wait_until="load")
    for output in tab.locator(".tag_guessed .cell_output").all():
        output.scroll_into_view_if_needed(timeout=10_000)  # it waits for what can be seen
        assert output.is_visible()
    assert not tab.locator("form.guess:visible, .guess-waits:visible").count()
    context.close()


def test_on_paper_nothing_is_folded(browser, address):
    tab = browser.new_page()
    open_page(tab, address, PAGE)
    tab.emulate_media(media="print")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    outputs = tab.locator(".tag_guessed .cell_output")
    assert outputs.count() and all(one.is_visible() for one in outputs.all())
    assert not tab.locator("form.guess:visible, .guess-waits:visible").count()
    tab.emulate_media(media="screen")
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not outputs.first.is_visible()
    tab.close()


def test_where_the_script_does_not_come_nothing_is_folded(browser, address):
    tab = browser.new_page()
    tab.route("**/guesses.js", lambda route: route.abort())
    open_page(tab, address, PAGE)
    assert folded(tab, COUNT).is_visible()
    tab.close()


def test_a_link_to_a_figure_that_is_folded_unfolds_it(browser, address):
    tab = browser.new_page()
    open_page(tab, address, f"{PAGE}")
    figure = tab.locator(".tag_guessed figure[id]").first.get_attribute("id")
    tab.evaluate("id => { location.hash = id; }", figure)
    tab.wait_for_function("id => document.getElementById(id).checkVisibility()", arg=figure)
    tab.close()


def test_pages_without_a_question_do_not_load_it(tab, address):
    tab.goto(f"{address}/book/index.html", wait_until="networkidle")
    assert not tab.locator("script[src*='guesses.js']").count()
