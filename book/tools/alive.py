"""Sphinx extension: what a page loads when the reader presses "Start", in the site's `_static/alive`.

    python book/tools/alive.py FOLDER

writes it to any folder. The scripts of `book/alive` are copied as they are. The kernel is assembled; the
pocket models' weights are rounded to 16 bits, the stored adapters of page 3.2 to 8, with a scale for each
row; the grammar becomes JSON. How large the rounding is, `tests/site/test_alive.py` measures.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import wasmtime
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "book" / "alive"
BASES = ("pocket-gpt", "pocket-gpt-small", "pocket-gpt-tiny")


def rounded(tensors: dict[str, np.ndarray], kind: type) -> dict[str, np.ndarray]:
    """Matrices as whole numbers of this type, and each row's scale; vectors as they are."""
    made = {}
    for name, values in tensors.items():
        if values.ndim < 2:
            made[name] = values.astype(np.float32)
            continue
        most = np.abs(values).max(axis=1, keepdims=True)
        scale = (np.where(most > 0, most, 1) / np.iinfo(kind).max).astype(np.float32)
        made[name] = np.rint(values / scale).astype(kind)
        made[f"{name}.scale"] = scale[:, 0]
    return made


def export(folder: Path) -> None:
    """Write the scripts, the kernel and the data."""
    from pedagogic_peft.course.experiments import in_the_page, store, task_adapters
    from pedagogic_peft.course.models import pocket_folder
    from pedagogic_peft.course.pocket.stories import WORLD

    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("*.wat"), dirs_exist_ok=True)
    data = folder / "data"
    data.mkdir(exist_ok=True)
    kernel = (SOURCE / "engine" / "kernel.wat").read_text("utf-8")
    (data / "kernel.wasm").write_bytes(wasmtime.wat2wasm(kernel))
    write_json(data / "world.json", WORLD)
    records = store.read(in_the_page.RESULTS)
    write_json(data / "stored.json", {record["kind"]: record for record in records})
    for base in BASES:
        source = pocket_folder(base)
        config = json.loads((source / "config.json").read_text("utf-8"))
        vocabulary = json.loads((source / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
        write_json(data / f"{base}.json", {"config": config, "vocabulary": vocabulary})
        weights = load_file(source / "model.safetensors")
        save_file(rounded(weights, np.int16), data / f"{base}.safetensors")
    stored = Path(task_adapters.__file__).with_suffix("")
    for source in sorted(path for path in stored.iterdir() if path.is_dir()):
        target = data / source.name
        target.mkdir(exist_ok=True)
        shutil.copy(source / "adapter_config.json", target)
        tensors = load_file(source / "adapter_model.safetensors")
        save_file(rounded(tensors, np.int8), target / "adapter_model.safetensors")


def write_json(path: Path, value) -> None:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    path.write_text(text, encoding="utf-8")


def add_to_site(app, error) -> None:
    if error is None and app.builder.name in ("html", "dirhtml"):
        export(Path(app.outdir) / "_static" / "alive")


def setup(app) -> dict:
    app.connect(
        "build-finished", add_to_site, priority=950
    )  # after lighten, which reads all scripts
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    export(Path(sys.argv[1]))
