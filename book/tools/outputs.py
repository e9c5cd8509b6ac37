"""Sphinx extension: what cells printed, so that it can be read on a narrow screen.

A line that is too long wraps, and its rest is indented; so every line becomes an element. In a table of
several columns nothing wraps: it is set smaller, as far as that can be read, and scrolls. What is a table is
seen by its gaps. custom.css does the rest, from the class ``columns`` and the number of letters in a line.
"""

import html
import re

PRINTED = re.compile(
    r'<div class="(output (?:stream|text_plain)[^"]*)"><div class="highlight">'
    r"<pre>(?:<span></span>)?(.*?)</pre>",
    re.DOTALL,
)
GAP = re.compile(r"\S {2,}\S")
TAG = re.compile(r"<[^>]*>")


def is_table(lines: list[str]) -> bool:
    """Whether two lines or more have a gap of two spaces inside."""
    return sum(bool(GAP.search(line)) for line in lines) >= 2


def dress(found: re.Match) -> str:
    """One printed block: a table with its width in letters, or lines that may wrap."""
    classes, text = found.groups()
    lines = text.rstrip("\n").split("\n")
    plain = [html.unescape(TAG.sub("", line)) for line in lines]
    if is_table(plain):
        width = max(map(len, plain))
        shown = f'<pre style="--letters: {width}">{text}</pre>'
        return f'<div class="{classes} columns"><div class="highlight">{shown}'
    if any(line.count("<span") != line.count("</span>") for line in lines):
        return found.group(0)  # a colour that goes on in the next line
    marked = "".join(f'<span class="l">{line}\n</span>' for line in lines)
    return f'<div class="{classes}"><div class="highlight"><pre>{marked}</pre>'


def dress_page(app, page: str, template: str, context: dict, doctree) -> None:
    if page.startswith("chapters/") and "body" in context and app.builder.name != "epub":
        context["body"] = PRINTED.sub(dress, context["body"])


def setup(app) -> dict:
    app.connect("html-page-context", dress_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
