"""The checks of the built site. They are not collected where there is no site."""

from pathlib import Path

SITE = Path(__file__).parents[2] / "_build" / "html"

if not (SITE / "index.html").exists():
    collect_ignore_glob = ["test_*.py"]
