"""What other programs do with an adapted model: wrap it, save its state dict, go on from there."""

import copy
import pickle
import warnings

import pytest
import torch
from helpers.models import batch, build, logits, randomise
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint import state_dict as distributed

from pedagogic_peft import (
    BitFit,
    BottleneckAdapter,
    DoRA,
    LoRA,
    PrefixTuning,
    activate,
    attach,
    average,
    detach,
    disabled,
    load,
    merge,
    save,
    unmerge,
)
from pedagogic_peft.core.sites import sites

pytestmark = pytest.mark.filterwarnings("ignore:The head")


# Claim: a wrapper is refused before anything changes; its model, adapted first, may be wrapped


def wrappers(model: nn.Module) -> list[nn.Module]:
    averaged = torch.optim.swa_utils.AveragedModel(model)
    return [torch.compile(model, backend="eager"), nn.DataParallel(model), averaged]


@pytest.mark.parametrize("i, inner", [(0, "_orig_mod"), (1, "module"), (2, "module")])
def test_every_verb_refuses_a_wrapper_and_names_the_model_in_it(i, inner, tmp_path):
    base = build("llama")
    with pytest.raises(ValueError, match=rf"wraps another model: pass its \.{inner} instead"):
        attach(wrappers(base)[i], LoRA())
    assert all(p.requires_grad for p in base.parameters()) and "_adaptations" not in vars(base)
    model = attach(base, LoRA())
    save(model, tmp_path)
    wrapped = wrappers(model)[i]
    verbs = [activate, detach, merge, unmerge, lambda m: save(m, tmp_path / "new")]
    for verb in (
        *verbs,
        lambda m: disabled(m).__enter__(),
        lambda m: load(m, tmp_path, "again"),
        lambda m: average(m, ["default"]),
    ):
        with pytest.raises(ValueError, match=inner):
            verb(wrapped)
    assert not (tmp_path / "new").exists()
    assert torch.equal(logits(wrapped, "llama"), logits(model, "llama"))


def test_a_part_that_is_wrapped_has_other_names_and_is_refused(tmp_path):
    model = build("llama")
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    with pytest.raises(ValueError, match=r"layers\.0\._orig_mod.*part\.compile\(\)"):
        attach(model, LoRA())
    model.model.layers[0] = model.model.layers[0]._orig_mod
    attach(model, LoRA())
    model.model.layers[0].compile(backend="eager")
    save(model, tmp_path)
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    with pytest.raises(ValueError, match=r"layers\.0\._orig_mod"):
        save(model, tmp_path)


# Claim: an adapted model's state dict has the architecture's own names, so nothing becomes random


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5", "vit"])
@pytest.mark.parametrize("method", ["lora", "whole", "parallel"])
def test_the_folder_of_save_pretrained_gives_the_base_back_and_says_so(name, method, tmp_path):
    methods = {
        "lora": LoRA(target_modules="all-linear"),
        "whole": BitFit() if name == "bert" else LoRA(),
    }
    methods["parallel"] = BottleneckAdapter(placement="parallel")
    base = build(name)
    model = attach(copy.deepcopy(base), methods[method], "style")
    randomise(model)
    with pytest.warns(
        UserWarning, match=r"without style: save\(model, path\).*merge\(model, unload"
    ):
        model.save_pretrained(tmp_path)
    again = type(base).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, name), logits(base, name))
    own, found = base.state_dict(), model.state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in own.items())
    assert all(".deltas.style." in key for key in found.keys() - own.keys())


SHARING = {  # one tensor in several places: of a tied table, and of the network behind all prefixes
    "gpt2": LoRA(r=2, trainable_token_indices=[5, 7]),
    "llama": PrefixTuning(3, prefix_projection=True),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SHARING)
def test_tensors_that_deltas_share_are_saved_and_come_back(name, tmp_path):
    model = attach(build(name), SHARING[name])
    randomise(model)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    again = attach(build(name), SHARING[name])
    missing, unexpected = again.load_state_dict(tensors, strict=False)
    assert not unexpected and not any(".deltas." in key for key in missing)
    assert torch.equal(logits(again, name), logits(model, name))
    back = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(back, name), logits(build(name), name))


def test_a_merged_model_is_saved_whole_and_without_a_word(tmp_path):
    model = attach(build("llama"), LoRA())
    randomise(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merge(model).save_pretrained(tmp_path / "kept")
        expected = logits(model, "llama")
        merge(unmerge(model), unload=True).save_pretrained(tmp_path / "gone")
    assert "save_pretrained" not in vars(model)
    for folder in ("kept", "gone"):
        again = type(model).from_pretrained(tmp_path / folder).eval()
        assert torch.equal(logits(again, "llama"), expected)


def test_state_dicts_with_the_older_names_load_still():
    model, again = (attach(build("llama"), LoRA()) for _ in range(2))
    randomise(model)
    older, paths = dict(model.state_dict()), [path for path, _ in sites(model)]
    for path in paths:
        older[f"{path}.base.weight"] = older.pop(f"{path}.weight")
    assert any(".q_proj.base.weight" in key for key in older)
    again.load_state_dict(older)
    assert torch.equal(logits(again, "llama"), logits(model, "llama"))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*q_proj\.other"):
        again.load_state_dict({**older, "model.layers.0.self_attn.q_proj.other": torch.ones(1)})
    with pytest.raises(RuntimeError, match="Missing key"):
        again.load_state_dict({k: t for k, t in older.items() if "q_proj.base" not in k})


def test_an_adapted_model_with_save_pretrained_can_be_copied_and_pickled():
    model = attach(build("llama"), LoRA())
    twin = copy.deepcopy(model)
    assert twin.save_pretrained.__self__ is twin
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(again, "llama"), logits(model, "llama"))
    assert "save_pretrained" not in vars(detach(again))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "method",
    [
        LoRA(r=2),
        DoRA(r=2),
        BottleneckAdapter(placement="parallel"),
        PrefixTuning(3, prefix_projection=True),
    ],
)
def test_a_trainer_goes_on_from_its_checkpoint(method, tmp_path):
    from transformers import Trainer, TrainingArguments

    rows = [{key: value[i] for key, value in batch("llama").items()} for i in (0, 1)] * 2
    options = {"report_to": [], "use_cpu": True, "save_steps": 2, "per_device_train_batch_size": 2}

    def run(resume):
        torch.manual_seed(0)
        model = attach(build("llama"), method)
        arguments = TrainingArguments(output_dir=str(tmp_path), max_steps=4, **options)
        Trainer(model=model, args=arguments, train_dataset=rows).train(
            resume_from_checkpoint=resume
        )
        return logits(model, "llama")

    whole = run(None)
    torch.testing.assert_close(run(str(tmp_path / "checkpoint-2")), whole)


@pytest.mark.parametrize("trained_only", [True, False])
def test_the_state_dicts_of_torch_distributed_have_the_same_names(trained_only):
    """They take the names of the frozen parameters out of the state dict."""
    model, again = (attach(build("llama"), LoRA(modules_to_save=["lm_head"])) for _ in range(2))
    randomise(model)
    options = distributed.StateDictOptions(ignore_frozen_params=trained_only, strict=False)
    found = distributed.get_model_state_dict(model, options=options)
    assert all(".deltas." in key for key in found) == trained_only
    distributed.set_model_state_dict(again, found, options=options)
    assert torch.equal(logits(again, "llama"), logits(model, "llama"))
    names = {key for key, _ in model.named_parameters()}
    assert names | {key for key, _ in model.named_buffers()} >= model.state_dict().keys()
    assert names >= {key for key, _ in build("llama").named_parameters()}
