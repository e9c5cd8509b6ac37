"""List the links that lead out of the book, and check that they still lead somewhere.

python book/tools/outside_links.py          # write _build/outside_links.txt from the sources
python book/tools/outside_links.py --check  # ask every one of them; fails on those that are gone

`make book` writes the list. A workflow checks it weekly, since other sites change without asking.
"""

import concurrent.futures
import json
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIST = ROOT / "_build" / "outside_links.txt"
URL = re.compile(r"https?://[^\s<>\"'`\\{}|]+")
PLACEHOLDERS = (
    "//localhost",
    "//127.0.0.1",
    "//OWNER",
    "/OWNER/",
    "//...",
    "www.w3.org/",
    "//me.github",
)
ALIVE = (
    200,
    202,
    301,
    302,
    303,
    307,
    308,
    401,
    403,
    405,
    429,
)  # 403 and the like: there, for people


def sources() -> list[Path]:
    pages = [*(ROOT / "book").rglob("*.md"), *(ROOT / "chapters").rglob("*.ipynb")]
    return sorted(
        [*pages, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "book/references.bib"]
    )


def text_of(path: Path) -> str:
    """What people wrote: of a notebook the sources of its cells, not the outputs."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def collect() -> list[str]:
    """Every outside address in the sources, and those that references.bib gives as DOI or arXiv id."""
    found = set()
    for path in sources():
        text = text_of(path)
        for url in URL.findall(text):
            while url.endswith((".", ",", ";", ":", "*", "]")) or url.count(")") > url.count("("):
                url = url[:-1]
            found.add(url)
        if path.suffix == ".bib":
            found |= {
                f"https://doi.org/{doi}" for doi in re.findall(r"doi\s*=\s*[{\"]([^}\"]+)", text)
            }
            arxiv = re.findall(r"eprint\s*=\s*[{\"](\d{4}\.\d{4,5})", text)
            found |= {f"https://arxiv.org/abs/{number}" for number in arxiv}
    ours = own_addresses()
    return sorted(
        u for u in found if not u.startswith(ours) and not any(p in u for p in PLACEHOLDERS)
    )


def own_addresses() -> tuple[str, str]:
    """The book's own addresses, which are placeholders until it is published."""
    sys.path.insert(0, str(Path(__file__).parent))
    from address import addresses

    return addresses()


def ask(url: str) -> str:
    """Return what is wrong with an address, or nothing."""
    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0 (link check)"})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return "" if reply.status in ALIVE else str(reply.status)
    except urllib.error.HTTPError as error:
        return "" if error.code in ALIVE else str(error.code)
    except (OSError, ValueError) as error:
        return str(error)


def main(given: list[str]) -> None:
    links = collect()
    if given != ["--check"]:
        LIST.parent.mkdir(exist_ok=True)
        LIST.write_text("\n".join(links) + "\n", encoding="utf-8")
        print(f"{len(links)} links in {LIST.relative_to(ROOT)}")
        return
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        wrong = [(url, why) for url, why in zip(links, pool.map(ask, links), strict=True) if why]
    for url, why in wrong:
        print(f"{url}: {why}")
    sys.exit(f"{len(wrong)} of {len(links)} links lead nowhere" if wrong else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
