"""Conversations as training examples, and the loss on preferences."""

import copy
import math

import pytest
import torch

from pedagogic_peft import LoRA, attach, disabled, load_base
from pedagogic_peft.course import desk, preferences
from pedagogic_peft.course.experiments import instruction_tuning as runs

TALK = [
    {"role": "user", "content": "who was at the garden ?"},
    {"role": "assistant", "content": "finn"},
    {"role": "user", "content": "where was finn ?"},
    {"role": "assistant", "content": "the garden ."},
]


def words(ids):
    return runs.base()[1].convert_ids_to_tokens(ids)


def test_the_loss_is_on_what_the_assistant_says_and_on_the_ends_of_its_turns():
    row = desk.encode(runs.base()[1], TALK)
    said = [
        token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100
    ]
    assert words(said) == ["finn", "<eos>", "the", "garden", ".", "<eos>"]
    labelled = [label for label in row["labels"] if label != -100]
    assert labelled == said


def test_no_token_of_a_prompt_alone_has_a_loss():
    assert set(desk.encode(runs.base()[1], TALK[:1])["labels"]) == {-100}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = attach(copy.deepcopy(runs.base()[0]), LoRA(r=4))
    return made


@pytest.fixture(scope="module")
def batch():
    pairs = [
        preferences.encode_pair(runs.base()[1], TALK[:1], "finn .", "nobody said"),
        preferences.encode_pair(runs.base()[1], TALK[2:3], "the garden", "a big red castle ."),
    ]
    return preferences.collate_pairs(pairs)


@torch.no_grad()
def test_log_probs_are_those_of_the_labelled_tokens_one_by_one(model, batch):
    found = preferences.log_probs(model, batch)
    for row in range(4):
        ids, labels = batch["input_ids"][row : row + 1], batch["labels"][row]
        ids = ids[:, : int(batch["attention_mask"][row].sum())]
        each = model(ids).logits[0].log_softmax(dim=-1)
        places = [t for t in range(1, ids.shape[1]) if labels[t] != -100]
        by_hand = sum(each[t - 1, ids[0, t]] for t in places)
        assert found[row] == pytest.approx(by_hand.item(), abs=1e-4)


def test_before_training_policy_and_reference_are_one(model, batch):
    with torch.no_grad():
        assert not preferences.margins(model, batch).any()
        assert preferences.dpo_loss(model, batch).item() == pytest.approx(math.log(2))


def test_the_gradient_raises_the_margin_and_does_not_reach_the_reference(batch):
    torch.manual_seed(0)
    model = attach(copy.deepcopy(runs.base()[0]), LoRA(r=4))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with torch.no_grad(), disabled(model):
        before = preferences.log_probs(model, batch)
    for _ in range(3):
        preferences.dpo_loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        assert (preferences.margins(model, batch) > 0).all()
        with disabled(model):
            assert torch.equal(preferences.log_probs(model, batch), before)


def test_the_prompt_cancels(model, batch):
    whole = dict(batch)
    whole["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        a, b = preferences.margins(model, batch), preferences.margins(model, whole)
    assert torch.allclose(a, b, atol=1e-4)


def test_the_loss_ends_at_the_end_of_a_turn_though_the_template_goes_on():
    tokenizer = load_base("smollm2-135m")[1]  # it writes a line break behind each end
    for answer in ("Yes.", "Yes, it is.", "Yes, it is open."):
        talk = [{"role": "user", "content": "Open?"}, {"role": "assistant", "content": answer}]
        row = desk.encode(tokenizer, talk)
        said = [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(said) == f"{answer}<|im_end|>"
