"""LoReFT: its formula, the subspace, which layers it finds, and the names of its tensors."""

import pytest
import torch
import transformers as hf
from helpers.deltas import deltas_of
from helpers.models import build, logits, randomise
from safetensors.torch import load_file
from torch import nn

from pedagogic_peft import LoRA, LoReFT, activate, attach, count_parameters, merge, save
from pedagogic_peft.core.sites import sites
from pedagogic_peft.methods.loreft import Intervention
from pedagogic_peft.testing.subject import differences, snapshot


def trained(d=8, r=3):
    torch.manual_seed(0)
    delta = Intervention(d, r)
    delta.init_from_base(nn.Identity())
    randomise(delta)
    return delta


def test_the_state_leaves_the_layer_as_the_formula_says():
    delta, h = trained(), torch.randn(2, 5, 8)
    R, W, b = delta.R(), delta.weight, delta.bias
    expected = torch.stack([v + R.T @ (W @ v + b - R @ v) for v in h.flatten(0, 1)])
    torch.testing.assert_close(delta.leave(None, h).flatten(0, 1), expected)
    moved, *rest = delta.leave(None, (h, "cache"))
    assert torch.equal(moved, delta.leave(None, h)) and rest == ["cache"]


def test_only_the_coordinates_in_the_subspace_change():
    delta, h = trained(), torch.randn(5, 8)
    R = delta.R()
    torch.testing.assert_close(R @ R.T, torch.eye(3))
    away = torch.eye(8) - R.T @ R  # the projection on what is orthogonal to the subspace
    new = delta.leave(None, h)
    torch.testing.assert_close(new @ away, h @ away)
    torch.testing.assert_close(new @ R.T, h @ delta.weight.T + delta.bias)


def test_orthonormal_columns_stay_as_they_are():
    delta = Intervention(
        8, 3
    )  # so pyreft's rotate_layer, which is orthonormal, would be read as it is
    torch.testing.assert_close(delta.R(), delta.rotate_layer.T)


@pytest.mark.parametrize(
    "name, paths",
    [
        ("gpt2", ["transformer.h.0", "transformer.h.1"]),
        ("bert", ["bert.encoder.layer.0", "bert.encoder.layer.1"]),
        ("t5", ["decoder.block.0", "decoder.block.1"]),
        ("vit", ["vit.layers.0", "vit.layers.1"]),
    ],
)
def test_it_stands_beside_every_layer(name, paths):
    model = attach(build(name), LoReFT(r=2))
    assert [path for path, _ in sites(model)] == paths
    assert count_parameters(model).trainable == 2 * (2 * 32 + 2 + 2 * 32)


def test_layers_can_be_chosen():
    model = attach(build("llama"), LoReFT(layers=[1]))
    assert [path for path, _ in sites(model)] == ["model.layers.1"]


def test_it_goes_together_with_lora():
    model = attach(build("llama"), LoReFT(r=2), "reft")
    attach(model, LoRA(r=2), "lora")
    randomise(model)
    both = logits(activate(model, "reft", "lora"), "llama")
    assert torch.equal(logits(activate(model, "lora", "reft"), "llama"), both)
    assert not torch.allclose(logits(activate(model, "lora"), "llama"), both, atol=1e-3)
    with pytest.raises(ValueError, match="Intervention is no change of a weight"):
        merge(model, "reft")


def test_rows_of_a_batch_have_interventions_of_their_own():
    model = attach(build("llama"), LoReFT(r=2), "one")
    attach(model, LoReFT(r=3), "two")
    randomise(model)
    alone = [logits(activate(model, *names), "llama") for names in (["two"], [])]
    found = logits(activate(model, rows=["two", None]), "llama")
    torch.testing.assert_close(found[0], alone[0][0])
    assert torch.equal(found[1, :6], alone[1][1, :6])
    activate(model, rows=["two", None, "one"])
    with pytest.raises(ValueError, match="A batch of 2 rows, but activate named 3"):
        logits(model, "llama")


def test_its_tensors_are_named_and_shaped_as_pyrefts(tmp_path):
    save(attach(build("llama"), LoReFT(r=2, layers=[0])), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.0."
    assert {k.removeprefix(prefix): tuple(t.shape) for k, t in tensors.items()} == {
        "weight": (2, 32),
        "bias": (2,),
        "rotate_layer": (32, 2),
    }


@pytest.mark.parametrize(
    "model, method, message",
    [
        (lambda: build("llama"), LoReFT(layers=[2]), r"layers=\(2,\): expected some of"),
        (
            lambda: build("llama"),
            LoReFT(r=33),
            "r=33: expected at most 32, the width of 'model.layers.0'",
        ),
        (
            lambda: nn.Sequential(nn.Linear(3, 3)),
            LoReFT(),
            "Sequential has no layers that LoReFT knows",
        ),
    ],
)
def test_where_it_has_no_meaning_an_error_says_so(model, method, message):
    model = model()
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        attach(model, method)
    assert list(model.state_dict()) == before


def test_a_layer_of_another_width_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"Identity returns \[2, 5\]: LoReFT expected .* width 8"):
        trained().leave(nn.Identity(), torch.randn(2, 5))


class Doubled(hf.models.llama.modeling_llama.LlamaDecoderLayer):
    """A layer that passes on two states side by side, as hyper-connections do (Qwen4-exp)."""

    def forward(self, hidden_states, *args, **kwargs):
        h = hidden_states[..., : self.hidden_size]
        return super().forward(h, *args, **kwargs).repeat(1, 1, 2)


def test_a_model_whose_layers_pass_on_more_than_one_state_is_refused_when_it_is_attached():
    model = build("llama")
    for layer in model.model.layers:
        layer.__class__ = Doubled
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"Doubled returns \[3, 5, 64\]: .* states of width 32"):
        attach(model, LoReFT())
    assert not differences(before, snapshot(model))


class Stacked(Doubled):
    """A layer whose states stand before the rows of the batch, as in Gemma 3n."""

    def forward(self, hidden_states, *args, **kwargs):
        return super().forward(hidden_states, *args, **kwargs)[..., :32].expand(4, -1, -1, -1)


def test_rows_that_are_not_the_first_dimension_are_refused():
    model = build("llama")
    model.model.layers[1].__class__ = Stacked
    with pytest.raises(ValueError, match=r"Stacked returns \[4, 3, 5, 32\]: several states before"):
        attach(model, LoReFT())


def test_gradients_reach_everything_once_it_has_moved():
    delta = deltas_of(attach(build("bert"), LoReFT(r=2)))[0]
    h = torch.randn(4, 32)
    delta.leave(None, h).square().sum().backward()
    assert delta.weight.grad.any() and delta.bias.grad.any()  # at the start these two alone
    randomise(delta)
    delta.zero_grad()
    delta.leave(None, h).square().sum().backward()
    assert all(p.grad.abs().max() > 1e-3 for p in delta.parameters())
