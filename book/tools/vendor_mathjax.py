"""Sphinx extension: copy MathJax into the site, so that formulas show without a network.

The files come from the PyPI package sphinx-mathjax-offline, which by itself would copy all of its
24 MB. The pages need 2 MB: one script, its TeX extensions and its fonts.
"""

import shutil
from importlib.metadata import distribution
from pathlib import Path

NEEDED = ("tex-chtml.js", "input/tex/extensions", "output/chtml/fonts/woff-v2")


def copy_mathjax(app) -> None:
    """Copy what the pages need into the folder that `mathjax_path` names."""
    if app.builder.format != "html":
        return
    source = Path(distribution("sphinx-mathjax-offline").locate_file(""))
    source = source / "sphinx-mathjax-offline" / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / Path(app.config.mathjax_path).parent
    for name in NEEDED:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)


def setup(app) -> dict:
    app.connect("builder-inited", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
