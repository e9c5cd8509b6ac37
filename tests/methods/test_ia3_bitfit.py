"""What (IA)³ and BitFit promise, each claim as a test."""

import pytest
import torch
from helpers.mixtures import CONFIGS, IDS
from helpers.models import ARCHITECTURES, batch, build, gradients, logits, randomise
from torch import nn
from transformers import DeepseekV32Config, DeepseekV32ForCausalLM

from pedagogic_peft import (
    LoRA,
    activate,
    attach,
    count_parameters,
    detach,
    load,
    merge,
    save,
    unmerge,
)
from pedagogic_peft.core.sites import sites
from pedagogic_peft.core.verbs import adaptations_of
from pedagogic_peft.methods.bitfit import BitFit
from pedagogic_peft.methods.ia3 import IA3

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what is meant here, we of heads
NO_BIAS = ["llama", "t5"]
IA3_ARCHITECTURES = ["gpt2", "llama", "bert", "t5", "opt"]


def close(found, expected):
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * scale + 1e-8)


def both():
    pairs = [(IA3(), a) for a in ARCHITECTURES]
    pairs += [(BitFit(), a) for a in ARCHITECTURES if a not in NO_BIAS]
    return pytest.mark.parametrize(
        ("method", "name"), pairs, ids=[f"{m.peft.type}-{a}" for m, a in pairs]
    )


# Claim: the start is the frozen model, bit for bit, and it stays in the same dtype


@both()
def test_the_start_is_exact(method, name):
    model = build(name)
    before = logits(model, name)
    assert torch.equal(logits(attach(model, method), name), before)


@pytest.mark.parametrize("method", [IA3(), BitFit()])
def test_a_bfloat16_base_is_exact_at_the_start_and_stays_bfloat16(method):
    model = build("gpt2").bfloat16()
    before = logits(model, "gpt2")
    attach(model, method)
    assert logits(model, "gpt2").dtype == torch.bfloat16
    assert torch.equal(logits(model, "gpt2"), before)
    own = [p for p in model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 for p in own)


# Claim: (IA)³ is l ⊙ y for keys and values, W (l ⊙ x) for the last map of the feed-forward block


@pytest.mark.parametrize("name", IA3_ARCHITECTURES)
def test_ia3_scales_keys_values_and_the_input_of_the_last_feed_forward_map(name):
    model = attach(build(name), IA3())
    randomise(model)
    kinds = set()
    for path, site in sites(model):
        delta = site.deltas["default"]
        kinds.add(type(delta).__name__)
        l = delta.ia3_l
        size = site.base.weight.shape if name != "gpt2" else site.base.weight.T.shape
        x = torch.randn(2, 3, size[1])
        if path.endswith(("mlp.c_proj", "down_proj", "wo", "fc2")) or "output.dense" in path:
            assert l.shape == (1, size[1])
            expected = site.base(x * l[0])
        elif name == "gpt2":
            assert l.shape == (64, 1)  # keys and values of width 32
            expected = site.base(x) * torch.cat([torch.ones(32), l[:, 0]])
        else:
            assert path.endswith(("key", "value", "k_proj", "v_proj", ".k", ".v"))
            assert l.shape == (size[0], 1)
            expected = site.base(x) * l[:, 0]
        assert torch.equal(site(x), expected), path
    assert kinds == {"IA3Output", "IA3Input"}


def test_an_ia3_on_a_fused_projection_leaves_the_queries_alone_unless_it_is_named():
    model = attach(build("gpt2"), IA3())
    assert count_parameters(model).trainable == 2 * (2 * 32 + 128)
    named = attach(build("gpt2"), IA3(["c_attn"]))
    assert count_parameters(named).trainable == 2 * 3 * 32
    randomise(model)
    site = model.transformer.h[0].attn.c_attn
    x = torch.randn(4, 32)
    assert torch.equal(site(x)[:, :32], site.base(x)[:, :32])
    assert not torch.isclose(site(x)[:, 32:], site.base(x)[:, 32:]).all(dim=0).any()


@pytest.mark.parametrize("feedforward", [["0"], []])
def test_a_small_scale_is_not_lost_in_bfloat16(feedforward):
    model = attach(nn.Sequential(nn.Linear(64, 64)).bfloat16(), IA3(["0"], feedforward))
    with torch.no_grad():
        model[0].deltas["default"].ia3_l.fill_(1.003)  # rounds to 1 in bfloat16
    x = torch.randn(50, 64).bfloat16()
    assert not torch.equal(model(x), model[0].base(x))


def test_ia3_needs_names_where_it_knows_no_architecture():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for method in (IA3(), IA3(["0"])):
        with pytest.raises(ValueError, match="No defaults .* and feedforward_modules"):
            attach(model, method)
    attach(model, IA3(["0", "1"], ["1"]))
    kinds = [type(site.deltas["default"]).__name__ for _, site in sites(model)]
    assert kinds == ["IA3Output", "IA3Input"]


@pytest.mark.parametrize("given", [["k_proj"], r".*\.k_proj", ["down_proj", "k_proj"]])
def test_feedforward_modules_that_are_no_targets_are_refused(given):
    with pytest.raises(ValueError, match="'.*k_proj' matches no module"):
        attach(build("llama"), IA3(["v_proj", "down_proj"], given))


# Claim: for the same numbers (IA)³ gives the logits and gradients of Hugging Face PEFT

TARGETS = {  # ours by default, and which of them are feed-forward modules
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "bert": (r".*(key|value|layer\.\d+\.output\.dense)", r".*layer\.\d+\.output\.dense"),
    "t5": (["k", "v", "wo"], ["wo"]),
    "opt": (["k_proj", "v_proj", "fc2"], ["fc2"]),
}


def theirs_and_ours(name):
    """Return PEFT's model with random vectors and ours with the same."""
    peft = pytest.importorskip("peft")
    named, feedforward = TARGETS[name]
    config = peft.IA3Config(target_modules=named, feedforward_modules=feedforward)
    theirs = peft.get_peft_model(build(name), config).eval()
    randomise(theirs)
    numbers = {
        key.removeprefix("base_model.model.")
        .replace(".ia3_l.", ".deltas.")
        .replace(".deltas.default", ".deltas.default.ia3_l"): value
        for key, value in theirs.named_parameters()
        if "ia3_l" in key
    }
    # What the default means on GPT-2 is not what PEFT does, so it is named there.
    ours = attach(build(name), IA3(named, feedforward) if name == "gpt2" else IA3())
    assert set(numbers) == {k for k, p in ours.named_parameters() if p.requires_grad}
    ours.load_state_dict(numbers, strict=False)
    return theirs, ours, numbers


@pytest.mark.parametrize("name", IA3_ARCHITECTURES)
def test_ia3_logits_and_gradients_equal_pefts(name):
    theirs, ours, numbers = theirs_and_ours(name)
    close(logits(ours, name), logits(theirs, name))
    assert not torch.allclose(logits(ours, name), logits(build(name), name), atol=1e-2)
    theirs(**batch(name)).loss.backward()
    found = gradients(ours, name)
    assert set(found) == set(numbers)
    for key, parameter in numbers.items():
        close(found[key], parameter.grad)


@pytest.mark.parametrize("name", IA3_ARCHITECTURES)
def test_ia3_reads_pefts_checkpoints(name, tmp_path):
    theirs, ours, _ = theirs_and_ours(name)
    theirs.save_pretrained(tmp_path)
    loaded = load(build(name), tmp_path)
    assert torch.equal(logits(loaded, name), logits(ours, name))
    assert count_parameters(loaded) == count_parameters(ours)


@pytest.mark.parametrize("name", IA3_ARCHITECTURES)
def test_peft_reads_our_ia3_checkpoints(name, tmp_path):
    peft = pytest.importorskip("peft")
    ours = attach(build(name), IA3())
    randomise(ours)
    theirs = peft.PeftModel.from_pretrained(build(name), save(ours, tmp_path)).eval()
    close(logits(theirs, name), logits(ours, name))
    again = load(build(name), tmp_path)
    assert torch.equal(logits(again, name), logits(ours, name))
    assert count_parameters(again) == count_parameters(ours)  # GPT-2's queries stay out


def test_a_checkpoint_of_some_layers_names_feed_forward_modules_as_peft_wants_them(tmp_path):
    peft = pytest.importorskip("peft")
    ours = attach(build("t5"), IA3(r".*block\.0\..*\.k|.*\.wo", r".*\.wo"))
    randomise(ours)
    theirs = peft.PeftModel.from_pretrained(build("t5"), save(ours, tmp_path)).eval()
    close(logits(theirs, "t5"), logits(ours, "t5"))


# Claim: BitFit trains every bias of the backbone, as if the bias itself were trained


@pytest.mark.parametrize("name", [a for a in ARCHITECTURES if a not in NO_BIAS])
def test_bitfit_trains_every_bias_of_the_backbone_and_no_other(name):
    model = build(name)
    backbone = model.base_model.named_parameters()
    biases = [p.numel() for key, p in backbone if key.endswith("bias")]
    attach(model, BitFit())
    assert count_parameters(model).trainable == sum(biases)
    assert len(list(sites(model))) == len(biases)


@pytest.mark.parametrize("name", ["gpt2", "bert", "vit", "opt"])
def test_bitfits_gradients_are_those_of_the_biases(name):
    expected = {
        key.removesuffix(".bias"): gradient
        for key, gradient in gradients(build(name), name).items()
        if key.endswith(".bias")
    }
    found = gradients(attach(build(name), BitFit()), name)
    assert found
    for key, gradient in found.items():
        path = key.removesuffix(".deltas.default.delta_bias")
        torch.testing.assert_close(gradient, expected[path], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["gpt2", "vit"])
def test_bitfit_computes_what_a_model_with_other_biases_computes(name):
    model = attach(build(name), BitFit())
    randomise(model)
    other = build(name)
    with torch.no_grad():
        for path, site in sites(model):
            other.get_submodule(path).bias += site.deltas["default"].delta_bias
    torch.testing.assert_close(logits(model, name), logits(other, name), rtol=1e-4, atol=1e-5)


def test_bitfit_adds_to_the_channels_of_a_convolution():
    conv = nn.Conv2d(2, 3, 2)
    model = attach(nn.Sequential(conv), BitFit())
    delta = model[0].deltas["default"].delta_bias
    with torch.no_grad():
        delta.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x = torch.randn(1, 2, 4, 4)
    difference = (model(x) - conv(x)).mean(dim=(0, 2, 3))
    torch.testing.assert_close(difference, delta.detach())


def test_a_bias_of_unknown_use_is_not_passed_over():
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="BatchNorm2d.* give target_modules"):
        attach(model, BitFit())
    assert count_parameters(attach(model, BitFit(["0"]))).trainable == 3


class ChannelsFirst(nn.LayerNorm):
    """ConvNeXt's normalisation of a picture: (batch, channels, height, width)."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Rounded(nn.LayerNorm):
    """A normalisation with a forward of its own, and nothing unusual."""

    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


class Standardised(nn.Conv2d):
    """A convolution that changes its weight first, as BiT's."""

    def forward(self, x):
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class ChannelsLast(nn.Conv1d):
    """A convolution that turns its output, as a CTC head does."""

    def forward(self, x):
        return super().forward(x).transpose(1, 2)


class Both(nn.Module):
    """It calls its map for a text, and reads weight and bias for one token."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv1d(4, 4, 1), nn.Linear(4, 4)

    def forward(self, x):
        if x.shape[-1] == 1:
            return self.out((self.conv.weight[..., 0] @ x[..., 0].T + self.conv.bias[:, None]).T)
        return self.out(self.conv(x).mean(-1))


@pytest.mark.parametrize("odd", [ChannelsFirst(4), ChannelsLast(4, 4, 1)])
def test_a_bias_that_is_added_to_another_axis_is_refused(odd):
    model = nn.Sequential(odd)
    for method in (BitFit(), BitFit(["0"])):
        with pytest.raises(ValueError, match=f"{type(odd).__name__}.*bias of unknown use"):
            attach(model, method)
    assert not any(sites(model)) and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "layer, shape", [(Rounded(4), (2, 3, 4)), (Standardised(4, 3, 3), (2, 4, 5, 5))]
)
def test_a_forward_of_its_own_that_adds_the_bias_as_usual_is_trained(layer, shape):
    model = nn.Sequential(layer)
    x = torch.randn(shape)
    randomise(attach(model, BitFit()))
    expected = model(x)
    close(merge(model)(x), expected)


def test_a_bias_that_the_model_reads_itself_is_refused():
    with pytest.raises(ValueError, match=r"\(conv\): the model reads the bias itself"):
        attach(Both(), BitFit())
    model = attach(Both(), BitFit(exclude_modules=["conv"]))
    assert [path for path, _ in sites(model)] == ["out"]


def test_convnext_is_refused_and_can_be_adapted_without_its_odd_normalisations():
    from transformers import ConvNextConfig, ConvNextModel

    model = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 4, 4, 2], depths=[1] * 4, image_size=32))
    with pytest.raises(ValueError, match="ConvNextLayerNorm"):
        attach(model, BitFit())
    odd = ["embeddings.layernorm", "downsampling_layer.0"]
    randomise(attach(model.eval(), BitFit(exclude_modules=odd)))
    x = torch.randn(1, 3, 32, 32)
    expected = model(x).last_hidden_state
    close(merge(model)(x).last_hidden_state, expected)


def test_the_biases_of_an_indexer_which_get_no_gradient_are_left_alone():
    sizes = CONFIGS["DeepseekV3"] | dict(index_topk=4, index_n_heads=2, index_head_dim=8)
    torch.manual_seed(0)
    bare = DeepseekV32ForCausalLM(DeepseekV32Config(**sizes))
    with pytest.raises(ValueError, match="has no bias"):
        attach(bare, BitFit())
    model = DeepseekV32ForCausalLM(DeepseekV32Config(**sizes, attention_bias=True))
    paths = [path for path, _ in sites(attach(model, BitFit()))]
    assert len(paths) == 6 and not any("indexer" in path for path in paths)
    model(input_ids=IDS).logits.square().sum().backward()
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", NO_BIAS)
def test_a_model_without_biases_is_refused(name):
    with pytest.raises(ValueError, match="has no bias"):
        attach(build(name), BitFit())


def test_a_target_without_a_bias_is_refused():
    with pytest.raises(ValueError, match=r"'q_proj'.*: 2 \(model.*\) without a bias"):
        attach(build("llama"), BitFit(["q_proj"]))
    with pytest.raises(ValueError, match="Embedding"):
        attach(build("bert"), BitFit(["word_embeddings"]))


def test_bitfit_trains_a_head_only_where_it_is_named():
    model = attach(build("bert"), BitFit(modules_to_save=["classifier"]))
    randomise(model)
    trained = {key for key in gradients(model, "bert") if "classifier" in key}
    assert trained == {f"classifier.deltas.default.module.{key}" for key in ("weight", "bias")}
    assert set(gradients(attach(build("bert"), BitFit()), "bert")).isdisjoint(trained)


def test_bitfit_checkpoints_come_back(tmp_path):
    model = attach(build("bert"), BitFit(modules_to_save=["classifier"]))
    randomise(model)
    loaded = load(build("bert"), save(model, tmp_path))
    assert torch.equal(logits(loaded, "bert"), logits(model, "bert"))
    assert count_parameters(loaded) == count_parameters(model)


# Claim: both can be merged, and taken off without a trace


@both()
def test_merging_changes_no_output_and_unmerging_is_exact(method, name):
    model = build(name)
    randomise(model)  # the biases too, which are zero in a new model
    base = logits(model, name)
    attach(model, method)
    randomise(model)
    adapted = logits(model, name)
    assert not torch.allclose(adapted, base, atol=1e-2)
    close(logits(merge(model), name), adapted)
    assert torch.equal(logits(unmerge(model), name), adapted)
    assert torch.equal(logits(detach(model), name), base)


@pytest.mark.parametrize("order", ["ab", "ba"])
@pytest.mark.parametrize("feedforward", [["0"], []])
def test_ia3_and_lora_at_one_place_merge_to_what_they_compute_together(order, feedforward):
    model = attach(nn.Sequential(nn.Linear(8, 8)), IA3(["0"], feedforward), "a")
    attach(model, LoRA(r=2, target_modules=["0"]), "b")
    randomise(activate(model, *order))
    x = torch.randn(5, 8)
    expected = model(x)
    torch.testing.assert_close(merge(model)(x), expected)


def test_ia3_of_an_input_of_two_numbers_is_read_back(tmp_path):
    def model():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3))

    method = IA3(target_modules=["0", "1"], feedforward_modules=["1"])
    save(attach(model(), method), tmp_path)
    loaded = adaptations_of(load(model(), tmp_path)).methods["default"]
    assert list(loaded.feedforward_modules) == ["1"]
