"""LoRA on parts of a fused projection: on queries, keys or values alone."""

import json

import pytest
import torch
from helpers.deltas import deltas_of
from helpers.models import build, gradients, logits, randomise
from helpers.peft import assert_gradients_equal, read, read_by_peft
from torch import nn

from pedagogic_peft import LoRA, attach, count_parameters, save
from pedagogic_peft.methods.lora import LoRAParts

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what is meant here


def test_each_part_changes_its_own_slice_and_the_others_stay():
    model = nn.Sequential(nn.Linear(6, 18)).eval()
    W, b = model[0].weight.clone(), model[0].bias.clone()
    attach(model, LoRA(r=2, alpha=6, target_modules=["0"], parts=["v", "q"]))
    randomise(model)
    x = torch.randn(3, 5, 6)
    expected = x @ W.T + b
    for part, start in (("q", 0), ("v", 12)):
        delta = model[0].deltas["default"].parts[part]
        update = 3 * x @ delta.lora_A.weight.T @ delta.lora_B.weight.T
        expected[..., start : start + 6] += update
    torch.testing.assert_close(model(x), expected)
    assert torch.equal(model(x)[..., 6:12], model[0].base(x)[..., 6:12])  # k


def test_parts_cost_r_times_2d_each():
    model = attach(build("gpt2"), LoRA(r=4, parts=("q", "v")))  # d = 32, two layers
    assert count_parameters(model).trainable == 2 * 2 * 4 * (32 + 32)


@pytest.mark.parametrize(
    "options",
    [
        {"parts": ("q", "v")},
        {"parts": ("k",)},
        {"parts": ("q", "k", "v"), "alpha": 7},
        {"parts": ("q", "v"), "use_rslora": True},
        {"parts": ("v", "q"), "rank_pattern": {r"h\.1\.attn\.c_attn": 3}, "alpha": 5},
        {"parts": ("q", "v"), "alpha_pattern": {"c_attn": 0.3}, "use_rslora": True},
    ],
)
def test_parts_are_saved_as_the_ordinary_lora_they_equal(options, tmp_path):
    method = LoRA(r=2, target_modules=["c_attn"], **options)
    model = attach(build("gpt2"), method)
    randomise(model)
    save(model, tmp_path)
    theirs = read_by_peft("gpt2", tmp_path)
    torch.testing.assert_close(logits(theirs, "gpt2"), logits(model, "gpt2"), rtol=1e-4, atol=1e-4)
    again = read(LoRA, "gpt2", tmp_path)
    assert again._adaptations.methods["default"] == method  # also its ranks and scalings, exactly
    assert all(isinstance(delta, LoRAParts) for delta in deltas_of(again))
    assert torch.equal(logits(again, "gpt2"), logits(model, "gpt2"))
    assert_gradients_equal(gradients(again, "gpt2"), gradients(model, "gpt2"))


def test_a_checkpoint_whose_parts_were_changed_is_refused(tmp_path):
    model = attach(build("gpt2"), LoRA(r=2, parts=("q", "v")))
    randomise(model)
    save(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for change in ({"parts": ["q", "k"]}, {"r": 4}):
        text = json.dumps(config | {"parts": config["parts"] | change})
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(
            ValueError,
            match="not made up as|of wrong shape",
        ):
            read(LoRA, "gpt2", tmp_path)


def test_a_target_without_parts_is_named_with_its_shape():
    with pytest.raises(ValueError, match=r"attn\.c_proj' \(Conv1D, 32 -> 32\)"):
        attach(build("gpt2"), LoRA(target_modules=["attn.c_proj"], parts=("q",)))
    with pytest.raises(ValueError, match=r"wte' \(Embedding, 60 -> 32\)"):
        attach(build("gpt2"), LoRA(target_modules=["wte"], parts=("q",)))


def test_an_architecture_that_mixes_its_heads_is_refused():
    import transformers as hf

    config = hf.GPTNeoXConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    with pytest.raises(ValueError, match="gpt_neox mixes q, k and v"):
        attach(hf.GPTNeoXForCausalLM(config), LoRA(parts=("q", "v")))
