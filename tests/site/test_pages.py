"""Checks of the built pages as files: nothing from outside, no dead link, no picture unsaid."""

import json
import re
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
PAGES = sorted(p for p in SITE.rglob("*.html") if "_static" not in p.parts)
CONTENT = [p for p in PAGES if p.relative_to(SITE).parts[0] in ("book", "chapters")]

sys.path.insert(0, str(ROOT / "book" / "tools"))
NO_PROSE = {"a", "code", "pre", "script", "style", "h1", "h2", "h3", "h4", "mjx-container"}
OUTPUT = {"cell_output", "taught-in", "reading-time", "guess"}  # nor is a form prose


@cache
def read(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(path: Path) -> set[str]:
    return {tag["id"] for tag in read(path).find_all(id=True)} | {
        tag["name"] for tag in read(path).find_all("a", attrs={"name": True})
    }


@pytest.fixture(params=PAGES, ids=lambda path: str(path.relative_to(SITE)))
def page(request) -> Path:
    return request.param


def test_the_book_is_there():
    assert CONTENT, f"no page of the book in {SITE}"


def test_it_loads_nothing_from_another_host(page):
    loading = [("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src")]
    loaded = [tag[key] for name, key in loading for tag in read(page).find_all(name, **{key: True})]
    for tag in read(page).find_all("link", href=True):
        if not {"canonical", "search", "next", "prev", "author"} & set(tag.get("rel", [])):
            loaded.append(tag["href"])
    styles = " ".join(str(tag.string) for tag in read(page).find_all("style"))
    loaded += re.findall(r"url\(\s*[\"']?([^\"')]+)", styles)
    assert not [url for url in loaded if urlsplit(url).netloc]


def test_every_link_inside_the_site_leads_somewhere(page):
    broken = []
    for tag in read(page).find_all(["a", "link", "script", "img"]):
        url = tag.get("href") or tag.get("src") or ""
        parts = urlsplit(url)
        if parts.scheme or parts.netloc or not url or url == "#":
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        is_page = target.suffix == ".html" and target.exists()
        if not target.exists() or (
            is_page and parts.fragment and unquote(parts.fragment) not in anchors(target)
        ):
            broken.append(url)
    assert not broken


def test_it_has_a_title_and_a_language(page):
    assert read(page).title and read(page).title.string.strip()
    assert read(page).html.get("lang")


@pytest.mark.parametrize(
    "path",
    sorted((SITE / "chapters").rglob("*.html")),
    ids=lambda path: str(path.relative_to(SITE)),
)
def test_a_chapter_page_offers_what_a_reader_needs(path):
    """Colab opens this very notebook; it can be downloaded; its reading time stands at the top."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]
    name = path.relative_to(SITE).with_suffix(".ipynb").as_posix()
    repository = config["url"].removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{repository}/blob/{config['branch']}/{name}"
    links = [tag["href"] for tag in read(path).find_all("a", href=True)]
    assert colab in links
    assert (ROOT / name).exists()
    assert any(link.endswith(f"_sources/{name}") for link in links), "no download"
    assert re.search(
        r"About \d+ minutes to read", read(path).find(class_="reading-time").get_text()
    )
    times = re.findall(r"\d+ minutes (?:to read|of reading)", read(path).find("article").get_text())
    assert len(times) == 1, f"more than one reading time: {times}"
    card = read(path).find("meta", property="og:image")
    assert card and (SITE / urlsplit(card["content"]).path.split("/", 2)[2]).exists(), (
        "no social card"
    )


def test_the_sites_address_leads_to_the_landing_page_and_has_its_card():
    front, landing = read(SITE / "index.html"), read(SITE / "book" / "index.html")
    leads = front.find("meta", attrs={"http-equiv": "refresh"})["content"]
    assert leads == "0; url=book/index.html"
    card = {"property": "og:image"}
    assert front.find("meta", attrs=card)["content"] == landing.find("meta", attrs=card)["content"]


def test_next_leads_through_the_whole_book():
    """From the landing page, the link at the foot leads to every page of the contents in their order."""
    parts = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))["parts"]
    contents = [SITE / f"{entry['file']}.html" for part in parts for entry in part["chapters"]]
    page, walked = (SITE / "book" / "index.html").resolve(), []
    while link := read(page).find("a", class_="right-next"):
        back, page = page, (page.parent / link["href"]).resolve()
        walked.append(page)
        assert (page.parent / read(page).find("a", class_="left-prev")["href"]).resolve() == back
    assert walked == [page.resolve() for page in contents]


def test_figures_and_equations_are_numbered_by_page():
    """Also those that move. Each page counts from one, behind its own number, and none is missing."""
    parts = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))["parts"]
    counted = 0
    for entry in [entry for part in parts for entry in part["chapters"]]:
        page = read(SITE / f"{entry['file']}.html")
        number = re.match(r"[\d.]+(?= )", entry.get("title", ""))
        captions = page.select("article figure > figcaption .caption-number")
        figures = [caption.get_text().split()[1] for caption in captions]
        equations = [tag.find(string=True).strip("()") for tag in page.select("article .eqno")]
        for numbers in (figures, equations):
            start = f"{number.group()}." if number else ""
            assert numbers == [f"{start}{i + 1}" for i in range(len(numbers))], entry["file"]
        counted += len(figures)
        moving = page.select("article figure.explorable")
        assert all(figure.find_parent("figure").find("figcaption") for figure in moving)
    assert counted > 50


def test_a_class_and_the_page_that_builds_it_link_to_each_other():
    """A page that shows a class of the library leads to its reference, and the reference back."""
    checked = 0
    for path in sorted((ROOT / "chapters").rglob("*.ipynb")):
        page = SITE / path.relative_to(ROOT).with_suffix(".html")
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        names = [cell["metadata"].get("library", []) for cell in cells]
        names = [name for some in names for name in ([some] if isinstance(some, str) else some)]
        links = {
            name: (page.parent / urlsplit(link["href"]).path).resolve()
            for link in read(page).select(".reading-time a")
            for name in names
            if link["href"].endswith(f"#{name}")
        }
        for name, reference in links.items():
            entry = read(reference).find(id=name).find_parent("dl")
            back = [(reference.parent / a["href"]).resolve() for a in entry.select(".taught-in a")]
            assert page.resolve() in back, f"{reference.name}: {name} does not lead to {page.name}"
            checked += 1
    assert checked > 8


def test_a_fold_says_what_it_holds():
    import folds

    names = {f"Show {name}" for name in folds.NAMES.values()}
    for path in CONTENT:
        for fold in read(path).select("details.hide"):
            says = fold.summary.find(class_="collapsed").get_text().strip()
            wanted = {"Show the solution"} if fold.find_parent(class_="tag_solution") else names
            assert says in wanted, f"{path.name}: {fold.get_text()[:80]}"
            assert not fold.summary.get("aria-label")


@pytest.mark.parametrize(
    "path",
    sorted((SITE / "chapters").rglob("*.html")),
    ids=lambda path: str(path.relative_to(SITE)),
)
def test_no_machinery_stands_open(path):
    """Imports, scripts in strings, tables of claims and most drawing are folded."""
    import folds

    cells = read(path).select(".cell_input")
    standing = [cell for cell in cells if not cell.find_parent("details")]
    kinds = {cell.get_text()[:80]: folds.kind_of(cell.get_text()) for cell in standing}
    assert standing and not {text: kind for text, kind in kinds.items() if kind}


def test_the_landing_page_lists_every_notebook():
    named = read(SITE / "book" / "index.html").find("article")
    links = {(SITE / "book" / a["href"]).resolve() for a in named.find_all("a", href=True)}
    missing = set((SITE / "chapters").resolve().rglob("*.html")) - links
    assert not missing


@pytest.mark.parametrize("path", CONTENT, ids=lambda path: str(path.relative_to(SITE)))
def test_every_picture_says_what_it_shows(path):
    for image in read(path).find("article").find_all("img"):
        alt = image.get("alt", "")
        assert len(alt) >= 20 and not re.search(r"\.(png|svg|jpe?g)$", alt), image


@pytest.mark.parametrize("path", CONTENT, ids=lambda path: str(path.relative_to(SITE)))
def test_no_mark_up_is_left_over(path):
    strings = read(path).find("article").strings
    prose = "".join(s for s in strings if not s.find_parent(["pre", "code", "script", "style"]))
    left = re.search(r"\{(term|ref|cite|doc|eq)\}`|:::|\]\(\w|\|(—|---)\|", prose)
    assert not left, left.group()


@pytest.mark.parametrize(
    "path",
    sorted((SITE / "chapters").rglob("*.html")),
    ids=lambda path: str(path.relative_to(SITE)),
)
def test_a_term_of_the_glossary_is_linked_where_a_page_first_uses_it(path):
    import first_use

    named = read(SITE / "book" / "glossary.html").find_all("dt", id=re.compile("^term-"))
    anchors = {tag["id"]: tag.find(string=True).strip() for tag in named}
    assert len(anchors) > 50
    uses, linked, missing = first_use.pattern(anchors.values()), set(), {}
    for text in read(path).find("article").find_all(string=True):
        around = {tag.name: tag for tag in text.parents}
        link = around["a"].get("href", "") if "a" in around else ""
        if "glossary.html#term-" in link:
            linked.add(anchors[link.partition("#")[2]])
        elif not around.keys() & NO_PROSE and not any(
            OUTPUT & set(tag.get("class", [])) for tag in text.parents
        ):
            for found in uses.finditer(str(text)):
                name = first_use.name_of(found.group(), anchors.values())
                if name not in linked | first_use.BY_HAND:
                    missing.setdefault(name, str(text)[:80])
    assert not missing


def test_style_sheets_load_nothing_from_another_host():
    for sheet in (SITE / "_static").rglob("*.css"):
        css = sheet.read_text(encoding="utf-8", errors="replace")
        outside = re.findall(r"(?:@import|url\()\s*[\"']?((?:https?:)?//[^\"')]+)", css)
        assert not outside, f"{sheet.relative_to(SITE)}: {outside}"
