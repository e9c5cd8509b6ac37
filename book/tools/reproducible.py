"""Build the site twice from the same files and compare every byte.

    make reproducible

Dates are taken from SOURCE_DATE_EPOCH, which is set to the last commit. The second build runs in another
folder and in another time zone. Exits 1 and lists the files that differ.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build(folder: Path, **environment: str) -> dict[str, bytes]:
    """Build the site of the copy in this folder; return ``{path: content}``."""
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    stamp = ROOT / ".venv" / ".installed"
    command = [
        "make",
        "-o",
        str(stamp),
        f"VENV={ROOT / '.venv'}",
        f"BIN={Path(sys.executable).parent}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(folder), **environment}
    environment.pop("MAKEFLAGS", None)
    subprocess.run(
        [*command, "book"], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL
    )
    site = folder / "_build" / "html"
    return {
        str(f.relative_to(site)): f.read_bytes() for f in sorted(site.rglob("*")) if f.is_file()
    }


def main() -> int:
    """Build twice and compare."""
    last = ["git", "log", "-1", "--format=%ct"]
    date = subprocess.run(last, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    sites = []
    for zone in ("UTC", "Asia/Tokyo"):
        with tempfile.TemporaryDirectory(prefix="book") as folder:
            sites.append(build(Path(folder), SOURCE_DATE_EPOCH=date, TZ=zone))
            print(f"built: {len(sites[-1])} files, {sum(map(len, sites[-1].values())):,} bytes")
    first, second = sites
    differ = [
        name for name in sorted(first.keys() | second.keys()) if first.get(name) != second.get(name)
    ]
    for name in differ:
        print(f"differs: {name}")
    print(f"{len(first) - len(differ)} of {len(first)} files are the same, byte for byte")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
