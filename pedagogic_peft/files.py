"""What is left of files that a killed process was writing."""

import os
import shutil
from pathlib import Path


def remove_leftovers(*files: Path) -> None:
    """Remove what is unfinished beside these files or folders, of processes that are no more.

    It is called ``.<name>.<process>``, perhaps with more in between.
    """
    for file in files:
        for unfinished in file.parent.glob(f".{file.name.removeprefix('.')}.*"):
            process = unfinished.suffix.removeprefix(".")
            if process.isdecimal() and not _runs(int(process)):
                if unfinished.is_dir():
                    shutil.rmtree(unfinished, ignore_errors=True)
                else:
                    unfinished.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        pass
    return True
