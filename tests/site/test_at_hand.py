"""What a reader has at hand: search while typing, cards, ticks, stills, files beside the pages."""

import json
import re
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
PAGE = "chapters/02_lora/lora_from_scratch.html"
# What is typed, and how the first result that counts begins.
SEARCHES = {
    "LoRA": "2.2 LoRA from scratch",
    "rank": "2.1 Why low rank?",
    "prefix": "4.2 Prefix tuning",
    "prefx": "4.2 Prefix tuning",
    "catastrophic forgetting": "5.4 What is forgotten",
    "catastrofic": "5.4 What is forgotten",
    "qlora memory": "6.4 Scaling out",
    "softprompt": "4.1 Prompt tuning from scratch",
    "quantized": "1.1 What full fine-tuning costs",
}


@pytest.fixture
def desk(browser, address):
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    tab = context.new_page()
    tab.set_default_timeout(30_000)
    tab.route(lambda url: not url.startswith((address, "data:", "blob:")), lambda r: r.abort())
    yield tab
    context.close()


def test_search_shows_lessons_first_while_the_reader_types(desk, address):
    desk.goto(f"{address}/{PAGE}", wait_until="load")
    assert desk.evaluate("typeof Search") == "undefined", "loaded before it is used"
    desk.keyboard.press("Control+k")
    field = desk.locator("#pst-search-dialog input[name=q]")
    for words, first in SEARCHES.items():
        field.fill("")
        field.press_sequentially(words)
        found = desk.locator("#pst-search-dialog .found a").first
        found.filter(has_text=first).wait_for()
        assert field.input_value() == words
    field.fill("mrging")
    desk.locator(".found", has_text='found for "merg"').wait_for()
    field.fill("xyzzyplugh")
    desk.locator(".found", has_text="Nothing found").wait_for()
    field.fill("forgetting")
    field.press("ArrowDown")
    desk.locator(".found a:focus").wait_for()
    desk.keyboard.press("Enter")
    desk.wait_for_url(lambda url: PAGE not in url)
    assert desk.locator("article .highlighted").count(), "the word is not marked on the page"


@pytest.mark.parametrize("to", ["glossary.html#term-", "references.html#id", "#equation-"])
def test_a_card_shows_where_a_link_leads(desk, address, to):
    desk.goto(f"{address}/{PAGE}", wait_until="load")
    link = desk.locator(f"article a.reference.internal[href*='{to}']").first
    link.scroll_into_view_if_needed()
    desk.wait_for_timeout(300)
    link.hover()
    card = desk.locator(".card-of-link")
    card.wait_for()
    assert len(card.inner_text()) > 3 and not card.locator("a").count()
    assert link.get_attribute("aria-describedby") == card.get_attribute("id")
    box = card.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 1280
    card.hover()  # it stays
    desk.wait_for_timeout(400)
    assert card.is_visible()
    desk.keyboard.press("Escape")
    assert not card.is_visible()


def test_a_card_moves_with_its_link_and_closes_when_that_is_out_of_sight(desk, address):
    desk.goto(f"{address}/{PAGE}", wait_until="load")
    link = desk.locator("article a.reference.internal[href*='#equation-']").last
    link.scroll_into_view_if_needed()
    desk.keyboard.press("Tab")  # so that what is focused shows it
    link.focus()
    card = desk.locator(".card-of-link")
    card.wait_for()
    before = link.bounding_box()["y"], card.bounding_box()["y"]
    desk.evaluate("scrollBy({top: -40, behavior: 'instant'})")
    desk.wait_for_function(
        "y => document.querySelector('.card-of-link').getBoundingClientRect().y != y", arg=before[1]
    )
    after = link.bounding_box()["y"], card.bounding_box()["y"]
    assert abs((after[1] - after[0]) - (before[1] - before[0])) < 2
    desk.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    card.wait_for(state="hidden")


def test_what_was_read_is_ticked_and_the_landing_page_goes_on_there(desk, address):
    desk.goto(f"{address}/{PAGE}", wait_until="load")
    assert not desk.locator("a.was-read").count()
    desk.locator(".prev-next-footer").scroll_into_view_if_needed()
    desk.locator("a.was-read").wait_for()
    desk.goto(f"{address}/book/index.html", wait_until="load")
    assert desk.locator("a.was-read").inner_text() == "2.2 LoRA from scratch"
    go_on = desk.locator(".start-buttons a").first
    assert go_on.inner_text() == "Go on at 2.2 LoRA from scratch"
    go_on.click()
    desk.wait_for_url(f"**/{PAGE}")


def test_arrow_keys_turn_the_pages(desk, address):
    desk.goto(f"{address}/{PAGE}", wait_until="load")
    desk.keyboard.press("ArrowRight")
    desk.wait_for_url("**/lora_in_use.html")
    desk.keyboard.press("ArrowLeft")
    desk.wait_for_url(f"**/{PAGE}")


@pytest.mark.parametrize("page", [PAGE, "book/index.html"])
def test_without_scripts_a_figure_that_moves_is_a_picture(browser, address, page):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(f"{address}/{page}", wait_until="load")
    assert not tab.locator("figure.explorable:visible").count()
    assert not tab.locator("text=Run this cell").locator("visible=true").count()
    assert not tab.locator("form.guess:visible, .guess-waits:visible").count()
    printed = tab.locator(".tag_guessed .cell_output")
    assert printed.count() == tab.locator(".tag_guessed .cell_output:visible").count()
    for still in tab.locator("img.still").all():
        still.scroll_into_view_if_needed()
        box, (wide, high) = still.bounding_box(), natural(still)
        assert box["height"] > 50
        assert box["width"] / box["height"] == pytest.approx(wide / high, rel=0.02), "stretched"
    context.close()


def natural(image) -> tuple[int, int]:
    """A picture's own width and height."""
    with Image.open(SITE / "_images" / Path(image.get_attribute("src")).name) as picture:
        return picture.size


def pages_of_the_contents() -> list[str]:
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *(entry["file"] for part in toc["parts"] for entry in part["chapters"])]


def test_the_sitemap_and_llms_txt_name_every_page():
    pages = pages_of_the_contents()
    tree = ElementTree.parse(SITE / "sitemap.xml")
    listed = [urlsplit(loc.text).path for loc in tree.findall(".//{*}loc")]
    assert len(listed) == len(pages)
    named = re.findall(r"\]\((\S+)\.md\)", (SITE / "llms.txt").read_text(encoding="utf-8"))
    for page, path, url in zip(pages, listed, named, strict=True):
        assert path.endswith(f"/{page}.html") and url.endswith(f"/{page}")
        assert len((SITE / f"{page}.md").read_text(encoding="utf-8")) > 30


def test_a_lost_reader_is_led_to_the_book():
    text = (SITE / "404.html").read_text(encoding="utf-8")
    base = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["html"]["baseurl"]
    assert f"{base.rstrip('/')}/book/index.html" in text and "@" not in text


def test_cards_are_there_for_every_term_and_paper():
    text = (SITE / "_static" / "cards.js").read_text(encoding="utf-8")
    cards = json.loads(text.removeprefix("window.CARDS = ").rstrip(";\n"))
    kinds = [
        sum(kind in key for key in cards) for kind in ("#term-", "references#id", "#equation-")
    ]
    assert min(kinds) > 20, kinds


def test_descriptions_say_what_a_page_teaches():
    seen = set()
    for path in sorted((SITE / "chapters").rglob("*.html")):
        text = path.read_text(encoding="utf-8")
        described = re.search(r'<meta name="description" content="([^"]*)"', text).group(1)
        assert described.startswith("After this page you can"), f"{path.name}: {described[:80]}"
        assert f'property="og:description" content="{described}"' in text
        seen.add(described)
    assert len(seen) > 25
