"""Build the wheel and the source archive, try them as a stranger would, and say what to upload.

python book/tools/release.py [PYTHON ...]

For each Python (a version that uv finds or fetches, or a path; default 3.11 and 3.13) a new environment gets
the wheel and what it asks for, and nothing of this checkout. There a pocket model is adapted, the stored runs
are read, and a page runs from top to bottom. The wheel is built out of the source archive.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "_build" / "dist"
PAGE = ROOT / "chapters" / "06_practice" / "shipping.ipynb"
PYTHONS = ("3.11", "3.13")
TRY = """
import sys
from pathlib import Path
import pedagogic_peft
from pedagogic_peft import LoRA, attach, load, load_base, train
from pedagogic_peft.course import field
from pedagogic_peft.course.experiments import comparison, task_adapters
from pedagogic_peft.course.experiments.store import read
from pedagogic_peft.course.pocket import tasks

assert Path(pedagogic_peft.__file__).is_relative_to(sys.prefix), pedagogic_peft.__file__
model, tokenizer = load_base("pocket-gpt")
load(load_base("pocket-gpt")[0], task_adapters.FOLDER / "summary")
data = tasks.encode(tokenizer, tasks.sentiment(64, seed=0))
losses = train(attach(model, LoRA()), data, steps=5, progress=False).column("loss")
records = len(read(comparison.RESULTS)), len(field.rows())
assert min(records) > 10 and losses[-1] < losses[0], (records, losses)
print(f"Python {sys.version.split()[0]}: {pedagogic_peft.__version__} adapts, loads and reads")
"""
RUN = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        shell.run_cell("".join(cell["source"])).raise_error()
"""


def run(*command: object, **options) -> str:
    """Run a command; stop with what it said if it fails."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(
            f"{' '.join(map(str, command))[:200]} failed:\n{(done.stdout + done.stderr)[-3000:]}"
        )
    return done.stdout


def uv(*arguments: object) -> str:
    """Run the uv of this environment."""
    return run(Path(sys.executable).with_name("uv"), "-q", *arguments)


def files_of(archive: Path) -> set[str]:
    """Return the names of the files in a wheel or, without its top folder, in a source archive."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return set(wheel.namelist())
    with tarfile.open(archive) as source:
        return {name.partition("/")[2] for name in source.getnames()}


def missing(archive: Path) -> list[str]:
    """Return the files of the package, as git knows them, that an archive lacks."""
    known = run("git", "ls-files", "pedagogic_peft", cwd=ROOT).split()
    return sorted(set(known) - files_of(archive))


def build(out: Path) -> list[Path]:
    """Build both archives from what is committed, the wheel out of the source archive; check their files."""
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:  # no file that only this checkout has
        run("git", "clone", "-q", ROOT, folder)
        uv("build", "--out-dir", out, folder)
    archives = sorted(path for path in out.iterdir() if path.suffix in (".whl", ".gz"))
    for archive in archives:
        if lacks := missing(archive):
            sys.exit(f"{archive.name} lacks {len(lacks)} files of the package: {lacks[:5]}")
    return archives


def try_out(wheel: Path, python: str, page: Path = PAGE) -> None:
    """Install the wheel in a new environment of a Python, use it there, and run a page."""
    with tempfile.TemporaryDirectory() as folder:
        here, work = Path(folder) / "venv", Path(folder) / "work"
        work.mkdir()
        uv("venv", "--seed", "--python", python, here)
        fresh = here / "bin" / "python"
        # pip and not uv: it is what readers use, and it follows the settings of the user
        run(fresh, "-m", "pip", "install", "-q", f"{wheel}[notebooks]")
        run(fresh, "-m", "pip", "check")
        clean = {"PATH": f"{here / 'bin'}:/usr/bin:/bin", "HOME": folder, "MPLBACKEND": "Agg"}
        print(run(fresh, "-W", "ignore", "-c", TRY, cwd=work, env=clean), end="", flush=True)
        run(fresh, "-W", "ignore", "-c", RUN, page, cwd=work, env=clean)
        print(f"  and {page.relative_to(ROOT)} runs from top to bottom", flush=True)


def main(pythons: list[str]) -> None:
    """Build, check, and say what to do next."""
    archives = build(DIST)
    print(uv("tool", "run", "twine", "check", *archives), end="")
    for python in pythons or PYTHONS:
        try_out(next(a for a in archives if a.suffix == ".whl"), python)
    print("\nUpload these two files, and no others:\n")
    for archive in archives:
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        print(
            f"    {archive.relative_to(ROOT)}  {archive.stat().st_size / 1e6:.1f} MB  sha256 {digest}"
        )
    print(
        "\n    uv publish _build/dist/*      (asks for a token of pypi.org)"
        "\n\nThen have the pages install it by its name:\n\n    make address INSTALL=pypi"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
