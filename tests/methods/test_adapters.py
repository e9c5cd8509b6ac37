"""What the adapter chapter says about bottleneck adapters, Compacter, fusion and averaging."""

import copy
import json
import math
import pickle
from pathlib import Path

import pytest
import torch
import transformers as hf
from helpers.models import ARCHITECTURES, batch, build, gradients, logits, randomise
from safetensors.torch import load_file
from torch import nn

from pedagogic_peft import (
    IA3,
    LoRA,
    activate,
    attach,
    count_parameters,
    detach,
    disabled,
    load,
    save,
)
from pedagogic_peft.core.sites import View, sites
from pedagogic_peft.core.verbs import adaptations_of, adapter_drop, average, install
from pedagogic_peft.files.checkpoint import CONFIG, TENSORS
from pedagogic_peft.files.codecs import codec_of
from pedagogic_peft.methods.bottleneck import BottleneckAdapter, Tap
from pedagogic_peft.methods.compacter import Compacter, PHMLinear, PHMRule
from pedagogic_peft.methods.fusion import AdapterFusion, Fusion

pytestmark = pytest.mark.filterwarnings("ignore:The head")
METHODS = {
    "houlsby": BottleneckAdapter(reduction_factor=4, placement="houlsby"),
    "pfeiffer": BottleneckAdapter(reduction_factor=4, non_linearity="gelu"),
    "parallel": BottleneckAdapter(reduction_factor=4, placement="parallel"),
    "compacter": Compacter(reduction_factor=4),
    "compacter++": Compacter(reduction_factor=4, placement="pfeiffer"),
}
EXACT = ["parallel", "compacter", "compacter++"]  # these begin as the identity
every_method = pytest.mark.parametrize("method", METHODS)
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def adapted(name: str, *methods: str, seed: int = 3) -> nn.Module:
    """Return the model with these adaptations, trained, named by their methods; the last is active."""
    model = build(name)
    for i, method in enumerate(methods):
        torch.manual_seed(seed + i)
        attach(model, METHODS[method], method)
        for _, place in sites(model):
            randomise(place.deltas[method]) if method in place.deltas else None
    return model


def attach_random(model: nn.Module, method, name: str) -> nn.Module:
    attach(model, method, name)
    for _, place in sites(model):
        if name in place.deltas:
            randomise(place.deltas[name])
    return model


def reload(model: nn.Module, base: nn.Module, folder: Path, name: str | None = None) -> nn.Module:
    """Save an adaptation and attach what was saved to another model, as `load` does."""
    save(model, folder, name)
    config = json.loads((folder / CONFIG).read_text())
    kinds = {kind.peft.type: kind for kind in (BottleneckAdapter, Compacter, AdapterFusion)}
    kind = kinds[config["peft_type"]]
    view = View(base)
    method, deltas = codec_of(kind).from_peft(view, config, load_file(folder / TENSORS))
    return install(view, method, name or "default", deltas)


# Claim: the start is near the frozen model, or exactly there


@every_method
@every_architecture
def test_the_start_is_near_the_frozen_model_or_exactly_there(name, method):
    model = build(name)
    before = logits(model, name)
    attach(model, METHODS[method])
    after = logits(model, name)
    if method in EXACT:
        assert torch.equal(after, before)
    else:
        assert not torch.equal(after, before)
        assert (after - before).norm() < 0.02 * before.norm()
    with disabled(model):
        assert torch.equal(logits(model, name), before)
    assert torch.equal(logits(detach(model), name), before)


def test_near_identity_weights_are_gaussian_and_cut_off_at_two_deviations():
    model = nn.Sequential(nn.Linear(8, 512))
    attach(model, BottleneckAdapter(bottleneck_size=64, target_modules=["0"]))
    delta = model[0].deltas["default"]
    for linear in (delta.adapter_down, delta.adapter_up):
        assert linear.weight.abs().max() <= 0.02
        assert linear.weight.abs().max() > 0.019
        assert linear.weight.std().item() == pytest.approx(0.0088, rel=0.03)  # of the cut Gaussian
        assert not linear.bias.any()


# Claim: the forward is h + s · W_up f(W_down h), at the places of the papers


def formula(delta, h, f):
    down, up = delta.adapter_down, delta.adapter_up
    z = f(h @ down.weight.T + down.bias)
    return delta.scaling * (z @ up.weight.T + up.bias)


def test_a_sequential_adapter_is_the_formula():
    model = nn.Sequential(nn.Linear(7, 6))
    method = BottleneckAdapter(
        bottleneck_size=3, non_linearity="tanh", scaling=2.5, target_modules=["0"]
    )
    randomise(attach(model, method))
    x = torch.randn(4, 5, 7)
    h = model[0].base(x)
    expected = h + formula(model[0].deltas["default"], h, torch.tanh)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_pfeiffer_after_a_layernorm_is_the_layernorm_of_x_plus_adapter_of_the_layernorm(name):
    model = adapted(name, "pfeiffer")
    places = dict(sites(model))
    assert len(places) == 2 and all(path.lower().endswith("norm") for path in places)
    for place in places.values():
        x = torch.randn(2, 3, 32)
        delta = place.deltas["pfeiffer"]
        z = place.base(x)
        expected = place.base(x + formula(delta, z, nn.functional.gelu))
        torch.testing.assert_close(place(x), expected)


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "t5", "vit"])
def test_pfeiffer_before_a_residual_reads_and_changes_the_feed_forward_output(name):
    model = adapted(name, "pfeiffer")
    assert len(list(sites(model))) == (4 if name == "t5" else 2)
    for path, place in sites(model):
        assert "attn" not in path.lower() and "attention" not in path.lower()
        x = torch.randn(2, 3, 128 if name == "gpt2" else 48)
        h = place.base(x)
        expected = h + formula(place.deltas["pfeiffer"], h, nn.functional.gelu)
        torch.testing.assert_close(place(x), expected)


@every_architecture
def test_a_parallel_adapter_adds_four_times_its_output_on_the_feed_forward_input(name):
    model, seen = adapted(name, "parallel"), {}
    places = dict(sites(model))
    joins = [p for p, place in places.items() if not isinstance(place.deltas["parallel"], Tap)]
    taps = [p for p in places if p not in joins]
    assert len(joins) == len(taps) == (4 if name == "t5" else 2)

    def record(path):
        return lambda module, args, output: seen.update({path: (args[0], output)})

    hooks = [places[p].register_forward_hook(record(p)) for p in places]
    hooks += [places[p].base.register_forward_hook(record(p + ".base")) for p in places]
    logits(model, name)
    for hook in hooks:
        hook.remove()
    for tap, join in zip(taps, joins, strict=True):
        delta = places[join].deltas["parallel"]
        assert delta.scaling == 4
        expected = seen[join + ".base"][1] + formula(delta, seen[tap + ".base"][0], torch.relu)
        torch.testing.assert_close(seen[join][1], expected)


@pytest.mark.parametrize("name, norm", [("gpt2", "ln_2"), ("t5", "layer_norm"), ("bert", None)])
def test_a_parallel_adapter_reads_the_residual_stream_or_what_its_norm_makes_of_it(name, norm):
    """He et al.'s code and AdapterHub take the first; architectures that normalise after have one."""
    found = {}
    for reads in ("residual", "normalised"):
        method = BottleneckAdapter(reduction_factor=4, placement="parallel", reads=reads)
        model = attach_random(build(name), method, reads)
        taps = [p for p, s in sites(model) if isinstance(s.deltas[reads], Tap)]
        found[reads] = taps
        if norm:
            assert all(path.endswith(norm) == (reads == "residual") for path in taps)
    assert (found["residual"] == found["normalised"]) == (norm is None)


def test_opt_that_normalises_after_has_one_reading_and_gemmas_sandwich_another_norm():
    config = hf.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=2)
    config.word_embed_proj_dim, config.vocab_size, config.do_layer_norm_before = 32, 40, False
    model = attach(hf.OPTForCausalLM(config), METHODS["parallel"])
    assert [p.rpartition(".")[2] for p, _ in sites(model)] == ["fc1", "fc2"]
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 40}
    model = attach(hf.Gemma2Model(hf.Gemma2Config(head_dim=8, **sizes)), METHODS["parallel"])
    paths = [path for path, _ in sites(model)]
    assert [p.rpartition(".")[2] for p in paths] == ["down_proj", "pre_feedforward_layernorm"]


def test_a_parallel_adapter_of_an_older_file_reads_what_it_was_trained_on(tmp_path):
    method = BottleneckAdapter(placement="parallel", reads="normalised")
    model = attach_random(build("gpt2"), method, "old")
    save(model, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config.pop("reads") == "normalised"
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="was edited"):
        again = load(build("gpt2"), tmp_path)
    assert adaptations_of(again).methods["default"] == method
    assert torch.equal(logits(again, "gpt2"), logits(model, "gpt2"))


@pytest.mark.parametrize("name, number", [("gpt2", 4), ("bert", 4), ("t5", 10), ("vit", 4)])
def test_houlsby_puts_two_in_each_layer_and_one_after_cross_attention(name, number):
    model = adapted(name, "houlsby")
    assert len(list(sites(model))) == number


@every_method
@every_architecture
def test_all_parameters_of_the_adapter_get_gradients_and_nothing_else_does(name, method):
    model = attach(build(name), METHODS[method])
    randomise(model)
    found = gradients(model, name)
    own = {key for key, p in model.named_parameters() if p.requires_grad}
    assert set(found) == own and all(".deltas.default." in key for key in own)
    assert all(gradient.any() for key, gradient in found.items() if "weight" in key)


# Claim: the size of the bottleneck is d / reduction_factor, at least 1


@pytest.mark.parametrize(
    "arguments, m",
    [
        ({}, 2),
        ({"reduction_factor": 64}, 1),
        ({"reduction_factor": 0.5}, 64),
        ({"reduction_factor": 5}, 6),
        ({"bottleneck_size": 7}, 7),
    ],
)
def test_the_bottleneck_is_the_width_over_the_reduction_factor_and_at_least_one(arguments, m):
    model = attach(build("gpt2"), BottleneckAdapter(**arguments))
    assert count_parameters(model).trainable == 2 * (2 * 32 * m + m + 32)  # 2 layers, d = 32


# Claim: layers can be left out, when attaching or while running


@every_method
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_dropping_the_lowest_layer_equals_leaving_it_out(name, method):
    model = adapted(name, method)
    options = {**vars(METHODS[method]), "leave_out": (0,)}
    other = attach(build(name), type(METHODS[method])(**options), method)
    full, fewer = dict(sites(model)), dict(sites(other))
    assert fewer.keys() == {path for path in full if ".0." not in path}
    for path, place in fewer.items():
        own = place.deltas[method].state_dict()
        values = full[path].deltas[method].state_dict()
        place.deltas[method].load_state_dict({k: values.get(k, t) for k, t in own.items()})
    for module in other.modules():  # the owner of a Compacter's rule is in layer 0 of the other
        if isinstance(module, PHMRule):
            rules = [m for m in model.modules() if isinstance(m, PHMRule)]
            module.load_state_dict(rules[0].state_dict())
    everything = logits(model, name)
    with adapter_drop(model, 1):
        dropped = logits(model, name)
    torch.testing.assert_close(dropped, logits(other, name))
    assert not torch.allclose(dropped, everything, atol=1e-3)
    with adapter_drop(model, 2):
        assert torch.equal(logits(model, name), logits(build(name), name))
    assert torch.equal(logits(model, name), everything)


def test_dropped_layers_get_no_gradient():
    model = attach(build("bert"), METHODS["houlsby"])
    randomise(model)
    with adapter_drop(model, 1):
        found = gradients(model, "bert")
    assert found and all(".layer.1." in key for key in found)


# Claim: several adapters form a stack


@every_method
def test_a_stack_is_one_adapter_after_the_other(method):
    model = nn.Sequential(nn.Linear(32, 32))
    options = {**vars(METHODS[method]), "target_modules": ["0"], "placement": "pfeiffer"}
    for name in ("a", "b"):
        attach_random(model, type(METHODS[method])(**options), name)
    x = torch.randn(3, 32)
    a, b = model[0].deltas["a"], model[0].deltas["b"]
    h = model[0].base(x)
    activate(model, "a", "b")
    torch.testing.assert_close(model(x), b(x, a(x, h)))
    assert not torch.allclose(model(x), activate(model, "b", "a")(x), atol=1e-4)


def test_a_stack_at_a_layernorm_lets_the_second_read_what_the_first_left():
    model = attach_random(adapted("bert", "pfeiffer"), METHODS["pfeiffer"], "second")
    activate(model, "pfeiffer", "second")
    for _, place in sites(model):
        norm, x = place.base, torch.randn(2, 3, 32)
        f = nn.functional.gelu
        x1 = x + formula(place.deltas["pfeiffer"], norm(x), f)
        x2 = x1 + formula(place.deltas["second"], norm(x1), f)
        torch.testing.assert_close(place(x), norm(x2))


# Claim: adapters work with checkpointing, copies, pickles and rows


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("method", ["pfeiffer", "parallel"])
def test_gradient_checkpointing_changes_no_gradient(name, method):
    model = adapted(name, method).train()
    model.config.use_cache = False
    torch.manual_seed(6)  # the same dropout twice
    expected = gradients(model, name)
    model.activation_checkpointing_enable()
    torch.manual_seed(6)
    found = gradients(model, name)
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-6)
    assert torch.equal(logits(copy.deepcopy(model.eval()), name), logits(model, name))


@every_method
def test_copies_and_pickles_compute_the_same_and_are_independent(method):
    model = adapted("bert", method)
    expected = logits(model, "bert")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(twin, "bert"), expected)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(1.5)
        assert not torch.allclose(logits(twin, "bert"), expected, atol=1e-3)
        assert torch.equal(logits(model, "bert"), expected)


@pytest.mark.parametrize("name", ["bert", "gpt2", "opt", "t5"])
def test_rows_of_a_batch_may_have_different_adapters(name):
    model = adapted(name, *METHODS)
    rows = [*METHODS, None, "parallel", "houlsby"]
    generator = torch.Generator().manual_seed(4)
    inputs = {"input_ids": torch.randint(3, 60, (len(rows), 6), generator=generator)}
    if name == "t5":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        mixed = activate(model, rows=rows)(**inputs).logits
        for i, row in enumerate(rows):
            activate(model, *([row] if row else []))
            alone = model(**{key: value[i : i + 1] for key, value in inputs.items()}).logits
            torch.testing.assert_close(mixed[i : i + 1], alone, rtol=1e-4, atol=1e-5)


@every_method
def test_beside_a_bfloat16_base_the_parameters_are_float32(method):
    model = attach(build("llama").bfloat16(), METHODS[method])
    randomise(model)
    assert model(**batch("llama")).logits.dtype == torch.bfloat16
    found = gradients(model, "llama")
    assert {g.dtype for g in found.values()} == {torch.float32}
    assert len(found) == len([p for p in model.parameters() if p.requires_grad])


# Claim: a checkpoint holds the adapter and nothing else, and gives the same logits


@every_method
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_checkpoint_gives_the_same_logits(name, method, tmp_path):
    model = adapted(name, method)
    loaded = reload(model, build(name), tmp_path, method)
    assert torch.equal(logits(loaded, name), logits(model, name))
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["peft_type"] == type(METHODS[method]).peft.type
    tensors = load_file(tmp_path / TENSORS)
    assert all(key.startswith("base_model.model.") for key in tensors)
    trainable = count_parameters(loaded).trainable
    assert sum(t.numel() for t in tensors.values()) == trainable


def test_names_in_a_checkpoint_are_path_and_map(tmp_path):
    save(adapted("gpt2", "pfeiffer"), tmp_path)
    path = "base_model.model.transformer.h.1.mlp.c_proj.adapter_"
    assert {path + "down.weight", path + "up.bias"} <= load_file(tmp_path / TENSORS).keys()


def test_layernorms_and_head_can_be_trained_too_as_in_the_houlsby_paper(tmp_path):
    method = BottleneckAdapter(placement="houlsby", modules_to_save=["LayerNorm", "classifier"])
    model = attach(build("bert"), method)
    randomise(model)
    trained = {key for key in gradients(model, "bert") if "adapter_" not in key}
    assert len(trained) == 2 * (5 + 1)  # weight and bias of 5 LayerNorms and of the head
    loaded = reload(model, build("bert"), tmp_path)
    assert torch.equal(logits(loaded, "bert"), logits(model, "bert"))


def test_an_option_not_known_is_named():
    config = {"peft_type": "BOTTLENECK", "dropout_of_adapters": 0.5}
    with pytest.raises(ValueError, match="dropout_of_adapters=0.5"):
        codec_of(BottleneckAdapter).from_peft(View(build("bert")), config, {})


# Claim: hyper-parameters out of range are refused, and the message names the value


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"reduction_factor": 0}, "reduction_factor=0"),
        ({"bottleneck_size": 0}, "bottleneck_size=0"),
        ({"non_linearity": "relo"}, "non_linearity='relo'"),
        ({"placement": "serial"}, "placement='serial'"),
        ({"scaling": -1}, "scaling=-1"),
        ({"leave_out": 3}, "leave_out=3"),
        ({"leave_out": [-1]}, "leave_out=-1"),
        ({"modules_to_save": "head"}, "modules_to_save='head'"),
        ({"placement": "parallel", "target_modules": ["fc"]}, r"target_modules=\('fc',\)"),
    ],
)
def test_impossible_hyper_parameters_are_refused(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        BottleneckAdapter(**arguments)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"leave_out": [7]}, r"leave_out=\(7,\): expected some of the layers \[0, 1\]"),
        ({"leave_out": [0, 1]}, r"leave_out=\(0, 1\): .* not all"),
        ({"modules_to_save": ["output.LayerNorm"]}, "adapters sit at"),
        ({"modules_to_save": ["output"]}, r"adapters sit at .*output\.LayerNorm"),
        ({"target_modules": ["nothing"]}, "matches no module"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_and_the_model_unchanged(arguments, words):
    model = build("bert")
    with pytest.raises(ValueError, match=words):
        attach(model, BottleneckAdapter(**arguments))
    assert not list(sites(model)) and all(p.requires_grad for p in model.parameters())


# Claim: a Compacter's W is a sum of Kronecker products with a shared rule


@pytest.mark.parametrize("n, r", [(4, 1), (2, 3), (1, 1)])
def test_a_phm_map_is_the_sum_of_kronecker_products(n, r):
    rule = PHMRule(n)
    phm = PHMLinear(12, 8, rule, r)
    randomise(phm)
    B = [phm.s[i].T @ phm.t[i] for i in range(n)]
    W = sum(torch.kron(rule.A[i], B[i]) for i in range(n))
    x = torch.randn(3, 5, 12)
    torch.testing.assert_close(phm(x), x @ W.T + phm.bias, rtol=1e-4, atol=1e-5)


def test_a_phm_map_begins_with_entries_of_variance_one_over_its_width():
    torch.manual_seed(0)
    variances = []
    for _ in range(200):
        phm = PHMLinear(64, 8, PHMRule(4))
        variances.append((phm(torch.eye(64)) - phm.bias).var().item())
    assert math.fsum(variances) / 200 == pytest.approx(1 / 64, rel=0.1)


def test_all_maps_share_one_rule_counted_once_and_saved_once(tmp_path):
    model = attach(build("gpt2"), Compacter(reduction_factor=4))
    randomise(model)
    rules = {id(m.shared.module.A) for m in model.modules() if isinstance(m, PHMLinear)}
    assert len(rules) == 1
    d, m, n = 32, 8, 4
    assert count_parameters(model).trainable == 4 * (2 * (d + m) + m + d) + n**3
    save(model, tmp_path)
    saved = [key for key in load_file(tmp_path / TENSORS) if key.endswith("rule.A")]
    assert len(saved) == 1
    found = gradients(model, "gpt2")
    assert [key for key in found if key.endswith("rule.A")]
    twin = copy.deepcopy(model)
    copied = {id(m.shared.module.A) for m in twin.modules() if isinstance(m, PHMLinear)}
    assert len(copied) == 1 and copied != rules


def test_phm_dim_must_divide_both_sizes():
    with pytest.raises(ValueError, match="phm_dim=4 must divide both 32 and 6"):
        attach(build("bert"), Compacter(bottleneck_size=6))
    with pytest.raises(ValueError, match="placement='parallel'"):
        Compacter(placement="parallel")


# Claim: fusion attends over adapters that stay as they are


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.parametrize("method", ["houlsby", "pfeiffer", "compacter"])
def test_the_fusion_of_one_adapter_begins_as_that_adapter(name, method):
    model = adapted(name, method)
    expected = logits(model, name)
    attach(model, AdapterFusion([method]), "fusion")
    torch.testing.assert_close(logits(model, name), expected)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_fusion_is_the_papers_attention_over_adapters(name):
    model = attach_random(adapted(name, "pfeiffer"), METHODS["pfeiffer"], "second")
    attach_random(model, AdapterFusion(["pfeiffer", "second"]), "fusion")
    for _, place in sites(model):
        fusion, x = place.deltas["fusion"], torch.randn(1, 1, 32 if name == "bert" else 48)
        h = place.base(x)[0, 0]
        z = [formula(place.deltas[n], h, nn.functional.gelu) for n in ("pfeiffer", "second")]
        Q, K, V = fusion.query.weight, fusion.key.weight, fusion.value.weight
        a = torch.softmax(torch.stack([(Q @ h) @ (K @ zn) for zn in z]), 0)
        o = a[0] * (V @ z[0]) + a[1] * (V @ z[1])
        expected = place.base(x + o) if name == "bert" else h + o
        torch.testing.assert_close(place(x).flatten(), expected.flatten(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["pfeiffer", "compacter"])
def test_fusion_trains_no_adapter_and_leaves_them_as_they_were(method):
    model = attach_random(adapted("bert", method), METHODS[method], "second")
    activate(model, method)
    before = logits(model, "bert")
    attach_random(model, AdapterFusion([method, "second"]), "fusion")
    found = gradients(model, "bert")
    assert found and all(".deltas.fusion." in key for key in found)
    assert len(found) == 3 * len([p for _, p in sites(model) if "fusion" in p.deltas])
    detach(model, "fusion")
    assert torch.equal(logits(activate(model, method), "bert"), before)
    own = gradients(model, "bert")
    assert own and all(f".deltas.{method}." in key for key in own)


def test_fusion_passes_gradients_through_the_adapters_to_lower_layers():
    model = adapted("gpt2", "houlsby")
    delta = next(place.deltas["houlsby"] for _, place in sites(model))
    h = torch.randn(2, 32, requires_grad=True)
    delta.change(h, frozen=True).sum().backward()
    assert h.grad.any() and all(p.grad is None for p in delta.parameters())


def test_a_fusion_is_saved_alone_and_needs_its_adapters_to_be_loaded(tmp_path):
    model = attach_random(adapted("bert", "houlsby"), METHODS["houlsby"], "second")
    attach_random(
        model, AdapterFusion(["houlsby", "second"], modules_to_save=["classifier"]), "fusion"
    )
    expected = logits(model, "bert")
    base = detach(copy.deepcopy(model), "fusion")
    loaded = reload(model, base, tmp_path, "fusion")
    assert torch.equal(logits(loaded, "bert"), expected)
    tensors = load_file(tmp_path / TENSORS)
    assert {key.split(".")[-2] for key in tensors} == {"query", "key", "value", "classifier"}
    config = json.loads((tmp_path / CONFIG).read_text())
    with pytest.raises(ValueError, match=r"\['second'\] are not attached"):
        codec_of(AdapterFusion).from_peft(View(adapted("bert", "houlsby")), config, tensors)
    with pytest.raises(ValueError, match="has no adaptation"):
        codec_of(AdapterFusion).from_peft(View(build("bert")), config, tensors)


def test_copies_of_a_fused_model_are_independent():
    model = attach_random(adapted("bert", "pfeiffer"), AdapterFusion(["pfeiffer"]), "fusion")
    expected = logits(model, "bert")
    twin = copy.deepcopy(model)
    for _, place in sites(twin):
        randomise(place.deltas["pfeiffer"])
    assert not torch.allclose(logits(twin, "bert"), expected, atol=1e-3)
    assert torch.equal(logits(model, "bert"), expected)


def test_only_bottleneck_adapters_of_one_placement_can_be_fused():
    model = attach(adapted("bert", "houlsby", "pfeiffer", "parallel"), LoRA(), "lora")
    for chosen in (["houlsby", "pfeiffer"], ["parallel"], ["lora"]):
        with pytest.raises(ValueError, match="placements are"):
            attach(model, AdapterFusion(chosen), "fusion")
    for wrong in ([], ["a", "a"], "a"):
        with pytest.raises((ValueError, TypeError), match="adapters="):
            AdapterFusion(wrong)


# Claim: an average is the weighted mean of the parameters


@pytest.mark.parametrize("method", [*METHODS.values(), LoRA(r=2)])
def test_an_average_is_the_weighted_mean_of_the_parameters(method):
    model = build("bert")
    for name in ("a", "b"):
        attach_random(model, method, name)
    average(model, ["a", "b"], [0.25, 0.75])
    compared = 0
    for _, place in sites(model):
        a, b, mean = (place.deltas[n].state_dict() for n in ("a", "b", "average"))
        for key, tensor in mean.items():
            torch.testing.assert_close(tensor, 0.25 * a[key] + 0.75 * b[key])
            compared += 1
    assert compared
    found = gradients(model, "bert")
    assert found and all(".deltas.average." in key for key in found)


def test_the_average_of_one_adaptation_with_itself_is_that_adaptation():
    model = adapted("bert", "houlsby")
    expected = logits(model, "bert")
    average(model, ["houlsby", "houlsby"], name="same")
    torch.testing.assert_close(logits(model, "bert"), expected)


def test_queries_that_ia3_does_not_scale_stay_so_in_an_average():
    """Ten tenths, added in float32, are not exactly one."""
    model, names = build("gpt2"), list("abcdefghij")
    for name in names:
        attach(model, IA3(), name)
        randomise(model)
    each = count_parameters(model).trainable / len(names)
    average(model, names)
    assert count_parameters(model).trainable == (len(names) + 1) * each


def test_what_cannot_be_averaged_is_refused():
    model = adapted("bert", "houlsby", "pfeiffer")
    for arguments, words in (
        ((["houlsby", "pfeiffer"],), "different hyper-parameters"),
        ((["houlsby", "nobody"],), "nobody"),
        (([],), r"names=\[\]"),
        ((["houlsby", "houlsby"], [0.5, 0.4]), r"weights=\[0.5, 0.4\]"),
        ((["houlsby"], [0.5, 0.5]), r"weights=\[0.5, 0.5\]"),
        ((["houlsby"], [1.0], "pfeiffer"), "there already"),
    ):
        with pytest.raises(ValueError, match=words):
            average(model, *arguments)
    assert {n for _, place in sites(model) for n in place.deltas} == {"houlsby", "pfeiffer"}


class Scaled(nn.Module):
    """Stands for an adapter of width d that changes h by a factor."""

    def __init__(self, d, factor):
        super().__init__()
        self.adapter_up, self.factor = nn.Linear(1, d), factor

    def change(self, h, frozen):
        assert frozen
        return self.factor * h


def test_queries_and_keys_of_a_fusion_begin_small():
    fusion = Fusion([Scaled(200, 1.0)])
    assert fusion.query.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert fusion.key.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(fusion.value.weight, torch.eye(200))


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6), (2, 3, 5, 6)])
def test_a_fusion_works_on_any_number_of_dimensions(shape):
    fusion, h = Fusion([Scaled(6, 1.0), Scaled(6, -2.0)]), torch.randn(shape)
    for row, out in zip(h.reshape(-1, 6), fusion.change(h).reshape(-1, 6), strict=True):
        z = torch.stack([row, -2 * row])  # (2, 6)
        a = (fusion.key(z) @ fusion.query(row)).softmax(0)
        torch.testing.assert_close(out, a @ z)


def test_a_fusion_computes_in_the_dtype_of_its_input():
    out = Fusion([Scaled(6, 1.0)]).change(torch.randn(2, 6, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16


def test_a_parallel_adapter_starts_as_the_docstring_says():
    down, up = BottleneckAdapter(placement="parallel").maps(100, 40)
    assert 0.09 < down.weight.max() <= 0.1 and -0.1 <= down.weight.min() < -0.09
    assert not up.weight.any()
