"""DoRA: its formula, its norms, Hugging Face PEFT's numbers, and its checkpoints."""

import pytest
import torch
from helpers.models import build, logits, randomise
from helpers.peft import NAMES, WITH_EMBEDDING, assert_equals_peft, our_keys, peft_model, read
from torch import nn

from pedagogic_peft import LoRA, activate, attach, load, merge, save
from pedagogic_peft.core.verbs import adaptations_of
from pedagogic_peft.methods.dora import DoRA

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what is meant here


def test_doras_forward_is_the_formula():
    model = nn.Sequential(nn.Linear(7, 5)).eval()
    W, b = model[0].weight.clone(), model[0].bias.clone()
    attach(model, DoRA(r=3, alpha=12, target_modules=["0"]))
    randomise(model)
    delta = model[0].deltas["default"]
    V = W + 4 * delta.lora_B.weight @ delta.lora_A.weight
    rows = V * (delta.lora_magnitude_vector / V.norm(dim=1))[:, None]
    x = torch.randn(4, 6, 7)
    torch.testing.assert_close(model(x), x @ rows.T + b)


@pytest.mark.parametrize("kind", ["Linear", "Conv1D", "Embedding"])
def test_row_norms_without_forming_ba_are_those_of_w_plus_sba(kind):
    from transformers.pytorch_utils import Conv1D

    base = {"Linear": nn.Linear(9, 6), "Conv1D": Conv1D(6, 9), "Embedding": nn.Embedding(9, 6)}[
        kind
    ]
    model = attach(nn.Sequential(base), DoRA(r=2, target_modules=["0"]))
    delta = model[0].deltas["default"]
    table = base.weight if kind == "Linear" else base.weight.T
    assert torch.allclose(delta.lora_magnitude_vector, table.norm(dim=1))
    randomise(model)
    update = delta.delta_weight()
    V = table + (update.T if kind == "Embedding" else update)
    torch.testing.assert_close(delta.row_norms(), V.norm(dim=1))


def test_norms_are_float32_under_autocast():
    model = attach(nn.Sequential(nn.Linear(64, 8)), DoRA(r=4, target_modules=["0"]))
    randomise(model)
    expected = model[0].deltas["default"].row_norms()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model[0].deltas["default"].row_norms(), expected)


def test_a_row_of_zeros_gives_finite_numbers():
    linear = nn.Linear(4, 3)
    nn.init.zeros_(linear.weight[1:2].data)
    x = torch.randn(2, 4)
    expected = linear(x)
    model = attach(nn.Sequential(linear), DoRA(r=2, target_modules=["0"]))
    assert torch.equal(model(x), expected)
    model(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", NAMES)
def test_doras_logits_and_gradients_equal_pefts(name):
    targets = WITH_EMBEDDING[name]
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=targets, use_dora=True)
    ours = attach(build(name), DoRA(r=4, alpha=16, target_modules=targets))
    starts = our_keys(peft.get_peft_model(build(name), config).named_parameters())
    for key, parameter in ours.named_parameters():
        if key.endswith("magnitude_vector"):
            torch.testing.assert_close(parameter, starts[key])
    assert_equals_peft(name, ours, peft_model(name, config))


@pytest.mark.parametrize("name", NAMES)
def test_a_dora_saved_by_peft_loads_with_equal_logits(name, tmp_path):
    config = peft.LoraConfig(r=4, target_modules=WITH_EMBEDDING[name], use_dora=True)
    theirs = peft_model(name, config)
    theirs.save_pretrained(tmp_path)
    ours = read(DoRA, name, tmp_path)
    torch.testing.assert_close(logits(ours, name), logits(theirs, name), rtol=1e-5, atol=1e-5)


def test_lora_refuses_a_dora_and_dora_a_lora(tmp_path):
    save(attach(build("gpt2"), DoRA()), tmp_path)
    with pytest.raises(ValueError, match="use_dora=True"):
        read(LoRA, "gpt2", tmp_path)
    save(attach(build("gpt2"), LoRA()), tmp_path)


def test_several_doras_merge_to_what_they_compute_one_after_the_other():
    model = build("bert")
    for name, method in (("a", LoRA()), ("b", DoRA()), ("c", DoRA(r=2))):
        attach(model, method, name)
        randomise(model)
    activate(model, "a", "b", "c")
    adapted = logits(model, "bert")
    torch.testing.assert_close(logits(merge(model), "bert"), adapted, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_dora_is_loaded_as_dora(tmp_path):
    save(attach(build("gpt2"), DoRA(r=2)), tmp_path)
    (method,) = adaptations_of(load(build("gpt2"), tmp_path)).methods.values()
    assert type(method) is DoRA
