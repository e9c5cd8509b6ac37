"""What LoRA's relatives promise alike: parts of a fused projection, DoRA, PiSSA, VeRA and AdaLoRA."""

import copy
import json
import pickle

import pytest
import torch
from helpers.models import build, gradients, logits, randomise
from helpers.peft import (
    read,
    read_by_peft,
)

from pedagogic_peft import IA3, LoRA, attach, merge, save, unmerge
from pedagogic_peft.methods.adalora import AdaLoRA
from pedagogic_peft.methods.dora import DoRA
from pedagogic_peft.methods.pissa import PiSSA
from pedagogic_peft.methods.vera import VeRA

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what is meant here


ALL = {
    "parts": ("gpt2", LoRA(r=2, target_modules=["c_attn"], parts=("q", "v"))),
    "dora": ("llama", DoRA(r=4, target_modules=["q_proj", "embed_tokens"])),
    "dora-conv1d": ("gpt2", DoRA(r=4, target_modules=["c_attn", "wpe"])),
    "pissa": ("llama", PiSSA(r=4)),
    "pissa-conv1d": ("gpt2", PiSSA(r=4, use_rslora=True)),
    "vera": ("llama", VeRA(r=16)),
    "vera-conv1d": ("gpt2", VeRA(r=16)),
    "adalora": ("llama", AdaLoRA(init_r=4, target_r=2)),
    "adalora-conv1d": ("gpt2", AdaLoRA(init_r=4, target_r=2)),
}


@pytest.fixture(params=ALL)
def case(request):
    return ALL[request.param]


def test_the_model_is_unchanged_at_the_start_bit_for_bit(case):
    name, method = case
    before = logits(build(name), name)
    assert torch.equal(logits(attach(build(name), method), name), before)


def test_beside_a_bfloat16_base_the_start_is_bit_for_bit_too(case):
    name, method = case
    half = build(name).bfloat16()
    before = logits(half, name)
    attach(half, method)
    assert torch.equal(logits(half, name), before)
    assert {p.dtype for p in half.parameters() if p.requires_grad} == {torch.float32}
    randomise(half)
    assert logits(half, name).dtype == torch.bfloat16
    assert all(g.isfinite().all() for g in gradients(half, name).values())


def test_the_base_stays_as_it_was_and_only_the_deltas_get_gradients(case):
    name, method = case
    before = build(name).state_dict()
    model = attach(build(name), method)
    for key, value in model.state_dict().items():
        if ".deltas." not in key:
            assert torch.equal(value, before[key.replace(".base.", ".")])
    randomise(model)
    found = gradients(model, name)
    assert set(found) == {key for key, p in model.named_parameters() if p.requires_grad}
    assert all(".deltas." in key and gradient.any() for key, gradient in found.items())


def test_merging_changes_no_output_beyond_rounding_and_unmerging_is_exact(case):
    name, method = case
    model = attach(build(name), method)
    randomise(model)
    adapted = logits(model, name)
    assert not torch.allclose(adapted, logits(build(name), name), atol=1e-2)
    torch.testing.assert_close(logits(merge(model), name), adapted, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(unmerge(model), name), adapted)


def test_copies_are_independent_of_the_original(case):
    name, method = case
    model = attach(build(name), method)
    randomise(model)
    expected = logits(model, name)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(twin, name), expected)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(1.5)
        assert torch.equal(logits(model, name), expected)
        changed = logits(twin, name)
        merge(twin)
        torch.testing.assert_close(logits(twin, name), changed, rtol=1e-3, atol=1e-3)


def test_autocast_gives_nearly_the_same_logits(case):
    name, method = case
    model = attach(build(name), method)
    randomise(model)
    expected = logits(model, name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = logits(model, name)
    assert (found - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_our_checkpoint_loads_here_and_in_peft_with_equal_logits(case, tmp_path):
    name, method = case
    model = attach(build(name), method)
    randomise(model)
    random_state = torch.get_rng_state()
    save(model, tmp_path)
    assert torch.equal(torch.get_rng_state(), random_state)  # saving does not change the run
    again = read(type(method), name, tmp_path)
    assert torch.equal(logits(again, name), logits(model, name))
    assert again.state_dict().keys() == model.state_dict().keys()
    for key, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    theirs = read_by_peft(name, tmp_path)
    torch.testing.assert_close(logits(theirs, name), logits(model, name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("key, value", [("alora_invocation_tokens", [1]), ("loftq", {"a": 1})])
def test_options_of_a_checkpoint_that_are_not_supported_are_named(case, key, value, tmp_path):
    name, method = case
    save(attach(build(name), method), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text()) | {key: value}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{key}="):
        read(type(method), name, tmp_path)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: LoRA(parts=("q", "o")), r"parts=\('q', 'o'\)"),
        (lambda: LoRA(parts=("q", "q")), r"parts=\('q', 'q'\)"),
        (lambda: LoRA(parts="qv"), "parts='qv'"),
        (lambda: DoRA(parts=("q",)), "only LoRA"),
        (lambda: PiSSA(parts=("q",)), "only LoRA"),
        (lambda: DoRA(r=0), "r=0"),
        (lambda: VeRA(r=0), "r=0"),
        (lambda: VeRA(d_initial=0), "d_initial=0"),
        (lambda: VeRA(projection_prng_key=-1), "projection_prng_key=-1"),
        (lambda: VeRA(save_projection=1), "save_projection=1"),
        (lambda: AdaLoRA(target_r=0), "target_r=0"),
        (lambda: AdaLoRA(init_r=4, target_r=5), "init_r=4"),
        (lambda: AdaLoRA(beta1=1.0), "beta1=1.0"),
        (lambda: AdaLoRA(deltaT=0), "deltaT=0"),
        (lambda: AdaLoRA(tinit=-1), "tinit=-1"),
        (lambda: AdaLoRA(orth_reg_weight=-0.1), "orth_reg_weight=-0.1"),
    ],
)
def test_impossible_hyper_parameters_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize("method", [DoRA(r=2), VeRA(r=4), IA3()], ids=lambda m: type(m).__name__)
def test_a_base_in_bfloat16_stays_so(method):
    model = attach(build("gpt2").bfloat16(), method)
    seen = {}
    for path, module in model.named_modules():
        if hasattr(module, "deltas"):
            module.register_forward_hook(
                lambda m, i, out, path=path: seen.update({path: out.dtype})
            )
    model(input_ids=torch.tensor([[3, 4, 5]]))
    assert seen and set(seen.values()) == {torch.bfloat16}
