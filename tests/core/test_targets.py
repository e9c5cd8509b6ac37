"""Which modules `target_modules` means, and that nothing is silently left out."""

import pytest
from helpers.models import build
from torch import nn

from pedagogic_peft import LoRA, attach
from pedagogic_peft.core.architectures import DEFAULT_TARGETS
from pedagogic_peft.core.sites import sites


def adapted(model: nn.Module, target_modules=None, **options) -> list[str]:
    attach(model, LoRA(r=2, target_modules=target_modules, **options))
    return [path for path, _ in sites(model)]


# Claim: the default targets are the query and value projections of the architecture


@pytest.mark.parametrize(
    "name, expected",
    [
        ("gpt2", {"c_attn"}),
        ("llama", {"q_proj", "v_proj"}),
        ("opt", {"q_proj", "v_proj"}),
        ("bert", {"query", "value"}),
        ("roberta", {"query", "value"}),
        ("distilbert", {"q_lin", "v_lin"}),
        ("t5", {"q", "v"}),
        ("vit", {"q_proj", "v_proj"}),
    ],
)
def test_default_targets_are_query_and_value(name, expected):
    paths = adapted(build(name))
    assert {path.rpartition(".")[2] for path in paths} == expected
    blocks = (
        6 if name == "t5" else 2
    )  # T5: two encoder blocks, two decoder blocks with cross-attention
    assert len(paths) == blocks * len(expected)


def test_every_architecture_with_default_targets_has_modules_of_these_names():
    """Each entry of the table names modules that transformers really has (built without memory)."""
    import torch
    from transformers import AutoConfig, AutoModel

    for kind, names in DEFAULT_TARGETS.items():
        with torch.device("meta"):
            config = AutoConfig.for_model(kind)
            if kind not in ("swin", "whisper", "wav2vec2"):
                config.num_hidden_layers = 1
            model = AutoModel.from_config(config)
        ends = {p.rpartition(".")[2] for p, m in model.named_modules() if hasattr(m, "weight")}
        assert set(names) <= ends, kind


def test_an_unknown_architecture_asks_for_target_modules_and_lists_the_choice():
    model = build("gpt2")
    model.config.model_type = "something-new"
    with pytest.raises(ValueError, match=r"'something-new'.*target_modules.*c_attn, c_fc, c_proj"):
        attach(model, LoRA())
    with pytest.raises(ValueError, match=r"Sequential.*no config.*target_modules"):
        attach(nn.Sequential(nn.Linear(2, 2)), LoRA())


# Claim: names match the end of a path, a string is a regular expression for all of it


def test_a_name_matches_whole_parts_of_the_path_from_its_end():
    assert adapted(build("gpt2"), ["mlp.c_proj"]) == [
        f"transformer.h.{i}.mlp.c_proj" for i in (0, 1)
    ]
    assert len(adapted(build("gpt2"), ["c_proj"])) == 4
    assert adapted(build("gpt2"), ["transformer.h.1.attn.c_attn"]) == [
        "transformer.h.1.attn.c_attn"
    ]
    with pytest.raises(ValueError, match="'attn' matches only modules of type GPT2Attention"):
        adapted(build("gpt2"), ["attn"])


def test_a_string_is_a_regular_expression_for_the_whole_path():
    assert adapted(build("llama"), r".*layers\.1\..*(q|v)_proj") == [
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
    ]
    with pytest.raises(ValueError, match=r"regular expression.*\['c_attn'\].*You can name: c_attn"):
        adapted(build("gpt2"), "c_attn")


def test_all_linear_leaves_the_head_alone():
    names = {path.rpartition(".")[2] for path in adapted(build("llama"), "all-linear")}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    for name, head in [
        ("bert", "classifier"),
        ("gpt2", "lm_head"),
        ("t5", "lm_head"),
        ("vit", "classifier"),
    ]:
        paths = adapted(build(name), "all-linear")
        assert paths and not any(path.startswith(head) for path in paths)


def test_all_linear_of_a_plain_module_is_every_linear_map():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 2)))
    assert adapted(model, "all-linear") == ["1", "2.0"]


def test_modules_to_save_are_not_adapted_inside():
    paths = adapted(build("roberta"), ["dense"], modules_to_save=["classifier"])
    assert "classifier" in paths and "classifier.dense" not in paths


# Claim: one wrong name among several is an error that lists what there is


@pytest.mark.parametrize(
    "name, targets, words",
    [
        (
            "gpt2",
            ["c_attn", "c_atn"],
            ["'c_atn'", "GPT2LMHeadModel", "did you mean 'c_attn'", "c_fc"],
        ),
        ("llama", ["q_proj", "FAKE"], ["'FAKE'", "LlamaForCausalLM", "down_proj, embed_tokens"]),
        ("bert", ["querry"], ["'querry'", "did you mean 'query'"]),
        ("gpt2", [], ["names no module", "c_attn"]),
    ],
)
def test_a_name_that_matches_nothing_is_an_error(name, targets, words):
    model = build(name)
    before = [(key, id(module)) for key, module in model.named_modules()]
    with pytest.raises(ValueError) as caught:
        attach(model, LoRA(target_modules=targets))
    for word in words:
        assert word in str(caught.value)
    assert [(key, id(module)) for key, module in model.named_modules()] == before
    assert all(p.requires_grad for p in model.parameters())


def test_a_module_to_save_that_does_not_exist_is_an_error():
    with pytest.raises(
        ValueError, match=r"'classifer' matches no module.*did you mean 'classifier'"
    ):
        attach(build("bert"), LoRA(modules_to_save=["classifer"]))


def test_a_rank_pattern_that_matches_no_target_is_an_error():
    with pytest.raises(ValueError, match=r"rank_pattern: \['k_proj'\] match none of the targets"):
        attach(build("llama"), LoRA(rank_pattern={"k_proj": 2}))


# Claim: what LoRA cannot adapt is refused, not ignored


@pytest.mark.parametrize(
    "name, target, kind", [("gpt2", "ln_1", "LayerNorm"), ("vit", "projection", "Conv2d")]
)
def test_a_module_of_an_unsupported_type_is_named_with_its_type(name, target, kind):
    with pytest.raises(ValueError, match=f"'{target}' matches only modules of type {kind}"):
        attach(build(name), LoRA(target_modules=[target]))


def test_an_embedding_that_does_more_than_look_up_is_refused():
    with pytest.raises(ValueError, match="OPTLearnedPositionalEmbedding"):
        attach(build("opt"), LoRA(target_modules=["embed_positions"]))


@pytest.mark.parametrize(
    "layer, target",
    [
        (nn.MultiheadAttention(8, 2), "out_proj"),
        (nn.TransformerEncoderLayer(8, 2, 8), "linear1"),
    ],
)
def test_modules_inside_torchs_fused_kernels_are_refused(layer, target):
    model = nn.Sequential(layer)
    with pytest.raises(
        ValueError, match=rf"'0\.{target}' lies inside torch's {type(layer).__name__}"
    ):
        attach(model, LoRA(target_modules=[target]))


# Claim: a module that is used in two places is adapted in both


def test_a_shared_module_is_adapted_wherever_it_stands():
    shared = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, shared)})
    assert adapted(model, "all-linear") == ["a"]
    assert model["a"] is model["b"][0] is model["b"][1]
    assert model["a"].base is shared
