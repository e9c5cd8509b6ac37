"""Files of others: a text of any length, a pickle, and what a killed process left unfinished."""

import os
import shutil
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import torch
from torch import Tensor

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


def tensors_of_pickle(file: Path) -> dict[str, Tensor]:
    """Return ``{name: tensor}`` of a file of `torch.save`, read by torch's ``weights_only`` loader.

    That loader calls no code that the file names.

    Raises:
        ValueError: it holds anything else, or claims to hold more than it is long.
    """
    if is_zipfile(file):
        with ZipFile(file) as entries:
            if any(entry.compress_type != ZIP_STORED for entry in entries.infolist()):
                raise ValueError("it is compressed, as torch.save never does")
    found = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(found, dict) or not all(map(_is_held, found, found.values())):
        raise ValueError("it holds something else than tensors by their names")
    return found


def _is_held(name: object, tensor: object) -> bool:
    """Tell whether this is a tensor by a name, whose numbers are all there (none counts twice)."""
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        return False
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return plain and tensor.nbytes <= tensor.untyped_storage().nbytes()


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
