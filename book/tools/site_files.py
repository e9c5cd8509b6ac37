"""Sphinx extension: what a site has beside its pages.

* ``sitemap.xml``: every page, for search engines.
* ``404.html``: for an address that leads nowhere; hosts show it by itself.
* ``llms.txt`` and each page as Markdown (``PAGE.md`` beside ``PAGE.html``), for readers who ask a language
  model about a page. Of a notebook: its text, its code, and what it printed.
"""

import html
import json
from pathlib import Path

from reading import toc

LOST = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta name="color-scheme" content="light dark"/>
<title>No such page - {title}</title>
<style>body {{ font: 1.1rem/1.6 sans-serif; max-width: 34rem; margin: 15vh auto; padding: 0 1rem }}</style>
</head>
<body>
<main>
<h1>No such page</h1>
<p>The address leads nowhere: the page has moved, or the link is misspelt.</p>
<ul>
<li><a href="{site}/book/index.html">The book, from its first page</a></li>
<li><a href="{site}/search.html">Search</a></li>
</ul>
</main>
</body>
</html>
"""


def write_files(app, error) -> None:
    if error is not None or app.builder.name != "html":
        return
    site, out = app.config.html_baseurl.rstrip("/"), Path(app.outdir)
    pages = [app.config.root_doc, *(page for page in toc(app) if page != app.config.root_doc)]
    for page in pages:
        (out / f"{page}.md").write_text(markdown(Path(app.srcdir), page), encoding="utf-8")
    (out / "sitemap.xml").write_text(sitemap(site, pages), encoding="utf-8")
    (out / "404.html").write_text(
        LOST.format(site=site, title=html.escape(app.config.html_title or "")), encoding="utf-8"
    )
    (out / "llms.txt").write_text(listed(app, site, pages), encoding="utf-8")


def sitemap(site: str, pages: list[str]) -> str:
    entries = "".join(f"<url><loc>{site}/{page}.html</loc></url>\n" for page in pages)
    space = "http://www.sitemaps.org/schemas/sitemap/0.9"
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="{space}">\n{entries}</urlset>\n'


def listed(app, site: str, pages: list[str]) -> str:
    """The contents in the form that llmstxt.org describes."""
    facts = getattr(app.env, "book_facts", {})
    lines = [f"# {app.config.html_title or app.config.project}", ""]
    for page in pages:
        title = toc(app).get(page) or app.env.titles[page].astext()
        promise = facts.get(page, {}).get("promise", "")
        lines.append(f"- [{title}]({site}/{page}.md)" + (f": {promise}" if promise else ""))
    return "\n".join(lines) + "\n"


def markdown(source: Path, page: str) -> str:
    """A page as Markdown: as it is, or of a notebook the cells in their order."""
    notebook = source / f"{page}.ipynb"
    if not notebook.exists():
        return (source / f"{page}.md").read_text("utf-8")
    parts = []
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        parts += [shown for output in cell.get("outputs", []) if (shown := printed(output))]
    return "\n\n".join(parts) + "\n"


def printed(output: dict) -> str:
    """An output in text: Markdown as it is, what was printed as a block; of a figure what it says."""
    data = output.get("data", {})
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    return "" if not text or text.startswith("<Figure") else f"```text\n{text}\n```"


def setup(app) -> dict:
    app.connect("build-finished", write_files, priority=950)  # the 404 page is no page of the theme
    return {"parallel_read_safe": True, "parallel_write_safe": True}
