"""What serves the rows of a batch is made once, and made again when a number in it may be another."""

import copy

import pytest
import torch
from helpers.models import build, randomise
from torch import nn

from pedagogic_peft import LoRA, activate, attach
from pedagogic_peft.core import serving
from pedagogic_peft.core.sites import sites

ROWS = ["a", "b"]
IDS = torch.tensor([[3, 4, 5], [6, 7, 8]])


def carrying_two():
    model = build("gpt2").eval()
    for name in ROWS:
        attach(model, LoRA(r=2), name)
    randomise(model)
    return activate(model, rows=ROWS)


@pytest.fixture
def counted(monkeypatch):
    """Return a list that grows with each time that groups are made."""
    calls, make = [], serving.make_groups
    monkeypatch.setattr(serving, "make_groups", lambda *args: calls.append(1) or make(*args))
    return calls


@torch.no_grad()
def logits_of(model):
    return model(IDS).logits


def test_groups_are_made_once_after_rows_are_named(counted):
    model = carrying_two()
    first, made = logits_of(model), len(counted)
    assert made == len(list(sites(model)))
    assert torch.equal(logits_of(model), first) and len(counted) == made
    activate(model, rows=ROWS)
    assert torch.equal(logits_of(model), first) and len(counted) == 2 * made
    model(IDS)  # with gradients nothing is kept
    model(IDS)
    assert len(counted) == 4 * made


def written(weight):
    with torch.no_grad():
        weight.mul_(2)


def stepped(weight):
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=0.1).step()


@pytest.mark.parametrize("change", [written, stepped])
def test_a_changed_weight_is_seen(change):
    model = carrying_two()
    before = logits_of(model)
    change(next(iter(sites(model)))[1].deltas["b"].lora_B.weight)
    found = logits_of(model)
    assert torch.equal(found[0], before[0]) and not torch.equal(found[1], before[1])
    assert torch.equal(found, logits_of(activate(model, rows=ROWS)))


def replaced(model):
    B = next(iter(sites(model)))[1].deltas["b"].lora_B
    B.weight = nn.Parameter(2 * B.weight.detach())


def assigned(model):
    twice = {k: 2 * t if ".b.lora_B" in k else t for k, t in model.state_dict().items()}
    model.load_state_dict(twice, assign=True)


@pytest.mark.parametrize("change", [replaced, assigned])
def test_a_replaced_weight_is_seen(change):
    model = carrying_two()
    before = logits_of(model)
    change(model)
    found = logits_of(model)
    assert not torch.equal(found[1], before[1])
    assert torch.equal(found, logits_of(activate(model, rows=ROWS)))


def test_a_copy_makes_its_own():
    model = carrying_two()
    before, twin = logits_of(model), copy.deepcopy(model)
    written(next(iter(sites(twin)))[1].deltas["b"].lora_B.weight)
    assert not torch.equal(logits_of(twin), before)
    assert torch.equal(logits_of(model), before)
