"""Hugging Face PEFT's models beside ours: the same numbers in both."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file

from helpers.models import build, gradients, logits, randomise
from pedagogic_peft import load, save
from pedagogic_peft.core.sites import View
from pedagogic_peft.core.verbs import install
from pedagogic_peft.files.codecs import codec_of

peft = pytest.importorskip("peft")


LINEAR = {"gpt2": ["c_attn", "mlp.c_proj"], "llama": ["q_proj", "v_proj"], "bert": ["query"]}
WITH_EMBEDDING = {"gpt2": ["c_attn", "wpe"], "llama": ["q_proj", "embed_tokens"], "bert": ["query"]}
NAMES = list(LINEAR)


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


def assert_files_go_both_ways(name, theirs, folder):
    """Read PEFT's files, write them again, and let PEFT read those: the same tensors and logits."""
    theirs.save_pretrained(folder / "theirs")
    ours = load(build(name), folder / "theirs")
    expected = logits(theirs, name)
    torch.testing.assert_close(logits(ours, name), expected, rtol=1e-5, atol=1e-5)
    save(ours, folder / "ours")
    files = (load_file(folder / f / "adapter_model.safetensors") for f in ("theirs", "ours"))
    before, after = files
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        again = read_by_peft(name, folder / "ours")
    assert not [w for w in said if "keyword arguments" in str(w.message)]  # a key PEFT doesn't know
    assert torch.equal(logits(again, name), expected)
    return ours
