"""The lessons' real data: the code that a machine with a network runs, on small files of the same form."""

import numpy as np
import pytest
import torch
import transformers

from pedagogic_peft import LoRA, attach, load_base, train
from pedagogic_peft.course.pocket import lessons, tasks, vision
from pedagogic_peft.course.pocket.lessons import picture_rates, pictures

RECIPE = "Boil the water , add salt and cook the pasta for ten minutes ."


@pytest.fixture
def texts(tmp_path):
    """A folder of documents with the columns of the real ones."""
    folder = tmp_path / "texts"
    folder.mkdir()
    long = " ".join(["word"] * 100)
    rows = ["input,text", f'"{RECIPE}","too short"', f'"{long}","{long} end"', '"",""']
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text("\n".join(rows))
    return str(folder)


@pytest.fixture
def small_vit(tmp_path):
    """A classifier of three classes for images of 16 x 16 pixels, with its image processor."""
    config = transformers.ViTConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        num_labels=3,
    )
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(
        tmp_path / "vit"
    )
    return str(tmp_path / "vit")


@pytest.fixture
def photographs(tmp_path):
    """A folder of images, one folder a class: a class is a colour."""
    from PIL import Image

    noise = np.random.default_rng(0)
    for split, n in (("train", 12), ("test", 4)):
        for i, name in enumerate(("red", "green", "blue")):
            folder = tmp_path / "photographs" / split / name
            folder.mkdir(parents=True)
            for k in range(n):
                pixels = noise.integers(0, 60, (20, 24, 3), dtype=np.uint8)
                pixels[..., i] += 150
                Image.fromarray(pixels).save(folder / f"{k}.png")
    return str(tmp_path / "photographs")


def test_every_base_has_a_lesson():
    assert lessons.lesson("pocket-gpt") is lessons.POCKET
    assert lessons.lesson("gpt2") is lessons.REAL
    for examples in (lessons.POCKET.sentiment(3, seed=1), lessons.POCKET.questions(3, seed=1)):
        assert len(examples) == 3 and isinstance(examples[0], tasks.Example)
    assert {e.answer for e in lessons.POCKET.sentiment(20, seed=1)} == set(lessons.POCKET.labels)


def test_held_out_stories_are_none_of_pretraining():
    assert lessons.POCKET.stories(3, seed=0) == tasks.held_out_stories(3)


def test_real_recipes_are_cut_and_go_round(texts):
    found = lessons.recipes(3, seed=0, source=texts)
    assert found == [RECIPE, " ".join(["word"] * 80), RECIPE]
    assert lessons.recipes(1, seed=5, source=texts) == [RECIPE]  # beyond the last: from the first


def test_real_articles_are_long_enough(texts):
    assert lessons.articles(1, seed=0, source=texts) == [" ".join(["word"] * 80)]


def test_last_words_are_the_answers(texts):
    first, second = lessons.last_words(2, seed=0, source=texts)
    assert first == tasks.Example("too", "short")
    assert second.answer == "end" and second.prompt.endswith("word")


def test_film_reviews_of_the_three_splits_are_disjoint(monkeypatch):
    asked = []
    monkeypatch.setattr(tasks, "film_reviews", lambda n, seed, split: asked.append(split))
    for split in ("train", "validation", "test"):
        lessons.REAL.sentiment(1, seed=0, split=split)
    assert asked == ["train", "validation[:50%]", "validation[50%:]"]


def test_a_classifier_of_images_is_loaded_as_one(small_vit):
    model, tokenizer = load_base(small_vit)
    assert type(model).__name__ == "ViTForImageClassification" and tokenizer is None


def test_pictures_are_shifted_before_they_are_normalised(small_vit, photographs):
    upright, inverted, rotated = (
        lessons.pictures(small_vit, domain, "test", source=photographs)
        for domain in ("upright", "inverted", "rotated")
    )
    assert len(upright) == 12 and upright[0]["pixel_values"].shape == (3, 16, 16)
    assert {e["labels"] for e in upright} == {0, 1, 2}
    for one, other in zip(upright, inverted, strict=True):
        # normalised to [-1, 1], an inverted pixel is the negative
        assert torch.allclose(one["pixel_values"], -other["pixel_values"], atol=0.02)
        assert one["labels"] == other["labels"]
    assert not torch.allclose(upright[0]["pixel_values"], rotated[0]["pixel_values"], atol=0.02)


def test_pocket_vit_gets_its_digits():
    [one, other] = (f("pocket-vit", "rotated", "test") for f in (lessons.pictures, _digits))
    assert torch.equal(one[0]["pixel_values"], other[0]["pixel_values"])


def _digits(base, domain, split):
    return vision.digits(domain, split)


def test_the_vision_lesson_runs_on_real_images(small_vit, photographs):
    model, _ = load_base(small_vit)
    examples = lessons.pictures(small_vit, "inverted", "train", source=photographs)
    attach(model, LoRA(r=4, target_modules="all-linear", modules_to_save=["classifier"]))
    train(model, examples, steps=40, batch_size=12, lr=3e-2, progress=False)
    held_out = lessons.pictures(small_vit, "inverted", "test", source=photographs)
    assert vision.accuracy(model, held_out) > 0.9


@pytest.mark.parametrize("wrong", [{"domain": "rotatd"}, {"split": "dev"}])
def test_an_unknown_domain_or_split_is_an_error_before_anything_is_fetched(wrong):
    with pytest.raises(ValueError, match="expected one of"):
        lessons.pictures("no/such-model", source="no/such-data", **wrong)


def test_pictures_are_those_to_train_on_unless_others_are_asked_for():
    assert len(pictures("pocket-vit")) == 1100


def test_rates_for_pictures_are_below_one():
    for base in ("pocket-vit", "google/vit"):
        rates = picture_rates(base)
        assert rates.keys() == {"head", "LoRA", "full"}
        assert all(0 < rate < 0.1 for rate in rates.values())
