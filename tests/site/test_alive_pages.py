"""The figures in which the reader trains, on their pages, as wide as a phone and by keyboard."""

import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_browser import check_accessibility, check_width

PAGES = {
    "lora": "chapters/02_lora/lora_from_scratch.html",
    "serving": "chapters/02_lora/serving_lora.html",
    "tasks": "chapters/03_adapters/one_base_many_tasks.html",
    "prompt": "chapters/04_soft_prompts/prompt_tuning.html",
}
ALIVE = Path(__file__).parents[2] / "book" / "alive"
MOST = 3_000_000  # bytes that pressing "Start" may load
LONG = 300_000  # ms; a busy machine


def press_start(tab, address, place):
    """Open the page, press Start by keyboard, wait for the controls; return what that loaded."""
    tab.set_default_timeout(LONG)
    tab.goto(f"{address}/{PAGES[place]}", wait_until="load")
    tab.wait_for_timeout(100)
    before = tab.weight
    start = tab.locator("figure.alive .alive-start button")
    start.focus()
    tab.keyboard.press("Enter")
    tab.wait_for_selector("figure.alive .alive-box .buttons button")
    return tab.weight - before


def said(tab) -> str:
    return " ".join(tab.locator(".alive-box output").all_inner_texts())


@pytest.mark.parametrize("place", PAGES)
def test_a_reader_trains_on_a_phone(tab, address, axe, place):
    loaded = press_start(tab, address, place)
    assert loaded <= MOST, f"{loaded:,} bytes after pressing Start"
    steps = tab.locator("figure.alive").get_by_label("Steps").first
    steps.fill("10")
    train = tab.get_by_role("button", name="Train", exact=True).first
    train.focus()
    tab.keyboard.press("Enter")
    tab.wait_for_selector("text=Train again")
    assert "Step 10 of 10" in said(tab) and "validation loss" in said(tab)
    assert tab.locator(".alive-box [aria-live=polite]").count() >= 1
    check_width(tab)
    check_accessibility(tab, axe)
    assert not tab.refused, "requests to other hosts"
    assert not tab.complaints, "errors in the console"


def test_a_review_is_judged_merged_saved_and_opened(tab, address, tmp_path):
    if tab.scheme == "dark":
        pytest.skip("once is enough")
    press_start(tab, address, "lora")
    tab.locator("figure.alive").get_by_label("Base").select_option("pocket-gpt-tiny")
    tab.wait_for_selector("text=pocket-gpt-tiny is loaded")
    tab.locator("figure.alive").get_by_label("Steps").fill("0")
    tab.get_by_role("button", name="Train", exact=True).click()
    tab.wait_for_selector("text=Steps is 0: expected 10 to 1000")
    tab.locator("figure.alive").get_by_label("Steps").fill("12")
    tab.get_by_role("button", name="Train", exact=True).click()
    tab.wait_for_selector("text=Train again")
    tab.get_by_label("Your review").fill("Nobody found the soup dull.")
    tab.wait_for_selector("text=With your LoRA: smiled")
    tab.get_by_label("Your review").fill("the zebra was kind")
    tab.wait_for_selector("text=read as <unk>: zebra")
    tab.get_by_role("button", name="Merge").click()
    tab.wait_for_selector("text=Merged into the weights: smiled")
    tab.get_by_role("button", name="Unmerge").click()
    tab.wait_for_selector("text=W₀ is back")
    tab.get_by_label("Multiply α by").press("End")
    tab.wait_for_selector("text=α times 2.0: test accuracy")

    with tab.expect_download() as download:
        tab.get_by_role("button", name="Save as a PEFT folder").click()
    archive = tmp_path / "my-lora.zip"
    download.value.save_as(archive)
    assert zipfile.ZipFile(archive).testzip() is None
    zipfile.ZipFile(archive).extractall(tmp_path)
    import pedagogic_peft as pp

    model, _ = pp.load_base("pocket-gpt-tiny")
    pp.load(model, tmp_path / "my-lora")
    for files in ([archive], sorted((tmp_path / "my-lora").iterdir())):
        tab.evaluate(
            "document.querySelectorAll('.alive-box output').forEach((o) => o.replaceChildren())"
        )
        tab.set_input_files(".alive-box input[type=file]", files)
        tab.wait_for_selector("text=Opened: a LoRA of")
        tab.wait_for_selector("text=With your LoRA: ")
    wrong = Path(archive.parent / "notes.json")
    wrong.write_text("{}")
    tab.set_input_files(".alive-box input[type=file]", wrong)
    tab.wait_for_selector("text=Not opened: Expected adapter_config.json")


def test_ten_examples_of_the_readers_own(tab, address):
    if tab.scheme == "dark":
        pytest.skip("once is enough")
    press_start(tab, address, "tasks")
    examples = tab.get_by_label("Your examples, one a line")
    assert len(examples.input_value().splitlines()) == 10
    examples.fill("a red ball = blue ball\nno answer")
    tab.get_by_role("button", name="Train", exact=True).click()
    tab.wait_for_selector("text=Line 2 is")
    examples.fill("a red ball = blue ball\na quokka = ball")
    tab.get_by_role("button", name="Train", exact=True).click()
    tab.wait_for_selector("text=Line 2: the model does not know quokka")


@pytest.mark.parametrize("place", PAGES)
def test_without_scripts_a_still(browser, address, place):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(f"{address}/{PAGES[place]}")
    still = tab.locator("figure.alive .alive-still")
    assert still.is_visible() and still.locator("svg, table").count()
    assert not tab.locator("figure.alive button").is_visible()
    context.close()


def test_where_the_engine_cannot_be_had_the_page_says_what_to_do(tab, address):
    if tab.scheme == "dark":
        pytest.skip("once is enough")
    tab.set_default_timeout(LONG)
    tab.route("**/pocket-gpt.safetensors", lambda route: route.fulfill(status=503))
    tab.goto(f"{address}/{PAGES['lora']}", wait_until="load")
    tab.locator("figure.alive button").click()
    tab.wait_for_selector(
        "text=It did not start. The site did not send pocket-gpt.safetensors (503)"
    )
    assert tab.locator("figure.alive button").is_enabled()
    assert tab.locator("figure.alive .alive-still").is_visible()


def test_too_little_memory_is_said(tab, address):
    if tab.scheme == "dark":
        pytest.skip("once is enough")
    tab.set_default_timeout(LONG)
    body = (ALIVE / "engine" / "memory.js").read_text(encoding="utf-8")
    less = body.replace("START = 512, MOST = 8_192", "START = 120, MOST = 130")  # 8 MB
    assert less != body
    script = {"body": less, "content_type": "text/javascript"}
    tab.route("**/engine/memory.js", lambda route: route.fulfill(**script))
    tab.goto(f"{address}/{PAGES['lora']}", wait_until="load")
    tab.locator("figure.alive button").click()
    tab.wait_for_selector("text=It did not start. There is not enough memory: the browser gives")
    assert tab.locator("figure.alive button").is_enabled()
    assert tab.locator("figure.alive .alive-still").is_visible()


def test_an_engine_that_stopped_says_what_to_do(tab, address):
    if tab.scheme == "dark":
        pytest.skip("once is enough")
    press_start(tab, address, "lora")
    tab.get_by_role("button", name="Train", exact=True).click()
    tab.wait_for_selector("text=Before training")
    tab.workers[0].evaluate("setTimeout(() => { throw new Error('gone'); })")
    tab.wait_for_selector("text=The engine stopped")
    tab.wait_for_selector("text=Reload the page and press Start again")


def test_a_tab_that_slept_goes_on_and_says_so(tab, address):
    if tab.scheme == "dark":
        pytest.skip("once is enough")
    press_start(tab, address, "lora")
    tab.locator("figure.alive").get_by_label("Base").select_option("pocket-gpt-tiny")
    tab.wait_for_selector("text=pocket-gpt-tiny is loaded")
    tab.get_by_role("button", name="Train", exact=True).click()
    tab.wait_for_selector("text=Before training")
    tab.evaluate("""() => {
        const now = Date.now;
        Object.defineProperty(document, "hidden", { get: () => true, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
        Date.now = () => now() + 60_000;
    }""")
    tab.wait_for_selector(r"text=/The tab was asleep for \d+ s; nothing is lost/")
    tab.wait_for_selector("text=Train again")
