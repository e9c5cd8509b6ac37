"""What the LoRA chapter says about LoRA, each claim as a test."""

import math

import pytest
import torch
from helpers.deltas import deltas_of
from helpers.models import ARCHITECTURES, batch, build, gradients, logits, randomise
from torch import nn

from pedagogic_peft import LoRA, attach, count_parameters, detach, merge, unmerge
from pedagogic_peft.core.sites import sites
from pedagogic_peft.methods.lora import LoRAEmbedding, LoRALinear

# Claim: ΔW is zero at the start, exactly


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_delta_weight_is_zero_and_logits_are_unchanged_at_the_start(name):
    model = build(name)
    before = logits(model, name)
    attach(model, LoRA(r=4))
    for _, site in sites(model):
        assert not site.deltas["default"].delta_weight().any()
    assert torch.equal(logits(model, name), before)


def test_an_embeddings_delta_weight_is_zero_at_the_start():
    model = build("opt")
    before = logits(model, "opt")
    attach(model, LoRA(target_modules=["embed_tokens"]))
    assert torch.equal(logits(model, "opt"), before)


def test_a_is_random_within_one_over_sqrt_d_in_and_b_is_zero():
    delta = LoRALinear(400, 30, r=50, alpha=16)
    bound = 1 / math.sqrt(400)
    assert delta.lora_A.weight.abs().max() <= bound
    assert delta.lora_A.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not delta.lora_B.weight.any()


# Claim: the forward is W_0 x + b + (α / r) B A x


@pytest.mark.parametrize("use_rslora", [False, True])
def test_forward_of_a_linear_map_is_the_formula(use_rslora):
    model = nn.Sequential(nn.Linear(7, 5)).eval()
    W, b = model[0].weight.clone(), model[0].bias.clone()
    attach(model, LoRA(r=3, alpha=12, target_modules=["0"], use_rslora=use_rslora))
    randomise(model)
    delta = model[0].deltas["default"]
    A, B = delta.lora_A.weight, delta.lora_B.weight
    scale = 12 / math.sqrt(3) if use_rslora else 12 / 3
    x = torch.randn(4, 6, 7)
    expected = x @ W.T + b + scale * (x @ A.T) @ B.T
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(delta.delta_weight(), scale * B @ A)


def test_forward_of_an_embedding_is_the_formula():
    model = nn.Sequential(nn.Embedding(11, 6)).eval()
    W = model[0].weight.clone()
    attach(model, LoRA(r=3, alpha=12, target_modules=["0"]))
    randomise(model)
    delta = model[0].deltas["default"]
    table = W + 4 * (delta.lora_embedding_B @ delta.lora_embedding_A).T
    ids = torch.tensor([[0, 10, 3], [5, 5, 1]])
    torch.testing.assert_close(model(ids), table[ids])


def test_an_embeddings_padding_token_gets_no_gradient():
    delta = LoRAEmbedding(nn.Embedding(11, 6, padding_idx=3), r=2, alpha=4)
    delta(torch.tensor([3, 4]), torch.zeros(2, 6)).sum().backward()
    assert not delta.lora_embedding_A.grad[:, 3].any()
    assert delta.lora_embedding_A.grad[:, 4].any()


def test_rank_stabilised_scaling_keeps_the_update_from_shrinking_with_the_rank():
    plain = [LoRALinear(8, 8, r, alpha=16).scaling for r in (4, 64)]
    stabilised = [LoRALinear(8, 8, r, alpha=16, rslora=True).scaling for r in (4, 64)]
    assert plain == [4, 0.25]
    assert stabilised == [8, 2]


# Claim: dropout sits on the input of A, never on the base path


def test_dropout_changes_only_the_input_of_a():
    model = nn.Sequential(nn.Linear(8, 8))
    attach(model, LoRA(dropout=0.5, target_modules=["0"])).train()
    x = torch.randn(3, 8)
    assert torch.equal(model(x), model[0].base(x))  # B is zero: dropout cannot be seen
    randomise(model)
    torch.manual_seed(5)
    with_dropout = model(x)
    torch.manual_seed(5)
    dropped = nn.functional.dropout(x, 0.5)
    delta = model[0].deltas["default"]
    expected = model[0].base(x) + dropped @ delta.delta_weight().T
    torch.testing.assert_close(with_dropout, expected)
    model.eval()
    torch.testing.assert_close(model(x), model[0].base(x) + x @ delta.delta_weight().T)


def test_attaching_to_a_model_in_evaluation_mode_does_not_switch_dropout_on():
    model = attach(build("bert"), LoRA(dropout=0.9))
    randomise(model)
    assert torch.equal(logits(model, "bert"), logits(model, "bert"))


# Claim: only A and B, and what was asked for, get gradients


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_only_a_and_b_get_gradients(name):
    model = attach(build(name), LoRA(r=2))
    randomise(model)
    found = gradients(model, name)
    assert found
    assert all(key.endswith(("lora_A.weight", "lora_B.weight")) for key in found)
    assert len(found) == 2 * len(list(sites(model)))
    assert count_parameters(model).trainable == sum(g.numel() for g in found.values())


def test_modules_to_save_get_gradients_too():
    model = attach(build("bert"), LoRA(r=2, modules_to_save=["classifier"]))
    trained = {key for key in gradients(model, "bert") if "lora_" not in key}
    copy = "classifier.deltas.default.module."
    assert trained == {copy + "weight", copy + "bias"}


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama"])
def test_at_the_first_step_b_has_a_gradient_and_a_has_none(name):
    model = attach(build(name), LoRA(r=2))
    for key, gradient in gradients(model, name).items():
        assert bool(gradient.any()) == key.endswith("lora_B.weight"), key


# Claim: r (d_in + d_out) parameters per adapted map


def test_the_number_of_trained_parameters_is_r_times_d_in_plus_d_out():
    model = attach(build("gpt2"), LoRA(r=4))  # c_attn: 32 -> 96, in two layers
    assert count_parameters(model).trainable == 2 * 4 * (32 + 96)


# Claim: merging changes no output beyond rounding, and unmerging is exact


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_merging_changes_no_output_beyond_rounding_and_unmerging_is_exact(name):
    model = attach(build(name), LoRA(r=4, target_modules="all-linear"))
    before = {n: p.clone() for n, p in model.named_parameters()}
    randomise(model)
    adapted = logits(model, name)
    base = {n: p.clone() for n, p in model.named_parameters() if ".deltas." not in n}
    merge(model)
    torch.testing.assert_close(logits(model, name), adapted, rtol=1e-4, atol=1e-4)
    changed = [n for n, p in model.named_parameters() if n in base and not torch.equal(p, base[n])]
    assert len(changed) == len(list(sites(model)))
    unmerge(model)
    assert all(torch.equal(dict(model.named_parameters())[n], base[n]) for n in base)
    assert all(torch.equal(base[n], before[n]) for n in base)
    assert torch.equal(logits(model, name), adapted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_unmerging_is_exact_in_half_precision_where_subtracting_would_not_be(dtype):
    model = build("llama").to(dtype)
    attach(model, LoRA(r=4))
    randomise(model)
    linear = model.model.layers[0].self_attn.q_proj
    W = linear.weight.clone()
    delta = linear.deltas["default"].delta_weight()
    merge(model)
    assert torch.equal(linear.weight, (W.float() + delta).to(dtype))  # one rounding
    subtracted = (linear.weight.float() - delta).to(dtype)
    assert not torch.equal(subtracted, W)
    unmerge(model)
    assert torch.equal(linear.weight, W)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_beside_a_half_precision_base_a_and_b_are_float32_and_the_output_keeps_its_dtype(dtype):
    model = build("llama").to(dtype)
    attach(model, LoRA(r=4, target_modules=["q_proj", "embed_tokens"]))
    randomise(model)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model(**batch("llama")).logits.dtype == dtype
    assert {g.dtype for g in gradients(model, "llama").values()} == {torch.float32}


def test_merging_an_embedding_is_exact_too():
    model = attach(build("llama"), LoRA(target_modules=["embed_tokens"]))
    randomise(model)
    adapted = logits(model, "llama")
    torch.testing.assert_close(logits(merge(model), "llama"), adapted, rtol=1e-4, atol=1e-5)


def test_an_embedding_that_scales_its_output_is_adapted_before_the_scaling():
    class Scaled(nn.Embedding):
        embed_scale = 3.0

        def forward(self, ids):
            return super().forward(ids) * self.embed_scale

    model = attach(nn.Sequential(Scaled(9, 4)), LoRA(r=2, target_modules=["0"]))
    randomise(model)
    ids = torch.arange(9)
    adapted = model(ids)
    torch.testing.assert_close(merge(model)(ids), adapted)


def test_the_merged_model_without_wrappers_is_an_ordinary_model():
    model = build("gpt2")
    names = set(model.state_dict())
    attach(model, LoRA())
    randomise(model)
    adapted = logits(model, "gpt2")
    merge(model, unload=True)
    assert set(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(logits(model, "gpt2"), adapted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="has no adaptation"):
        detach(model)


# Claim: hyper-parameters out of range are refused, and the message names the value


@pytest.mark.parametrize(
    "arguments, value",
    [
        ({"r": 0}, "r=0"),
        ({"r": 2.5}, "r=2.5"),
        ({"r": True}, "r=True"),
        ({"alpha": 0}, "alpha=0"),
        ({"alpha": "16"}, "alpha='16'"),
        ({"alpha": math.inf}, "alpha=inf"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"dropout": -0.1}, "dropout=-0.1"),
        ({"use_rslora": 1}, "use_rslora=1"),
        ({"target_modules": 3}, "target_modules=3"),
        ({"target_modules": ["q", 3]}, r"target_modules=\['q', 3\]"),
        ({"target_modules": "q("}, r"target_modules='q\('"),
        ({"rank_pattern": ["q"]}, r"rank_pattern=\['q'\]"),
        ({"modules_to_save": "classifier"}, "modules_to_save='classifier'"),
        ({"rank_pattern": {"q": 0}}, r"rank_pattern\['q'\]=0"),
        ({"alpha_pattern": {"q": -1}}, r"alpha_pattern\['q'\]=-1"),
    ],
)
def test_impossible_hyper_parameters_are_refused(arguments, value):
    with pytest.raises((ValueError, TypeError), match=value):
        LoRA(**arguments)


def test_lora_of_a_table_knows_the_tables_scale():
    table = nn.Embedding(5, 4)
    assert LoRAEmbedding(table, 2, 4).embed_scale == 1.0
    table.embed_scale = 3.0
    assert LoRAEmbedding(table, 2, 4).embed_scale == 3.0


def test_a_rank_beyond_the_matrix_is_pointed_out():
    with pytest.warns(UserWarning, match=r"r=40 .*c_attn.*32.*rank_pattern"):
        attach(build("gpt2"), LoRA(r=40))


def test_training_and_inference_agree_on_the_batch():
    """Dropout sits on the way into A alone; in evaluation there is none."""
    model = attach(build("gpt2"), LoRA(dropout=0.5))
    randomise(model)
    assert torch.equal(logits(model, "gpt2"), logits(model, "gpt2"))
    model.train()
    assert not torch.equal(model(**batch("gpt2")).logits, model(**batch("gpt2")).logits)


def test_the_class_of_the_book_is_still_the_delta_of_a_linear_map():
    assert {type(delta) for delta in deltas_of(attach(build("gpt2"), LoRA()))} == {LoRALinear}
