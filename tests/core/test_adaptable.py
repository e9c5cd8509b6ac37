"""What can be adapted at all, and what becomes of the rest: left out, refused or warned of."""

import copy
import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers.asserts import assert_as_before, snapshot
from helpers.models import batch, build, randomise
from sweep import small
from torch import nn
from torch.nn.utils import parametrizations

from pedagogic_peft import (
    IA3,
    BitFit,
    BottleneckAdapter,
    DoRA,
    LoRA,
    PiSSA,
    PrefixTuning,
    PromptTuning,
    VeRA,
    activate,
    attach,
    detach,
    load,
    merge,
    quantize_nf4,
    save,
)
from pedagogic_peft.core.reading import uses
from pedagogic_peft.core.sites import View, deltas_of, sites
from pedagogic_peft.core.targets import heads


class Net(nn.Module):
    """Three linear maps; how the last two are used is said by the class that is derived."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.rest(self.a(x))

    def rest(self, x):
        return self.c(self.b(x))


class Reading(Net):
    """It computes with the weight of b itself."""

    def rest(self, x):
        return self.c(F.linear(x, self.b.weight, self.b.bias))


class Checking(Net):
    """It asks what b is, and computes with its weight itself."""

    def rest(self, x):
        if isinstance(self.b, nn.Linear) and hasattr(self.b, "weight"):
            x = x @ self.b.weight.T
        return self.c(x)


class Fused(Net):
    """In training b's weight goes to a kernel, in evaluation b is called."""

    def rest(self, x):
        if self.training:
            return self.c(F.linear(x, self.b.weight))
        return self.c(self.b(x))


class Asking(Net):
    """It asks for the dtype only, and calls b where no one looks."""

    def rest(self, x):
        x = x.to(self.b.weight.dtype)
        if isinstance(self.b.weight, torch.Tensor) and self.b.weight.shape[0]:
            x = x + 0
        return self.c(run(self.b, x))


class Walking(Net):
    """It calls its parts without their names, and reads a weight for a penalty."""

    def forward(self, x):
        for part in self.children():
            x = part(x)
        return x

    def penalty(self):
        return self.b.weight.square().sum()


class Handing(Net):
    """It hands b on to a function that reads the weight; the class's own code does not show it."""

    def rest(self, x):
        return self.c(product(self.b, x))


class Decorated(Net):
    """Its forward is wrapped, as transformers' decorators do."""

    @torch.no_grad()
    def rest(self, x):
        return self.c(x @ self.b.weight.T)


def run(module, x):
    return module(x)


def product(module, x):
    return x @ module.weight.T


def adapted(model, method=None):
    attach(model, method or LoRA(r=2, target_modules="all-linear"))
    return [path for path, _ in sites(model)]


def trained(model, method):
    """Return the model with a random adaptation."""
    randomise(attach(model, method))
    return model


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


# Claim: a module whose weight is read and that is never called is left out of all-linear, and refused by name


@pytest.mark.parametrize("net", [Reading, Decorated, Checking])
def test_a_module_that_is_never_called_is_left_out_or_refused(net):
    assert adapted(nn.Sequential(net())) == ["0.a", "0.c"]
    model = net()
    before = snapshot(model)
    with pytest.raises(ValueError, match=rf"'b' is never called, as {net.__name__} computes with"):
        attach(model, LoRA(r=2, target_modules=["a", "b"]))
    assert_as_before(model, before)
    assert adapted(model, LoRA(r=2, target_modules=["a", "b"], exclude_modules=["b"])) == ["a"]


@pytest.mark.parametrize("net", [Net, Asking, Walking, Fused])
def test_a_module_that_may_be_called_is_adapted(net):
    assert adapted(net()) == ["a", "b", "c"]


def test_how_a_class_uses_a_part_is_read_from_its_code():
    assert uses(Reading, "b") == {"weight", "bias"}
    assert uses(Fused, "b") == {"weight", "call"}
    assert uses(Asking, "b") == uses(Reading, "a") == {"call"}
    assert "call" in uses(Walking, "b")
    assert uses.__wrapped__(Checking, "b") == {"weight"}  # read anew
    assert uses(nn.MultiheadAttention, "out_proj") == {"weight", "bias"}
    assert not uses(nn.Sequential, "0") and not uses(Net, "not_there")


def test_models_of_transformers_whose_kernels_take_weights():
    from transformers import MambaConfig, MambaForCausalLM, WavLMConfig, WavLMModel

    sizes = dict(vocab_size=60, hidden_size=16, state_size=4, time_step_rank=4, num_hidden_layers=1)
    mamba = MambaForCausalLM(MambaConfig(**sizes, pad_token_id=0))
    with pytest.raises(ValueError, match="'backbone.layers.0.mixer.dt_proj' is never called"):
        attach(mamba, LoRA(r=2, target_modules=["dt_proj"]))
    with pytest.raises(ValueError, match=r"mixer.conv1d' is never called.*exclude_modules"):
        attach(mamba, BitFit())
    paths = adapted(mamba)
    assert {path.rpartition(".")[2] for path in paths} == {"in_proj", "x_proj", "out_proj"}
    mamba.train()(**batch("gpt2")).logits.sum().backward()
    assert all(p.grad is not None for p in mamba.parameters() if p.requires_grad)
    convolutions = dict(
        conv_dim=(8,), conv_stride=(5,), conv_kernel=(10,), num_feat_extract_layers=1
    )
    wavlm = WavLMConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, **convolutions,
        intermediate_size=16, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)  # fmt: skip
    with torch.device("meta"):
        model = WavLMModel(wavlm)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        with pytest.raises(ValueError, match=f"{name}' is never called, as WavLMAttention"):
            attach(model, LoRA(r=2, target_modules=[name]))


# Claim: where only the forward pass shows it, it is not silent


def test_an_adaptation_that_a_forward_pass_passes_over_is_warned_of():
    model = trained(Fused(), LoRA(r=2, target_modules=["b", "c"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.eval()(X)
        model.a.weight.sum()  # outside of a forward pass anyone may read
        model.b.weight.sum()
        model.eval()(X)
    with pytest.warns(UserWarning, match=r"weight of \['b'\] itself, not with the module"):
        model.train()(X)
    twin = copy.deepcopy(model)
    with pytest.warns(UserWarning, match=r"\['b'\]"):
        twin(X)
    for detached in (detach(model), detach(twin)):
        assert not detached._forward_hooks and not detached._forward_pre_hooks
        assert set(vars(detached)) == set(vars(Fused()))


def test_a_weight_that_another_function_takes_is_warned_of():
    model = trained(Handing(), LoRA(r=2, target_modules="all-linear"))
    with pytest.warns(UserWarning, match=r"weight of \['b'\] itself"):
        model(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        activate(model)
        model(X)  # with the frozen model nothing is passed over


def test_threads_are_not_warned_of_each_others_reading():
    from concurrent.futures import ThreadPoolExecutor

    model = trained(Asking(), LoRA(r=2, target_modules="all-linear"))
    expected = model(X)
    with warnings.catch_warnings(), ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("error")
        assert all(torch.equal(y, expected) for y in pool.map(model, [X] * 200))


@pytest.mark.parametrize("net", [Net, Asking, Walking])
def test_models_that_ask_for_a_dtype_are_not_warned_of(net):
    model = trained(net(), LoRA(r=2, target_modules="all-linear"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train()(X)
        model.eval()(X)
        t5 = attach(build("t5"), LoRA(r=2, target_modules="all-linear"))
        t5(**batch("t5"))


# Claim: a class derived from nn.Linear is a linear map if it returns what one would


class Router(nn.Linear):
    """Returns two tensors, as Llama 4's and Phi-3.5's routers do."""

    def forward(self, x):
        scores = super().forward(x)
        return scores.topk(1).values, scores


class Grouped(nn.Linear):
    """Wants its input in groups, as DeepSeek-V4's does."""

    def forward(self, x):
        return torch.einsum("...gd,god->...go", x, self.weight.view(2, -1, self.in_features))


class Written(nn.Linear):
    """A linear map with a forward of its own, as Falcon's."""

    def forward(self, x):
        return x @ self.weight.T + self.bias


class Scaled(nn.Linear):
    """Twice a linear map."""

    def forward(self, x):
        return 2 * super().forward(x)


class Packed(nn.Linear):
    """What bitsandbytes' 4-bit map looks like: two codes a byte, (n, 1)."""

    def __init__(self, base, dtype=torch.uint8):
        super().__init__(base.in_features, base.out_features)
        self.full, self.bias = base.weight.detach(), base.bias
        codes = torch.zeros(base.weight.numel() // 2, 1, dtype=dtype)
        self.weight = nn.Parameter(codes, requires_grad=False)

    def forward(self, x):
        return F.linear(x, self.full, self.bias)


@pytest.mark.parametrize("kind", [Router, Grouped])
def test_what_is_no_linear_map_is_left_out_or_refused(kind):
    model = nn.ModuleDict({"gate": kind(4, 6), "up": nn.Linear(4, 4)})
    assert adapted(model) == ["up"]
    detach(model)
    with pytest.raises(ValueError, match=rf"'gate' matches only modules of type {kind.__name__}"):
        attach(model, LoRA(r=2, target_modules=["gate", "up"]))


def test_a_linear_map_with_a_forward_of_its_own_is_adapted_and_merged():
    model = trained(nn.Sequential(Written(4, 4)), LoRA(r=2, target_modules="all-linear"))
    expected = model(X)
    torch.testing.assert_close(merge(model)(X), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.bfloat16])
def test_a_packed_linear_map_is_adapted_but_not_by_what_reads_its_numbers(dtype):
    base = nn.Linear(4, 4)
    model = trained(nn.Sequential(Packed(base, dtype)), LoRA(r=2, target_modules="all-linear"))
    assert not torch.equal(model(X), base(X))
    with pytest.raises(ValueError, match="quantised|packed|merged"):
        merge(model)
    detach(model)
    before = snapshot(model)
    for method in (DoRA, PiSSA):
        words = rf"{method.__name__} at '0': the weight is packed \({dtype}, \[8, 1\]\)"
        with pytest.raises(ValueError, match=words):
            attach(model, method(r=2, target_modules="all-linear"))
    assert_as_before(model, before)


def test_a_map_in_nf4_can_be_read():
    model = quantize_nf4(nn.Sequential(nn.Linear(64, 64)))
    for method in (LoRA, DoRA, PiSSA):
        detach(attach(model, method(r=2, target_modules="all-linear")))


# Claim: what is not a weight as it stands is not merged into


@pytest.mark.parametrize(
    "computed",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        pytest.param(
            torch.nn.utils.weight_norm, marks=pytest.mark.filterwarnings("ignore::FutureWarning")
        ),
    ],
)
def test_a_computed_weight_is_adapted_and_not_merged(computed):
    model = nn.Sequential(computed(nn.Linear(4, 4))).eval()
    frozen = model(X)
    trained(model, LoRA(r=2, target_modules="all-linear")).eval()
    adapted_output = model(X)
    assert not torch.equal(adapted_output, frozen)
    with pytest.raises(ValueError, match=r"0.weight is computed from other numbers.*merged"):
        merge(model)
    assert torch.equal(model(X), adapted_output)
    assert torch.equal(detach(model)(X), frozen)


def test_a_linear_map_that_does_more_is_adapted_and_not_merged():
    model = trained(nn.Sequential(Scaled(4, 4)), LoRA(r=2, target_modules="all-linear"))
    with pytest.raises(ValueError, match="0: Scaled is more than its weight and bias"):
        merge(model)


# Claim: a list that the library makes has nothing in it that the library refuses


def test_all_linear_leaves_out_what_lies_in_a_fused_kernel():
    model = nn.ModuleDict({"pool": nn.MultiheadAttention(8, 2), "up": nn.Linear(4, 4)})
    assert adapted(model) == ["up"]
    detach(model)
    with pytest.raises(ValueError, match="'pool.out_proj' lies inside torch's MultiheadAttention"):
        attach(model, LoRA(r=2, target_modules=["out_proj", "up"]))
    method = LoRA(r=2, target_modules=["out_proj", "up"], exclude_modules=["out_proj"])
    assert adapted(model, method) == ["up"]


def test_a_fused_layer_that_is_the_model_is_refused_too():
    with pytest.raises(ValueError, match="'linear1' lies inside torch's TransformerEncoderLayer"):
        attach(nn.TransformerEncoderLayer(8, 2, 8), LoRA(r=2, target_modules=["linear1"]))


# Claim: a name that means modules of two kinds is warned of


class Clipped(nn.Module):
    """A linear map in a wrapper, as in Gemma 4's vision tower."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)


def test_a_name_that_is_adapted_by_half_is_warned_of():
    def model():
        text, vision = nn.ModuleDict({"q": nn.Linear(4, 4)}), nn.ModuleDict({"q": Clipped()})
        return nn.ModuleDict({"text": text, "vision": vision})

    for names in (["q"], r".*\.q"):
        words = r"also names 1 \(vision.q\) of type Clipped: left out, because LoRA"
        with pytest.warns(UserWarning, match=words):
            assert adapted(model(), LoRA(r=2, target_modules=names)) == ["text.q"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapted(model(), LoRA(r=2, target_modules=["q"], exclude_modules=["vision.q"]))
        adapted(model())
        adapted(model(), LoRA(r=2, target_modules=["text.q", "linear"]))


# Claim: a head is known where the class does not say where its backbone is


def test_heads_of_models_with_the_backbone_under_another_name():
    from transformers import (
        CLIPConfig,
        CLIPForImageClassification,
        CLIPModel,
        T5Config,
        T5ForQuestionAnswering,
        T5Model,
    )

    one = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config = CLIPConfig(text_config=one, vision_config={**one, "image_size": 8, "patch_size": 4})
    t5 = T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with torch.device("meta"):
        clip, question = CLIPForImageClassification(config), T5ForQuestionAnswering(t5)
        whole = CLIPModel(config), T5Model(t5)
    assert clip.base_model is clip and question.base_model is question
    assert list(heads(View(clip))) == ["classifier"]
    assert list(heads(View(question))) == ["qa_outputs"]
    assert not any(heads(View(model)) for model in whole)
    with pytest.warns(UserWarning, match=r"head \(classifier\) stays frozen"):
        paths = adapted(clip)
    assert paths and "classifier" not in paths


# Claim: exclude_modules, layers_to_transform and layers_pattern choose among the targets


def paths_of(**options):
    return adapted(build("llama"), LoRA(r=2, **options))


def test_excluded_modules_are_left_out():
    assert paths_of(exclude_modules=["v_proj", "layers.1.self_attn.q_proj"]) == [
        "model.layers.0.self_attn.q_proj"
    ]
    assert paths_of(exclude_modules=r".*layers\.0.*") == [
        f"model.layers.1.self_attn.{name}" for name in ("q_proj", "v_proj")
    ]
    every = paths_of(target_modules="all-linear")
    rest = paths_of(target_modules="all-linear", exclude_modules=["lm_head", "down_proj"])
    assert rest == [path for path in every if not path.endswith("down_proj")]


@pytest.mark.parametrize("layers", [1, [1]])
def test_only_these_layers_are_adapted(layers):
    expected = ["model.layers.1.self_attn.q_proj"]
    for pattern in (None, "layers", ["h", "layers"]):
        options = dict(layers_to_transform=layers, layers_pattern=pattern)
        assert paths_of(target_modules=["q_proj"], **options) == expected


def test_the_number_of_a_layer_follows_the_names_of_the_pattern():
    experts = nn.ModuleList([nn.ModuleDict({"up": nn.Linear(4, 4)}) for _ in range(2)])
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"experts": experts})])})
    method = LoRA(r=2, target_modules=["up"], layers_to_transform=[1], layers_pattern=["experts"])
    assert adapted(model, method) == ["layers.0.experts.1.up"]


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(exclude_modules=["v_prj"]), "'v_prj'.*did you mean 'v_proj'"),
        (dict(exclude_modules=["mlp"]), "'mlp' matches only modules of type LlamaMLP"),
        (dict(exclude_modules=["q_proj", "v_proj"]), "no target is left"),
        (dict(layers_to_transform=[0, 5]), r"no target is in layer 5; there are \[0, 1\]"),
        (dict(layers_to_transform=[0], layers_pattern="h"), "no target is in layer 0"),
        (dict(layers_pattern="layers"), "needs layers_to_transform"),
        (dict(layers_to_transform=[-1]), "at least 0"),
        (dict(exclude_modules=3), "exclude_modules=3"),
        (dict(exclude_modules="("), "not a regular expression"),
    ],
)
def test_a_choice_that_means_nothing_is_an_error(options, words):
    model = build("llama")
    before = snapshot(model)
    with pytest.raises(ValueError, match=words):
        attach(model, LoRA(r=2, **options))
    assert_as_before(model, before)


def test_a_method_without_targets_has_nothing_to_choose_among():
    with pytest.raises(ValueError, match="PromptTuning needs target_modules"):
        PromptTuning(3, exclude_modules=["wte"])


METHODS = [LoRA(r=2), VeRA(r=4), IA3(), BitFit(), PrefixTuning(3)]
METHODS += [BottleneckAdapter(placement=placement) for placement in ("houlsby", "parallel")]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_every_method_with_targets_chooses_and_its_files_hold_the_choice(method, tmp_path):
    import dataclasses

    chosen = dataclasses.replace(method, layers_to_transform=[1])
    model = trained(build("gpt2"), chosen)
    deltas = deltas_of(model, "default").items()  # some only help others
    own = {path for path, d in deltas if next(d.parameters(), None) is not None}
    assert own and all(".1." in path for path in own)
    save(model, tmp_path)
    again = load(build("gpt2"), tmp_path)
    assert deltas_of(again, "default").keys() == deltas_of(model, "default").keys()
    tokens = batch("gpt2")
    assert torch.equal(again.eval()(**tokens).logits, model.eval()(**tokens).logits)
    save(again, tmp_path / "again")
    assert (tmp_path / "again" / "adapter_config.json").exists()


def test_peft_reads_a_choice_and_we_read_its(tmp_path):
    peft = pytest.importorskip("peft")
    options = dict(
        target_modules=["q_proj", "v_proj"], exclude_modules=["layers.1.self_attn.v_proj"]
    )
    ours = trained(build("llama"), LoRA(r=2, **options, layers_to_transform=[1]))
    save(ours, tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        theirs = peft.PeftModel.from_pretrained(build("llama"), tmp_path / "ours")
    tokens = batch("llama")
    expected = ours.eval()(**tokens).logits
    torch.testing.assert_close(theirs.eval()(**tokens).logits, expected)
    config = peft.LoraConfig(r=2, **options, layers_to_transform=[1], layers_pattern="layers")
    theirs = peft.get_peft_model(build("llama"), config)
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    assert json.loads((tmp_path / "theirs/adapter_config.json").read_text())["exclude_modules"]
    ours = load(build("llama"), tmp_path / "theirs")
    assert list(deltas_of(ours, "default")) == ["model.layers.1.self_attn.q_proj"]
    torch.testing.assert_close(ours.eval()(**tokens).logits, theirs.eval()(**tokens).logits)


def test_reformers_layers_are_refused_while_nothing_before_them_is_trained():
    """Its reversible layers are one function of autograd, which is left out if no input needs a gradient."""
    model = small.build("reformer", "writes")
    with pytest.raises(ValueError, match="train the embeddings beside it"):
        attach(model, LoRA(r=2, target_modules="all-linear"))
    assert all(p.requires_grad for p in model.parameters())
    attach(model, LoRA(r=2, target_modules=["query", "word_embeddings"])).train()
    ids = torch.randint(5, 90, (1, 8))
    model(ids, use_cache=False).logits.square().mean().backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 3 and all(p.grad is not None for p in trained.values())
