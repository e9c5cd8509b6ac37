"""Move the book: its addresses stand in _config.yml, and every other file follows it.

python book/tools/address.py REPOSITORY SITE
python book/tools/address.py pypi | git
python book/tools/address.py check

REPOSITORY is like https://github.com/OWNER/NAME, SITE like https://OWNER.github.io/NAME/. Both are
written into _config.yml and into every file that names the old ones (the notebooks' first cells, the
README, pyproject.toml ...). `tests/book/test_book.py` fails on a file that names another address.

"pypi" makes every "pip install" of the pages, the assignments and the README take the library from PyPI
by its name, once a version is there; "git" makes them clone the repository again. "check" fails as long
as the address is the placeholder.
"""

import os
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
SKIPPED = {".git", ".venv", ".colab", "_build", "__pycache__", "node_modules"}
TEXT = (".cff", ".ipynb", ".md", ".py", ".toml", ".yml")
PLACEHOLDER = "https://github.com/example/"
COMMAND = "make address REPOSITORY=https://github.com/OWNER/NAME SITE_ADDRESS=https://OWNER.github.io/NAME/"
# pip install "pedagogic-peft[notebooks] @ git+https://...", its quotes escaped in a notebook
INSTALL = re.compile(
    r'(pip install (?:-q )?\\?"pedagogic-peft(?:\[[a-z,]+\])?)(?: @ git\+[^"\\]+)?(\\?")'
)


def addresses(root: Path = ROOT) -> tuple[str, str]:
    """The repository's and the site's address, without their last slash, from _config.yml."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    return config["repository"]["url"].rstrip("/"), config["html"]["baseurl"].rstrip("/")


def files(root: Path = ROOT) -> list[Path]:
    """Every file that may name an address."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if f not in SKIPPED and not f.endswith(".egg-info")]
        found += [Path(folder) / name for name in names if name.endswith(TEXT)]
    return sorted(found)


def pairs(old: tuple[str, str], new: tuple[str, str]) -> dict[str, str]:
    """What to replace by what: the addresses, and the repository's short name OWNER/NAME."""
    short = [re.sub(r"^https?://[^/]+/", "", address[0]) for address in (old, new)]
    return dict(zip(old, new, strict=True)) | {f"/github/{short[0]}/": f"/github/{short[1]}/"}


def move(new: tuple[str, str], root: Path = ROOT) -> list[Path]:
    """Replace the old addresses everywhere; return the files that changed."""
    replace, changed = pairs(addresses(root), new), []
    for path in files(root):
        before = after = path.read_text(encoding="utf-8")
        for old, address in replace.items():
            after = after.replace(old, address)
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed.append(path)
    return changed


def install_from(source: str, root: Path = ROOT) -> list[Path]:
    """Have the library installed from "pypi" or by "git"; return the files that changed."""
    where = {"pypi": "", "git": f" @ git+{addresses(root)[0]}"}[source]
    changed = []
    for path in files(root):
        if path.suffix not in (".ipynb", ".md"):
            continue
        before = path.read_text(encoding="utf-8")
        after = INSTALL.sub(rf"\g<1>{where}\g<2>", before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed.append(path)
    return changed


def check(root: Path = ROOT) -> None:
    """Exit with the command that helps, if the book has no address of its own yet."""
    repository, site = addresses(root)
    if repository.startswith(PLACEHOLDER):
        sys.exit(
            f"The book's address is a placeholder ({repository}, {site}), so its links and the first "
            f"cells on Colab would lead nowhere. Set it with\n\n    {COMMAND}\n"
        )


def bare(given: list[str]) -> tuple[str, str]:
    """The two addresses as the files have them: without a last slash, and without git's ending."""
    repository, site = (address.rstrip("/") for address in given)
    return repository.removesuffix(".git"), site


def main(given: list[str]) -> None:
    if given == ["check"]:
        return check()
    if given in (["pypi"], ["git"]):
        for path in install_from(given[0]):
            print(path.relative_to(ROOT))
        return None
    if len(given) != 2 or not all(re.fullmatch(r"https?://[^/\s]+/\S*", url) for url in given):
        sys.exit(f"given {given}: expected two addresses.\n{__doc__}")
    for path in move(bare(given)):
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
