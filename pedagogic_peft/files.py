"""What is left of files that a killed process was writing."""

import os
from pathlib import Path


def remove_leftovers(*files: Path) -> None:
    """Remove the unfinished ``.<name>.<process>`` beside these files, of processes that are no more."""
    for file in files:
        for unfinished in file.parent.glob(f".{file.name}.*"):
            process = unfinished.suffix.removeprefix(".")
            if process.isdecimal() and not _runs(int(process)):
                unfinished.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        pass
    return True
