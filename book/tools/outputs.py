"""Sphinx extension: what cells printed, so that it can be read on a narrow screen.

A line that is too long wraps, and its rest is indented; so every line becomes an element. In a table of
several columns nothing wraps: it is set smaller, as far as that can be read, or scrolls. Where its first
column holds names, a narrow screen shows each name on a line of its own, and the numbers below it, which
would be out of sight. What is a table is seen by its gaps. custom.css does the rest, from the classes
``columns``, ``stacked`` and ``too-wide`` and the number of letters in a line.
"""

import html
import re

PRINTED = re.compile(
    r'<div class="(output (?:stream|text_plain)[^"]*)"><div class="highlight">'
    r"<pre>(?:<span></span>)?(.*?)</pre>",
    re.DOTALL,
)
GAP = re.compile(r"(?<=\S) {2,}(?=\S)")
TAG = re.compile(r"<[^>]*>")
FIT = 53  # letters of ten pixels beside each other on a phone


def is_table(lines: list[str]) -> bool:
    """Whether two lines or more have two gaps of two spaces inside: three columns."""
    return sum(len(GAP.findall(line)) > 1 for line in lines) > 1


def names_end(lines: list[str]) -> int | None:
    """The column at which what follows the names begins; None where there is none in all lines."""
    gaps = [GAP.search(line) for line in lines if not line.startswith(" ")]
    cut = min((gap.end() for gap in gaps if gap), default=0)
    clean = all(len(line) <= cut or line[cut - 1] == " " for line in lines if GAP.search(line))
    return cut if cut and clean else None


def dress(found: re.Match) -> str:
    """One printed block: a table with its width in letters, or lines that may wrap."""
    classes, text = found.groups()
    lines = text.rstrip("\n").split("\n")
    plain = [html.unescape(TAG.sub("", line)) for line in lines]
    if is_table(plain):
        width, cut = max(map(len, plain)), names_end(plain)
        if width > FIT and cut and not TAG.search(text):
            classes, text = f"{classes} stacked", stack(plain, cut)
            width = max(max(len(line) - cut, min(len(line), cut)) for line in plain)
        classes = f"{classes} too-wide" if width > FIT else classes
        shown = f'<pre style="--letters: {width}">{text}</pre>'
        return f'<div class="{classes} columns"><div class="highlight">{shown}'
    if any(line.count("<span") != line.count("</span>") for line in lines):
        return found.group(0)  # a colour that goes on in the next line
    marked = "".join(f'<span class="l">{line}\n</span>' for line in lines)
    return f'<div class="{classes}"><div class="highlight"><pre>{marked}</pre>'


def stack(lines: list[str], cut: int) -> str:
    """Lines whose names are elements of their own; one without a gap is all name, or a sentence if it is
    longer than a name, and wraps; a head has none."""
    made = []
    for line in lines:
        name = line[:cut] if GAP.search(line) or line.startswith(" ") else line
        kind = "name" if name.strip() else "no-name"
        kind = "sentence" if len(name.rstrip()) > cut else kind
        name, rest = (html.escape(part, quote=False) for part in (name, line[len(name) :]))
        made.append(f'<span class="named"><span class="{kind}">{name}</span>{rest}\n</span>')
    return "".join(made)


def dress_page(app, page: str, template: str, context: dict, doctree) -> None:
    if page.startswith("chapters/") and "body" in context and app.builder.name != "epub":
        context["body"] = PRINTED.sub(dress, context["body"])


def setup(app) -> dict:
    app.connect("html-page-context", dress_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
