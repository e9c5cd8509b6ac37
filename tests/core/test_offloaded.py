"""A model that accelerate offloads: its weights are on "meta" between two calls."""

import pytest
import torch
from helpers.models import build, gradients, logits, randomise
from sweep import small

from pedagogic_peft import (
    IA3,
    BitFit,
    BottleneckAdapter,
    DoRA,
    LoRA,
    PiSSA,
    PrefixTuning,
    PromptTuning,
    PTuning,
    VeRA,
    attach,
    load,
    merge,
    save,
)
from pedagogic_peft.core.sites import sites

pytestmark = pytest.mark.filterwarnings("ignore:The head")
BASES = {"llama": LoRA(), "gpt2": LoRA(target_modules=["c_attn", "wte"]), "bert": LoRA()}
REST = [IA3(), VeRA(r=4), BottleneckAdapter(placement="parallel"), PrefixTuning(2)]
REST += [PromptTuning(2), PTuning(2)]


def offloaded(name: str):
    accelerate = pytest.importorskip("accelerate")
    return accelerate.cpu_offload(build(name), execution_device=torch.device("cpu"))


@pytest.mark.parametrize(
    "name, method",
    [*BASES.items(), ("bert", BottleneckAdapter()), *[("llama", method) for method in REST]],
    ids=lambda value: str(value)[:30],
)
def test_an_adaptation_of_an_offloaded_model_is_where_the_model_computes(name, method, tmp_path):
    model, plain = offloaded(name), build(name)
    torch.manual_seed(0)
    attach(model, method)
    torch.manual_seed(0)
    attach(plain, method)
    assert not any(p.is_meta for p in model.parameters() if p.requires_grad)
    own = {key: p for key, p in plain.named_parameters() if p.requires_grad}
    randomise(plain)
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(own[key])
    assert torch.equal(logits(model, name), logits(plain, name))
    assert gradients(model, name).keys() == gradients(plain, name).keys()
    save(model, tmp_path)
    again = load(offloaded(name), tmp_path)
    assert torch.equal(logits(again, name), logits(plain, name))


@pytest.mark.parametrize(
    "method",
    [
        DoRA(),
        PiSSA(r=2),
        BitFit(),
        LoRA(modules_to_save=["classifier"]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_needs_an_offloaded_weight_is_refused_before_anything_changes(method):
    model = offloaded("bert")
    with pytest.raises(ValueError, match="is offloaded: between two calls"):
        attach(model, method)
    assert not list(sites(model)) and "_adaptations" not in vars(model)


def test_a_trial_of_an_offloaded_model_finds_what_one_of_any_finds():
    model = small.build("gemma3n_text", "writes")
    pytest.importorskip("accelerate").cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match="cannot have a soft prompt"):
        attach(model, PromptTuning(2))


def test_a_start_as_spread_as_an_offloaded_table_is_refused():
    with pytest.raises(ValueError, match="the embedding of tokens' is offloaded"):
        attach(offloaded("llama"), PromptTuning(2, init="random"))


def test_merging_into_an_offloaded_weight_is_refused():
    model = attach(offloaded("llama"), LoRA())
    before = logits(model, "llama")
    with pytest.raises(ValueError, match="is not in memory and cannot be merged into"):
        merge(model)
    assert torch.equal(logits(model, "llama"), before)


@pytest.mark.parametrize("method", [LoRA(), DoRA(), BottleneckAdapter()], ids=str)
def test_a_model_without_values_can_be_adapted_and_filled_later(method):
    plain = attach(build("bert"), method)
    randomise(plain)
    model = attach(build("bert").to("meta"), method)
    assert all(p.is_meta for p in model.parameters())
    model.to_empty(device="cpu").load_state_dict(plain.state_dict())
    for key, buffer in plain.named_buffers():  # not all of them are in the state dict
        model.get_buffer(key).copy_(buffer)
    assert torch.equal(logits(model, "bert"), logits(plain, "bert"))
