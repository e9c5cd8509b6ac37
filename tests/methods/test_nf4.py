"""What the 4-bit base promises, each claim as a test."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers.models import ARCHITECTURES, batch, build, gradients, logits, randomise
from torch import nn

from pedagogic_peft import LoRA, attach, count_parameters, detach, load, merge, save
from pedagogic_peft.core.counting import model_bytes
from pedagogic_peft.core.sites import sites
from pedagogic_peft.methods.nf4 import (
    NF4Linear,
    dequantize_nf4,
    nf4_code,
    quantise,
    quantise_absmax,
    quantize_nf4,
)

pytestmark = pytest.mark.filterwarnings("ignore:The head")


def quantised(name="gpt2", **options):
    return quantize_nf4(build(name), **options)


def linear_maps(model):
    return {p: m for p, m in model.named_modules() if isinstance(m, NF4Linear)}


def rms(tensor):
    return tensor.pow(2).mean().sqrt().item()


# Claim: the 16 values are quantiles of the normal distribution, with an exact zero


def test_the_codes_are_those_of_the_paper():
    code = nf4_code()
    assert len(code) == 16 and torch.equal(code, code.sort().values)
    assert {-1.0, 0.0, 1.0} < set(code.tolist())
    assert (code < 0).sum() == 7 and (code > 0).sum() == 8
    published = torch.tensor(  # appendix E
        [
            *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
            *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
            *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
            *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
        ]
    )
    torch.testing.assert_close(code, published, rtol=0, atol=2e-7)


def test_each_entry_becomes_the_nearest_of_the_16_values():
    weight = torch.randn(12, 50)
    linear = nn.Linear(50, 12)
    linear.weight.data = weight
    found = NF4Linear(linear, block_size=20, double_quant=False).weight
    blocks = weight.view(-1, 20)
    absmax = blocks.abs().amax(1, keepdim=True)
    options = (absmax * nf4_code())[:, None]  # (blocks, 1, 16)
    nearest = (options - blocks[..., None]).abs().amin(2)
    torch.testing.assert_close((found.view(-1, 20) - blocks).abs(), nearest, atol=1e-6, rtol=0)


def test_a_weight_on_the_grid_comes_back_exactly():
    linear = nn.Linear(128, 16)
    index = torch.randint(16, (32, 64))
    index[:, 0] = 15  # every block holds its absmax
    linear.weight.data = (nf4_code()[index] * torch.rand(32, 1)).view(16, 128)
    assert torch.equal(NF4Linear(linear, double_quant=False).weight, linear.weight)


def test_zeros_stay_zeros():
    linear = nn.Linear(128, 4)
    linear.weight.data[:2] = 0
    found = NF4Linear(linear).weight
    assert not found[:2].any() and found[2:].any()


def test_on_a_normal_weight_the_error_is_smaller_than_that_of_an_even_4_bit_grid():
    linear = nn.Linear(512, 512)
    nn.init.normal_(linear.weight)
    error = rms(NF4Linear(linear, double_quant=False).weight - linear.weight)
    blocks = linear.weight.detach().view(-1, 64)
    step = blocks.abs().amax(1, keepdim=True) / 7
    even = rms((blocks / step).round() * step - blocks)  # -7 to 7, the integers of 4 bits
    assert error < 0.9 * even
    both = rms(NF4Linear(linear, double_quant=True).weight - linear.weight)
    assert both == pytest.approx(error, rel=0.01)  # the second quantisation costs next to nothing


def test_even_steps_fit_the_absmax_better_than_8_bit_floats():
    absmax = torch.randn(4096, 64).abs().amax(1)
    whole, scale, mean = quantise_absmax(absmax)
    ours = rms(whole * scale.repeat_interleave(256) + mean - absmax)
    blocks = (absmax - absmax.mean()).view(-1, 256)
    step = blocks.abs().amax(1, keepdim=True) / 448  # the greatest number of this 8-bit float
    theirs = rms((blocks / step).to(torch.float8_e4m3fn).float() * step - blocks)
    assert ours < theirs / 2


# Claim: a weight takes 4.127 bits, or 4.5 without double quantisation


@pytest.mark.parametrize("double_quant, bits", [(True, 4 + 8 / 64 + 32 / (64 * 256)), (False, 4.5)])
def test_memory_is_as_the_formula_says(double_quant, bits):
    linear = NF4Linear(nn.Linear(512, 256, bias=False), double_quant=double_quant)
    mean = 4 if double_quant else 0  # bytes of the one mean
    assert model_bytes(linear) == 512 * 256 * bits / 8 + mean
    assert count_parameters(linear).total == 512 * 256


@pytest.mark.parametrize("shape", [(7, 5), (3, 43), (65, 1), (1, 1), (129, 130)])
@pytest.mark.parametrize("block_size", [2, 64, 100])
def test_sizes_that_blocks_do_not_divide(shape, block_size):
    linear = nn.Linear(shape[1], shape[0])
    found = NF4Linear(linear, block_size)
    codes, absmax = quantise(linear.weight, block_size)
    assert found.weight.shape == shape
    assert 2 * codes.numel() == len(absmax) * block_size
    assert 0 <= 2 * codes.numel() - linear.weight.numel() < block_size
    # Half the widest gap between two of the values, and a little for the absmax.
    assert (found.weight - linear.weight).abs().max() < 0.2 * linear.weight.abs().max()


def test_the_models_memory_shrinks_by_what_its_linear_maps_save():
    before, model = model_bytes(build("llama")), quantised("llama")
    saved = sum(4 * m.weight.numel() - model_bytes(m) for m in linear_maps(model).values())
    assert model_bytes(model) == before - saved < before
    assert count_parameters(model).total == count_parameters(build("llama")).total


# Claim: a quantised map computes what a linear map with the dequantised weight computes


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bert"])
def test_logits_and_gradients_are_those_of_the_dequantised_model(name):
    model, plain = quantised(name), dequantize_nf4(quantised(name))
    assert linear_maps(model) and not linear_maps(plain)
    assert not torch.allclose(logits(plain, name), logits(build(name), name), atol=1e-3)
    torch.testing.assert_close(logits(model, name), logits(plain, name), rtol=1e-4, atol=1e-5)
    expected = gradients(plain, name)
    for key, gradient in gradients(model, name).items():  # biases, embeddings, normalisations
        scale = expected[key].abs().max().item()
        torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-5 * scale)


def test_the_gradient_of_the_input_is_that_of_a_linear_map():
    linear = NF4Linear(nn.Linear(30, 20))
    x, gradient = torch.randn(2, 5, 30, requires_grad=True), torch.randn(2, 5, 20)
    found = torch.autograd.grad(linear(x), x, gradient)[0]
    expected = torch.autograd.grad(F.linear(x, linear.weight, linear.bias), x, gradient)[0]
    assert torch.equal(found, expected)


def test_no_dequantised_weight_is_kept_for_the_backward_pass():
    linear = NF4Linear(nn.Linear(256, 256))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()), lambda t: t):
        linear(torch.randn(1, 256, requires_grad=True))
    assert sum(kept) < 256 * 256


def test_gpt2s_maps_keep_their_orientation():
    model = build("gpt2")
    c_attn = model.transformer.h[0].attn.c_attn
    quantize_nf4(model)
    found = model.transformer.h[0].attn.c_attn
    assert (found.in_features, found.out_features) == (32, 96) == found.weight.T.shape
    assert rms(found.weight - c_attn.weight.T) < 0.15 * rms(c_attn.weight)
    back = dequantize_nf4(model).transformer.h[0].attn.c_attn
    assert type(back) is type(c_attn)
    assert back.weight.shape == c_attn.weight.shape
    assert model.state_dict().keys() == build("gpt2").state_dict().keys()


# Claim: all linear maps but the head are quantised, and nothing else changes


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_linear_maps_of_the_backbone_are_quantised(name):
    reference = attach(build(name), LoRA(target_modules="all-linear"))
    model = quantised(name)
    assert set(linear_maps(model)) == {path for path, _ in sites(reference)}
    before = build(name).state_dict()
    rest = {key: tensor for key, tensor in model.state_dict().items() if key in before}
    assert rest and all(torch.equal(tensor, before[key]) for key, tensor in rest.items())


def test_targets_can_be_named():
    assert {p.rpartition(".")[2] for p in linear_maps(quantised(target_modules=["c_fc"]))} == {
        "c_fc"
    }


@pytest.mark.parametrize(
    "options, words",
    [
        ({"target_modules": ["c_fk"]}, "did you mean 'c_fc'"),
        ({"target_modules": ["wte"]}, "only modules of type Embedding"),
        ({"target_modules": 3}, "target_modules=3"),
        ({"block_size": 0}, "block_size=0"),
        ({"block_size": 63}, "block_size=63: expected an even number"),
        ({"double_quant": 1}, "double_quant=1"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_done(options, words):
    model = build("gpt2")
    with pytest.raises((ValueError, TypeError), match=words):
        quantize_nf4(model, **options)
    assert not linear_maps(model)


def test_weights_that_cannot_be_quantised_are_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="1.weight is not finite"):
        quantize_nf4(model)
    model[1].weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="1.weight is torch.int8: expected floating-point"):
        quantize_nf4(model)
    assert not linear_maps(model)
    with pytest.raises(ValueError, match="names no module"):
        quantize_nf4(quantize_nf4(build("gpt2")))


def test_an_adapted_model_is_not_quantised():
    model = attach(build("gpt2"), LoRA())
    for verb in (quantize_nf4, dequantize_nf4):
        with pytest.raises(RuntimeError, match="quantise first, then attach"):
            verb(model)


# Claim: QLoRA: attach to a quantised base trains A and B through it, and only those


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_a_qlora_step_trains_only_a_and_b_and_lowers_the_loss(name):
    model = quantised(name)
    start = logits(model, name)
    attach(model, LoRA(r=4, target_modules="all-linear"))
    assert torch.equal(logits(model, name), start)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    own = [p for p in model.parameters() if p.requires_grad]
    optimiser, losses = torch.optim.AdamW(own, lr=1e-2), []
    for _ in range(3):
        found = gradients(model, name)
        assert found and all(".lora_" in key for key in found)
        losses.append(model(**batch(name)).loss.item())
        optimiser.step()
    assert losses[2] < losses[1] < losses[0]
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]) != (".lora_" in key), key
    assert torch.equal(logits(detach(model), name), start)


def test_qloras_gradients_are_those_of_lora_on_the_dequantised_model():
    found, expected = {}, {}
    for model, into in ((quantised(), found), (dequantize_nf4(quantised()), expected)):
        torch.manual_seed(3)
        randomise(attach(model, LoRA(r=4, target_modules="all-linear")))
        into.update(gradients(model, "gpt2"))
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        scale = expected[key].abs().max().item()
        torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-5 * scale)


def test_merging_into_a_quantised_weight_is_refused():
    model = attach(quantised(), LoRA())
    with pytest.raises(ValueError, match=r"c_attn\.codes is quantised \(torch.uint8\)"):
        merge(model)


def test_a_quantised_module_is_not_trained_in_full():
    with pytest.raises(ValueError, match="mlp' cannot be trained in full: it is quantised"):
        attach(quantised(), LoRA(modules_to_save=["mlp"]))


def test_an_adapter_trained_on_a_quantised_base_fits_the_ordinary_one(tmp_path):
    model = attach(quantised(), LoRA(r=4))
    randomise(model)
    save(model, tmp_path)
    back = load(quantised(), tmp_path)
    assert torch.equal(logits(back, "gpt2"), logits(model, "gpt2"))
    plain = load(dequantize_nf4(quantised()), tmp_path)
    torch.testing.assert_close(logits(plain, "gpt2"), logits(model, "gpt2"), rtol=1e-4, atol=1e-5)
    merge(load(build("gpt2"), tmp_path), unload=True)  # into the full weights


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_generation_works_with_and_without_cache(name):
    model = attach(quantised(name), LoRA(r=4))
    randomise(model)
    ids = batch(name)["input_ids"][:1]
    options = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False)
    found = model.generate(ids, **options)
    assert torch.equal(found, model.generate(ids, use_cache=False, **options))


def test_gradient_checkpointing_gives_the_same_gradients():
    model = attach(quantised("llama"), LoRA(r=4)).train()
    randomise(model)
    expected = gradients(model, "llama")
    model.activation_checkpointing_enable()
    for key, gradient in gradients(model, "llama").items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-6)


def test_under_autocast_it_computes_like_a_linear_map():
    model = quantize_nf4(nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20)))
    plain = dequantize_nf4(copy.deepcopy(model))
    x = torch.randn(3, 40, requires_grad=True)
    outcomes = []
    for part in (model, plain):
        with torch.autocast("cpu", torch.bfloat16):
            y = part(x)
        gradient = torch.autograd.grad(y.float().pow(2).sum(), x)[0]
        assert (y.dtype, gradient.dtype) == (torch.bfloat16, torch.float32)
        outcomes.append((y.float(), gradient))
    torch.testing.assert_close(*outcomes, rtol=0.05, atol=0.02)


@pytest.mark.filterwarnings("ignore")
def test_torch_compile():
    model = quantize_nf4(nn.Sequential(nn.Linear(40, 30), nn.GELU(), nn.Linear(30, 20)))
    randomise(attach(model, LoRA(target_modules="all-linear")))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 40)
    own = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(model(x).pow(2).sum(), own)
    found = torch.autograd.grad(compiled(x).pow(2).sum(), own)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# Claim: saving, copying and casting leave the codes and the absmax as they are


@pytest.mark.parametrize("double_quant", [True, False])
def test_a_state_dict_goes_into_another_quantised_model(double_quant):
    model, file = quantised(double_quant=double_quant), io.BytesIO()
    torch.save(model.state_dict(), file)
    other = build("gpt2")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    quantize_nf4(other, double_quant=double_quant)
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
    assert torch.equal(logits(other, "gpt2"), logits(model, "gpt2"))
    with pytest.raises(RuntimeError, match="absmax_scale"):
        quantised(double_quant=not double_quant).load_state_dict(model.state_dict())


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_whole_and_independent(twin):
    model = quantised()
    expected, other = logits(model, "gpt2"), twin(model)
    assert torch.equal(logits(other, "gpt2"), expected)
    with torch.no_grad():
        for linear in linear_maps(other).values():
            linear.codes.zero_()
    assert not torch.equal(logits(other, "gpt2"), expected)
    assert torch.equal(logits(model, "gpt2"), expected)


@pytest.mark.parametrize("double_quant", [True, False])
def test_casting_the_model_rounds_neither_codes_nor_absmax(double_quant):
    model = quantised(double_quant=double_quant)
    exact = ("codes", "absmax", "absmax_scale", "absmax_mean")
    before = {k: t.clone() for k, t in model.state_dict().items() if k.endswith(exact)}
    for cast in (lambda: model.bfloat16(), lambda: model.to("cpu", torch.float16), model.double):
        cast()
        for key, tensor in model.state_dict().items():
            if key in before:
                assert tensor.dtype == before[key].dtype and torch.equal(tensor, before[key])
        linear = next(iter(linear_maps(model).values()))
        assert linear.weight.dtype == linear.bias.dtype == model.dtype
    model.float()
    expected = logits(quantised(double_quant=double_quant), "gpt2")
    torch.testing.assert_close(logits(model, "gpt2"), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_a_bfloat16_base_computes_in_bfloat16(name):
    model = attach(quantize_nf4(build(name).bfloat16()), LoRA(r=4))
    randomise(model)
    output = model(**batch(name))
    assert output.logits.dtype == torch.bfloat16
    output.loss.backward()
    own = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in own)


def test_moving_the_model_to_another_device_moves_everything():
    linear = NF4Linear(nn.Linear(8, 8)).to("meta")
    assert {t.device.type for t in linear.state_dict().values()} == {"meta"}
    assert linear.codes.dtype == torch.uint8


def test_a_quantised_map_follows_the_dtype_of_its_model():
    from pedagogic_peft.methods.nf4 import NF4Linear

    layer = NF4Linear(nn.Linear(64, 64))
    assert layer.weight.dtype == torch.float32
    assert layer.bfloat16().weight.dtype == torch.bfloat16
    assert layer.to("cpu").weight.dtype == torch.bfloat16  # a move alone changes no dtype
    assert layer.float().weight.dtype == torch.float32


# Others' NF4


@pytest.mark.parametrize("double_quant", [False, True])
def test_bitsandbytes_stores_the_same_codes(double_quant):
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    torch.manual_seed(0)
    linear = nn.Linear(96, 64)
    ours = NF4Linear(linear, double_quant=double_quant)
    W = linear.weight.detach()
    # in one row: with AVX-512 its CPU code takes wrong scales where a row is no whole number of blocks
    codes, state = quantize_4bit(W.flatten(), None, None, 64, double_quant, "nf4")
    theirs = dequantize_4bit(codes, state).reshape(W.shape)
    error = (ours.weight - W).norm()
    assert torch.equal(codes.flatten(), ours.codes)
    assert (theirs - ours.weight).norm() <= (0.1 if double_quant else 1e-5) * error
    assert abs((theirs - W).norm() / error - 1) < 0.01


def test_torchao_loses_as_much_though_some_codes_differ():
    pytest.importorskip("torchao")
    from torchao.quantization import NF4Tensor

    torch.manual_seed(0)
    linear = nn.Linear(256, 256)
    ours, W = NF4Linear(linear), linear.weight.detach()
    theirs = NF4Tensor.from_tensor(W, 64, 256).get_original_weight()
    assert abs((theirs - W).norm() / (ours.weight - W).norm() - 1) < 0.01
    assert ((theirs - ours.weight).abs() > 0.1 * ours.weight.abs().max()).float().mean() < 0.02
