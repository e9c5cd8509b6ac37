"""Execute notebooks in place and store their outputs, so that only what changed shows in a diff.

    python book/tools/run_notebooks.py chapters                     # every notebook below a folder
    python book/tools/run_notebooks.py chapters/02_lora/page.ipynb  # or one

A notebook that raises is left as it was, and the command fails.
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from pedagogic_peft.files.disk import remove_leftovers

# What else the metadata may hold (the Python version, times, scroll positions) depends on the
# machine and the editor, so it is not stored.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "name": "python", "pygments_lexer": "ipython3"},
}
EDITOR_KEYS = ("collapsed", "execution", "scrolled", "trusted", "id", "outputId", "colab")


def find_notebooks(where: list[str]) -> list[Path]:
    """Return the notebooks named, and those below the folders named, in order."""
    found = []
    for path in map(Path, where):
        found += sorted(path.rglob("*.ipynb")) if path.is_dir() else [path]
    return [path for path in found if ".ipynb_checkpoints" not in path.parts]


def execute(path: Path) -> None:
    """Run one notebook from a fresh kernel, in its own folder, and write it back as a whole."""
    remove_leftovers(path)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,
    ).execute()
    tidy(notebook)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    nbformat.write(notebook, new)
    os.replace(new, path)


def tidy(notebook) -> None:
    """Drop the metadata that differs between machines and editors."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        for key in EDITOR_KEYS:
            cell.metadata.pop(key, None)


def main(where: list[str]) -> None:
    notebooks = find_notebooks(where)
    if not notebooks:
        sys.exit(f"no notebook in {where}")
    for path in notebooks:
        start = time.perf_counter()
        execute(path)
        print(f"{path}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:] or ["chapters"])
