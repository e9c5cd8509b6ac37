"""`load_base` and the real data: the code that a machine with a network runs, on small files."""

import sys

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from pedagogic_peft import LoRA, attach, load_base, train
from pedagogic_peft.course.pocket import tasks
from pedagogic_peft.course.pocket.lessons import REAL


@pytest.fixture
def small_gpt2(tmp_path):
    """A GPT-2 checkpoint on disk with a byte-level tokenizer and, like the real one, no pad token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<|endoftext|>", *letters])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    end = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **end).save_pretrained(tmp_path)
    config = transformers.GPT2Config(
        vocab_size=len(vocab), n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def small_sst2(tmp_path):
    """A data set on disk with SST-2's columns and splits."""
    folder = tmp_path / "sst2"
    folder.mkdir()
    rows = "sentence,label\na charming film ,1\ntoo long and dull ,0\nwarm and funny ,1\n"
    for split in ("train", "validation"):
        (folder / f"{split}.csv").write_text(rows)
    return folder


def test_checkpoint_folder_loads_in_evaluation_mode_with_a_pad_token(small_gpt2):
    model, tokenizer = load_base(str(small_gpt2))
    assert type(model).__name__ == "GPT2LMHeadModel" and not model.training
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_options_reach_transformers(small_gpt2):
    model, _ = load_base(str(small_gpt2), dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16


def test_a_bfloat16_checkpoint_is_loaded_in_float32_unless_asked(small_gpt2):
    load_base(str(small_gpt2), dtype=torch.bfloat16)[0].save_pretrained(small_gpt2)
    assert load_base(str(small_gpt2))[0].dtype == torch.float32
    assert load_base(str(small_gpt2), dtype="auto")[0].dtype == torch.bfloat16


def test_full_fine_tuning_moves_the_weights_of_a_bfloat16_checkpoint(small_gpt2, small_sst2):
    """At the lesson's rate for real models; in bfloat16 most updates would be lost in rounding."""
    data = tasks.film_reviews(3, seed=0, source=str(small_sst2))
    trained = load_base(str(small_gpt2))[0]
    for weight in trained.parameters():
        weight.data *= 20  # pretrained weights are larger than new ones
    trained.to(torch.bfloat16).save_pretrained(small_gpt2)
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        options = {} if dtype == torch.float32 else {"dtype": dtype}
        model, tokenizer = load_base(str(small_gpt2), **options)
        matrices = [p for p in model.parameters() if p.dim() == 2]
        before = [p.detach().clone() for p in matrices]
        train(model, tasks.encode(tokenizer, data), steps=3, lr=REAL.lr_full, progress=False)
        pairs = zip(matrices, before, strict=True)
        moved[dtype] = torch.cat([(p != q).flatten() for p, q in pairs]).float().mean().item()
    assert moved[torch.float32] > 3 * moved[torch.bfloat16], moved


def test_where_datasets_is_missing_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"stanfordnlp/sst2.*pip install datasets"):
        REAL.sentiment(10, 0)
    with pytest.raises(ModuleNotFoundError, match=r"pedagogic-peft\[hub\]"):
        REAL.recipes(1, 0)


def test_missing_checkpoint_is_an_error_that_names_it():
    with pytest.raises(OSError, match="no model 'pocket-gtp'; did you mean 'pocket-gpt'"):
        load_base("pocket-gtp")


def test_loading_pocket_gpt_prints_nothing(capfd):
    load_base("pocket-gpt")
    assert capfd.readouterr() == ("", "")


def test_film_reviews_have_the_form_of_the_sentiment_task(small_sst2):
    examples = tasks.film_reviews(3, seed=0, split="validation", source=str(small_sst2))
    assert tasks.Example("too long and dull all in all it was", "awful") in examples
    assert sum(e.answer == "lovely" for e in examples) == 2


def test_the_lesson_runs_on_real_data_and_another_base(small_gpt2, small_sst2):
    model, tokenizer = load_base(str(small_gpt2))
    examples = tasks.film_reviews(3, seed=0, source=str(small_sst2))
    attach(model, LoRA(r=2))
    history = train(model, tasks.encode(tokenizer, examples), steps=20, lr=1e-2, progress=False)
    assert history[-1]["loss"] < history[0]["loss"]
    assert 0 <= tasks.word_accuracy(model, tokenizer, examples) <= 1
