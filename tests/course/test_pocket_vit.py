"""pocket-vit and its digits: what ships is what the command makes, and it is as good as recorded."""

import json

import numpy as np
import pytest
import torch

from pedagogic_peft import load_base
from pedagogic_peft.course.models import pocket_folder
from pedagogic_peft.course.pocket import pretrain_vit, vision
from pedagogic_peft.course.pocket.pretrain import sha256

FOLDER = pocket_folder("pocket-vit")
RECORD = json.loads((FOLDER / "pretraining.json").read_text())


@pytest.fixture(scope="module")
def pocket():
    return load_base("pocket-vit")[0]


def test_checksum_of_the_weights_is_recorded():
    assert (
        sha256((FOLDER / "model.safetensors").read_bytes()) == RECORD["sha256"]["model.safetensors"]
    )


def test_it_is_as_good_as_recorded(pocket):
    for domain in vision.DOMAINS:
        found = vision.accuracy(pocket, vision.digits(domain, "test"))
        assert found == pytest.approx(RECORD["accuracy"][f"{domain}, test"], abs=0.005)
    assert RECORD["accuracy"]["upright, test"] > 0.93
    assert max(v for k, v in RECORD["accuracy"].items() if "upright" not in k) < 0.5


def test_splits_cover_every_digit_once():
    splits = [vision.digits("upright", split) for split in vision.SPLITS]
    assert [len(split) for split in splits] == [1100, 200, 497]
    images, labels = vision._all()
    shown = torch.stack([e["pixel_values"][0] for split in splits for e in split])
    assert torch.equal(shown, torch.tensor(images, dtype=torch.float32))
    assert [e["labels"] for split in splits for e in split] == labels.tolist()


def test_domains_do_what_their_names_say():
    image = np.zeros((1, 8, 8))
    image[0, 0, 7] = 1  # top right
    assert vision.rotated(image)[0, 0, 0] == 1  # top left
    assert vision.inverted(image).sum() == 63
    solid = np.zeros((1, 8, 8))
    solid[0, 2:6, 2:6] = 1
    outline = vision.outlined(solid)[0]
    assert outline[3, 3] == 0
    assert outline[2, 2] == 0.5  # a corner: two of four neighbours are ink


def test_unknown_domain_or_split_is_an_error_that_lists_them():
    with pytest.raises(ValueError, match="no 'rotatd': expected one of upright, rotated"):
        vision.digits("rotatd")
    with pytest.raises(ValueError, match="no 'dev': expected one of train, validation, test"):
        vision.digits("upright", "dev")


def test_pretraining_command_trains_and_writes_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pretrain_vit", "--out", str(tmp_path), "--steps", "2"])
    pretrain_vit.main()
    record = json.loads((tmp_path / "pretraining.json").read_text())
    assert record["parameters"] == RECORD["parameters"]
    assert (
        sha256((tmp_path / "model.safetensors").read_bytes())
        == record["sha256"]["model.safetensors"]
    )
