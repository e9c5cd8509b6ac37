"""LN tuning: its formula, which modules it finds, what may stand beside it, and its checkpoints."""

import pytest
import torch
from helpers.deltas import deltas_of
from helpers.models import build, logits, randomise
from helpers.peft import assert_equals_peft, assert_files_go_both_ways, peft_model
from torch import nn

from pedagogic_peft import BitFit, LNTuning, activate, attach, count_parameters, merge, unmerge
from pedagogic_peft.core.sites import sites

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what is meant here

TARGETS = {
    "gpt2": ["ln_1", "ln_f"],
    "llama": ["input_layernorm", "norm"],
    "bert": ["LayerNorm"],
    "t5": ["layer_norm"],
    "vit": ["layernorm_before"],
}


def test_the_forward_pass_is_the_formula():
    model = attach(nn.Sequential(nn.LayerNorm(6)), LNTuning(target_modules=["0"]))
    randomise(model)
    norm, x = deltas_of(model)[0].ln_tuning_layers, torch.randn(3, 6)
    spread = (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    expected = norm.weight * (x - x.mean(-1, keepdim=True)) / spread + norm.bias
    torch.testing.assert_close(model(x), expected)


def test_the_forward_pass_is_the_formula_without_a_mean():
    site = attach(build("llama"), LNTuning()).model.norm
    randomise(site)
    norm, x = site.deltas["default"].ln_tuning_layers, torch.randn(3, 32)
    size = (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    torch.testing.assert_close(site(x), norm.weight * x / size)


def test_all_normalisations_of_the_backbone_are_trained_and_nothing_else():
    model = attach(build("bert"), LNTuning())
    assert [path.rpartition(".")[2] for path, _ in sites(model)] == ["LayerNorm"] * 5
    assert count_parameters(model).trainable == 5 * 2 * 32


def test_the_normalisation_of_an_indexer_gets_no_gradient_and_is_left_alone():
    model = build("llama")
    model.model.layers[0].self_attn.indexer = nn.Sequential(nn.LayerNorm(32))
    paths = [path for path, _ in sites(attach(model, LNTuning()))]
    assert len(paths) == 5 and not any("indexer" in path for path in paths)


def test_what_has_statistics_of_its_own_or_no_weight_is_no_target():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.LayerNorm(4, elementwise_affine=False), nn.Tanh())
    for name in ("0", "1", "2"):
        with pytest.raises(ValueError, match="not to be adapted"):
            attach(model, LNTuning(target_modules=[name]))
    with pytest.raises(ValueError, match="Sequential has no normalisation with a weight"):
        attach(model, LNTuning())


def test_several_at_one_normalisation_add_up_in_any_order():
    model = attach(build("bert"), LNTuning(), "one")
    attach(model, BitFit(target_modules=["LayerNorm"]), "two")
    attach(model, LNTuning(), "three")
    randomise(model)
    first = logits(activate(model, "one", "two", "three"), "bert")
    again = logits(activate(model, "three", "one", "two"), "bert")
    torch.testing.assert_close(again, first, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(merge(model), "bert"), first, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(unmerge(model), "bert"), again)


@pytest.mark.parametrize("name", TARGETS)
def test_logits_gradients_and_files_equal_pefts(name, tmp_path):
    theirs = peft_model(name, peft.LNTuningConfig(target_modules=TARGETS[name]))
    ours = attach(build(name), LNTuning(target_modules=TARGETS[name]))
    assert_equals_peft(name, ours, theirs)
    assert_files_go_both_ways(name, theirs, tmp_path)


def test_a_file_of_peft_with_other_modules_is_refused(tmp_path):
    theirs = peft_model("llama", peft.LNTuningConfig(target_modules=["norm", "q_proj"]))
    with pytest.raises(ValueError, match="q_proj"):
        assert_files_go_both_ways("llama", theirs, tmp_path)
