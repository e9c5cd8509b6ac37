"""The whole book as a PDF, bound from the built site's pages.

Chromium prints each page by itself, in the order of the contents. (In one page of the whole book, all
sections called Summary would have one id.) Before them come a title page and the contents with page numbers,
on every sheet stands its number, and links between pages lead inside the book. What is not there: the tags
for screen readers, which pypdf does not join.
"""

import html
import os
import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from address import addresses
from playwright.sync_api import Page, sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, NameObject, NullObject, TextStringObject

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
MARGIN = {"top": "18mm", "bottom": "18mm", "left": "16mm", "right": "16mm"}
FRONT = """<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 11pt/1.5 sans-serif }} h1 {{ margin-top: 70mm; font-size: 30pt; line-height: 1.2 }}
.title {{ break-after: page }} h2 {{ font-size: 12pt; margin: 5mm 0 1mm; break-after: avoid }}
a {{ display: flex; color: inherit; text-decoration: none }} a span {{ margin-left: auto }}
</style><div class="title"><h1>{title}</h1>
<p>LoRA, adapters and soft prompts, built from scratch and run on every page.</p>
<p>{author}</p><p>{site}</p><p>Text and figures: CC BY 4.0. Code: MIT licence.</p></div>{contents}</html>"""
NUMBERS = """<!DOCTYPE html><meta charset="utf-8"><style>@page {{ size: A4; margin: 0 }} body {{ margin: 0 }}
div {{ height: 297mm; box-sizing: border-box; padding-top: 285mm; text-align: center; font: 8pt sans-serif;
  break-after: page }} div:last-child {{ break-after: auto }}</style>{lines}"""


def contents() -> dict[str, dict[str, str]]:
    """{part: {page: its title in the contents, or nothing}}, with the landing page first."""
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    parts = {
        part["caption"]: {entry["file"]: entry.get("title", "") for entry in part["chapters"]}
        for part in toc["parts"]
    }
    return {"": {toc["root"]: ""}, **parts}


def make(target: Path) -> Path:
    """Print the pages of the site, and bind them into ``target``."""
    work, parts = target.parent, contents()
    chromium = (
        os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(color_scheme="light")
        printed = {
            page: print_page(tab, page, work / f"{page.replace('/', '-')}.pdf")
            for pages in parts.values()
            for page in pages
        }
        for pages in parts.values():
            for page, title in pages.items():
                pages[page] = title or re.sub(r" — .*$", "", printed[page].metadata["/Title"])
        first = len(front(tab, parts, {}, work).pages)  # how many sheets the front takes
        starts, at = {}, first
        for page, reader in printed.items():
            starts[page], at = at, at + len(reader.pages)
        sheets = [*front(tab, parts, starts, work).pages]
        titles = [""] * first
        for pages in parts.values():
            for page, title in pages.items():
                sheets += printed[page].pages
                titles += [title] * len(printed[page].pages)
        stamps = numbers(tab, titles, work)
        browser.close()
    return bind(sheets, stamps, parts, starts, target)


def print_page(tab: Page, page: str, to: Path) -> PdfReader:
    """Print one page of the site as it is on paper: folds open, figures that move drawn."""
    tab.goto((SITE / f"{page}.html").as_uri(), wait_until="load")
    tab.evaluate(
        "document.querySelectorAll('img').forEach((img) => { img.loading = 'eager'; });"
        "dispatchEvent(new Event('beforeprint'));"
    )
    tab.evaluate("Promise.all([...document.fonts].map((font) => font.load()))")
    tab.wait_for_function("[...document.images].every((img) => img.complete)")
    tab.wait_for_function("!document.querySelector('script[type=\"text/figure\"]')")
    tab.pdf(path=str(to), format="A4", margin=MARGIN, print_background=True)
    return PdfReader(to)


def front(tab: Page, parts: dict, starts: dict[str, int], work: Path) -> PdfReader:
    """The title page and the contents, as PDF; without ``starts`` all numbers are nought."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    lines = []
    for part, pages in parts.items():
        lines.append(f"<h2>{html.escape(part)}</h2>" if part else "<h2>Contents</h2>")
        for page, title in pages.items():
            uri, number = (SITE / f"{page}.html").as_uri(), starts.get(page, -1) + 1
            lines.append(f'<a href="{uri}">{html.escape(title)}<span>{number}</span></a>')
    text = FRONT.format(
        title=html.escape(config["title"]),
        author=html.escape(config["author"]),
        site=html.escape(addresses()[1]),
        contents="\n".join(lines),
    )
    return print_text(tab, text, work / "front", margin=MARGIN)


def numbers(tab: Page, titles: list[str], work: Path) -> PdfReader:
    """A sheet with nothing but its foot for each sheet of the book: its page's title and its number."""
    lines = [
        f"<div>{html.escape(title)}{' · ' if title else ''}{number if number > 1 else ''}</div>"
        for number, title in enumerate(titles, start=1)
    ]
    return print_text(tab, NUMBERS.format(lines="\n".join(lines)), work / "numbers")


def print_text(tab: Page, text: str, name: Path, **settings) -> PdfReader:
    source = name.with_suffix(".html")
    source.write_text(text, encoding="utf-8")
    tab.goto(source.as_uri())
    tab.pdf(path=str(name.with_suffix(".pdf")), format="A4", **settings)
    return PdfReader(name.with_suffix(".pdf"))


def bind(
    sheets: list, stamps: PdfReader, parts: dict, starts: dict[str, int], target: Path
) -> Path:
    """Put the sheets together, with their numbers, bookmarks by part and page, and links inside the book."""
    if len(stamps.pages) != len(sheets):
        raise RuntimeError(f"{len(stamps.pages)} numbers for {len(sheets)} sheets")
    book = PdfWriter()
    for sheet, stamp in zip(sheets, stamps.pages, strict=True):
        book.add_page(sheet).merge_page(stamp)
    for part, pages in parts.items():
        first = starts[next(iter(pages))]
        parent = book.add_outline_item(title=part, page_number=first) if part else None
        for page, title in pages.items():
            book.add_outline_item(title=title, page_number=starts[page], parent=parent)
    for sheet in book.pages:
        for kept in sheet.get("/Annots") or []:
            note = kept.get_object()
            uri = str((note.get("/A") or {}).get("/URI", ""))
            if uri.startswith("file:"):
                relink(book, note, uri, starts)
    title = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["title"]
    book.add_metadata({"/Title": title, "/Lang": "en"})
    for sheet in book.pages:
        sheet.compress_content_streams()
    book.compress_identical_objects()
    book.write(target)
    return target


def relink(book: PdfWriter, note, uri: str, starts: dict[str, int]) -> None:
    """Lead a link to a page of the book there, and one to another page of the site to the web."""
    path = os.path.relpath(urlsplit(uri).path, SITE)
    page = path.removesuffix(".html")
    if page in starts:
        place = [book.pages[starts[page]].indirect_reference, NameObject("/XYZ")]
        note[NameObject("/Dest")] = ArrayObject(place + [NullObject()] * 3)
        del note[NameObject("/A")]
    else:
        note["/A"][NameObject("/URI")] = TextStringObject(f"{addresses()[1]}/{path}")
