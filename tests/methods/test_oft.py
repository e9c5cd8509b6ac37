"""OFT: rotations, what they leave as it was, Neumann's series, and its checkpoints."""

import json

import pytest
import torch
from helpers.deltas import deltas_of
from helpers.models import build, logits, randomise
from helpers.peft import assert_equals_peft, assert_files_go_both_ways, peft_model
from torch import nn

from pedagogic_peft import OFT, LoRA, activate, attach, count_parameters, load, merge, save, unmerge
from pedagogic_peft.methods.oft import nearest_divisor

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what is meant here

TARGETS = {"llama": ["q_proj", "down_proj"], "bert": ["query"], "t5": ["q", "wo"]}
FORMS = {
    "series": {"oft_block_size": 8},
    "series of two": {"oft_block_size": 8, "num_cayley_neumann_terms": 2},
    "series of three": {"oft_block_size": 8, "num_cayley_neumann_terms": 3},
    "series of seven": {"oft_block_size": 8, "num_cayley_neumann_terms": 7},
    "inverse": {"oft_block_size": 8, "use_cayley_neumann": False},
    "shared": {"r": 4, "oft_block_size": 0, "block_share": True},
    "adjusted": {"oft_block_size": 7},
}
EXACT = {"oft_block_size": 4, "use_cayley_neumann": False}


def adapted(**options):
    torch.manual_seed(0)
    model = attach(nn.Sequential(nn.Linear(12, 10)), OFT(target_modules=["0"], **options))
    randomise(model)
    return model, deltas_of(model)[0]


def test_the_forward_pass_is_the_formula():
    model, delta = adapted(**EXACT)
    blocks, eye = [], torch.eye(4)
    for entries in delta.oft_R["weight"]:
        Q, rest = torch.zeros(4, 4), iter(entries)
        for i in range(4):
            for j in range(i + 1, 4):
                Q[i, j] = next(rest)
                Q[j, i] = -Q[i, j]
        blocks.append((eye - Q) @ torch.linalg.inv(eye + Q))
    R, x = torch.block_diag(*blocks), torch.randn(3, 12)
    expected = x @ (model[0].base.weight @ R.T).T + model[0].base.bias
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(merge(model, unload=True)(x), expected)
    assert count_parameters(model).trainable == 12 * 10 + 10


def test_lengths_and_angles_of_the_weights_rows_stay():
    model, delta = adapted(**EXACT)
    R = delta.rotations()
    torch.testing.assert_close(R @ R.mT, torch.eye(4).expand(3, 4, 4))
    assert torch.allclose(torch.linalg.det(R), torch.ones(3), atol=1e-5)
    W = model[0].base.weight
    products = W @ W.T
    merge(model)
    assert not torch.allclose(model[0].base.weight, W.new_zeros(()))
    torch.testing.assert_close(model[0].base.weight @ model[0].base.weight.T, products)


def test_neumanns_series_approximates_the_transpose():
    delta = adapted(**EXACT)[1]
    with torch.no_grad():
        delta.oft_R["weight"].mul_(0.1)
    away = []
    exact = delta.rotations().mT
    for terms in (2, 3, 5, 7):
        delta.terms = terms
        away.append((delta.rotations() - exact).abs().max().item())
    assert away == sorted(away, reverse=True) and away[-1] < 1e-5 < away[0]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("form", FORMS)
def test_logits_gradients_and_files_equal_pefts(name, form, tmp_path):
    options = FORMS[form] | {"target_modules": TARGETS[name]}
    theirs = peft_model(name, peft.OFTConfig(**options))
    assert_equals_peft(name, attach(build(name), OFT(**options)), theirs)
    assert_files_go_both_ways(name, theirs, tmp_path)


def test_several_are_merged_in_the_order_they_run_in():
    torch.manual_seed(0)
    model = attach(build("llama"), OFT(oft_block_size=8), "one")
    attach(model, OFT(oft_block_size=4), "two")
    attach(model, LoRA(r=2), "three")
    randomise(model)
    for names in (("one", "two", "three"), ("two", "three", "one")):
        expected = logits(activate(model, *names), "llama")
        merged = logits(merge(model), "llama")
        torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
        unmerge(model)


def test_dropout_leaves_some_blocks_where_they_are():
    delta = adapted(**EXACT, module_dropout=0.5)[1].train()
    still = {bool((R == torch.eye(4)).all()) for _ in range(20) for R in delta.rotations()}
    assert still == {True, False}
    assert not any((R == torch.eye(4)).all() for R in delta.eval().rotations())


def test_a_size_that_does_not_divide_is_replaced_with_a_warning():
    with pytest.warns(UserWarning, match="oft_block_size=5 does not divide 32.*: 4 is used"):
        attach(build("bert"), OFT(oft_block_size=5))
    assert [nearest_divisor(48, n) for n in (1, 5, 7, 10, 100)] == [1, 4, 6, 8, 48]


def test_files_from_before_the_series_changed_are_refused(tmp_path):
    save(attach(build("bert"), OFT(oft_block_size=8)), tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    for version in ("0.17.1", None):
        file.write_text(json.dumps(config | {"peft_version": version}))
        with pytest.raises(ValueError, match=f"peft_version={version!r}"):
            load(build("bert"), tmp_path)
    file.write_text(json.dumps(config | {"peft_version": "0.17.1", "use_cayley_neumann": False}))
    load(build("bert"), tmp_path)
    file.write_text(json.dumps(config | {"coft": True}))
    with pytest.raises(ValueError, match="coft=True"):
        load(build("bert"), tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"r": 4}, "r=4, oft_block_size=32"),
        ({"oft_block_size": 0}, "r=0, oft_block_size=0"),
        ({"num_cayley_neumann_terms": 1}, "num_cayley_neumann_terms=1"),
        ({"module_dropout": 1.0}, "module_dropout=1.0"),
    ],
)
def test_impossible_hyper_parameters_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OFT(**options)
