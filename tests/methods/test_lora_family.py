"""LoRA's relatives: parts of a fused projection, DoRA, PiSSA, VeRA, AdaLoRA and LoRA+."""

import copy
import json
import math
import pickle

import pytest
import torch
from models import batch, build, gradients, logits, randomise
from safetensors.torch import load_file
from torch import nn

from pedagogic_peft import LoRA, activate, attach, count_parameters, merge, save, train, unmerge
from pedagogic_peft.core.sites import View, sites
from pedagogic_peft.core.verbs import install
from pedagogic_peft.files.codecs import VeRACodec, codec_of
from pedagogic_peft.methods.adalora import AdaLoRA, AdaLoRABudget
from pedagogic_peft.methods.dora import DoRA
from pedagogic_peft.methods.lora import LoRALinear, LoRAParts, lora_plus_groups
from pedagogic_peft.methods.pissa import PiSSA
from pedagogic_peft.methods.vera import Projections, VeRA

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what is meant here

LINEAR = {"gpt2": ["c_attn", "mlp.c_proj"], "llama": ["q_proj", "v_proj"], "bert": ["query"]}
WITH_EMBEDDING = {"gpt2": ["c_attn", "wpe"], "llama": ["q_proj", "embed_tokens"], "bert": ["query"]}
NAMES = list(LINEAR)


def deltas_of(model):
    return [place.deltas["default"] for _, place in sites(model)]


def read(method_class, name, folder):
    """Attach the checkpoint in the folder to a fresh model."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    model = build(name)
    view = View(model)
    method, deltas = codec_of(method_class).from_peft(view, config, tensors)
    return install(view, method, "default", deltas)


def read_by_peft(name, folder, **options):
    return peft.PeftModel.from_pretrained(build(name), folder, **options).eval()


def peft_model(name, config):
    model = peft.get_peft_model(build(name), config).eval()
    randomise(model)
    return model


def our_keys(parameters):
    """Translate PEFT's parameter names into ours."""
    ours = {}
    for key, value in parameters:
        key = key.removeprefix("base_model.model.").replace(".base_layer.", ".base.")
        key = key.replace(".lora_magnitude_vector.default.weight", ".lora_magnitude_vector.default")
        head, default, tail = key.partition(".default")
        path, _, part = head.rpartition(".")
        ours[f"{path}.deltas.default.{part}{tail}" if default else key] = value
    return ours


def assert_gradients_equal(found, expected):
    expected = {key: value for key, value in expected.items() if ".deltas." in key}
    assert set(found) == set(expected)
    for key, gradient in found.items():
        scale = expected[key].abs().max().item()
        torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-5 * scale + 1e-8)


def assert_equals_peft(name, ours, theirs):
    """Give our model PEFT's numbers; logits and gradients must be the same."""
    numbers = our_keys(theirs.named_parameters())
    wanted = {key for key, p in ours.named_parameters() if p.requires_grad}
    assert wanted <= set(numbers)
    ours.load_state_dict({key: numbers[key] for key in wanted}, strict=False)
    torch.testing.assert_close(logits(ours, name), logits(theirs, name), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(ours, name), logits(build(name), name), atol=1e-2)
    assert_gradients_equal(gradients(ours, name), our_keys(gradients(theirs, name).items()))


# Claims about all of them


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


@pytest.mark.parametrize("key, value", [("lora_bias", True), ("bias", "all"), ("loftq", {"a": 1})])
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


# Parts of a fused projection


def test_each_part_changes_its_own_slice_and_the_others_stay():
    model = nn.Sequential(nn.Linear(6, 18)).eval()
    W, b = model[0].weight.clone(), model[0].bias.clone()
    attach(model, LoRA(r=2, alpha=6, target_modules=["0"], parts=["v", "q"]))
    randomise(model)
    x = torch.randn(3, 5, 6)
    expected = x @ W.T + b
    for part, start in (("q", 0), ("v", 12)):
        delta = model[0].deltas["default"].parts[part]
        update = 3 * x @ delta.lora_A.weight.T @ delta.lora_B.weight.T
        expected[..., start : start + 6] += update
    torch.testing.assert_close(model(x), expected)
    assert torch.equal(model(x)[..., 6:12], model[0].base(x)[..., 6:12])  # k


def test_parts_cost_r_times_2d_each():
    model = attach(build("gpt2"), LoRA(r=4, parts=("q", "v")))  # d = 32, two layers
    assert count_parameters(model).trainable == 2 * 2 * 4 * (32 + 32)


@pytest.mark.parametrize(
    "options",
    [
        {"parts": ("q", "v")},
        {"parts": ("k",)},
        {"parts": ("q", "k", "v"), "alpha": 7},
        {"parts": ("q", "v"), "use_rslora": True},
        {"parts": ("v", "q"), "rank_pattern": {r"h\.1\.attn\.c_attn": 3}, "alpha": 5},
        {"parts": ("q", "v"), "alpha_pattern": {"c_attn": 0.3}, "use_rslora": True},
    ],
)
def test_parts_are_saved_as_the_ordinary_lora_they_equal(options, tmp_path):
    method = LoRA(r=2, target_modules=["c_attn"], **options)
    model = attach(build("gpt2"), method)
    randomise(model)
    save(model, tmp_path)
    theirs = read_by_peft("gpt2", tmp_path)
    torch.testing.assert_close(logits(theirs, "gpt2"), logits(model, "gpt2"), rtol=1e-4, atol=1e-4)
    again = read(LoRA, "gpt2", tmp_path)
    assert again._adaptations.methods["default"] == method  # also its ranks and scalings, exactly
    assert all(isinstance(delta, LoRAParts) for delta in deltas_of(again))
    assert torch.equal(logits(again, "gpt2"), logits(model, "gpt2"))
    assert_gradients_equal(gradients(again, "gpt2"), gradients(model, "gpt2"))


def test_a_checkpoint_whose_parts_were_changed_is_refused(tmp_path):
    model = attach(build("gpt2"), LoRA(r=2, parts=("q", "v")))
    randomise(model)
    save(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for change in ({"parts": ["q", "k"]}, {"r": 4}):
        text = json.dumps(config | {"parts": config["parts"] | change})
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(
            ValueError,
            match="not made up as|of wrong shape",
        ):
            read(LoRA, "gpt2", tmp_path)


def test_a_target_without_parts_is_named_with_its_shape():
    with pytest.raises(ValueError, match=r"attn\.c_proj' \(Conv1D, 32 -> 32\)"):
        attach(build("gpt2"), LoRA(target_modules=["attn.c_proj"], parts=("q",)))
    with pytest.raises(ValueError, match=r"wte' \(Embedding, 60 -> 32\)"):
        attach(build("gpt2"), LoRA(target_modules=["wte"], parts=("q",)))


def test_an_architecture_that_mixes_its_heads_is_refused():
    import transformers as hf

    config = hf.GPTNeoXConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    with pytest.raises(ValueError, match="gpt_neox mixes q, k and v"):
        attach(hf.GPTNeoXForCausalLM(config), LoRA(parts=("q", "v")))


# DoRA


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


# PiSSA


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


# VeRA


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


# AdaLoRA


def test_adaloras_forward_is_the_formula():
    model = nn.Sequential(nn.Linear(7, 5)).eval()
    W, b = model[0].weight.clone(), model[0].bias.clone()
    attach(model, AdaLoRA(init_r=3, target_r=1, alpha=6, target_modules=["0"]))
    randomise(model)
    delta = model[0].deltas["default"]
    update = delta.lora_B @ torch.diag(delta.lora_E[:, 0]) @ delta.lora_A
    x = torch.randn(4, 7)
    torch.testing.assert_close(model(x), x @ (W + 2 * update).T + b, rtol=1e-4, atol=1e-4)


ADALORA = {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 3}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("orth_reg_weight", [0, 0.5])
def test_adaloras_logits_and_gradients_equal_pefts_with_its_penalty(name, orth_reg_weight):
    options = {**ADALORA, "target_modules": LINEAR[name], "orth_reg_weight": orth_reg_weight}
    theirs = peft_model(name, peft.AdaLoraConfig(**options, lora_alpha=8, total_step=20))
    ours = attach(build(name), AdaLoRA(**options, alpha=8))
    numbers = our_keys(theirs.named_parameters())
    wanted = {key for key, p in ours.named_parameters() if p.requires_grad}
    ours.load_state_dict({key: numbers[key] for key in wanted}, strict=False)
    torch.testing.assert_close(logits(ours, name), logits(theirs, name), rtol=1e-5, atol=1e-5)
    gradients(ours, name)
    AdaLoRABudget(ours, total_steps=20).add_penalty_gradient()
    theirs.zero_grad()
    theirs.base_model(**batch(name)).loss.backward()  # adds the penalty; theirs(...) does not
    expected = our_keys((k, p.grad) for k, p in theirs.named_parameters() if p.requires_grad)
    found = {key: p.grad for key, p in ours.named_parameters() if p.requires_grad}
    assert_gradients_equal(found, expected)


@pytest.mark.parametrize("pruned", [False, True])
def test_an_adalora_saved_by_peft_loads_with_equal_logits(pruned, tmp_path):
    config = peft.AdaLoraConfig(**ADALORA, target_modules=["q_proj", "v_proj"], total_step=6)
    theirs = peft_model("llama", config)
    for step in range(6 if pruned else 0):
        theirs(**batch("llama")).loss.backward()
        theirs.base_model.update_and_allocate(step)
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    ranks = [len(tensor) for key, tensor in tensors.items() if key.endswith("lora_E")]
    assert sum(ranks) == 4 * (2 if pruned else 4)
    ours = read(AdaLoRA, "llama", tmp_path)
    torch.testing.assert_close(logits(ours, "llama"), logits(theirs, "llama"), rtol=1e-5, atol=1e-5)
    save(ours, tmp_path)
    again = read_by_peft("llama", tmp_path)
    torch.testing.assert_close(logits(again, "llama"), logits(ours, "llama"), rtol=1e-5, atol=1e-5)


def test_the_penaltys_gradient_is_autograds():
    model = attach(build("gpt2"), AdaLoRA(init_r=4, target_r=2, orth_reg_weight=0.3))
    randomise(model)
    deltas = deltas_of(model)
    factors = [(d.lora_A, d.lora_B) for d in deltas]
    norms = [(Q @ Q.T - torch.eye(4)).norm() + (P.T @ P - torch.eye(4)).norm() for Q, P in factors]
    penalty = 0.3 * sum(norms) / (2 * len(deltas))
    flat = [factor for pair in factors for factor in pair]
    expected = torch.autograd.grad(penalty, flat)
    for factor in flat:
        factor.grad = torch.ones_like(factor)
    AdaLoRABudget(model, total_steps=9).add_penalty_gradient()
    for factor, gradient in zip(flat, expected, strict=True):
        torch.testing.assert_close(factor.grad, 1 + gradient)


def test_an_orthonormal_factor_has_no_penalty():
    model = attach(
        nn.Sequential(nn.Linear(5, 5)), AdaLoRA(init_r=5, target_r=1, target_modules=["0"])
    )
    delta = model[0].deltas["default"]
    for factor in (delta.lora_A, delta.lora_B):
        factor.data = torch.eye(5)
        factor.grad = torch.zeros(5, 5)
    AdaLoRABudget(model, total_steps=9).add_penalty_gradient()
    assert not delta.lora_A.grad.any() and not delta.lora_B.grad.any()


def test_the_budget_falls_with_the_cube_between_the_two_phases():
    method = AdaLoRA(init_r=12, target_r=8, tinit=10, tfinal=20)
    budget = AdaLoRABudget(attach(build("gpt2"), method), total_steps=100)  # two targets
    for t in range(1, 101):
        if t < 10:
            expected = 24
        elif t < 80:
            expected = int(16 + 8 * (1 - (t - 10) / (100 - 10 - 20)) ** 3)
        else:
            expected = 16
        assert budget.budget(t) == expected, t


def test_the_budget_is_pefts():
    config = peft.AdaLoraConfig(
        init_r=9, target_r=2, tinit=3, tfinal=5, total_step=40, target_modules=["c_attn"]
    )
    allocator = peft.get_peft_model(build("gpt2"), config).base_model.rankallocator
    method = AdaLoRA(init_r=9, target_r=2, tinit=3, tfinal=5)
    budget = AdaLoRABudget(attach(build("gpt2"), method), total_steps=40)
    assert all(budget.budget(t) == allocator.budget_schedule(t)[0] for t in range(41))


def test_the_kept_triplets_are_the_most_important_of_the_whole_model():
    method = AdaLoRA(init_r=4, target_r=2, beta1=0.8, beta2=0.6, orth_reg_weight=0)
    model = attach(build("gpt2"), method)
    randomise(model)
    budget = AdaLoRABudget(model, total_steps=3)
    smoothed = {}
    for step in (1, 2, 3):
        gradients(model, "gpt2")
        for p in (p for p in model.parameters() if p.requires_grad):
            now = (p * p.grad).abs().detach()
            mean, spread = smoothed.get(p, (torch.zeros_like(p), torch.zeros_like(p)))
            mean = 0.8 * mean + 0.2 * now
            smoothed[p] = mean, 0.6 * spread + 0.4 * (now - mean).abs()
        budget.before_step(step)
        if step < 3:
            randomise(model)
    s = {p: mean * spread for p, (mean, spread) in smoothed.items()}
    scores = [
        s[d.lora_E][:, 0] + s[d.lora_A].mean(dim=1) + s[d.lora_B].mean(dim=0)
        for d in deltas_of(model)
    ]
    best = sorted(torch.cat(scores).tolist(), reverse=True)[:4]
    budget.after_step(3)
    for delta, score in zip(deltas_of(model), scores, strict=True):
        expected = [value in best for value in score.tolist()]
        assert (delta.lora_E[:, 0] != 0).tolist() == expected


EXAMPLES = [{"input_ids": [3 + i, 4, 5, 6 + i % 4]} for i in range(12)]
for _example in EXAMPLES:
    _example["labels"] = _example["input_ids"]


@pytest.mark.parametrize("tfinal, deltaT", [(0, 1), (4, 1), (5, 3)])
def test_training_ends_with_exactly_target_r_triplets_on_average(tfinal, deltaT):
    method = AdaLoRA(init_r=6, target_r=2, tinit=3, tfinal=tfinal, deltaT=deltaT)
    model = attach(build("llama"), method)  # four targets
    budget = AdaLoRABudget(model, total_steps=14)
    ranks = []

    def after_step(step):
        budget.after_step(step)
        ranks.append([int((delta.lora_E != 0).sum()) for delta in deltas_of(model)])

    train(
        model,
        EXAMPLES,
        steps=14,
        batch_size=4,
        lr=1e-2,
        before_step=budget.before_step,
        after_step=after_step,
        progress=False,
    )
    assert [sum(rank) for rank in ranks[:3]] == [24, 24, 24]
    for step, rank in enumerate(ranks, start=1):
        masked = step > 3 and (step % deltaT == 0 or step >= 14 - tfinal)
        assert sum(rank) == (budget.budget(step) if masked else 24), step
    assert sum(ranks[-1]) == 4 * 2
    assert all(rank == ranks[-1] for rank in ranks[14 - tfinal - 1 :])  # the choice is final
    assert sum(int(mask.sum()) for mask in budget.kept) == 8


def test_the_trainers_callback_does_the_same_as_the_loop(tmp_path):
    import transformers as hf

    model = attach(build("gpt2"), AdaLoRA(init_r=4, target_r=1, tinit=1, tfinal=2))
    budget = AdaLoRABudget(model, total_steps=6)
    arguments = hf.TrainingArguments(
        output_dir=tmp_path, max_steps=6, per_device_train_batch_size=4, report_to=[], use_cpu=True
    )
    trainer = hf.Trainer(model, arguments, train_dataset=EXAMPLES, callbacks=[budget.callback()])
    trainer.train()
    assert sum(int((delta.lora_E != 0).sum()) for delta in deltas_of(model)) == 2


def test_a_budget_without_its_measures_is_not_resumed(tmp_path):
    """A new one would choose by the one step it has seen, and zero what the training has kept."""
    import transformers as hf

    model = attach(build("gpt2"), AdaLoRA(init_r=4, target_r=1, tinit=1, tfinal=2))
    arguments = hf.TrainingArguments(
        tmp_path, max_steps=6, save_steps=3, report_to=[], use_cpu=True
    )

    def trainer():
        callbacks = [AdaLoRABudget(model, total_steps=6).callback()]
        return hf.Trainer(model, arguments, train_dataset=EXAMPLES, callbacks=callbacks)

    trainer().train()
    with pytest.raises(ValueError, match="step=4: expected 1"):
        trainer().train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    budget = AdaLoRABudget(model, total_steps=6)
    gradients(model, "gpt2")
    budget.before_step(1)
    with pytest.raises(ValueError, match="step=1: expected 2"):  # nor used again
        budget.before_step(1)


def test_a_budget_that_cannot_be_is_refused():
    model = attach(build("gpt2"), AdaLoRA(tinit=3, tfinal=4))
    with pytest.raises(ValueError, match="total_steps=7: expected more than tinit"):
        AdaLoRABudget(model, total_steps=7)
    with pytest.raises(RuntimeError, match="call before_step"):
        AdaLoRABudget(model, total_steps=8).after_step(4)
    with pytest.raises(ValueError, match="'default' is LoRA"):
        AdaLoRABudget(attach(build("gpt2"), LoRA()), total_steps=8)


def test_a_gradient_that_overflowed_does_not_spoil_the_sensitivities():
    model = attach(build("gpt2"), AdaLoRA(init_r=4, target_r=2, orth_reg_weight=0))
    randomise(model)
    budget = AdaLoRABudget(model, total_steps=2)
    gradients(model, "gpt2")
    deltas_of(model)[0].lora_A.grad[0, 0] = math.inf
    deltas_of(model)[0].lora_E.grad[0, 0] = math.nan
    budget.before_step(1)
    budget.before_step(2)
    assert all(mean.isfinite().all() for mean, _ in budget.sensitivity.values())


# The hooks of the training loop


def test_the_hooks_see_the_gradients_and_the_optimisers_step():
    model = attach(build("gpt2"), LoRA(r=2))
    B = deltas_of(model)[0].lora_B.weight
    seen = []

    def before_step(step):
        seen.append(("before", step, bool(B.grad.any()), B.detach().clone()))

    def after_step(step):
        seen.append(("after", step, bool(B.grad.any()), B.detach().clone()))

    options = {"steps": 3, "batch_size": 4, "progress": False}
    train(model, EXAMPLES, **options, before_step=before_step, after_step=after_step)
    assert [(when, step) for when, step, _, _ in seen] == [
        (when, step) for step in (1, 2, 3) for when in ("before", "after")
    ]
    assert all(gradient for _, _, gradient, _ in seen)
    for (_, _, _, before), (_, _, _, after) in zip(seen[::2], seen[1::2], strict=True):
        assert not torch.equal(before, after)
    for (_, _, _, after), (_, _, _, before) in zip(seen[1::2], seen[2::2], strict=False):
        assert torch.equal(after, before)


def test_what_before_step_does_to_the_gradients_counts_and_is_clipped():
    model = attach(build("gpt2"), LoRA(r=2))
    trained = [p for p in model.parameters() if p.requires_grad]

    def before_step(step):
        for parameter in trained:
            parameter.grad.fill_(3.0)

    history = train(model, EXAMPLES, steps=1, progress=False, before_step=before_step)
    count = sum(p.numel() for p in trained)
    assert history[0]["grad_norm"] == pytest.approx(3 * math.sqrt(count), rel=1e-4)


# LoRA+


@pytest.mark.parametrize("method", [LoRA(r=2), DoRA(r=2), PiSSA(r=2)])
def test_b_gets_the_fast_rate_and_everything_else_the_slow_one(method):
    head = attach(build("bert"), LoRA(r=2, modules_to_save=["classifier"]))
    for model in (attach(build("bert"), method), head):
        slow, fast = lora_plus_groups(model, lr=1e-3, ratio=8, weight_decay=0.1)
        assert (slow["lr"], fast["lr"]) == (1e-3, 8e-3)
        assert slow["weight_decay"] == fast["weight_decay"] == 0.1
        named = {key: p for key, p in model.named_parameters() if p.requires_grad}
        b = {id(p) for key, p in named.items() if key.endswith("lora_B.weight")}
        assert b == {id(p) for p in fast["params"]}
        assert {id(p) for p in named.values()} - b == {id(p) for p in slow["params"]}
        assert len(fast["params"]) + len(slow["params"]) == len(named)


def test_of_an_embedding_the_factor_that_starts_at_zero_is_fast():
    model = attach(build("llama"), LoRA(r=2, target_modules=["embed_tokens"]))
    slow, fast = lora_plus_groups(model, lr=1e-3)
    delta = deltas_of(model)[0]
    assert fast["params"][0] is delta.lora_embedding_A and not delta.lora_embedding_A.any()
    assert slow["params"][0] is delta.lora_embedding_B


def test_parts_have_fast_b_too():
    model = attach(build("gpt2"), LoRA(r=2, parts=("q", "v")))
    _, fast = lora_plus_groups(model, lr=1e-3)
    assert len(fast["params"]) == 2 * 2  # two parts in two layers


def test_the_first_step_of_adam_moves_b_ratio_times_as_far_as_a():
    model = attach(build("gpt2"), LoRA(r=2))
    randomise(model)
    delta = deltas_of(model)[0]
    before = {m: m.weight.detach().clone() for m in (delta.lora_A, delta.lora_B)}
    optimizer = torch.optim.AdamW(lora_plus_groups(model, lr=1e-3, ratio=16), eps=0)
    train(model, EXAMPLES, steps=1, warmup=0, optimizer=optimizer, progress=False)
    moved = {m: (m.weight - start).abs().median().item() for m, start in before.items()}
    assert moved[delta.lora_A] == pytest.approx(1e-3, rel=1e-2)
    assert moved[delta.lora_B] == pytest.approx(16e-3, rel=1e-2)


def test_lora_plus_needs_a_lora_and_possible_rates():
    with pytest.raises(ValueError, match="has no LoRA"):
        lora_plus_groups(attach(build("gpt2"), VeRA(r=4)), lr=1e-3)
    with pytest.raises(ValueError, match="has no LoRA"):
        lora_plus_groups(build("gpt2"), lr=1e-3)
    with pytest.raises(ValueError, match="ratio=0"):
        lora_plus_groups(attach(build("gpt2"), LoRA()), lr=1e-3, ratio=0)


def test_the_class_of_the_book_is_still_the_delta_of_a_linear_map():
    assert {type(delta) for delta in deltas_of(attach(build("gpt2"), LoRA()))} == {LoRALinear}
