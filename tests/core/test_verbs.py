"""attach, detach, activate, disabled, merge, unmerge, with the tools people use."""

import copy
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from helpers.asserts import assert_as_before, snapshot
from helpers.models import ARCHITECTURES, batch, build, gradients, logits, randomise
from torch import nn

from pedagogic_peft import (
    LoRA,
    activate,
    adapter_drop,
    attach,
    count_parameters,
    detach,
    disabled,
    load,
    merge,
    save,
    unmerge,
)
from pedagogic_peft.core.sites import sites
from pedagogic_peft.core.verbs import adaptations_of


@pytest.fixture
def two():
    """A GPT-2 with adaptations "a" and "b" (active), and the logits of each and of the base."""
    model = build("gpt2")
    expected = {"base": logits(model, "gpt2")}
    for name, targets in (("a", ["c_attn"]), ("b", ["c_attn", "c_fc"])):
        attach(model, LoRA(r=2, target_modules=targets), name)
        randomise(model)
        expected[name] = logits(model, "gpt2")
    activate(model, "a")
    expected["a"] = logits(model, "gpt2")
    activate(model, "b")
    return model, expected


# Claim: detaching restores the model bit for bit


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_detach_restores_modules_weights_and_requires_grad(name):
    model = build(name)
    some = list(model.parameters())[::3]
    for parameter in some:
        parameter.requires_grad_(False)
    before = snapshot(model)
    attach(model, LoRA(r=2, target_modules="all-linear"))
    randomise(model)
    attach(model, LoRA(r=3), "second")
    assert detach(model) is model
    assert_as_before(model, before)


def test_detach_restores_a_replaced_head_and_an_embedding():
    model = build("bert")
    before = snapshot(model)
    options = {"target_modules": ["query", "word_embeddings"], "modules_to_save": ["classifier"]}
    attach(model, LoRA(**options))
    randomise(model)
    assert_as_before(detach(model), before)


def test_detaching_a_merged_adaptation_restores_the_weights():
    model = build("gpt2")
    before = snapshot(model)
    attach(model, LoRA())
    randomise(model)
    merge(model)
    assert_as_before(detach(model), before)


def test_detaching_one_of_two_leaves_the_other(two):
    model, expected = two
    detach(model, "a")
    assert torch.equal(logits(model, "gpt2"), expected["b"])
    before = [path for path, _ in sites(model)]
    assert len(before) == 4
    with pytest.raises(ValueError, match=r"'a'.*there are: b"):
        activate(model, "a")


# Claim: several adaptations switch exactly


def test_switching_is_exact(two):
    model, expected = two
    for name in ("a", "b", "a"):
        activate(model, name)
        assert torch.equal(logits(model, "gpt2"), expected[name])
    activate(model)
    assert torch.equal(logits(model, "gpt2"), expected["base"])


def test_a_new_adaptation_becomes_the_only_active_one(two):
    model, expected = two
    attach(model, LoRA(r=2), "c")
    assert torch.equal(logits(model, "gpt2"), expected["base"])


def test_active_adaptations_add_up():
    model = nn.Sequential(nn.Linear(5, 4))
    for name in ("a", "b"):
        attach(model, LoRA(target_modules=["0"]), name)
    randomise(model)
    x = torch.randn(3, 5)
    deltas = model[0].deltas
    both = model[0].base(x) + x @ (deltas["a"].delta_weight() + deltas["b"].delta_weight()).T
    torch.testing.assert_close(activate(model, "a", "b")(x), both)
    torch.testing.assert_close(merge(model)(x), both)


def test_an_inactive_adaptation_gets_no_gradient_and_is_not_moved_by_an_optimiser(two):
    model, _ = two
    activate(model, "a")
    gradients(model, "gpt2")
    optimiser = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], weight_decay=0.1
    )
    before = {key: p.clone() for key, p in model.named_parameters()}
    optimiser.step()
    moved = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    assert moved and all(".deltas.a." in key for key in moved)


def test_each_adaptation_has_a_head_of_its_own():
    model = build("bert")
    for name in ("a", "b"):
        attach(model, LoRA(modules_to_save=["classifier"]), name)
    with torch.no_grad():
        model.classifier.deltas["a"].module.bias.fill_(100)
    assert logits(model, "bert").max() < 50
    assert logits(activate(model, "a"), "bert").min() > 50
    with disabled(model):
        assert logits(model, "bert").max() < 50
    assert torch.equal(logits(merge(model), "bert"), logits(model, "bert"))
    assert logits(model, "bert").min() > 50
    assert logits(detach(model), "bert").max() < 50


# Claim: `disabled` gives the base model, may be nested, and ends when its block raises


def test_disabled_gives_the_base_model(two):
    model, expected = two
    with disabled(model) as same:
        assert same is model
        with disabled(model):
            assert torch.equal(logits(model, "gpt2"), expected["base"])
        assert torch.equal(logits(model, "gpt2"), expected["base"])
    with pytest.raises(KeyError), disabled(model):
        raise KeyError
    assert torch.equal(logits(model, "gpt2"), expected["b"])


# Claim: merging is refused where it would do harm, before anything is touched


@pytest.mark.parametrize("target", ["wte", "lm_head"])
def test_merging_into_a_tied_weight_is_refused(target):
    model = attach(build("gpt2"), LoRA(target_modules=["c_attn", target]))
    randomise(model)
    before = snapshot(model)
    adapted = logits(model, "gpt2")
    with pytest.raises(
        ValueError, match=r"(wte|lm_head)\.weight is tied to .*(wte|lm_head)\.weight"
    ):
        merge(model)
    assert_as_before(model, before)
    assert torch.equal(logits(model, "gpt2"), adapted)


def test_a_merge_that_fails_half_way_is_undone(two, monkeypatch):
    model, expected = two
    last = list(sites(model))[-1][1].deltas["b"]

    def out_of_memory(base):
        raise MemoryError

    monkeypatch.setattr(last, "merge_into", out_of_memory)
    with pytest.raises(MemoryError):
        merge(model)
    assert torch.equal(logits(model, "gpt2"), expected["b"])
    assert torch.equal(logits(activate(model), "gpt2"), expected["base"])


def test_a_part_of_the_model_may_be_called_base():
    model = nn.ModuleDict({"base": nn.Sequential(nn.Linear(3, 3))})
    attach(model, LoRA(target_modules="all-linear"))
    randomise(model)
    x = torch.randn(2, 3)
    adapted = model["base"](x)
    torch.testing.assert_close(merge(model)["base"](x), adapted)
    assert isinstance(detach(model)["base"][0], nn.Linear)


def test_merging_by_name_activates(two):
    model, expected = two
    merge(model, "a")
    torch.testing.assert_close(logits(model, "gpt2"), expected["a"], rtol=1e-4, atol=1e-4)
    unmerge(model)
    assert torch.equal(logits(model, "gpt2"), expected["a"])


def test_what_makes_no_sense_while_merged_is_refused(two):
    model, _ = two
    merge(model)
    for verb in (
        lambda: merge(model),
        lambda: activate(model, "a"),
        lambda: attach(model, LoRA(), "c"),
        lambda: disabled(model).__enter__(),
    ):
        with pytest.raises(RuntimeError, match="b is merged into the weights; unmerge first"):
            verb()
    unmerge(model)
    with pytest.raises(RuntimeError, match="no adaptation is merged"):
        unmerge(model)


def test_unloading_would_not_lose_other_adaptations(two):
    model, expected = two
    with pytest.raises(ValueError, match=r"lose \['a'\]"):
        merge(model, unload=True)
    assert torch.equal(logits(model, "gpt2"), expected["b"])


# Claim: errors name what is wrong, and leave the model as it was


@pytest.mark.parametrize("name", ["", "a.b", "keys", "training", 3])
def test_an_unusable_name_is_refused(name):
    model = build("gpt2")
    before = snapshot(model)
    with pytest.raises(ValueError, match="name="):
        attach(model, LoRA(), name)
    assert_as_before(model, before)


def test_a_name_is_used_once(two):
    with pytest.raises(ValueError, match="'a' is there already"):
        attach(two[0], LoRA(), "a")


@pytest.mark.parametrize("verb", [detach, activate, merge, unmerge])
def test_verbs_need_an_adaptation(verb):
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no adaptation"):
        verb(build("gpt2"))


def test_swapped_arguments_are_recognised():
    with pytest.raises(TypeError, match="expected a model"):
        attach(LoRA(), build("gpt2"))
    with pytest.raises(TypeError, match="method='lora'"):
        attach(build("gpt2"), "lora")


def test_a_head_with_adapted_modules_inside_cannot_be_trained_in_full():
    model = attach(build("roberta"), LoRA(target_modules=["classifier.dense"]))
    with pytest.raises(ValueError, match="'classifier' cannot be trained in full"):
        attach(model, LoRA(modules_to_save=["classifier"]), "b")


def test_a_part_adapted_on_its_own_is_not_adapted_again_from_outside():
    model = build("gpt2")
    attach(model.transformer, LoRA())
    with pytest.raises(ValueError, match="adapted through another model object"):
        attach(model, LoRA())


# Claim: an adapted model works with the tools people use


def test_a_copy_has_a_life_of_its_own(two):
    model, expected = two
    twin = copy.deepcopy(model)
    activate(twin, "a")
    assert torch.equal(logits(twin, "gpt2"), expected["a"])
    assert torch.equal(logits(model, "gpt2"), expected["b"])
    detach(twin)
    assert all(p.requires_grad for p in twin.parameters())
    assert torch.equal(logits(model, "gpt2"), expected["b"])


def test_pickle_and_torch_save(two, tmp_path):
    model, expected = two
    torch.save(model, tmp_path / "model.pt")
    for twin in (
        pickle.loads(pickle.dumps(model)),
        torch.load(tmp_path / "model.pt", weights_only=False),
    ):
        assert torch.equal(logits(twin, "gpt2"), expected["b"])
        assert torch.equal(logits(activate(twin, "a"), "gpt2"), expected["a"])


def test_torch_compile_follows_switches():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    for name, targets in (("a", ["0", "2"]), ("b", ["1", "2"])):
        attach(model, LoRA(target_modules=targets), name)
    randomise(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # no part falls back to Python
    x = torch.arange(7)
    for name in ("b", "a"):
        activate(model, name)
        torch.testing.assert_close(compiled(x), model(x))
    with disabled(model):
        base = model(x)
        torch.testing.assert_close(compiled(x), base)
    assert not torch.allclose(compiled(x), base)


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "t5"])
def test_generate_is_the_same_with_and_without_its_cache(name):
    model = attach(build(name), LoRA(r=4))
    prompt = {key: batch(name)[key][:1] for key in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    base = model.generate(**prompt, **options)
    randomise(model)
    cached = model.generate(**prompt, **options, use_cache=True)
    assert torch.equal(cached, model.generate(**prompt, **options, use_cache=False))
    assert not torch.equal(cached, base)


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama", "t5"])
@pytest.mark.filterwarnings("ignore")
def test_gradient_checkpointing_gives_the_same_gradients(name):
    model = attach(build(name), LoRA(r=2)).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):  # T5's attention
            module.dropout = 0.0
    randomise(model)
    plain = gradients(model, name)
    model.gradient_checkpointing_enable()
    checkpointed = gradients(model, name)
    assert plain.keys() == checkpointed.keys()
    for key in plain:
        torch.testing.assert_close(checkpointed[key], plain[key], rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_transformers_trains_the_adaptation_only(tmp_path):
    from transformers import Trainer, TrainingArguments

    model = attach(build("bert"), LoRA(r=2, modules_to_save=["classifier"]))
    before = {key: p.clone() for key, p in model.named_parameters()}
    rows = [{key: value[i] for key, value in batch("bert").items()} for i in range(2)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, report_to=[], save_strategy="no", use_cpu=True
    )
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    moved = {key for key, p in model.named_parameters() if not torch.equal(p.cpu(), before[key])}
    assert {key for key in moved if ".deltas." not in key} == set()
    assert "classifier.deltas.default.module.bias" in moved
    assert any("lora_B" in key for key in moved)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gpt2", "t5"])
@pytest.mark.parametrize(
    "head", [{"modules_to_save": ["lm_head"]}, {"target_modules": ["lm_head"]}]
)
def test_a_model_whose_tied_head_is_adapted_can_be_saved_whole(name, head, tmp_path):
    from safetensors.torch import load_file

    model, again = attach(build(name), LoRA(**head)), attach(build(name), LoRA(**head))
    for parameter in model.parameters():
        parameter.data += 0.1
    model.save_pretrained(tmp_path)  # as transformers' Trainer does while it trains
    again.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert torch.equal(logits(again, name), logits(model, name))


def test_a_whole_attention_can_be_trained_in_full():
    model = attach(build("llama"), LoRA(modules_to_save=["self_attn"], target_modules=["up_proj"]))
    before = logits(build("llama"), "llama")
    assert torch.equal(logits(model, "llama"), before)  # it gets all its arguments by name
    randomise(model)
    assert not torch.allclose(logits(model, "llama"), before, atol=1e-2)
    text = batch("llama")["input_ids"][:1]
    texts = [model.generate(text, max_new_tokens=5, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*texts)
    with pytest.raises(TypeError):  # its mask is of the whole batch
        activate(model, rows=["default", None])(**batch("llama"))


def test_attributes_of_the_base_can_be_read_through_the_site():
    model = attach(build("llama"), LoRA(target_modules=["q_proj", "embed_tokens"]))
    q_proj = model.model.layers[0].self_attn.q_proj
    assert q_proj.weight is q_proj.base.weight
    assert (q_proj.in_features, q_proj.out_features) == (32, 32)
    assert model.get_input_embeddings().embedding_dim == 32
    assert not hasattr(q_proj, "nothing") and not hasattr(q_proj, "_private")


def test_adapted_models_can_change_dtype_and_be_loaded_again(two, tmp_path):
    model, _ = two
    save(model, tmp_path)
    half = load(build("gpt2").to(torch.bfloat16), tmp_path)
    assert half(**batch("gpt2")).logits.dtype == torch.bfloat16


# Claim: parameters are counted once


def test_tied_weights_are_counted_once():
    model = build("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    total = count_parameters(model).total
    assert total == sum(p.numel() for p in model.parameters())
    separate = nn.ModuleList([nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)])
    separate[1].weight = nn.Parameter(
        separate[0].weight.detach()
    )  # another object, the same memory
    assert count_parameters(separate).total == 12


def test_the_count_reads_well():
    model = attach(build("gpt2"), LoRA(r=4))  # two times 4 (32 + 96), beside a base of 28,672
    assert str(count_parameters(model)) == "trainable: 1,024 of 29,696 (3.45 %)"


# Claim: importing the library is cheap


def test_import_loads_neither_transformers_nor_what_draws():
    heavy = [
        "transformers",
        "peft",
        "accelerate",
        "matplotlib",
        "ipywidgets",
        "datasets",
        "sklearn",
    ]
    code = f"import sys, pedagogic_peft; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_warning_points_at_the_line_that_called_the_library():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attach(nn.Sequential(nn.Linear(3, 3)), LoRA(r=8, target_modules=["0"]))
        attach(build("bert"), LoRA())
    assert [Path(w.filename).name for w in caught] == [Path(__file__).name] * 2


IDS = torch.tensor([[3, 4, 5], [6, 7, 8]])


@pytest.mark.parametrize(
    "action, words",
    [
        (lambda: attach(build("gpt2"), LoRA(), "a.b"), "name='a.b': expected a word without dots"),
        (
            lambda: adapter_drop(attach(build("gpt2"), LoRA()), -1),
            "layers=-1: expected a whole number",
        ),
        (lambda: LoRA(rank_pattern=3), "rank_pattern=3: expected a dict, {end of a path: value}"),
        (lambda: LoRA(parts=["x"]), 'expected some of "q", "k", "v", each once'),
        (
            lambda: attach(build("gpt2"), LoRA(modules_to_save=["nowhere"])),
            "matches no module of this GPT2LMHeadModel",
        ),
    ],
)
def test_a_message_in_full(action, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        action()


def test_a_model_can_be_merged_unmerged_and_merged_again():
    model = attach(build("gpt2"), LoRA(r=2))
    nn.init.ones_(model.transformer.h[0].attn.c_attn.deltas["default"].lora_B.weight)
    expected = model(input_ids=IDS).logits
    for _ in range(2):
        torch.testing.assert_close(merge(model)(input_ids=IDS).logits, expected)
        unmerge(model)


def test_detaching_what_no_row_uses_leaves_the_rows():
    model = build("gpt2")
    for name in ("a", "b", "c"):
        attach(model, LoRA(r=2), name)
    activate(model, rows=["a", "b"])
    assert adaptations_of(detach(model, "c")).rows == ("a", "b")
    assert adaptations_of(detach(model, "b")).rows == ()


class Scaled2(nn.Linear):
    def forward(self, x, scale=1.0):
        return scale * super().forward(x)


class CallsByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.other = Scaled2(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.other(x), scale=3.0)


def test_a_site_hands_on_arguments_given_by_name():
    model, x = CallsByName(), torch.randn(2, 4)
    expected = model(x)
    attach(model, LoRA(r=1, target_modules=["other"], modules_to_save=["head"]))
    assert torch.equal(model(x), expected)
    with disabled(model):
        assert torch.equal(model(x), expected)


def test_a_bfloat16_merge_rounds_once_and_unmerge_is_exact():
    model = attach(build("llama").bfloat16(), LoRA(r=4))
    randomise(model)
    site = model.model.layers[0].self_attn.q_proj
    weight = site.base.weight.clone()
    exact = weight.float() + site.deltas["default"].delta_weight()
    merge(model)
    assert torch.equal(site.base.weight, exact.bfloat16())
    unmerge(model)
    assert torch.equal(site.base.weight, weight)


def test_a_head_that_stays_frozen_is_pointed_out():
    with pytest.warns(UserWarning, match=r"head \(classifier\) stays frozen.*modules_to_save"):
        attach(build("bert"), LoRA())


@pytest.mark.parametrize("name", ["gpt2", "t5", "llama", "opt"])
def test_a_language_models_head_is_no_reason_to_warn(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach(build(name), LoRA())
        attach(build("bert"), LoRA(modules_to_save=["classifier"]))


def test_deltas_live_where_their_base_lives():
    model = attach(build("gpt2").to("meta"), LoRA())
    assert {p.device.type for p in model.parameters()} == {"meta"}
