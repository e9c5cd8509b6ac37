"""LoKr: its formula, how the sizes are split, and its checkpoints."""

import pytest
import torch
from helpers.deltas import deltas_of
from helpers.models import build, randomise
from helpers.peft import assert_equals_peft, assert_files_go_both_ways, peft_model
from torch import nn

from pedagogic_peft import LoKr, attach, count_parameters, merge
from pedagogic_peft.methods.lokr import split

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what is meant here

TARGETS = {"llama": ["q_proj", "down_proj"], "bert": ["query"], "t5": ["q", "wo"]}
FORMS = {
    "W_2 a product": {"r": 2},
    "both products": {"r": 1, "decompose_both": True},
    "both whole": {"r": 8, "decompose_factor": 4},
    "a factor that does not divide": {"r": 2, "decompose_factor": 5},
}


def adapted(**options):
    torch.manual_seed(0)
    model = attach(nn.Sequential(nn.Linear(12, 10)), LoKr(target_modules=["0"], **options))
    randomise(model)
    return model, deltas_of(model)[0]


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_the_forward_pass_is_the_formula(options):
    model, delta = adapted(**options, alpha=6)
    (a, m), (b, n) = delta.factor("lokr_w1").shape, delta.factor("lokr_w2").shape
    assert (a * b, m * n) == (10, 12)
    change = torch.zeros(10, 12)
    for i in range(10):  # entry by entry, from the definition of ⊗
        for j in range(12):
            one, two = delta.factor("lokr_w1"), delta.factor("lokr_w2")
            change[i, j] = 6 / options["r"] * one[i // b, j // n] * two[i % b, j % n]
    x = torch.randn(4, 3, 12)
    expected = x @ (model[0].base.weight + change).T + model[0].base.bias
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(merge(model, unload=True)(x), expected)


def test_what_it_trains_and_the_rank_it_reaches():
    model, delta = adapted(r=1)  # 10 = 2 * 5, 12 = 3 * 4
    assert {k: tuple(p.shape) for k, p in delta.named_parameters()} == {
        "lokr_w1": (2, 3),
        "lokr_w2_a": (5, 1),
        "lokr_w2_b": (1, 4),
    }
    assert count_parameters(model).trainable == 6 + 5 + 4
    assert torch.linalg.matrix_rank(delta.delta_weight()) == 2 * 1  # the ranks' product


def test_sizes_are_split_as_in_peft():
    from peft.tuners.lokr.layer import factorization

    for d in (1, 7, 12, 32, 48, 127, 768, 2304):
        for factor in (-1, 1, 2, 4, 5, 8, 16, 1000):
            assert split(d, factor) == factorization(d, factor), (d, factor)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("form", FORMS)
def test_logits_gradients_and_files_equal_pefts(name, form, tmp_path):
    options = FORMS[form] | {"alpha": 6, "target_modules": TARGETS[name]}
    theirs = peft_model(name, peft.LoKrConfig(**options))
    assert_equals_peft(name, attach(build(name), LoKr(**options)), theirs)
    assert_files_go_both_ways(name, theirs, tmp_path)


def test_ranks_and_alphas_of_single_modules_are_read_and_written(tmp_path):
    options = {"r": 2, "alpha": 6, "target_modules": ["q_proj", "down_proj"]}
    options |= {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"layers.0.mlp.down_proj": 3}}
    theirs = peft_model("llama", peft.LoKrConfig(**options))
    ours = assert_files_go_both_ways("llama", theirs, tmp_path)
    scalings = [delta.scaling for delta in deltas_of(ours)]
    assert scalings == [6 / 8, 3 / 2, 6 / 8, 6 / 2]


@pytest.mark.parametrize("value", [0, -2, 2.0])
def test_an_impossible_factor_is_refused(value):
    with pytest.raises(ValueError, match=f"decompose_factor={value}"):
        LoKr(decompose_factor=value)
