"""Make the book to keep: a PDF of the built site's pages, and an EPUB from the same sources.

python book/tools/ebook.py

The PDF is printed by Chromium, page by page in the order of the contents, with bookmarks and with links
between its pages. (In Sphinx's single page of a whole book, all sections called Summary have one id.)
The EPUB is Sphinx's; its formulas are MathML. Both are put into the site, and the landing page links to
them.
"""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from address import addresses
from playwright.sync_api import sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, NameObject, NullObject, TextStringObject

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
WORK = ROOT / "_build" / "ebook"
NAME = "pedagogic-peft"
ONLY_FOR_THE_SITE = ("lighten", "sphinxext.opengraph", "describe", "site_files", "cards")
MARGIN = {"top": "18mm", "bottom": "18mm", "left": "16mm", "right": "16mm"}
FOOTER = '<div style="font-size:8px;width:100%;text-align:center"><span class="title"></span></div>'


def contents() -> dict[str, list[str]]:
    """{part: its pages}, in the contents' order, with the landing page first."""
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    parts = {
        part["caption"]: [entry["file"] for entry in part["chapters"]] for part in toc["parts"]
    }
    return {"": [toc["root"]], **parts}


def print_pages(pages: list[str]) -> dict[str, Path]:
    """Print every page of the site to a PDF of its own."""
    chromium = (
        os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    )
    printed = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(color_scheme="light")
        for page in pages:
            tab.goto((SITE / f"{page}.html").as_uri(), wait_until="load")
            tab.evaluate(
                "document.querySelectorAll('img').forEach((img) => { img.loading = 'eager'; });"
                "dispatchEvent(new Event('beforeprint'));"  # figures that wait, and folds
            )
            tab.evaluate("Promise.all([...document.fonts].map((font) => font.load()))")
            tab.wait_for_function("[...document.images].every((img) => img.complete)")
            printed[page] = WORK / f"{page.replace('/', '-')}.pdf"
            tab.pdf(
                path=str(printed[page]),
                format="A4",
                margin=MARGIN,
                print_background=True,
                display_header_footer=True,
                header_template="<span></span>",
                footer_template=FOOTER,
                tagged=True,
            )
        browser.close()
    return printed


def bind(parts: dict[str, list[str]], printed: dict[str, Path]) -> Path:
    """Put the pages together: bookmarks by part and page, links between pages inside the book."""
    book, starts = PdfWriter(), {}
    for part, pages in parts.items():
        parent = None
        for page in pages:
            starts[f"{page}.html"] = first = len(book.pages)
            reader = PdfReader(printed[page])
            for sheet in reader.pages:
                book.add_page(sheet)
            if part and parent is None:
                parent = book.add_outline_item(title=part, page_number=first)
            title = re.sub(r" — .*$", "", (reader.metadata or {}).get("/Title", page))
            book.add_outline_item(title=title, page_number=first, parent=parent)
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
    target = WORK / f"{NAME}.pdf"
    book.write(target)
    return target


def relink(book: PdfWriter, note, uri: str, starts: dict[str, int]) -> None:
    """Lead a link to a page of the book there, and one to another page of the site to the web."""
    path = os.path.relpath(urlsplit(uri).path, SITE)
    if path in starts:
        place = [book.pages[starts[path]].indirect_reference, NameObject("/XYZ")]
        note[NameObject("/Dest")] = ArrayObject(place + [NullObject()] * 3)
        del note[NameObject("/A")]
    else:
        note["/A"][NameObject("/URI")] = TextStringObject(f"{addresses()[1]}/{path}")


def make_epub() -> Path:
    """Build the EPUB with the site's settings, but for what only a site has."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    config.pop("launch_buttons")
    sphinx = config["sphinx"]["config"]
    sphinx["extensions"] = [n for n in sphinx["extensions"] if n not in ONLY_FOR_THE_SITE]
    # The derived settings are in another folder, so what they name by its path is named in full.
    local = config["sphinx"]["local_extensions"]
    config["sphinx"]["local_extensions"] = {
        name: str(ROOT / folder) for name, folder in local.items() if name not in ONLY_FOR_THE_SITE
    } | {"epub_pages": str(ROOT / "book" / "tools")}
    sphinx["extensions"].append("epub_pages")
    for name in [name for name in sphinx if name.startswith("ogp_")]:
        sphinx.pop(name)
    sphinx |= about(config)
    settings = WORK / "_config.yml"
    settings.write_text(yaml.safe_dump(config), encoding="utf-8")
    for old in WORK.rglob(f"{NAME}.epub"):
        old.unlink()
    command = [str(Path(sys.executable).parent / "jupyter-book"), "build", "."]
    command += ["--toc", "book/_toc.yml"]
    command += ["--config", str(settings), "--path-output", str(WORK)]
    command += ["--builder", "custom", "--custom-builder", "epub"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    (WORK / "epub.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    made = next(WORK.rglob(f"{NAME}.epub"), None)
    if done.returncode or made is None:
        sys.exit(f"no EPUB: see {WORK / 'epub.log'}\n{done.stderr[-2000:]}")
    check(made)
    return made


def about(config: dict) -> dict[str, str | bool]:
    """What the EPUB says of itself."""
    return {
        "project": config["title"],
        "version": version("pedagogic-peft"),
        "epub_basename": NAME,
        "epub_title": config["title"],
        "epub_contributor": config["author"],
        "epub_description": "LoRA, adapters and soft prompts, built from scratch and run on every page.",
        "epub_identifier": addresses()[1],
        "epub_uid": "address",
        "epub_show_urls": "no",
        "epub_tocscope": "includehidden",  # the contents of this book are in the side bar
        "epub_tocdup": False,
        "epub_use_index": False,
    }


def check(epub: Path) -> None:
    """Stop where epubcheck, which is the W3C's, finds an error: then some readers can't open the book."""
    tool = shutil.which("epubcheck")
    if tool is None:
        sys.exit("no epubcheck on this machine: apt install epubcheck")
    # Debian's is a Java archive, which only some systems start by itself.
    start = ["java", "-jar"] if Path(tool).resolve().suffix == ".jar" else []
    done = subprocess.run([*start, tool, str(epub)], capture_output=True, text=True)
    found = re.findall(r"^(?:FATAL|ERROR).*", done.stdout + done.stderr, re.MULTILINE)
    if done.returncode or found:
        lines = "\n".join(found[:20]) or done.stderr
        sys.exit(f"{epub}: epubcheck finds {len(found)} errors\n{lines}")


def put_into_site(made: list[Path]) -> None:
    """Move the files into the site, then fill the place that the landing page keeps for them."""
    landing = SITE / "book" / "index.html"
    links = " and ".join(
        f'<a href="../{file.name}">{file.suffix[1:].upper()}</a> ({file.stat().st_size / 1e6:.0f} MB)'
        for file in made
    )
    text = landing.read_text(encoding="utf-8")
    place = re.compile(r'<span id="ebooks">.*?</span>', re.DOTALL)
    filled = f'<span id="ebooks">To keep, the whole book: {links}.</span>'
    if not place.search(text):
        sys.exit(f'{landing} has no place for the links: <span id="ebooks"></span>')
    new = WORK / landing.name
    new.write_text(place.sub(filled, text), encoding="utf-8")
    for file, target in [*((file, SITE / file.name) for file in made), (new, landing)]:
        os.replace(file, target)  # never half a file in the site, whatever ends this


def main() -> None:
    if not (SITE / "index.html").exists():
        sys.exit(f"no site in {SITE}: run make book first")
    WORK.mkdir(parents=True, exist_ok=True)
    parts = contents()
    pdf = bind(parts, print_pages([page for pages in parts.values() for page in pages]))
    print(
        f"{pdf}: {pdf.stat().st_size / 1e6:.1f} MB, {len(PdfReader(pdf).pages)} pages", flush=True
    )
    epub = make_epub()
    print(f"{epub}: {epub.stat().st_size / 1e6:.1f} MB")
    put_into_site([pdf, epub])


if __name__ == "__main__":
    main()
