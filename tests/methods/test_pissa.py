"""PiSSA: where it starts, how it trains, and what a checkpoint of it holds."""

import pytest
import torch
from helpers.deltas import deltas_of
from helpers.models import build, gradients, logits, randomise
from helpers.peft import LINEAR, NAMES, our_keys, read
from torch import nn

from pedagogic_peft import LoRA, attach, save
from pedagogic_peft.methods.pissa import PiSSA

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what is meant here


def test_pissa_starts_at_the_principal_components():
    model = attach(nn.Sequential(nn.Linear(9, 6)), PiSSA(r=2, alpha=6, target_modules=["0"]))
    delta, W = model[0].deltas["default"], model[0].base.weight
    principal = delta.scaling * delta.lora_B.weight @ delta.lora_A.weight
    U, S, Vh = torch.linalg.svd(W)
    torch.testing.assert_close(principal, S[0] * U[:, :1] @ Vh[:1] + S[1] * U[:, 1:2] @ Vh[1:2])
    assert not delta.delta_weight().any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_pissa_trains_as_pefts_which_changes_the_base(name, use_rslora):
    options = {"r": 4, "target_modules": LINEAR[name], "use_rslora": use_rslora}
    config = peft.LoraConfig(lora_alpha=8, init_lora_weights="pissa", **options)
    theirs = peft.get_peft_model(build(name), config).eval()
    ours = attach(build(name), PiSSA(alpha=8, **options))
    for model in (ours, theirs):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
        for _ in range(2):
            gradients(model, name)
            optimizer.step()
    torch.testing.assert_close(logits(ours, name), logits(theirs, name), rtol=1e-3, atol=1e-4)
    assert_gradients_close(gradients(ours, name), our_keys(gradients(theirs, name).items()))
    assert not torch.allclose(logits(ours, name), logits(build(name), name), atol=1e-3)


def assert_gradients_close(found, expected):
    for key, gradient in found.items():
        scale = expected[key].abs().max().item()
        torch.testing.assert_close(gradient, expected[key], rtol=1e-2, atol=1e-3 * scale)


def test_a_loaded_pissa_goes_on_training_as_if_it_had_not_been_saved(tmp_path):
    method = PiSSA(r=3, alpha=5, use_rslora=True, rank_pattern={"value": 2}, target_modules=None)
    model = attach(build("bert"), method)
    randomise(model)
    save(model, tmp_path)
    again = read(PiSSA, "bert", tmp_path)
    assert again._adaptations.methods["default"].alpha == 5
    found, expected = gradients(again, "bert"), gradients(model, "bert")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_pissas_dropout_acts_on_the_change_only():
    model = attach(build("bert"), PiSSA(r=4, dropout=0.5))
    start = logits(model, "bert")
    for delta in deltas_of(model):
        delta.train()
    assert torch.equal(logits(model, "bert"), start)
    randomise(model)
    assert not torch.equal(logits(model, "bert"), logits(model, "bert"))


def test_pissa_refuses_what_has_no_r_components_or_is_no_linear_map(tmp_path):
    with pytest.raises(ValueError, match=r"c_attn' \(Conv1D, 32 -> 96\): PiSSA with r=40"):
        attach(build("gpt2"), PiSSA(r=40))
    with pytest.raises(ValueError, match=r"wte' \(Embedding, 60 -> 32\)"):
        attach(build("gpt2"), PiSSA(target_modules=["wte"]))
    save(attach(build("gpt2"), PiSSA()), tmp_path)
    with pytest.raises(ValueError, match="pissa="):
        read(LoRA, "gpt2", tmp_path)
