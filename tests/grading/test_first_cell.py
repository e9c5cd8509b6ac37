"""A student's notebook where nothing of the course is installed: on Colab, as far as that can be had here.

A new virtual environment has what Colab has (torch, transformers, IPython ...), and neither this library
nor otter. The first cell runs as it is: its `%pip` clones this checkout (what is committed) in the place of
GitHub's address, and otter's wheel is made of the installed one, so no network is needed. What this can't
try: Colab's own versions and its pages.
"""

import http.server
import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
import threading
import zipfile
from functools import partial
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "assignments"))

import build  # noqa: E402

NAME = "lora"
OURS = ("pedagogic_peft", "__editable__", "otter")  # and their .dist-info
RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
where = {"metadata": {"path": sys.argv[2]}}
NotebookClient(notebook, timeout=300, kernel_name=sys.argv[3], resources=where).execute()
nbformat.write(notebook, sys.argv[1])
"""
# otter, and a student's code, know Colab by the class of its shell.
KERNEL = """
from ipykernel.ipkernel import IPythonKernel
from ipykernel.zmqshell import ZMQInteractiveShell
from traitlets import Any

class Shell(ZMQInteractiveShell): ...
Shell.__module__ = "google.colab._shell"

class Kernel(IPythonKernel):
    shell_class = Any(Shell)
"""


@pytest.fixture(scope="module")
def colab(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The new environment's Python, and the environment variables to start it with."""
    top = tmp_path_factory.mktemp("colab")
    shared, packages = Path(sysconfig.get_path("purelib")), top / "packages"
    packages.mkdir()
    for path in shared.iterdir():
        if path.suffix != ".pth" and not path.name.startswith(OURS):
            (packages / path.name).symlink_to(path)
    (packages / "google" / "colab").mkdir(parents=True)
    (packages / "google" / "colab" / "_kernel.py").write_text(KERNEL)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", top / "venv"], check=True)
    [own] = (top / "venv" / "lib").glob("python*/site-packages")
    (own / "colab.pth").write_text(f"{packages}\n")
    command = ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
    command += ["--IPKernelApp.kernel_class=google.colab._kernel.Kernel"]
    spec = {"argv": [str(top / "venv/bin/python"), *command], "display_name": "", "language": ""}
    (top / "jupyter" / "kernels" / "colab").mkdir(parents=True)
    (top / "jupyter" / "kernels" / "colab" / "kernel.json").write_text(json.dumps(spec))
    (top / "wheels").mkdir()
    wheel_again("otter-grader", top / "wheels")
    repository = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    return top / "venv/bin/python", {
        "PATH": os.environ["PATH"],
        "HOME": str(top),
        "JUPYTER_DATA_DIR": str(top / "jupyter"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": f"url.file://{ROOT}.insteadOf",
        "GIT_CONFIG_VALUE_0": repository,
        "GIT_CONFIG_KEY_1": "safe.directory",
        "GIT_CONFIG_VALUE_1": "*",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(top / "wheels"),
        "PIP_NO_BUILD_ISOLATION": "0",  # this turns the isolation off
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def wheel_again(name: str, where: Path) -> None:
    """Put an installed package's files together to the wheel that they came from."""
    package = importlib.metadata.distribution(name)
    stem = f"{name.replace('-', '_')}-{package.version}"
    with zipfile.ZipFile(where / f"{stem}-py3-none-any.whl", "w") as wheel:
        for file in package.files or []:
            if ".." not in file.parts and file.suffix != ".pyc":
                wheel.write(package.locate_file(file), str(file))


@pytest.fixture(scope="module")
def hand_out(tmp_path_factory):
    """The assignment as built for a web address, and the address served."""
    where = tmp_path_factory.mktemp("hand_out")
    handler = partial(Quiet, directory=where / NAME / "student")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        yield build.build(ROOT / "assignments" / f"{NAME}.ipynb", where, url, run_tests=False)
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *given):
        """Say nothing."""


def run(colab, folder: Path, where: Path, kernel: str, *more: str) -> str:
    """Run the solution without its experiment, and some cells more; return all that it printed."""
    python, environment = colab
    notebook = nbformat.read(folder / "autograder" / f"{NAME}.ipynb", as_version=4)
    notebook.cells = [
        cell
        for cell in notebook.cells
        if "experiment" not in cell.metadata.get("tags", [])
        and "try_rates" not in cell.source
        and "check_all" not in cell.source
    ] + [nbformat.v4.new_code_cell(source) for source in more]
    path = where.parent / "opened.ipynb"  # on Colab it lies on Drive, and not beside what it makes
    nbformat.write(notebook, path)
    command = [str(python), "-c", RUN, str(path), str(where), kernel]
    done = subprocess.run(
        command, cwd=where, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cells = nbformat.read(path, as_version=4).cells
    outputs = [o for cell in cells for o in cell.get("outputs", [])]
    return "\n".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs)


SAY = "import pedagogic_peft; print(get_ipython(), pedagogic_peft.__file__, otter.__file__)"
EXPORT = """
try:
    grader.export(pdf=False)
except RuntimeError as error:
    print(error)
print(sorted(path.name.split("_2")[0] for path in Path(".").iterdir() if path.suffix == ".zip"))
"""


def test_in_an_empty_folder_of_colab_the_first_cell_fetches_what_is_missing(
    colab, hand_out, tmp_path
):
    missing = "from importlib.util import find_spec as f; print(f('pedagogic_peft'), f('otter'))"
    python, environment = colab
    command = [python, "-c", missing]
    said = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert said.stdout == "None None\n", said.stderr
    (tmp_path / "content").mkdir()
    said = run(colab, hand_out, tmp_path / "content", "colab", SAY, EXPORT)
    assert said.count("passed") == 4, said
    assert "google.colab._shell.Shell" in said
    assert said.count(str(python.parents[1] / "lib")) == 2, "not what %pip installed was used"
    # Why the guide tells students to download the notebook: otter has no export there.
    assert "This method is not compatible with Google Colab" in said


def test_in_jupyter_an_unpacked_zip_file_is_enough(colab, hand_out, tmp_path):
    folder = tmp_path / "unpacked"
    with zipfile.ZipFile(hand_out / "student" / f"{NAME}.zip") as archive:
        archive.extractall(folder)
    said = run(colab, hand_out, folder, "python3", SAY, EXPORT)
    assert said.count("passed") == 4, said
    assert "ZMQInteractiveShell" in said and f"['{NAME}']" in said
