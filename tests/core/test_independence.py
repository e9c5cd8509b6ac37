"""The exact promises of chapters 3 and 4, on architectures that the book never runs.

* Adding, training, switching and removing adaptations leaves what another one computes, and the base,
  as they were: bit for bit.
* A row's result depends neither on its neighbours nor on its padding: up to rounding.
"""

import copy

import pytest
import torch
import transformers as hf
from helpers.asserts import assert_as_before, snapshot
from helpers.methods import CASES
from helpers.models import randomise

from pedagogic_peft import LoRA, activate, attach, detach, disabled, train

VOCAB = 60
SIZES = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
DECODER = dict(**SIZES, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
TOKENS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.2)
# biases in the projections; a norm of queries and keys; embeddings that are scaled and tied, with
# soft-capped attention; norms after the sub-layers; and two encoders
MODELS = {
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**DECODER, **TOKENS)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**DECODER, **TOKENS, head_dim=8)),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**DECODER, **TOKENS, head_dim=8)),
    "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**DECODER, **TOKENS)),
    "electra": lambda: hf.ElectraForTokenClassification(
        hf.ElectraConfig(
            **SIZES, initializer_range=0.2, num_attention_heads=4, embedding_size=32, num_labels=3
        )
    ),
    "camembert": lambda: hf.CamembertForTokenClassification(
        hf.CamembertConfig(
            **SIZES, initializer_range=0.2, num_attention_heads=4, num_labels=3, pad_token_id=0
        )
    ),
}
DECODERS = ("qwen2", "qwen3", "gemma", "olmo2")
WITHOUT_BIAS = ("qwen3", "gemma", "olmo2")
PAIRS = [
    pytest.param(method, name, id=f"{method}-{name}")
    for method, case in CASES.items()
    for name in MODELS
    if not case.prepare  # a fusion of others
    if not (method == "BitFit" and name in WITHOUT_BIAS)
]
# A prefix acts inside the attention of a whole batch, and says so: test_rows.py.
WHOLE_BATCH = ("prefix tuning", "projected prefix", "LLaMA-Adapter")
on_every_pair = pytest.mark.parametrize(("method", "name"), PAIRS)
on_every_pair_of_rows = pytest.mark.parametrize(
    ("method", "name"), [pair for pair in PAIRS if pair.values[0] not in WHOLE_BATCH]
)


def build(name):
    torch.manual_seed(1)
    return MODELS[name]().eval()


def texts(n, seed, length=7):
    return torch.randint(3, VOCAB, (n, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model, ids, mask=None):
    return model(
        input_ids=ids, attention_mask=torch.ones_like(ids) if mask is None else mask
    ).logits


def with_one(name, method):
    """A model with the trained adaptation "first" of this method, and its logits."""
    torch.manual_seed(2)
    model = attach(build(name), CASES[method].method, "first")
    randomise(model)
    return model, logits(model, texts(3, seed=3))


@on_every_pair
def test_what_comes_and_goes_beside_an_adaptation_leaves_its_bits(method, name):
    ids, base = texts(3, seed=3), build(name)
    model, expected = with_one(name, method)
    assert not torch.equal(expected, logits(base, ids))
    attach(model, LoRA(r=2), "second")
    examples = [{"input_ids": row.tolist(), "labels": (row % 3).tolist()} for row in texts(4, 5)]
    train(model, examples, steps=2, batch_size=2, lr=1e-2, progress=False)
    assert not torch.equal(logits(model, ids), logits(base, ids))  # the second has learned
    assert torch.equal(logits(activate(model, "first"), ids), expected)
    assert torch.equal(logits(detach(model, "second"), ids), expected)
    with disabled(model):
        assert torch.equal(logits(model, ids), logits(base, ids))
    assert torch.equal(logits(model, ids), expected)


@on_every_pair
def test_removing_the_last_adaptation_restores_the_base(method, name):
    model = build(name)
    before, expected = snapshot(model), logits(model, texts(3, seed=3))
    attach(model, LoRA(r=2), "other")
    attach(model, CASES[method].method, "first")
    randomise(model)
    detach(detach(model, "first"), "other")
    assert_as_before(model, before)
    assert torch.equal(logits(model, texts(3, seed=3)), expected)


@on_every_pair
def test_other_texts_beside_a_row_change_nothing_in_it(method, name):
    model, expected = with_one(name, method)
    others = torch.cat([texts(3, seed=3)[:1], texts(2, seed=8)])
    found = logits(model, others)
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found[1], expected[1], atol=1e-3)


@on_every_pair_of_rows
def test_a_row_with_other_adaptations_beside_it_equals_the_row_alone(method, name):
    model, _ = with_one(name, method)
    for other in ("second", "third"):
        same_kind = copy.deepcopy(CASES[method].method) if other == "second" else LoRA(r=2)
        attach(model, same_kind, other)
        randomise(model)
    # in an encoder the prompts of a batch have one length, so all rows have one there
    prompts = method in ("prompt tuning", "P-tuning") and name not in DECODERS
    rows = ["second", "first", "first"] if prompts else ["second", None, "first", "third"]
    ids = texts(len(rows), seed=6)
    mixed = logits(activate(model, rows=rows), ids)
    for i, row in enumerate(rows):
        alone = logits(activate(model, *([row] if row else [])), ids[i : i + 1])
        torch.testing.assert_close(mixed[i : i + 1], alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(mixed[0], logits(activate(model, "first"), ids[:1])[0], atol=1e-3)


@pytest.mark.parametrize(
    "method", [m for m, case in CASES.items() if m != "BitFit" and not case.prepare]
)
@pytest.mark.parametrize("name", DECODERS)
def test_a_left_padded_row_equals_the_row_alone(method, name):
    model, _ = with_one(name, method)
    ids = texts(2, seed=7)
    padded, mask = ids.clone(), torch.ones_like(ids)
    padded[1, :3], mask[1, :3] = 0, 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        together = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits
    alone = [logits(model, ids[:1])[0], logits(model, ids[1:, 3:])[0]]
    for found, expected in zip([together[0], together[1, 3:]], alone, strict=True):
        bound = 1e-4 * max(1.0, expected.abs().max().item())  # float32, in another order
        torch.testing.assert_close(found, expected, atol=bound, rtol=1e-4)
