"""Sphinx extension: figures and equations are numbered by page: Fig. 2.2.1 is the first of page 2.2.

Sphinx counts through the whole book where the contents have no numbers of their own, as here, where they
stand in the titles: then a figure more on page 1.1 gives all others a new number.
"""

import re

NUMBER = re.compile(r"(\d+)(?:\.(\d+))?\s")


def number_by_page(app, env) -> list[str]:
    """Replace Sphinx's numbers, once it has given them; a page without a number counts from one."""
    for page, entry in app.config.external_site_map.items():
        title = NUMBER.match(entry.title or "")
        start = tuple(int(part) for part in title.groups() if part) if title else ()
        for numbers in env.toc_fignumbers.get(page, {}).values():
            for place, (name, _) in enumerate(list(numbers.items()), start=1):
                numbers[name] = (*start, place)
    return []


def setup(app) -> dict:
    app.connect("env-get-updated", number_by_page, priority=900)  # after Sphinx's own
    return {"parallel_read_safe": True, "parallel_write_safe": True}
