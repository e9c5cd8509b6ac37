"""This library and Hugging Face PEFT load what the other saved, with the same logits."""

import json
import os
import re

import pytest
import torch
import transformers as hf
from helpers.models import VOCAB, build, logits, randomise
from safetensors.torch import load_file, save_file

from pedagogic_peft import LoRA, attach, detach, load, merge, save
from pedagogic_peft.core.verbs import adaptations_of

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what is meant here

CASES = {
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "mlp.c_proj"]}),
    "gpt2-regex": ("gpt2", {"target_modules": r".*\.1\.attn\.c_attn"}),
    "gpt2-all-linear": ("gpt2", {"target_modules": "all-linear"}),
    "llama-gqa": ("llama", {"target_modules": ["q_proj", "v_proj"], "use_rslora": True}),
    "llama-embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "llama-patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, "v_proj": 6},
            "alpha_pattern": {"layers.1.self_attn.v_proj": 3},
        },
    ),
    "llama-one-norm": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}),
    "bert-head": ("bert", {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "roberta-head": ("roberta", {"target_modules": ["dense"], "modules_to_save": ["classifier"]}),
    "llama-score": (
        "llama-classifier",
        {"target_modules": ["q_proj"], "modules_to_save": ["score"]},
    ),
    "t5": ("t5", {"target_modules": ["q", "v"]}),
    "t5-shared-embedding": ("t5", {"target_modules": ["shared", "q"]}),
    "vit": ("vit", {"target_modules": ["q_proj"], "modules_to_save": ["classifier"]}),
    "opt": ("opt", {"target_modules": ["fc1"]}),
    "distilbert": ("distilbert", {"target_modules": ["q_lin"]}),
}


# Claim: a checkpoint written here loads in PEFT with identical logits


@pytest.mark.parametrize("case", CASES)
def test_peft_loads_what_we_save(case, tmp_path):
    name, options = CASES[case]
    ours = attach(build(name), LoRA(r=4, alpha=6, **options))
    randomise(ours)
    save(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(build(name), tmp_path).eval()
    torch.testing.assert_close(logits(theirs, name), logits(ours, name), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(ours, name), logits(build(name), name), atol=1e-2)
    written = load_file(tmp_path / "adapter_model.safetensors")
    read = peft.get_peft_model_state_dict(theirs, save_embedding_layers=False)
    assert set(written) == set(read)
    assert all(torch.equal(written[key], read[key]) for key in written)


# Claim: a checkpoint written by PEFT loads here with identical logits


def save_with_peft(name, folder, **config):
    model = peft.get_peft_model(build(name), peft.LoraConfig(**config)).eval()
    randomise(model)
    model.save_pretrained(folder)
    return model


MORE_OF_PEFT = {
    "sequence classification": (
        "bert",  # PEFT itself adds modules_to_save=["classifier", "score"]
        {"target_modules": ["query"], "task_type": "SEQ_CLS"},
    ),
    "all linear, classification": (
        "bert",
        {"target_modules": "all-linear", "task_type": "SEQ_CLS"},
    ),
    "classification with llama": (
        "llama-classifier",
        {"target_modules": ["q_proj"], "task_type": "SEQ_CLS"},
    ),
    "some layers": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "one layer by pattern": (
        "gpt2",
        {"target_modules": ["c_attn"], "layers_to_transform": 0, "layers_pattern": "h"},
    ),
    "excluded modules": (
        "llama",
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*layers\.0.*v_proj"},
    ),
    "pefts default targets": ("gpt2", {}),
    "causal language model": ("gpt2", {"target_modules": ["c_attn"], "task_type": "CAUSAL_LM"}),
    "a head named by the end of a word": (  # PEFT trains every *norm, as LongLoRA asks it to
        "llama",
        {"target_modules": ["q_proj"], "modules_to_save": ["norm", "embed_tokens"]},
    ),
    "heads of other models": (
        "llama",
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "word_embeddings"]},
    ),
    "gaussian": ("gpt2", {"target_modules": ["c_attn"], "init_lora_weights": "gaussian"}),
}


@pytest.mark.parametrize("case", list(CASES) + list(MORE_OF_PEFT))
def test_we_load_what_peft_saves(case, tmp_path):
    name, options = (CASES | MORE_OF_PEFT)[case]
    theirs = save_with_peft(name, tmp_path, r=4, lora_alpha=6, **options)
    ours = load(build(name), tmp_path)
    torch.testing.assert_close(logits(ours, name), logits(theirs, name), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(ours, name), logits(build(name), name), atol=1e-2)


@pytest.mark.parametrize("case", list(CASES))
def test_an_adaptation_survives_the_way_there_and_back(case, tmp_path):
    name, options = CASES[case]
    save_with_peft(name, tmp_path / "theirs", r=4, lora_alpha=6, **options)
    ours = load(build(name), tmp_path / "theirs")
    save(ours, tmp_path / "ours")
    back = load(build(name), tmp_path / "ours")
    assert torch.equal(logits(back, name), logits(ours, name))


def test_the_configuration_is_short_sorted_and_readable(tmp_path):
    save(attach(build("gpt2"), LoRA(r=4)), tmp_path, task_type="CAUSAL_LM")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert list(config) == sorted(config)
    assert config["target_modules"] == ["c_attn"]
    assert config["fan_in_fan_out"] is True
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (4, 16, "CAUSAL_LM")


def test_a_loaded_adaptation_is_trainable_and_active(tmp_path):
    save(attach(build("gpt2"), LoRA(r=4)), tmp_path)
    model = load(build("gpt2"), tmp_path, name="again")
    trainable = [key for key, p in model.named_parameters() if p.requires_grad]
    assert trainable and all(".deltas.again.lora_" in key for key in trainable)


def test_a_head_with_weights_tied_inside_can_be_saved(tmp_path):
    model = attach(build("bert"), LoRA(modules_to_save=["encoder.layer.0", "classifier"]))
    copy = model.bert.encoder.layer[0].deltas["default"].module
    copy.attention.self.key.bias = copy.attention.self.query.bias
    randomise(model)
    back = load(build("bert"), save(model, tmp_path))
    assert torch.equal(logits(back, "bert"), logits(model, "bert"))


def test_a_merged_adaptation_is_saved_like_an_unmerged_one(tmp_path):
    model = attach(build("gpt2"), LoRA())
    randomise(model)
    save(model, tmp_path / "unmerged")
    save(merge(model), tmp_path / "merged")
    kinds = ("unmerged", "merged")
    old, new = (load_file(tmp_path / kind / "adapter_model.safetensors") for kind in kinds)
    assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)


def test_with_several_active_adaptations_save_asks_which(tmp_path):
    model = attach(attach(build("gpt2"), LoRA(r=2), "a"), LoRA(r=3), "b")
    save(model, tmp_path)  # "b", the active one
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 3
    save(model, tmp_path, "a")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 2
    with pytest.raises(ValueError, match=r"'c'.*a, b"):
        save(model, tmp_path, "c")


@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama"])  # tied, and not
def test_embeddings_that_peft_saves_unnamed_are_read(name, grown, tmp_path):
    theirs = peft.get_peft_model(build(name), peft.LoraConfig()).eval()
    with torch.no_grad():
        theirs.get_base_model().get_input_embeddings().weight[-3:] += grown  # new tokens
        theirs.get_base_model().get_output_embeddings().weight[-3:] -= 3 * grown
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=True)
    ours = load(build(name), tmp_path / "theirs")
    torch.testing.assert_close(logits(ours, name), logits(theirs, name), rtol=1e-5, atol=1e-5)
    again = peft.PeftModel.from_pretrained(build(name), save(ours, tmp_path / "ours")).eval()
    torch.testing.assert_close(logits(again, name), logits(theirs, name), rtol=1e-5, atol=1e-5)
    trained = {key for key, p in ours.named_parameters() if p.requires_grad and "lora" not in key}
    assert len(trained) == 2 * grown  # equal ones are no part of the adaptation


def test_a_head_is_saved_under_a_name_that_means_no_more_in_peft(tmp_path):
    model = attach(build("gpt2"), LoRA(target_modules=["h.0.attn.c_attn"], modules_to_save=["h.1"]))
    randomise(model)
    theirs = peft.PeftModel.from_pretrained(build("gpt2"), save(model, tmp_path / "ours")).eval()
    torch.testing.assert_close(logits(theirs, "gpt2"), logits(model, "gpt2"))
    again = save(load(build("gpt2"), tmp_path / "ours"), tmp_path / "again")
    theirs = peft.PeftModel.from_pretrained(build("gpt2"), again).eval()
    torch.testing.assert_close(logits(theirs, "gpt2"), logits(model, "gpt2"))


def test_embeddings_tied_to_more_than_the_file_has_are_refused(tmp_path):
    theirs = peft.get_peft_model(build("t5"), peft.LoraConfig())
    with torch.no_grad():
        theirs.get_base_model().shared.weight += 1  # the encoder's and the decoder's too
    theirs.save_pretrained(tmp_path, save_embedding_layers=True)
    refused(tmp_path, "lm_head.weight", "another weight", name="t5")


def test_what_is_attached_inside_a_peft_model_comes_back(tmp_path):
    outer = peft.get_peft_model(build("llama"), peft.LoraConfig())
    model = attach(outer, LoRA(r=2, target_modules="all-linear"))
    randomise(model)
    expected = logits(model, "llama")
    save(model, tmp_path)
    detach(model)
    assert torch.equal(logits(load(model, tmp_path), "llama"), expected)


# Claim: what does not fit is refused with a clear message, and the model is as before


@pytest.fixture
def saved(tmp_path):
    """A folder with a small GPT-2 adaptation, and functions to change its two files."""
    save(attach(build("gpt2"), LoRA(r=4)), tmp_path)

    class Folder:
        path = tmp_path

        def config(self, **changes):
            file = tmp_path / "adapter_config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | changes))

        def tensors(self, change):
            file = tmp_path / "adapter_model.safetensors"
            tensors = load_file(file)
            change(tensors)
            save_file(tensors, file)

    return Folder()


def refused(path, *words, name="gpt2", error=ValueError):
    model = build(name)
    before = {key: id(module) for key, module in model.named_modules()}
    with pytest.raises(error) as caught:
        load(model, path)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert {key: id(module) for key, module in model.named_modules()} == before
    assert not hasattr(model, "_adaptations")
    assert all(p.requires_grad for p in model.parameters())


KEY = "base_model.model.transformer.h.0.attn.c_attn.lora_"


def test_missing_tensors_are_refused(saved):
    saved.tensors(lambda t: t.pop(KEY + "B.weight"))
    refused(saved.path, "missing", "1 (", "h.0.attn.c_attn.lora_B.weight")


def test_a_file_cut_to_fewer_layers_is_refused(saved):
    saved.tensors(lambda t: [t.pop(KEY + f"{x}.weight") for x in "AB"])
    refused(saved.path, "no tensors for", "transformer.h.0.attn.c_attn")


def test_unexpected_tensors_are_refused(saved):
    saved.tensors(lambda t: t.update({KEY + "magnitude_vector": torch.ones(96)}))
    refused(saved.path, "unexpected", "lora_magnitude_vector")


def test_tensors_of_layers_the_model_does_not_have_are_refused(saved):
    def move(tensors):
        for x in "AB":
            tensors[KEY.replace(".0.", ".7.") + f"{x}.weight"] = tensors.pop(KEY + f"{x}.weight")

    saved.tensors(move)
    refused(saved.path, "has no 1 (transformer.h.7.attn.c_attn)")


def test_tensors_of_wrong_shape_are_refused(saved):
    saved.tensors(lambda t: t.update({KEY + "B.weight": torch.zeros(90, 4)}))
    refused(saved.path, "wrong shape", "(90, 4) instead of (96, 4)")


def test_another_models_checkpoint_is_refused(saved):
    refused(saved.path, "BertForSequenceClassification", "transformer.h.0", name="bert")


def test_a_feature_that_is_not_supported_is_refused_by_name(saved):
    saved.config(use_qalora=True)
    refused(saved.path, "use_qalora=True")
    saved.config(use_qalora=False, bias="some")
    refused(saved.path, "bias='some'", "none, all, lora_only")
    saved.config(bias="none", init_lora_weights="pissa")
    refused(saved.path, "init_lora_weights='pissa'", "path_initial_model_for_weight_conversion")
    saved.config(init_lora_weights="loftq")
    refused(saved.path, "init_lora_weights='loftq'", "merge_and_unload")


def test_an_unknown_key_is_ignored_only_when_it_switches_nothing_on(saved):
    saved.config(use_something_new=False, other_new_thing=None)
    load(build("gpt2"), saved.path)
    saved.config(use_something_new=True)
    refused(saved.path, "use_something_new=True")


def test_another_method_is_refused(saved):
    saved.config(peft_type="BOFT")
    refused(saved.path, "'BOFT'", "what can be loaded is", "IA3")


def test_missing_files_and_folders_are_named(saved, tmp_path):
    refused(tmp_path / "nowhere", "nowhere", error=FileNotFoundError)
    refused(str(tmp_path / "nowhere"), "nowhere", error=FileNotFoundError)
    (saved.path / "adapter_model.safetensors").unlink()
    refused(saved.path, "adapter_model.safetensors", "adapter_config.json", error=FileNotFoundError)


def test_a_truncated_file_is_refused(saved):
    file = saved.path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(saved.path, "adapter_model.safetensors")


def test_a_name_that_is_neither_a_folder_nor_on_the_hub_is_refused():
    refused("nobody/nothing-at-all", "nobody/nothing-at-all", error=FileNotFoundError)


def test_a_hub_name_is_downloaded(saved, monkeypatch):
    import huggingface_hub

    def from_folder(repo, filename):
        assert repo == "someone/a-lora"
        return str(saved.path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", from_folder)
    load(build("gpt2"), "someone/a-lora")


def test_a_checkpoint_made_on_another_embedding_is_refused(tmp_path):
    theirs = peft.get_peft_model(build("llama"), peft.LoraConfig(target_modules=["embed_tokens"]))
    with torch.no_grad():
        theirs.get_base_model().model.embed_tokens.base_layer.weight.add_(1)
    theirs.save_pretrained(tmp_path)  # PEFT copies the base's embedding into the file
    refused(tmp_path, "embed_tokens.base_layer.weight", "another weight", name="llama")


@pytest.mark.parametrize("link", ["/proc/self/mem", "/proc/self/pagemap"])
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_link_to_what_cannot_be_read_or_has_no_end_is_refused(saved, link, name):
    if not os.path.exists(link):
        pytest.skip(f"no {link} on this system")
    (saved.path / name).unlink()
    (saved.path / name).symlink_to(link)
    refused(saved.path, name)


def test_a_configuration_longer_than_any_is_refused_without_reading_all_of_it(saved):
    from pedagogic_peft.files.disk import LARGEST

    config = saved.path / "adapter_config.json"
    whole = config.read_bytes()
    config.write_bytes(whole + b" " * (LARGEST - len(whole)))
    load(build("gpt2"), saved.path)  # so long it may be
    with config.open("ab") as opened:
        opened.truncate(2**38)  # takes no room on the disk
    refused(saved.path, "adapter_config.json", "more than 16,777,216 bytes")


# Claim: a failed save leaves the old files whole and nothing beside them


def test_a_failed_first_save_leaves_nothing(tmp_path, monkeypatch):
    def failing(source, target):
        raise OSError("the disk was taken away")

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="taken away"):
        save(attach(build("gpt2"), LoRA(r=2)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_files_whole(saved, monkeypatch):
    before = {file.name: file.read_bytes() for file in saved.path.iterdir()}

    def failing(source, target):
        raise OSError("the disk was taken away")

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="taken away"):
        save(attach(build("gpt2"), LoRA(r=2)), saved.path)
    assert {file.name: file.read_bytes() for file in saved.path.iterdir()} == before


def test_a_checkpoint_with_a_strange_pattern_is_refused_in_full(tmp_path):
    save(attach(build("gpt2"), LoRA(r=2)), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"alpha_pattern": 3}))
    words = "alpha_pattern=3: expected a dict, {end of a path: value}"
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=re.escape(words)):
        load(build("gpt2"), tmp_path)


def test_an_empty_folder_is_said_to_have_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="it has nothing$"):
        load(build("gpt2"), tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_the_heads_pefts_token_classifiers_name_need_not_all_be_there(tmp_path):
    import peft

    def model():
        torch.manual_seed(3)
        sizes = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2)
        return hf.BertForTokenClassification(
            hf.BertConfig(vocab_size=VOCAB, num_hidden_layers=1, **sizes)
        )

    config = peft.LoraConfig(task_type="TOKEN_CLS", r=2, target_modules=["query"])
    peft.get_peft_model(model(), config).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"]
    assert set(stored) == {"classifier", "score"}
    loaded = adaptations_of(load(model(), tmp_path)).methods["default"]
    assert list(loaded.modules_to_save) == ["classifier"]


def test_a_save_that_never_gets_its_turn_says_so(tmp_path, monkeypatch):
    def busy(source, target):
        target.mkdir(exist_ok=True)  # another process has always been faster
        raise OSError("Directory not empty")

    model = attach(build("gpt2"), LoRA(r=2))
    monkeypatch.setattr("os.rename", busy)
    with pytest.raises(OSError, match="not empty"):
        save(model, tmp_path)


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules"])
def test_names_that_are_none_are_refused_by_the_option(key, tmp_path):
    save(attach(build("llama"), LoRA(r=2)), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: [7]}))
    with pytest.raises(ValueError, match=f"{key}="):
        load(build("llama"), tmp_path)


def test_half_a_file_is_named_by_its_kind(tmp_path):
    save(attach(build("llama"), LoRA(r=2)), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load(build("llama"), tmp_path)
    path.unlink()
    (tmp_path / "adapter_model.bin").write_bytes(b"half")
    with pytest.raises(ValueError, match="adapter_model.bin is not a whole file"):
        load(build("llama"), tmp_path, allow_bin=True)
