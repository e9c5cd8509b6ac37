"""Adapters of AdapterHub give the logits they gave there; what does not fit or is unsafe is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
from helpers.models import build
from safetensors.torch import load_file
from torch import nn

from pedagogic_peft import activate, attach
from pedagogic_peft.core.sites import sites
from pedagogic_peft.core.verbs import adaptations_of
from pedagogic_peft.files.adapterhub import load_adapterhub
from pedagogic_peft.files.checkpoint import CONFIG
from pedagogic_peft.methods.fusion import AdapterFusion

HUB = Path(__file__).parents[1] / "fixtures" / "adapterhub"
HUB_MODELS = [(m, c) for m in ("bert", "roberta", "distilbert") for c in ("seq_bn", "par_bn")]
HUB_MODELS += [("gpt2", "par_bn")]  # reads the residual stream, not what its norm makes of it
HUB_MODELS += [(m, "double_seq_bn") for m in ("bert", "roberta", "distilbert", "gpt2")]


def hub_base(name: str) -> nn.Module:
    kind = hf.AutoModelForSequenceClassification if name != "gpt2" else hf.AutoModelForCausalLM
    return kind.from_pretrained(HUB / name / "base").eval()


def hub_logits(model: nn.Module, recorded) -> torch.Tensor:
    with torch.no_grad():
        return model(recorded["input_ids"], attention_mask=recorded["attention_mask"]).logits


@pytest.mark.parametrize("name, config", [*HUB_MODELS, ("bert", "seq_bn-gelu")])
def test_an_adapter_of_the_adapters_library_gives_the_same_logits(name, config):
    model, recorded = hub_base(name), load_file(HUB / name / "recorded.safetensors")
    before = hub_logits(model, recorded)
    load_adapterhub(model, HUB / name / config)
    after = hub_logits(model, recorded)
    torch.testing.assert_close(after, recorded[config], rtol=0, atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-2)


def test_stacks_and_fusions_of_the_adapters_library_give_the_same_logits():
    model, recorded = hub_base("bert"), load_file(HUB / "bert" / "recorded.safetensors")
    load_adapterhub(model, HUB / "bert" / "seq_bn", "a")
    load_adapterhub(model, HUB / "bert" / "b", "b")
    found = hub_logits(activate(model, "a", "b"), recorded)
    torch.testing.assert_close(found, recorded["stack"], rtol=0, atol=1e-5)
    attach(model, AdapterFusion(["a", "b"]), "fusion")
    for path, place in sites(model):
        prefix = path.replace("LayerNorm", "adapter_fusion_layer.a,b.")
        own = place.deltas["fusion"].state_dict()
        place.deltas["fusion"].load_state_dict({key: recorded[prefix + key] for key in own})
    found = hub_logits(model, recorded)
    torch.testing.assert_close(found, recorded["fusion"], rtol=0, atol=1e-5)
    assert not torch.allclose(recorded["fusion"], recorded["stack"], atol=1e-2)


@pytest.mark.parametrize(
    "option, value",
    [
        ("ln_before", True),
        ("ln_after", True),
        ("use_gating", True),
        ("inv_adapter", "nice"),
        ("cross_adapter", True),
        ("dropout", 0.1),
        ("stochastic_depth", 0.1),
        ("residual_before_ln", "post_add"),
        ("original_ln_after", False),
        ("original_ln_before", False),
        ("mh_adapter", True),
        ("scaling", "learned"),
        ("reduction_factor", {"1": 8, "default": 16}),
        ("non_linearity", "gelu_fast"),
        ("something_new", 1),
        ("architecture", "lora"),
    ],
)
def test_an_option_of_the_adapters_library_that_is_not_supported_is_named(option, value, tmp_path):
    folder = shutil.copytree(HUB / "bert" / "seq_bn", tmp_path / "adapter")
    config = json.loads((folder / CONFIG).read_text())
    config["config"][option] = value
    (folder / CONFIG).write_text(json.dumps(config))
    model = hub_base("bert")
    with pytest.raises(ValueError, match=value if option == "architecture" else option):
        load_adapterhub(model, folder)
    assert not list(sites(model))


def test_an_adapter_of_another_method_architecture_or_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="phm_layer=True"):
        load_adapterhub(hub_base("bert"), HUB / "bert" / "compacter")
    with pytest.raises(ValueError, match="architecture 'llama'"):
        load_adapterhub(build("llama"), HUB / "bert" / "seq_bn")
    with pytest.raises(ValueError, match="of wrong shape"):
        load_adapterhub(build("bert"), HUB / "bert" / "seq_bn")
    with pytest.raises(ValueError, match="not supported here for gpt2"):
        load_adapterhub(hub_base("gpt2"), HUB / "bert" / "seq_bn")
    with pytest.raises(FileNotFoundError, match="adapter_config.json"):
        load_adapterhub(hub_base("bert"), tmp_path)
    folder = shutil.copytree(HUB / "bert" / "seq_bn", tmp_path / "adapter")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"name": "another"}))
    with pytest.raises(ValueError, match="has no place"):
        load_adapterhub(hub_base("bert"), folder)


class Unsafe:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_file_that_would_execute_code_is_not_read(tmp_path, capsys):
    folder = shutil.copytree(HUB / "bert" / "double_seq_bn", tmp_path / "adapter")
    torch.save({"weight": Unsafe()}, folder / "pytorch_adapter.bin")
    with pytest.raises(ValueError, match="not safe"):
        load_adapterhub(hub_base("bert"), folder)
    assert "executed" not in capsys.readouterr().out


def changed_hub(tmp_path, change):
    """A copy of AdapterHub's parallel adapter for BERT, its configuration changed."""
    folder = tmp_path / "adapter"
    shutil.copytree(HUB / "bert" / "par_bn", folder)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))
    return folder


def test_an_adapter_of_adapterhub_without_a_scaling_has_one(tmp_path):
    folder = changed_hub(tmp_path, lambda config: config["config"].pop("scaling"))
    model = load_adapterhub(hub_base("bert"), folder)
    assert adaptations_of(model).methods["default"].scaling == 1.0


def test_a_strange_tensor_of_adapterhub_is_named(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = changed_hub(tmp_path, lambda config: None)
    if (file := folder / "adapter.safetensors").exists():
        save_file(load_file(file) | {"strange": torch.ones(1)}, file)
    else:
        file = folder / "pytorch_adapter.bin"
        torch.save(torch.load(file) | {"strange": torch.ones(1)}, file)
    with pytest.raises(ValueError, match="strange has no place in this model"):
        load_adapterhub(hub_base("bert"), folder)
