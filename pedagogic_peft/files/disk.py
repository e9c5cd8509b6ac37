"""Files of others: a text of any length, and what a killed process left unfinished."""

import os
import shutil
from pathlib import Path

LARGEST = 2**24  # bytes of a configuration


def text_of(file: Path) -> str:
    """Return the text of a configuration, which a stranger may have made longer than any memory.

    Raises:
        ValueError: it is too long, or no text in UTF-8.
        OSError: it cannot be read.
    """
    with file.open("rb") as opened:
        content = opened.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"no configuration has more than {LARGEST:,} bytes")
    return content.decode("utf-8")


def remove_leftovers(*files: Path) -> None:
    """Remove what processes that have ended left unfinished beside these files or folders.

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
