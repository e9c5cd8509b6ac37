"""Execute one notebook in this Python's environment, in a folder of its own; keep every error.

python execute.py PAGE OUT FOLDER [--seconds 1800] [--emulate-gpu]

OUT is the executed notebook. Every cell runs, also after one that raised, as "Run all" does not; so one run
shows all that fails. Each cell's metadata has its "seconds".
"""

import argparse
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError

HELPERS = Path(__file__).resolve().parents[1]
EMULATE = f"""
import sys
sys.path.insert(0, {str(HELPERS)!r})
from helpers.fake_gpu import FakeGPU
FakeGPU().__enter__()
sys.path.remove({str(HELPERS)!r})
"""


class Timed(NotebookClient):
    """A client that writes into each cell how long it took."""

    async def async_execute_cell(self, cell, *args, **kwargs):
        """Execute a cell and keep its wall time in seconds."""
        begin = time.perf_counter()
        try:
            return await super().async_execute_cell(cell, *args, **kwargs)
        finally:
            cell.metadata["seconds"] = round(time.perf_counter() - begin, 2)


def main() -> None:
    """Execute a page as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, default=1800)
    parser.add_argument("--emulate-gpu", action="store_true")
    given = parser.parse_args()
    page = nbformat.read(given.page, as_version=4)
    for cell in page.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    if given.emulate_gpu:
        page.cells.insert(0, nbformat.v4.new_code_cell(EMULATE))
    given.folder.mkdir(parents=True, exist_ok=True)
    client = Timed(
        page,
        kernel_name="python3",
        timeout=given.seconds,
        allow_errors=True,
        resources={"metadata": {"path": str(given.folder)}},
    )
    try:
        client.execute()
    except (CellTimeoutError, DeadKernelError) as error:
        page.metadata["stopped"] = f"{type(error).__name__}: {error}"[:500]
    if given.emulate_gpu:
        del page.cells[0]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(page, given.out)


if __name__ == "__main__":
    main()
