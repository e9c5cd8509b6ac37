"""LoRA+: B gets the fast rate, everything else the slow one."""

import pytest
import torch
from helpers.deltas import deltas_of
from helpers.models import build, randomise
from helpers.texts import EXAMPLES

from pedagogic_peft import LoRA, attach, lora_plus_groups, train
from pedagogic_peft.methods.dora import DoRA
from pedagogic_peft.methods.pissa import PiSSA
from pedagogic_peft.methods.vera import VeRA

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what is meant here


@pytest.mark.parametrize("method", [LoRA(r=2), DoRA(r=2), PiSSA(r=2)])
def test_b_gets_the_fast_rate_and_everything_else_the_slow_one(method):
    head = attach(build("bert"), LoRA(r=2, modules_to_save=["classifier"]))
    for model in (attach(build("bert"), method), head):
        slow, fast = lora_plus_groups(model, lr=1e-3, ratio=8, weight_decay=0.1)
        assert (slow["lr"], fast["lr"]) == (1e-3, 8e-3)
        assert slow["weight_decay"] == fast["weight_decay"] == 0.1
        named = {key: p for key, p in model.named_parameters() if p.requires_grad}
        b = {id(p) for key, p in named.items() if key.endswith("lora_B.weight")}
        assert b == {id(p) for p in fast["params"]}
        assert {id(p) for p in named.values()} - b == {id(p) for p in slow["params"]}
        assert len(fast["params"]) + len(slow["params"]) == len(named)


def test_of_an_embedding_the_factor_that_starts_at_zero_is_fast():
    model = attach(build("llama"), LoRA(r=2, target_modules=["embed_tokens"]))
    slow, fast = lora_plus_groups(model, lr=1e-3)
    delta = deltas_of(model)[0]
    assert fast["params"][0] is delta.lora_embedding_A and not delta.lora_embedding_A.any()
    assert slow["params"][0] is delta.lora_embedding_B


def test_parts_have_fast_b_too():
    model = attach(build("gpt2"), LoRA(r=2, parts=("q", "v")))
    _, fast = lora_plus_groups(model, lr=1e-3)
    assert len(fast["params"]) == 2 * 2  # two parts in two layers


def test_the_first_step_of_adam_moves_b_ratio_times_as_far_as_a():
    model = attach(build("gpt2"), LoRA(r=2))
    randomise(model)
    delta = deltas_of(model)[0]
    before = {m: m.weight.detach().clone() for m in (delta.lora_A, delta.lora_B)}
    optimizer = torch.optim.AdamW(lora_plus_groups(model, lr=1e-3, ratio=16), eps=0)
    train(model, EXAMPLES, steps=1, warmup=0, optimizer=optimizer, progress=False)
    moved = {m: (m.weight - start).abs().median().item() for m, start in before.items()}
    assert moved[delta.lora_A] == pytest.approx(1e-3, rel=1e-2)
    assert moved[delta.lora_B] == pytest.approx(16e-3, rel=1e-2)


def test_lora_plus_needs_a_lora_and_possible_rates():
    with pytest.raises(ValueError, match="has no LoRA"):
        lora_plus_groups(attach(build("gpt2"), VeRA(r=4)), lr=1e-3)
    with pytest.raises(ValueError, match="has no LoRA"):
        lora_plus_groups(build("gpt2"), lr=1e-3)
    with pytest.raises(ValueError, match="ratio=0"):
        lora_plus_groups(attach(build("gpt2"), LoRA()), lr=1e-3, ratio=0)
