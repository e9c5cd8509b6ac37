"""PEFT's checkpoints on architectures that the other tests and the book do not use, both ways."""

import copy

import peft
import pytest
import torch
import transformers
from models import randomise

from pedagogic_peft import load, save

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
