"""Make the book to keep: a PDF of the built site's pages, and an EPUB from the same sources.

python book/tools/ebook.py

The PDF is bound by pdf.py. The EPUB is Sphinx's; its formulas are MathML, its figures stand still
(epub_pages.py). Both are put into the site, and the landing page links to them.
"""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pdf
import yaml
from pypdf import PdfReader

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
WORK = ROOT / "_build" / "ebook"
NAME = "pedagogic-peft"
ONLY_FOR_THE_SITE = ("lighten", "sphinxext.opengraph", "describe", "site_files", "cards", "guesses")


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
    # Always anew: sheets that an extension wrote last would be taken for the book's own now.
    shutil.rmtree(WORK / "_build", ignore_errors=True)
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
        # Sphinx takes one for the other in the older list of contents: so they are the same.
        "epub_identifier": NAME,
        "epub_uid": NAME,
        "epub_css_files": ["epub.css"],
        "epub_exclude_files": ["_static/custom.css"],  # for browsers
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
    book = pdf.make(WORK / f"{NAME}.pdf")
    sheets = len(PdfReader(book).pages)
    print(f"{book}: {book.stat().st_size / 1e6:.1f} MB, {sheets} pages", flush=True)
    epub = make_epub()
    print(f"{epub}: {epub.stat().st_size / 1e6:.1f} MB")
    put_into_site([book, epub])


if __name__ == "__main__":
    main()
