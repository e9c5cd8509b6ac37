"""Sphinx extension: make the built pages small, and quick to draw.

No Python package does this, and those for node would be needed for every build.

The theme and the extensions load eleven style sheets, most of whose rules match nothing here, a dozen
scripts that hold up the page, and all of Font Awesome (1.5 MB) for some twenty icons. When the last page
is written, this leaves one style sheet with the rules that match, one deferred script, two icon fonts
that hold the icons used, and the size of every picture, so that nothing moves when it arrives. The figures
that move wait for the reader to come near; those with much data wait in files of their own.
"""

import hashlib
import io
import os
import re
from base64 import b64encode
from pathlib import Path
from urllib.parse import urlsplit

import tinycss2
from fontTools import subset
from fontTools.ttLib import TTFont
from PIL import Image

SHEET = re.compile(r'<link\b[^>]*rel="stylesheet"[^>]*>')
MATHS = "mathjax.css"  # only for pages with formulas; see prerender_math.py
SCRIPT = re.compile(r'<script\b[^>]*\bsrc="([^"]+)"[^>]*></script>')
NOT_LOADED = ("fontawesome.js",)  # its icons come from a font
ONLY_FOR_SEARCH = ("searchtools.js", "language_data.js", "searchindex.js")
LOADED_LATER = ("search.js", "guesses.js")  # by custom.js, where they are used
OUR_SEARCH = "search.js"  # after Sphinx's tools, before the index, which starts the search
# The script of a figure that moves; custom.js runs it when the reader comes near.
FIGURE = re.compile(r"(</figure>\s*)<script>(?=\s*\(\(\) => \{\s*const data = )")
WAITING = re.compile(r'<script type="text/figure">(.*?)</script>', re.DOTALL)
LONGEST_SCRIPT = 30_000  # letters of one in a page; a longer one is a file of its own
# Roles that docutils gives to references and that ARIA has given up, and a label that hides what it labels.
ROLES = {
    ' role="doc-biblioentry"': "",
    ' role="doc-backlink"': "",
    '<div role="list" class="citation-list">': '<div class="citation-list">',
    # The words that are seen should be the ones that are heard.
    '<summary aria-label="Toggle hidden content">': "<summary>",
    'search-button-field search-button__button pst-js-only" title="Search" aria-label="Search"': (
        'search-button-field search-button__button pst-js-only" title="Search"'
    ),
}
NESTED = ("media", "supports", "layer", "container")


def lighten(app, error) -> None:
    """Rewrite every page and its assets; only of the HTML site, and only if it was built whole."""
    if error is not None or app.builder.name not in ("html", "dirhtml"):
        return
    site = Path(app.outdir)
    pages = {path: path.read_text("utf-8") for path in sorted(site.rglob("*.html"))}
    pages = {path: text for path, text in pages.items() if "_static" not in path.parts}
    sheets, scripts = assets(pages)
    words = set(re.findall(r"[\w-]+", "\n".join(pages.values())))
    later = [site / "_static" / name for name in LOADED_LATER]
    texts = [path.read_text("utf-8") for path in [*scripts, *later]]
    words |= set(re.findall(r"[\w-]+", "\n".join(texts)))
    css = "\n".join(style_of(sheet, site, words) for sheet in sheets)
    css = icon_fonts(css, site)
    js = ";\n".join(path.read_text("utf-8") for path in scripts)
    style = write(site / "_static" / "book.css", css)
    script = write(site / "_static" / "book.js", re.sub(r"(?m)^//# sourceMappingURL.*$", "", js))
    for path, text in pages.items():
        if path != site / "index.html":
            path.write_text(rewrite(text, path, site, style, script), encoding="utf-8")
    front = site / f"{app.config.root_doc}.html"
    (site / "index.html").write_text(lead_to(front, site), encoding="utf-8")


def lead_to(page: Path, site: Path) -> str:
    """The site's address itself: it leads to the landing page, and shows the same card when it is shared."""
    text, url = page.read_text("utf-8"), page.relative_to(site).as_posix()
    title = re.search(r"<title>.*?</title>", text, re.DOTALL).group()
    cards = "\n".join(re.findall(r'<meta (?:property="og:|name="description")[^>]*>', text))
    name = re.sub("<.*?>", "", title).strip()
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
{title}
{cards}
<meta http-equiv="refresh" content="0; url={url}"/>
</head>
<body><p><a href="{url}">{name}</a></p></body>
</html>
"""


def assets(pages: dict[Path, str]) -> tuple[list[Path], list[Path]]:
    """The style sheets and scripts of all pages, in the order in which pages load them."""
    sheets, scripts = {}, {}
    longest_first = sorted(pages.items(), key=lambda item: -len(SHEET.findall(item[1])))
    for path, text in longest_first:
        for tag in SHEET.findall(text):
            sheets[file_of(re.search(r'href="([^"]+)"', tag).group(1), path)] = None
        for url in SCRIPT.findall(text):
            if not url.split("?")[0].endswith(NOT_LOADED + ONLY_FOR_SEARCH):
                scripts[file_of(url, path)] = None
    return [sheet for sheet in sheets if sheet.name != MATHS], list(scripts)


def file_of(url: str, page: Path) -> Path:
    return Path(os.path.normpath(page.parent / urlsplit(url).path))


def style_of(sheet: Path, site: Path, words: set[str]) -> str:
    """The rules of a style sheet that can match, with addresses as seen from `_static`."""
    imported = re.compile(r"""@import (?:url\()?["']?([\w./-]+\.css)["']?\)?;""")
    text = imported.sub(
        lambda found: (sheet.parent / found.group(1)).read_text("utf-8"), sheet.read_text("utf-8")
    )
    rules = tinycss2.parse_stylesheet(text, skip_comments=True, skip_whitespace=True)
    css = "\n".join(filter(None, (kept(rule, words) for rule in rules)))

    def moved(found: re.Match) -> str:
        url = found.group(2)
        if url.startswith(("data:", "#")) or "//" in url:
            return found.group(0)
        return f'url("{os.path.relpath(sheet.parent / url, site / "_static")}")'

    return re.sub(r"url\(([\"']?)((?!data:)[^\"')]+)\1\)", moved, css)


def kept(rule, words: set[str]) -> str:
    """A rule without the selectors that name a class or id which no page and no script has."""
    if rule.type == "at-rule" and rule.lower_at_keyword in NESTED and rule.content is not None:
        inner = tinycss2.parse_rule_list(rule.content, skip_comments=True, skip_whitespace=True)
        inside = "".join(filter(None, (kept(one, words) for one in inner)))
        prelude = tinycss2.serialize(rule.prelude)
        return f"@{rule.at_keyword}{prelude}{{{inside}}}" if inside else ""
    if rule.type != "qualified-rule":
        return "" if rule.type == "error" else rule.serialize()
    selectors = split(tinycss2.serialize(rule.prelude))
    matching = [one for one in selectors if can_match(one, words)]
    content = re.sub(r"\s+", " ", tinycss2.serialize(rule.content)).strip()
    return f"{','.join(matching)}{{{content}}}" if matching and content else ""


def split(prelude: str) -> list[str]:
    """Split a list of selectors at its commas, but for those in brackets."""
    parts, depth = [""], 0
    for letter in prelude:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def can_match(selector: str, words: set[str]) -> bool:
    bare = re.sub(r"\[[^\]]*\]", "", selector)
    while "(" in bare:  # what stands in :not(...) or :is(...) need not be there
        shorter = re.sub(r"\([^()]*\)", "", bare)
        if shorter == bare:
            return True
        bare = shorter
    names = re.findall(r"[.#]((?:\\.|[\w-])+)", bare)
    return all(re.sub(r"\\(.)", r"\1", name) in words for name in names)


def icon_fonts(css: str, site: Path) -> str:
    """Replace Font Awesome's fonts by ones that hold the icons the style sheet still names."""
    codes = [ord(letter) for letter in set(re.findall("[\ue000-\uf8ff]", css))]
    fonts = re.compile(r'src:\s*url\("(vendor/fontawesome/webfonts/[\w-]+)\.woff2"\)[^;}]*')

    def cut(found: re.Match) -> str:
        font = TTFont(site / "_static" / f"{found.group(1)}.ttf")
        options = subset.Options(flavor="woff", layout_features=[], notdef_outline=True)
        cutter = subset.Subsetter(options)
        cutter.populate(unicodes=codes)
        cutter.subset(font)
        buffer = io.BytesIO()
        subset.save_font(font, buffer, options)
        data = b64encode(buffer.getvalue()).decode("ascii")
        return f'src:url("data:font/woff;base64,{data}") format("woff")'

    return fonts.sub(cut, css)


def write(path: Path, text: str) -> str:
    """Write an asset; return its name with a mark that changes when it does."""
    path.write_text(text, encoding="utf-8")
    return f"{path.name}?v={hashlib.sha256(text.encode()).hexdigest()[:8]}"


def rewrite(text: str, path: Path, site: Path, style: str, script: str) -> str:
    """A page with one style sheet, one script, and pictures that say how large they are."""
    head, found, body = text.partition("</head>")
    static = os.path.relpath(site / "_static", path.parent)
    search = [
        tag.group(0)
        for tag in SCRIPT.finditer(text)
        if path.name == "search.html" and tag.group(1).split("?")[0].endswith(ONLY_FOR_SEARCH)
    ]
    loads = [f'<link rel="stylesheet" href="{static}/{style}"/>']
    if "<mjx-container" in body:
        loads.append(f'<link rel="stylesheet" href="{static}/{MATHS}"/>')
    loads.append(f'<script defer src="{static}/{script}"></script>')
    for tag in search:
        if "searchindex.js" in tag:
            loads.append(f'<script defer src="{static}/{OUR_SEARCH}"></script>')
        loads.append(tag.replace("<script ", "<script defer "))
    # A corner cell without a heading is no heading.
    body = re.sub(r"<th\b([^>]*)>\s*(?:<p>\s*</p>)?\s*</th>", r"<td\1></td>", body)
    head = SCRIPT.sub("", SHEET.sub("", head))
    head = re.sub(r'<link rel="preload" as="script"[^>]*>', "", head)
    head = re.sub(
        r'(<meta name="viewport"[^>]*>)(.*?)(?:<meta name="viewport"[^>]*>)', r"\1\2", head
    )
    # What uses the deferred script runs after it, as a module does.
    head = head.replace(
        "<script>DOCUMENTATION_OPTIONS.", '<script type="module">DOCUMENTATION_OPTIONS.'
    )
    head = re.sub(r"\n\s*\n+", "\n", head)
    title = head.index("<title>")
    head = head[:title] + "\n".join(loads) + "\n" + head[title:]
    body = SCRIPT.sub("", body)
    for old, new in ROLES.items():
        body = body.replace(old, new)
    body = FIGURE.sub(r'\1<script type="text/figure">', body)
    body = WAITING.sub(lambda found: aside(found, site / "_static" / "figures"), body)
    return head + found + re.sub(r"<img\b[^>]*>", lambda tag: sized(tag.group(0), path), body)


def aside(found: re.Match, folder: Path) -> str:
    """A long script in a file of its own, so that a page is not held up by the data of its figures."""
    text = found.group(1)
    if len(text) <= LONGEST_SCRIPT:
        return found.group(0)
    folder.mkdir(exist_ok=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    held = f'(window.FIGURES ??= {{}})["{name}"] = () => {{{text}}};\n'
    (folder / f"{name}.js").write_text(held, encoding="utf-8")
    return f'<script type="text/figure" data-from="{name}"></script>'


def sized(tag: str, page: Path) -> str:
    """A picture's tag with its width and height; it is fetched when the reader comes near."""
    url = re.search(r'\bsrc="([^"]+)"', tag)
    if (
        not url
        or urlsplit(url.group(1)).scheme
        or not (file := file_of(url.group(1), page)).exists()
    ):
        return tag
    more = "" if "loading=" in tag else ' loading="lazy" decoding="async"'
    if "width=" not in tag and file.suffix in (".png", ".jpg", ".jpeg"):
        with Image.open(file) as picture:
            more += f' width="{picture.width}" height="{picture.height}"'
    return tag.replace("<img", f"<img{more}", 1)


def setup(app) -> dict:
    app.connect("build-finished", lighten, priority=900)  # after all that writes pages and assets
    return {"parallel_read_safe": True, "parallel_write_safe": True}
