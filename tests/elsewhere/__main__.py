"""Execute every page and every assignment's solution elsewhere (Colab's versions, a GPU); say what differs.

python tests/elsewhere NAME [PAGE ...] [--python PYTHON] [--install] [--gpu | --emulate-gpu] [--jobs N]

`make colab` and `make gpu` call this. A page runs in a folder of its own, without the Makefile's variables,
as a reader's does. It fails where a cell raises, and nowhere else: numbers that differ are reported, in
_build/elsewhere/NAME/report.md, with every cell's time in the executed notebooks beside it.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
# What the Makefile sets, and what belongs to this environment and not to the one that is tried.
OURS = """OMP_NUM_THREADS ATEN_CPU_CAPABILITY ONEDNN_MAX_CPU_ISA MKL_CBWR OPENBLAS_CORETYPE PYTHONHASHSEED
    HF_HUB_OFFLINE TOKENIZERS_PARALLELISM IPYTHONDIR JUPYTER_CONFIG_DIR JUPYTER_DATA_DIR JUPYTER_PLATFORM_DIRS
    JUPYTER_PREFER_ENV_PATH MPLBACKEND PEDAGOGIC_PEFT_GATE PYTHONPATH VIRTUAL_ENV CHAPTERS""".split()
STUB = 'import sys, types\nsys.modules["otter"] = types.SimpleNamespace(Notebook=lambda *_, **__: None)'


@dataclass
class Result:
    """What became of a page: seconds, errors as text, and the cells whose outputs are others."""

    name: str
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def gate():
    """Return the gate's own comparison of numbers, so that a tolerance means here what it means there."""
    spec = importlib.util.spec_from_file_location("gate", ROOT / "chapters" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    os.environ.pop("PEDAGOGIC_PEFT_GATE", None)
    return module


def pages(wanted: Sequence[str]) -> list[Path]:
    """Return the pages and assignments, or those whose path holds one of the wanted words."""
    found = sorted(ROOT.glob("chapters/*/*.ipynb")) + sorted(ROOT.glob("assignments/*.ipynb"))
    return [
        p for p in found if not wanted or any(word in str(p.relative_to(ROOT)) for word in wanted)
    ]


def solution(master: Path) -> dict:
    """Return an assignment's notebook with its solution, without its tests and what fetches them."""
    notebook = json.loads(master.read_text(encoding="utf-8"))
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    kept = [c for c in code[1:] if "# BEGIN TEST CONFIG" not in "".join(c["source"])]
    stub = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    return notebook | {"cells": [stub | {"source": [STUB], "id": "stub"}, *kept]}


def text_of(cell: dict) -> str:
    """Return what a cell printed and showed as text, without figures."""
    parts = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if output["output_type"] == "stream" and output.get("name") == "stdout":
            parts.append(output["text"])
        elif "text/html" not in data and "image/png" not in data:
            parts.append(data.get("text/markdown") or data.get("text/plain") or "")
    return "".join("".join(part) for part in parts)


def compare(stored: dict, new: dict, judge) -> tuple[list[str], list[str]]:
    """Return the errors of an executed page, and its differences from the stored one."""
    errors, differences = [], []
    before = {c["id"]: c for c in stored["cells"]}
    for number, cell in enumerate(c for c in new["cells"] if c["cell_type"] == "code"):
        where = f"code cell {number} ({''.join(cell['source']).strip().splitlines()[0][:60]!r})"
        expected = {"raises-exception", "nbval-raises-exception"} & set(
            cell["metadata"].get("tags", [])
        )
        for output in cell["outputs"]:
            if output["output_type"] == "error" and not expected:
                errors.append(f"{where}: {output['ename']}: {output['evalue'][:400]}")
        old = before.get(cell["id"])
        if old is None or "nbval-ignore-output" in cell["metadata"].get("tags", []):
            continue
        if "%pip" in "".join(cell["source"]):  # what pip says, if it installs
            continue
        a, b = text_of(old), text_of(cell)
        beyond = apart(a, b, cell["metadata"].get("tolerance", {}), judge)
        if beyond:
            differences.append(f"{where}: {beyond}")
    if "stopped" in new["metadata"]:
        errors.append(new["metadata"]["stopped"])
    return errors, differences


def apart(stored: str, new: str, tolerance: dict, judge) -> str:
    """Say how two outputs differ: numbers beyond the tolerance, or the first other line."""
    pairs = judge.pairs(stored, new)
    if pairs is not None:
        return "; ".join(
            f"{a.strip()} -> {b.strip()}"
            for a, b in pairs
            if judge.distance(a, b) > judge.allowed(a, b, tolerance)
        )
    told = [line for line in new.splitlines() if line.startswith("Not as stored")]
    if told:
        return " ".join(told)
    lines = zip(stored.splitlines() + [""], new.splitlines() + [""], strict=False)
    return next(
        (f"{a.strip()[:150]!r} -> {b.strip()[:150]!r}" for a, b in lines if a != b), "more lines"
    )


def environment() -> dict[str, str]:
    """Return the environment of a reader: nothing of the Makefile's, and this checkout for the address."""
    config = (ROOT / "_config.yml").read_text(encoding="utf-8")
    address = re.search(r"^  url: (\S+)", config, re.M)[1]
    ours = {key: value for key, value in os.environ.items() if key not in OURS}
    return ours | {
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": f"url.file://{ROOT}.insteadOf",
        "GIT_CONFIG_VALUE_0": address,
        "GIT_CONFIG_KEY_1": "safe.directory",
        "GIT_CONFIG_VALUE_1": "*",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def torchao_of(python: str, env: dict[str, str]) -> str:
    """Return the image's torchao: what is there, or what the list names if a first cell took it away."""
    program = "from importlib.metadata import version; print(version('torchao'))"
    there = subprocess.run([python, "-c", program], env=env, capture_output=True, text=True).stdout
    pins = dict(
        line.split("==") for line in (HERE / "colab.txt").read_text().split() if "==" in line
    )
    return there.strip() or pins["torchao"]


def as_delivered(python: str, torchao: str, env: dict[str, str]) -> None:
    """Bring the environment back to what the image has, so that a first cell does its work."""
    pip = [python, "-m", "pip"]
    subprocess.run([*pip, "uninstall", "-q", "-y", "pedagogic-peft"], check=True, env=env)
    subprocess.run([*pip, "install", "-q", "--no-deps", f"torchao=={torchao}"], check=True, env=env)


def run(path: Path, given: argparse.Namespace, out: Path, env: dict[str, str], judge) -> Result:
    """Execute one page and compare it."""
    name = str(path.relative_to(ROOT).with_suffix(""))
    work, executed = out / "work" / name, out / f"{name}.ipynb"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    executed.unlink(missing_ok=True)
    page = path
    if path.parent.name == "assignments":
        page = work / "solution.ipynb"
        page.write_text(json.dumps(solution(path)), encoding="utf-8")
    env = env if given.install else env | {"PYTHONPATH": str(ROOT)}
    command = [given.python, str(HERE / "execute.py"), str(page), str(executed), str(work / "here")]
    if not given.install:  # the page's first cell clones nothing where the library is there
        (work / "here").mkdir()
        (work / "here" / "repository").symlink_to(ROOT)
    command += ["--emulate-gpu"] if given.emulate_gpu else []
    begin = time.perf_counter()
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    result = Result(name, time.perf_counter() - begin)
    if not executed.exists():
        result.errors.append(f"the kernel could not run: {done.stderr[-1000:]}")
        return result
    stored, new = (json.loads(p.read_text(encoding="utf-8")) for p in (page, executed))
    result.errors, result.differences = compare(stored, new, judge)
    return result


def report(results: list[Result], left: list[str], about: str) -> str:
    """Return the report in Markdown: a table, then errors and differences by page."""
    lines = [about, "", "| page | seconds | errors | cells that differ |", "|---|---|---|---|"]
    for r in results:
        lines.append(f"| {r.name} | {r.seconds:.0f} | {len(r.errors)} | {len(r.differences)} |")
    lines += [f"| {name} | not run | | |" for name in left]
    for r in results:
        if r.errors or r.differences:
            lines += ["", f"## {r.name}", ""]
            lines += [f"* **error** in {text}" for text in r.errors]
            lines += [f"* differs: {text}" for text in r.differences]
    return "\n".join(lines) + "\n"


def versions(python: str, env: dict[str, str]) -> str:
    """Say what is there: Python, torch, transformers, peft and the accelerator's name."""
    program = (
        "import platform, torch; from importlib.metadata import version;"
        "gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no accelerator';"
        "print('Python', platform.python_version(), *(f'{name} {version(name)}' for name in "
        "('torch', 'transformers', 'peft')), gpu, sep=', ')"
    )
    done = subprocess.run(
        [python, "-W", "ignore", "-c", program], env=env, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{python} has no torch, transformers or peft:\n{done.stderr[-800:]}")
    return done.stdout.strip()


def main(arguments: Sequence[str]) -> int:
    """Run the pages as the command line says; return 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="of this place: the folder of the results")
    parser.add_argument("wanted", nargs="*", metavar="PAGE", help="parts of paths; default: all")
    parser.add_argument("--python", default=sys.executable, help="the environment to try")
    parser.add_argument(
        "--install", action="store_true", help="the first cells install the library"
    )
    parser.add_argument("--gpu", action="store_true", help="an accelerator has to be there")
    parser.add_argument("--emulate-gpu", action="store_true", help="mark tensors as a GPU's")
    parser.add_argument("--jobs", type=int, default=1, help="pages at once (not with --install)")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no page after these"
    )
    given = parser.parse_intermixed_args(arguments)
    env, judge, todo = environment(), gate(), pages(given.wanted)
    if not todo:
        sys.exit(
            f"no page with {given.wanted} in its path: expected parts of chapters/... or assignments/..."
        )
    about = versions(given.python, env) + (", a GPU emulated" if given.emulate_gpu else "")
    if given.gpu and "no accelerator" in about:
        sys.exit(
            f"no accelerator for torch here ({about}); EMULATED=1 tries the pages with an emulated one"
        )
    print(about, flush=True)
    out, end = ROOT / "_build" / "elsewhere" / given.name, time.monotonic() + 60 * given.minutes
    torchao = torchao_of(given.python, env) if given.install else ""

    def one(path: Path) -> Result | None:
        if time.monotonic() > end:
            return None
        if given.install and path.parent.name != "assignments":  # each page may be a reader's first
            as_delivered(given.python, torchao, env)
        result = run(path, given, out, env, judge)
        said = f"{len(result.errors)} errors, {len(result.differences)} cells differ"
        print(
            f"{result.name}: {result.seconds:.0f} s, {said}",
            *result.errors,
            sep="\n    ",
            flush=True,
        )
        return result

    with ThreadPoolExecutor(1 if given.install else given.jobs) as pool:
        found = list(pool.map(one, todo))
    results = [r for r in found if r]
    left = [str(p.relative_to(ROOT)) for p, r in zip(todo, found, strict=True) if r is None]
    (out / "report.md").write_text(report(results, left, about), encoding="utf-8")
    failed = [r.name for r in results if r.errors]
    print(
        f"{len(results) - len(failed)} of {len(todo)} pages ran to their end; see {out / 'report.md'}"
    )
    return bool(failed or left)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
