"""What a LoRA trains beside A and B: biases, and rows of the vocabulary's table."""

import peft
import pytest
import torch
from helpers.asserts import assert_as_before, snapshot
from helpers.models import build, gradients, logits, randomise
from helpers.peft import our_keys
from torch import nn
from transformers import MobileBertConfig, MobileBertForMaskedLM

from pedagogic_peft import LoRA, activate, attach, average, detach, merge, unmerge
from pedagogic_peft.methods.biases import AddedBias, TrainedBias

pytestmark = pytest.mark.filterwarnings("ignore")
TIED = {"gpt2": "transformer.wte", "t5": "shared", "opt": "model.decoder.embed_tokens"}


@pytest.mark.parametrize("name", TIED)
def test_only_the_chosen_rows_of_a_tied_table_change_and_all_its_uses_do(name):
    model, table = build(name), TIED[name]
    before, start = snapshot(model), logits(build(name), name)
    attach(model, LoRA(r=2, trainable_token_indices=[7, 3]))
    assert torch.equal(logits(model, name), start)
    found = {key for key, g in gradients(model, name).items() if "lora_" not in key and g.any()}
    assert found == {f"{table}.deltas.default.trainable_tokens_delta"}
    randomise(model)
    expected = logits(model, name)
    merge(model)
    weight = model.get_output_embeddings().weight
    assert (weight != model.get_input_embeddings().weight).sum() == 0  # tied as before
    changed = (weight - before[3][f"{table}.weight"]).any(1).nonzero().flatten()
    assert changed.tolist() == [3, 7]
    torch.testing.assert_close(logits(model, name), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(unmerge(model), name), expected)
    assert_as_before(detach(model), before)


def test_a_merged_table_stays_tied_when_the_rest_is_unloaded():
    model = attach(build("gpt2"), LoRA(r=2, trainable_token_indices=[7]))
    randomise(model)
    expected = logits(model, "gpt2")
    merge(model, unload=True)
    torch.testing.assert_close(logits(model, "gpt2"), expected, rtol=1e-4, atol=1e-4)
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize(
    "options",
    [
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"trainable_token_indices": [7, 3]},
    ],
    ids=str,
)
def test_the_gradients_are_pefts(options):
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["c_attn"], **options)
    theirs = peft.get_peft_model(build("gpt2"), config).eval()
    ours = attach(build("gpt2"), LoRA(r=2, alpha=4, **options))
    numbers = {k: p for k, p in our_keys(theirs.named_parameters()).items() if "lora_" in k}
    with torch.no_grad():
        for key, parameter in ours.named_parameters():
            if "lora_" in key:
                parameter.copy_(numbers[key.replace("parts.0.", "")])
    wanted = [g for k, g in gradients(theirs, "gpt2").items() if "lora_A" not in k]
    found = [g for k, g in gradients(ours, "gpt2").items() if "lora_A" not in k]
    assert len(found) == len(wanted)
    for one in found:  # the two libraries call them otherwise
        alike = [g for g in wanted if g.shape == one.shape]
        assert min((one - g).abs().max() for g in alike) <= 1e-4 * one.abs().max() + 1e-6


def test_rows_of_a_batch_have_tokens_and_biases_of_their_own():
    model = build("gpt2")
    for name, options in {"a": {"trainable_token_indices": [5]}, "b": {"bias": "all"}}.items():
        attach(model, LoRA(r=2, **options), name)
    randomise(model)
    ids = torch.tensor([[5, 6, 7], [5, 6, 7], [5, 6, 7]])
    with torch.no_grad():
        mixed = activate(model, rows=["a", None, "b"])(ids).logits
        for row, names in enumerate((["a"], [], ["b"])):
            alone = activate(model, *names)(ids[:1]).logits
            torch.testing.assert_close(mixed[row : row + 1], alone, rtol=1e-4, atol=1e-4)


def test_averages_have_the_mean_rows():
    model = build("gpt2")
    for name in "ab":
        randomise(attach(model, LoRA(r=2, trainable_token_indices=[5]), name))
    rows = [model.transformer.wte.deltas[name].trainable_tokens_delta for name in "ab"]
    average(model, ["a", "b"], name="c")
    for table in (model.transformer.wte, model.lm_head):
        torch.testing.assert_close(table.deltas["c"].trainable_tokens_delta, sum(rows) / 2)


class Sum(nn.Module):
    """Two maps that share a bias, and a parameter called bias that no module adds."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.bias = nn.Parameter(torch.zeros(4))
        self.words = nn.Embedding(9, 4)

    def forward(self, x):
        return self.a(x) + self.b(x) + self.bias


def shared():
    model = Sum()
    model.bias = model.b.bias = model.a.bias
    return model


@pytest.mark.parametrize(
    "model, options, words",
    [
        (Sum, {"bias": "all"}, "the bias of the model itself is not added by one module"),
        (shared, {"bias": "all"}, "a and b"),
        (Sum, {"bias": "some"}, "bias='some': expected one of none, all, lora_only"),
        (Sum, {"trainable_token_indices": [3]}, "no embedding of tokens by itself"),
        (Sum, {"trainable_token_indices": {"words": [9]}}, "9, but 'words' has 9 rows"),
        (Sum, {"trainable_token_indices": {"wrods": [1]}}, "did you mean 'words'"),
        (Sum, {"trainable_token_indices": {"a": [1]}}, "'a' is a target as well"),
        (Sum, {"trainable_token_indices": [3, 3]}, "each once"),
        (Sum, {"trainable_token_indices": []}, "a list of token ids"),
        (Sum, {"trainable_token_indices": [-1]}, "a whole number, at least 0"),
        (Sum, {"target_modules": ["words"], "lora_bias": True}, "'words' is an embedding"),
        (
            lambda: build("gpt2"),
            {"target_modules": ["c_attn"], "trainable_token_indices": {"wte": [1], "lm_head": [2]}},
            "'lm_head' has the weight of 'transformer.wte'",
        ),
        (
            lambda: build("gpt2"),
            {"target_modules": ["c_attn"], "trainable_token_indices": {"c_fc": [1]}},
            "no table of tokens",
        ),
    ],
    ids=lambda value: None if callable(value) else str(value),
)
def test_what_has_no_meaning_is_refused_before_anything_changes(model, options, words):
    model = model()
    before = snapshot(model)
    with pytest.raises(ValueError, match=words):
        attach(model, LoRA(**{"r": 2, "target_modules": ["a"], **options}))
    assert_as_before(model, before)


def test_a_bias_of_B_beside_a_map_without_one_cannot_be_merged():
    model = attach(build("llama"), LoRA(r=2, lora_bias=True))
    randomise(model)
    expected = logits(model, "llama")
    with pytest.raises(ValueError, match="adds no bias"):
        merge(model)
    assert torch.equal(logits(model, "llama"), expected)


def test_rows_of_a_table_whose_tied_head_is_read_and_not_called_are_refused():
    sizes = dict(vocab_size=60, hidden_size=32, embedding_size=16, intra_bottleneck_size=32)
    layers = dict(num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model = MobileBertForMaskedLM(MobileBertConfig(**sizes, **layers))
    before = snapshot(model)
    with pytest.raises(ValueError, match="'cls.predictions.decoder' has the weight of .* never"):
        attach(model, LoRA(target_modules=["query"], trainable_token_indices=[5]))
    assert_as_before(model, before)


def test_the_biases_leave_the_precision_of_the_base():
    x = y = torch.zeros(2, 3, dtype=torch.bfloat16)
    for delta in (AddedBias(3, 2.0), TrainedBias(nn.Linear(3, 3).bfloat16())):
        assert delta(x, y).dtype == torch.bfloat16
