"""What a LoRA file of PEFT may hold beside A and B: biases, and rows of the vocabulary; both ways."""

import copy
import json

import pytest
import torch
import transformers as hf
from helpers.models import build, logits, randomise
from safetensors.torch import load_file

from pedagogic_peft import LoRA, attach, load, save

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

HEAD = {"modules_to_save": ["classifier"]}
CASES = {
    "all biases": ("gpt2", {"bias": "all"}),
    "all biases and a head": ("bert", {"bias": "all", **HEAD}),
    "all biases of a vision model": ("vit", {"bias": "all", **HEAD}),
    "all biases, of which there are none": ("llama", {"bias": "all"}),
    "the targets' biases": ("gpt2", {"bias": "lora_only"}),
    "the targets' biases in DoRA": ("gpt2", {"bias": "lora_only", "use_dora": True}),
    "a bias of B": ("gpt2", {"lora_bias": True}),
    "every bias": ("roberta", {"lora_bias": True, "bias": "all", **HEAD}),
    "tokens": ("llama", {"trainable_token_indices": [7, 3]}),
    "tokens, tied": ("gpt2", {"trainable_token_indices": [7, 3]}),
    "tokens, tied four times": ("t5", {"trainable_token_indices": [7, 3]}),
    "tokens and all biases": ("opt", {"trainable_token_indices": [7], "bias": "all"}),
    "tokens by name": ("llama", {"trainable_token_indices": {"embed_tokens": [7], "lm_head": [2]}}),
    "tokens by name, tied": ("gpt2", {"trainable_token_indices": {"wte": [7], "lm_head": [7]}}),
    "tokens of the head alone": ("gpt2", {"trainable_token_indices": {"lm_head": [7, 1]}}),
    "positions": ("gpt2", {"trainable_token_indices": {"wpe": [0, 1]}}),
    "tokens of two copies": ("t5", {"trainable_token_indices": {"embed_tokens": [7]}}),
}
TARGETS = {"gpt2": "c_attn", "bert": "query", "vit": "q_proj", "llama": "q_proj"}
TARGETS |= {"roberta": "query", "t5": "q", "opt": "fc1"}


def theirs_of(name, **options):
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=[TARGETS[name]], **options)
    model = peft.get_peft_model(build(name), config).eval()
    randomise(model)
    return model


def same(one, other, name):
    torch.testing.assert_close(logits(one, name), logits(other, name), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(one, name), logits(build(name), name), atol=1e-2)


@pytest.mark.parametrize("tables", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_each_library_reads_what_the_other_saves(case, tables, tmp_path):
    name, options = CASES[case]
    if tables and ("trainable_token_indices" not in options or name == "opt"):
        pytest.skip("no table that PEFT would save")
    theirs = theirs_of(name, **options)
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=tables)
    ours = load(build(name), tmp_path / "theirs")
    same(ours, theirs, name)
    save(ours, tmp_path / "ours")
    same(peft.PeftModel.from_pretrained(build(name), tmp_path / "ours").eval(), ours, name)
    again = load(build(name), tmp_path / "ours")
    assert torch.equal(logits(again, name), logits(ours, name))
    if not tables:  # PEFT saves the biases of a head two times more
        files = [tmp_path / who / "adapter_model.safetensors" for who in ("theirs", "ours")]
        one, other = ({key for key in load_file(f) if "classifier" not in key} for f in files)
        assert one == other


def test_what_is_off_is_not_in_the_configuration(tmp_path):
    save(attach(build("gpt2"), LoRA(r=2)), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert not config.keys() & {"bias", "lora_bias", "trainable_token_indices"}


def test_new_tokens_of_a_grown_vocabulary(tmp_path):
    def grown(seed):
        torch.manual_seed(seed)
        model = build("gpt2")
        model.resize_token_embeddings(63, mean_resizing=False)  # the new rows are random
        return model

    model = attach(grown(0), LoRA(r=2, trainable_token_indices=[60, 61, 62]))
    randomise(model)
    ids = torch.tensor([[60, 3, 61, 62]])
    ours = load(grown(1), save(model, tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, model(ids).logits)
        theirs = peft.PeftModel.from_pretrained(grown(2), tmp_path).eval()
        torch.testing.assert_close(theirs(ids).logits, model(ids).logits)
    with pytest.raises(ValueError, match=r"62, but 'transformer.wte' has 60 rows.*resize_token"):
        load(build("gpt2"), tmp_path)


def test_a_table_that_differs_elsewhere_is_refused(tmp_path):
    theirs = theirs_of("llama", trainable_token_indices=[7])
    with torch.no_grad():
        theirs.get_base_model().model.embed_tokens.token_adapter.base_layer.weight[[7, 9]] += 1
    theirs.save_pretrained(tmp_path, save_embedding_layers=True)
    with pytest.raises(ValueError, match=r"another weight, in rows that are not trained: 1 \(9\)"):
        load(build("llama"), tmp_path)


def test_starts_that_leave_the_base_alone_are_read(tmp_path):
    for start in ("gaussian", "orthogonal", "mica", False):
        theirs = theirs_of("llama", init_lora_weights=start)
        theirs.save_pretrained(tmp_path / str(start))
        same(load(build("llama"), tmp_path / str(start)), theirs, "llama")


def test_a_head_with_a_bias_keeps_it_and_that_pefts_does_not_is_said(tmp_path):
    sizes = dict(vocab_size=60, hidden_size=16, intermediate_size=16, num_attention_heads=2)
    torch.manual_seed(0)
    base = hf.BertForMaskedLM(hf.BertConfig(num_hidden_layers=1, **sizes)).eval()
    torch.nn.init.normal_(base.cls.predictions.bias)
    ids = torch.tensor([[5, 7, 3, 9]])
    model = attach(copy.deepcopy(base), LoRA(r=2, trainable_token_indices=[7], bias="all"))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, base(ids).logits)
        randomise(model)
        with pytest.warns(UserWarning, match="PEFT computes 'cls.predictions.decoder' without"):
            save(model, tmp_path)
        with pytest.warns(UserWarning, match="PEFT computes 'cls.predictions.decoder' without"):
            again = load(copy.deepcopy(base), tmp_path)
        assert torch.equal(model(ids).logits, again(ids).logits)
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
        b = theirs.get_base_model().cls.predictions.bias
        torch.testing.assert_close(theirs(ids).logits + b, again(ids).logits)


def test_how_a_converted_file_began_is_of_no_matter(tmp_path):
    save(attach(build("gpt2"), LoRA(r=2)), tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text()) | {"corda_config": {"corda_method": "kpm"}}
    file.write_text(json.dumps(config))
    load(build("gpt2"), tmp_path)
    file.write_text(json.dumps(config | {"init_lora_weights": "corda"}))
    with pytest.raises(ValueError, match="init_lora_weights='corda'.*path_initial_model"):
        load(build("gpt2"), tmp_path)


def test_rows_whose_tie_is_ensured_are_tied(tmp_path):
    theirs = theirs_of("gpt2", trainable_token_indices=[7], ensure_weight_tying=True)
    theirs.save_pretrained(tmp_path)
    same(load(build("gpt2"), tmp_path), theirs, "gpt2")
    theirs = theirs_of("gpt2", modules_to_save=["wte"], ensure_weight_tying=True)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ensure_weight_tying=True"):
        load(build("gpt2"), tmp_path)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora"])
def test_starts_that_change_the_base_are_refused_with_a_way_out(start, tmp_path):
    theirs = peft.get_peft_model(
        build("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=start)
    ).eval()
    theirs.peft_config["default"].init_lora_weights = True  # or loading it would begin again
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = start
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match="changed base.*path_initial_model_for_weight_conversion"):
        load(build("llama"), tmp_path / "theirs")
    way_out = {"path_initial_model_for_weight_conversion": tmp_path / "start"}
    theirs.save_pretrained(tmp_path / "converted", **way_out)
    same(load(build("llama"), tmp_path / "converted"), theirs, "llama")
