"""PEFT's checkpoints on architectures that the other tests and the book do not use, both ways."""

import copy

import peft
import pytest
import torch
import transformers
from helpers.models import randomise

from pedagogic_peft import PrefixTuning, PromptTuning, attach, load, save

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}
WIDE = SIZES | {"intermediate_size": 64}
GROUPED = WIDE | {"num_key_value_heads": 2, "pad_token_id": 0}
MODELS = {
    "Qwen3ForCausalLM": ("Qwen3Config", GROUPED | {"head_dim": 8}),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", GROUPED | {"head_dim": 8}),
    "MistralForCausalLM": ("MistralConfig", GROUPED),
    "Phi3ForCausalLM": ("Phi3Config", GROUPED),
    "PhiForCausalLM": ("PhiConfig", WIDE),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", WIDE),
    "FalconForCausalLM": ("FalconConfig", SIZES),
    "ModernBertForSequenceClassification": ("ModernBertConfig", WIDE | {"pad_token_id": 0}),
    "DebertaV2ForSequenceClassification": ("DebertaV2Config", WIDE),
}
METHODS = {
    "lora": peft.LoraConfig(r=4, lora_alpha=7, target_modules="all-linear"),
    "dora": peft.LoraConfig(r=4, target_modules="all-linear", use_dora=True),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}
NO_CACHE = ("Falcon", "ModernBert", "Deberta")  # PEFT has no prefix for these
PAIRS = [(n, m) for n in MODELS for m in METHODS if m != "prefix" or not n.startswith(NO_CACHE)]


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_checkpoints_go_both_ways(name, method, tmp_path):
    torch.manual_seed(0)
    config, options = MODELS[name]
    base = getattr(transformers, name)(getattr(transformers, config)(**options)).eval()
    inputs = {"input_ids": torch.randint(5, 60, (2, 7))}
    theirs = peft.get_peft_model(copy.deepcopy(base), copy.deepcopy(METHODS[method]))
    randomise(theirs)
    theirs.eval().save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        expected = theirs(**inputs).logits
        ours = load(copy.deepcopy(base), tmp_path / "theirs").eval()
        torch.testing.assert_close(ours(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
        save(ours, tmp_path / "ours")
        again = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
        torch.testing.assert_close(again(**inputs).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["MistralForCausalLM", "Qwen2ForCausalLM", "Gemma3ForCausalLM"])
def test_a_prefix_is_as_far_away_in_a_sliding_window_as_in_peft(name, tmp_path):
    torch.manual_seed(0)
    config = {"Gemma3ForCausalLM": "Gemma3TextConfig"}.get(
        name, name.replace("ForCausalLM", "Config")
    )
    window = {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 0}
    options = GROUPED | window | {"eos_token_id": None}
    base = getattr(transformers, name)(getattr(transformers, config)(**options)).eval()
    inputs = {"input_ids": torch.randint(5, 60, (2, 12))}  # longer than the window
    theirs = peft.get_peft_model(copy.deepcopy(base), copy.deepcopy(METHODS["prefix"])).eval()
    theirs.save_pretrained(tmp_path)
    ours = load(copy.deepcopy(base), tmp_path).eval()
    with torch.no_grad():
        expected, few = theirs(**inputs).logits, {k: v[:, :5] for k, v in inputs.items()}
        torch.testing.assert_close(ours(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours(**few).logits, theirs(**few).logits, atol=1e-4, rtol=1e-4)
    texts = [ours.generate(**few, max_new_tokens=9, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*texts) and torch.equal(texts[0], theirs.generate(**few, max_new_tokens=9))


def test_what_reads_more_than_text_is_refused_when_attaching():
    small = {"encoder_layers": 1, "decoder_layers": 1, "vocab_size": 60, "pad_token_id": 0}
    sound = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**small))
    with pytest.raises(ValueError, match="WhisperForConditionalGeneration has no embedding"):
        attach(sound, PromptTuning(3))  # its encoder reads no tokens
    part = SIZES | {"intermediate_size": 64}
    both = transformers.CLIPModel(transformers.CLIPConfig(text_config=part, vision_config=part))
    with pytest.raises(ValueError, match="CLIPModel does not compute its attention"):
        attach(both, PrefixTuning(3))  # it has two kinds of layers
