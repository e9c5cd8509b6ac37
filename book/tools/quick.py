"""Spare the build of the site a sixth of its time.

pybtex reads the metadata of every installed package for each citation on each page, to find the same few
classes again. And Python's collector of cycles goes through the trees of all pages whenever some hundred
new nodes stand; they are kept to the end of the build, so it may come more seldom (the peak of memory is the
same). This extension has to be named before sphinxcontrib.bibtex, which keeps the function it finds.
"""

import functools
import gc

import pybtex.plugin


def setup(app) -> dict[str, bool]:
    """Remember what was looked up; let the collector come after 200,000 new objects, not 700."""
    pybtex.plugin.find_plugin = functools.cache(pybtex.plugin.find_plugin)
    gc.set_threshold(200_000, 20, 20)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
