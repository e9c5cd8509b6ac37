"""Checkpoints of mixtures: LoRA of the experts and of what stands beside them, both ways with PEFT."""

import copy
import json
import warnings

import peft
import pytest
import torch
import transformers
from helpers.mixtures import EXPERTS, MIXTURES, NARROW, logits, mixture
from helpers.models import randomise

from pedagogic_peft import DoRA, LoRA, PiSSA, attach, load, save
from pedagogic_peft.core.verbs import adaptations_of
from pedagogic_peft.files.peft import TABLE

pytestmark = pytest.mark.filterwarnings(
    "ignore:all-linear leaves out", "ignore:r=. is more than a change"
)
CLOSE = dict(rtol=1e-4, atol=1e-4)
# A last digit in its weights moves Mixtral's logits, of up to 4, by 0.001: PiSSA's base is W less the start.
NEAR = dict(rtol=5e-3, atol=5e-3)
METHODS = {
    "experts": LoRA(r=2, target_modules=[], target_parameters=EXPERTS),
    "one": LoRA(r=3, use_rslora=True, target_modules=["o_proj"], target_parameters=["down_proj"]),
    "all": LoRA(
        r=2,
        alpha=3,
        target_modules="all-linear",
        target_parameters=EXPERTS,
        rank_pattern={"down_proj": 3},
        alpha_pattern={r"1\..*down_proj": 7},
    ),
    "with dropout": LoRA(r=2, dropout=0.1, target_modules="all-linear"),
    "PiSSA": PiSSA(r=1, target_modules="all-linear"),
}


def saved(name, method, folder):
    """Return a base and the same with an adaptation as if trained, which is saved."""
    base = mixture(name)
    model = attach(copy.deepcopy(base), method)
    randomise(model)
    save(model, folder)
    return base, model


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_what_is_saved_is_what_is_loaded_here_and_in_peft(name, method, tmp_path):
    base, model = saved(name, method, tmp_path)
    own = load(copy.deepcopy(base), tmp_path)
    assert torch.equal(logits(own), logits(model))
    read = adaptations_of(own).methods["default"]
    assert (read.dropout, set(read.target_parameters)) == (
        method.dropout,
        set(method.target_parameters),
    )
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    close = NEAR if isinstance(method, PiSSA) else CLOSE
    torch.testing.assert_close(logits(theirs), logits(model), **close)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},  # for all but GPT-OSS PEFT adds the experts and a router
        {"target_modules": [], "target_parameters": EXPERTS},
        {"target_modules": ["o_proj"], "target_parameters": ["gate_up_proj"], "use_rslora": True},
    ],
    ids=["all-linear", "experts", "one"],
)
def test_what_peft_saves_is_loaded(name, options, tmp_path):
    base = mixture(name)
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=2, **options)).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(load(base, tmp_path)), logits(theirs), **CLOSE)


def test_maps_that_peft_takes_for_experts_are_named_by_their_weights(tmp_path):
    saved("DeepseekV3", METHODS["with dropout"], tmp_path)
    config = config_of(tmp_path)
    assert not {"gate_proj", "up_proj", "down_proj"} & set(config["target_modules"])
    assert "model.layers.1.mlp.shared_experts.up_proj.weight" in config["target_parameters"]
    assert len(config["target_parameters"]) == 6  # three of a dense layer, three of a shared expert
    assert config["lora_dropout"] == 0  # PEFT refuses one beside parameters


def test_dora_of_these_maps_is_saved_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="takes 6 .*for experts.*no DoRA: it will refuse this"):
        base, model = saved("DeepseekV3", DoRA(r=1, target_modules="all-linear"), tmp_path)
    with pytest.raises(ValueError, match="use_dora"):
        peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert torch.equal(logits(load(base, tmp_path)), logits(model))


def test_tensors_that_peft_does_not_find_are_saved_with_a_warning(tmp_path):
    config = transformers.LagunaConfig(**NARROW, num_experts=4, shared_expert_intermediate_size=24)
    base = transformers.LagunaForCausalLM(config).eval()
    model = attach(copy.deepcopy(base), LoRA(r=2, target_modules=["shared_experts.up_proj"]))
    randomise(model)
    with pytest.warns(UserWarning, match="renames .*shared_experts.up_proj.*is wrong"):
        save(model, tmp_path)
    assert torch.equal(logits(load(copy.deepcopy(base), tmp_path)), logits(model))
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    assert not torch.allclose(logits(theirs), logits(model), atol=1e-2)  # else it needs no warning


def test_a_file_without_parameters_does_not_name_them(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved("GptOss", LoRA(r=1, target_modules=["q_proj"]), tmp_path)
    assert "target_parameters" not in config_of(tmp_path)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["gate_up_proj"], "has no 2 .*experts.base_layer"),
        (["gate_up_proj", "down_proj", "gate.weight"], "missing"),
        ("down_proj", "target_parameters='down_proj': expected a list"),
        (["norm.weight"], "expected floats"),
    ],
)
def test_names_that_do_not_fit_the_tensors_are_refused(names, words, tmp_path):
    base, _ = saved("Mixtral", METHODS["experts"], tmp_path)
    config = config_of(tmp_path) | {"target_parameters": names}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with (
        pytest.warns(UserWarning, match="was edited"),
        pytest.raises(ValueError, match=words),
    ):
        load(base, tmp_path)
    assert "_adaptations" not in vars(base)


def test_the_table_has_the_architectures_whose_maps_peft_takes_for_experts():
    conversion = pytest.importorskip("peft.utils.transformers_weight_conversion")
    kinds = conversion._MOE_TARGET_MODULE_MAPPING
    there = conversion._MODEL_TO_CONVERSION_PATTERN.items()
    found = {name for name, kind in there if kind in kinds and name.islower()}
    assert found <= set(TABLE["misread_in"].split())
    assert {name for each in kinds.values() for name in each} == set(TABLE["misread"].split())
