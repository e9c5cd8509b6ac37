"""LoHa: its formula, its rank, its dropouts, and its checkpoints."""

import pytest
import torch
from helpers.deltas import deltas_of
from helpers.models import build, randomise
from helpers.peft import assert_equals_peft, assert_files_go_both_ways, peft_model
from torch import nn

from pedagogic_peft import LoHa, attach, count_parameters, merge

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what is meant here

TARGETS = {"llama": ["q_proj", "down_proj"], "bert": ["query"], "t5": ["q", "wo"]}


def adapted(**options):
    torch.manual_seed(0)
    model = attach(nn.Sequential(nn.Linear(12, 10)), LoHa(target_modules=["0"], **options))
    randomise(model)
    return model, deltas_of(model)[0]


def test_the_forward_pass_is_the_formula():
    model, delta = adapted(r=3, alpha=6)
    W, b = model[0].base.weight, model[0].base.bias
    change = torch.zeros(10, 12)
    for i in range(10):  # entry by entry
        for j in range(12):
            one = delta.hada_w1_a[i] @ delta.hada_w1_b[:, j]
            change[i, j] = 6 / 3 * one * (delta.hada_w2_a[i] @ delta.hada_w2_b[:, j])
    x = torch.randn(4, 12)
    torch.testing.assert_close(model(x), x @ (W + change).T + b)
    expected = model(x)
    torch.testing.assert_close(merge(model, unload=True)(x), expected)


def test_rank_r_squared_for_the_numbers_of_a_lora_of_rank_2_r():
    model, delta = adapted(r=3)
    assert torch.linalg.matrix_rank(delta.delta_weight()) == 9
    assert count_parameters(model).trainable == 2 * 3 * (12 + 10)


def test_rank_dropout_leaves_out_outputs_and_module_dropout_everything():
    x, y = torch.randn(50, 12), torch.zeros(50, 10)
    delta = adapted(rank_dropout=0.5)[1]
    whole = delta.eval()(x, y)
    found = delta.train()(x, y)
    kept = found.abs().sum(0) > 0
    assert 0 < kept.sum() < 10
    torch.testing.assert_close(found[:, kept], whole[:, kept] * 10 / kept.sum())
    delta = adapted(module_dropout=0.5)[1].train()
    all_or_nothing = {delta(x, y).abs().sum().item() > 0 for _ in range(30)}
    assert all_or_nothing == {True, False}
    assert torch.isfinite(adapted(rank_dropout=0.999)[1].train()(x, y)).all()


@pytest.mark.parametrize("name", TARGETS)
def test_logits_gradients_and_files_equal_pefts(name, tmp_path):
    options = {"r": 4, "alpha": 6, "target_modules": TARGETS[name]}
    options |= {"rank_pattern": {TARGETS[name][0]: 2}, "alpha_pattern": {TARGETS[name][-1]: 3}}
    theirs = peft_model(name, peft.LoHaConfig(**options))
    assert_equals_peft(name, attach(build(name), LoHa(**options)), theirs)
    assert_files_go_both_ways(name, theirs, tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"r": 0}, "r=0"),
        ({"alpha": 0}, "alpha=0"),
        ({"rank_dropout": 1}, "rank_dropout=1"),
        ({"module_dropout": -0.1}, "module_dropout=-0.1"),
    ],
)
def test_impossible_hyper_parameters_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LoHa(**options)


def test_a_pattern_that_means_no_target_is_refused():
    with pytest.raises(ValueError, match=r"rank_pattern: \['k_proj'\]"):
        attach(build("llama"), LoHa(rank_pattern={"k_proj": 2}))
