"""`load_base` and the real data: the code that a machine with a network runs, on small files."""

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from pedagogic_peft import LoRA, attach, load_base, train
from pedagogic_peft.course.pocket import tasks


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
