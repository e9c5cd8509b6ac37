"""VeRA: its formula, the pair that all maps share, and its checkpoints."""

import copy
import math
import pickle

import pytest
import torch
from helpers.deltas import deltas_of
from helpers.models import build, logits, randomise
from helpers.peft import LINEAR, NAMES, assert_equals_peft, peft_model, read, read_by_peft
from safetensors.torch import load_file
from torch import nn

from pedagogic_peft import attach, count_parameters, save
from pedagogic_peft.files.codecs import VeRACodec
from pedagogic_peft.methods.vera import Projections, VeRA

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what is meant here


def test_veras_forward_is_the_formula():
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 9)).eval()
    layers = [(layer.weight.clone(), layer.bias.clone()) for layer in model]
    attach(model, VeRA(r=3, target_modules=["0", "1"]))
    randomise(model)
    x = torch.randn(4, 7)
    h = x
    for site, (W, b) in zip(model, layers, strict=True):
        delta = site.deltas["default"]
        A, B = delta.shared.A[:, : W.shape[1]], delta.shared.B[: W.shape[0]]
        update = torch.diag(delta.vera_lambda_b) @ B @ torch.diag(delta.vera_lambda_d) @ A
        h = h @ (W + update).T + b
    torch.testing.assert_close(model(x), h)
    assert delta.shared.A.shape == (3, 7) and delta.shared.B.shape == (9, 3)


def test_vera_trains_r_plus_d_out_numbers_for_each_map():
    model = attach(build("gpt2"), VeRA(r=16))  # c_attn: 32 -> 96, in two layers
    assert count_parameters(model).trainable == 2 * (16 + 96)
    start = [p.unique().tolist() for p in deltas_of(model)[0].parameters()]
    assert start == [[pytest.approx(0.1)], [0]]


def test_the_shared_pair_is_there_once_whatever_happens_to_the_model():
    model = attach(build("llama"), VeRA(r=16))
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.double()):
        shared = {delta.shared for delta in deltas_of(twin)}
        addresses = {delta.shared.A.data_ptr() for delta in deltas_of(twin)}
        assert len(shared) == len(addresses) == 1
    assert not any("shared" in key for key in model.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_veras_logits_and_gradients_equal_pefts(name):
    config = peft.VeraConfig(r=16, target_modules=LINEAR[name], projection_prng_key=5)
    ours = attach(build(name), VeRA(r=16, target_modules=LINEAR[name], projection_prng_key=5))
    theirs = peft_model(name, config)
    shared = deltas_of(ours)[0].shared
    assert torch.equal(shared.A, theirs.base_model.vera_A["default"])
    assert torch.equal(shared.B, theirs.base_model.vera_B["default"])
    assert_equals_peft(name, ours, theirs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("save_projection", [True, False])
def test_vera_checkpoints_load_both_ways(name, save_projection, tmp_path):
    options = {"r": 16, "target_modules": LINEAR[name], "save_projection": save_projection}
    theirs = peft_model(name, peft.VeraConfig(projection_prng_key=3, **options))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = read(VeRA, name, tmp_path / "theirs")
    torch.testing.assert_close(logits(ours, name), logits(theirs, name), rtol=1e-5, atol=1e-5)
    save(ours, tmp_path / "ours")
    written = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    expected = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert written.keys() == expected.keys()
    assert ("base_model.vera_A" in written) == save_projection
    assert all(torch.equal(written[key], expected[key]) for key in written)
    again = read_by_peft(name, tmp_path / "ours")
    torch.testing.assert_close(logits(again, name), logits(theirs, name), rtol=1e-5, atol=1e-5)


def test_a_saved_projection_counts_more_than_the_seed(tmp_path):
    model = attach(build("gpt2"), VeRA(r=4))
    deltas_of(model)[0].shared.A.mul_(2)  # as if another version of torch had drawn it
    randomise(model)
    save(model, tmp_path)
    assert torch.equal(logits(read(VeRA, "gpt2", tmp_path), "gpt2"), logits(model, "gpt2"))


@pytest.mark.parametrize(
    "tensors", [{}, {"A": torch.ones(2, 9)}, {"A": torch.full((2, 3), math.nan)}]
)
def test_a_projection_that_does_not_fit_is_refused(tensors):
    with pytest.raises(ValueError, match="base_model.vera_A is"):
        VeRACodec.read_pair(Projections(2, 3, 4), tensors)


def test_vera_has_its_dropout():
    model = attach(build("gpt2"), VeRA(r=4, dropout=0.3))
    delta = model.transformer.h[0].attn.c_attn.deltas["default"]
    assert isinstance(delta.dropout, nn.Dropout) and delta.dropout.p == 0.3
    plain = attach(build("gpt2"), VeRA(r=4)).transformer.h[0].attn.c_attn.deltas["default"]
    assert not isinstance(plain.dropout, nn.Dropout)
