"""Details that no other test would have missed: each kills a mutant that had survived `make mutants`."""

import json
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from models import VOCAB, build
from test_adapters import HUB, hub_base
from test_figures import ALT, chooser, curves, data_of
from test_memory import gpt2, llama
from torch import nn

from pedagogic_peft import (
    IA3,
    AdaLoRA,
    AdaLoRABudget,
    BottleneckAdapter,
    DoRA,
    LoRA,
    PrefixTuning,
    PromptTuning,
    VeRA,
    activate,
    adapter_drop,
    attach,
    detach,
    disabled,
    load,
    merge,
    save,
    train,
    unmerge,
)
from pedagogic_peft.core.verbs import adaptations_of
from pedagogic_peft.course.explorables.diagram import Box, Diagram, _diagram_still, _lay_out
from pedagogic_peft.course.figures import Slider, rank_explorable, use_style
from pedagogic_peft.course.memory import Decoder, activations, kept_by_autograd
from pedagogic_peft.course.pocket.lessons import picture_rates, pictures
from pedagogic_peft.files.adapterhub import load_adapterhub
from pedagogic_peft.methods.fusion import Fusion
from pedagogic_peft.methods.lora import LoRAEmbedding
from pedagogic_peft.methods.prefix_tuning import Prefix
from pedagogic_peft.training.snapshots import Snapshot
from pedagogic_peft.training.train import pad_collate

ROOT = Path(__file__).parents[1]
IDS = torch.tensor([[3, 4, 5], [6, 7, 8]])


class Scaled(nn.Module):
    """Stands for an adapter of width d that changes h by a factor."""

    def __init__(self, d, factor):
        super().__init__()
        self.adapter_up, self.factor = nn.Linear(1, d), factor

    def change(self, h, frozen):
        assert frozen
        return self.factor * h


def test_queries_and_keys_of_a_fusion_begin_small():
    fusion = Fusion([Scaled(200, 1.0)])
    assert fusion.query.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert fusion.key.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(fusion.value.weight, torch.eye(200))


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6), (2, 3, 5, 6)])
def test_a_fusion_works_on_any_number_of_dimensions(shape):
    fusion, h = Fusion([Scaled(6, 1.0), Scaled(6, -2.0)]), torch.randn(shape)
    for row, out in zip(h.reshape(-1, 6), fusion.change(h).reshape(-1, 6), strict=True):
        z = torch.stack([row, -2 * row])  # (2, 6)
        a = (fusion.key(z) @ fusion.query(row)).softmax(0)
        torch.testing.assert_close(out, a @ z)


def test_a_fusion_computes_in_the_dtype_of_its_input():
    out = Fusion([Scaled(6, 1.0)]).change(torch.randn(2, 6, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize("method", [DoRA(r=2), VeRA(r=4), IA3()], ids=lambda m: type(m).__name__)
def test_a_base_in_bfloat16_stays_so(method):
    model = attach(build("gpt2").bfloat16(), method)
    seen = {}
    for path, module in model.named_modules():
        if hasattr(module, "deltas"):
            module.register_forward_hook(
                lambda m, i, out, path=path: seen.update({path: out.dtype})
            )
    model(input_ids=torch.tensor([[3, 4, 5]]))
    assert seen and set(seen.values()) == {torch.bfloat16}


def test_vera_has_its_dropout():
    model = attach(build("gpt2"), VeRA(r=4, dropout=0.3))
    delta = model.transformer.h[0].attn.c_attn.deltas["default"]
    assert isinstance(delta.dropout, nn.Dropout) and delta.dropout.p == 0.3
    plain = attach(build("gpt2"), VeRA(r=4)).transformer.h[0].attn.c_attn.deltas["default"]
    assert not isinstance(plain.dropout, nn.Dropout)


def test_a_checkpoint_of_adalora_without_init_r_has_pefts_default(tmp_path):
    torch.manual_seed(0)
    save(attach(build("gpt2"), AdaLoRA(init_r=12, target_r=4)), tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    del config["init_r"]
    file.write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="edited|changed|saved"):
        model = load(build("gpt2"), tmp_path)
    assert model._adaptations.methods["default"].init_r == 12


def test_a_quantised_map_follows_the_dtype_of_its_model():
    from pedagogic_peft.methods.nf4 import NF4Linear

    layer = NF4Linear(nn.Linear(64, 64))
    assert layer.weight.dtype == torch.float32
    assert layer.bfloat16().weight.dtype == torch.bfloat16
    assert layer.to("cpu").weight.dtype == torch.bfloat16  # a move alone changes no dtype
    assert layer.float().weight.dtype == torch.float32


def test_the_total_of_adalora_in_a_checkpoint_is_the_least_peft_takes(tmp_path):
    save(attach(build("gpt2"), AdaLoRA(init_r=4, target_r=2, tinit=3, tfinal=5)), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["total_step"] == 9


# Messages name the value and what was expected


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


def test_prompts_of_several_lengths_are_named_with_the_model():
    model = build("bert")
    for n in (2, 3):
        attach(model, PromptTuning(num_virtual_tokens=n), f"n{n}")
    activate(model, rows=["n2", "n3"])
    with pytest.raises(ValueError, match=r"rows with prompts of \[2, 3\] .* in a BertModel they"):
        model(input_ids=IDS)


# The verbs


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


def test_a_budget_is_of_the_adaptation_it_names():
    model = build("gpt2")
    for name, r in (("a", 4), ("b", 6)):
        attach(model, AdaLoRA(init_r=r, target_r=2), name)
    assert AdaLoRABudget(model, total_steps=5, name="a").method.init_r == 4


# Starts and shapes


def test_a_parallel_adapter_starts_as_the_docstring_says():
    down, up = BottleneckAdapter(placement="parallel").maps(100, 40)
    assert 0.09 < down.weight.max() <= 0.1 and -0.1 <= down.weight.min() < -0.09
    assert not up.weight.any()


def test_ia3_of_an_input_of_two_numbers_is_read_back(tmp_path):
    def model():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3))

    method = IA3(target_modules=["0", "1"], feedforward_modules=["1"])
    save(attach(model(), method), tmp_path)
    loaded = adaptations_of(load(model(), tmp_path)).methods["default"]
    assert list(loaded.feedforward_modules) == ["1"]


def test_lora_of_a_table_knows_the_tables_scale():
    table = nn.Embedding(5, 4)
    assert LoRAEmbedding(table, 2, 4).embed_scale == 1.0
    table.embed_scale = 3.0
    assert LoRAEmbedding(table, 2, 4).embed_scale == 3.0


def test_a_prefix_has_the_heads_own_size():
    sizes = dict(hidden_size=32, intermediate_size=16, num_hidden_layers=1, head_dim=24)
    config = hf.LlamaConfig(vocab_size=VOCAB, num_attention_heads=2, num_key_value_heads=1, **sizes)
    model = attach(hf.LlamaForCausalLM(config), PrefixTuning(num_virtual_tokens=3))
    assert model.model.layers[0].self_attn.hooks.deltas["default"].prefix.shape == (3, 2, 1, 24)
    assert model(input_ids=IDS).logits.shape == (2, 3, VOCAB)


@pytest.mark.parametrize("init, stored", [("zero", "zero"), ("normal", None)])
def test_a_checkpoint_says_how_a_prefix_began(tmp_path, init, stored):
    save(attach(build("gpt2"), PrefixTuning(num_virtual_tokens=2, init_weights=init)), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["init_weights"] == stored


@pytest.mark.parametrize("is_causal, masked", [(None, True), (True, True), (False, False)])
def test_a_prefix_makes_a_causal_mask_unless_it_is_told_not_to(is_causal, masked):
    prefix, seen = Prefix((2, 2, 1, 4), "normal", None, None), []
    Q = torch.randn(1, 1, 3, 4)
    module = nn.Module()
    module.is_causal = True
    run = lambda module, Q, K, V, mask, **kwargs: seen.append(mask)  # noqa: E731
    prefix.attend(run, module, Q, Q, Q, None, is_causal=is_causal)
    expected = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
    assert (seen[0] is not None) == masked
    assert not masked or torch.equal(seen[0][0, 0], expected)


def test_a_prompts_rows_have_the_segment_zero_and_a_mask_of_the_dtype_given():
    model = attach(build("bert"), PromptTuning(num_virtual_tokens=2))
    delta, ones = model.bert.hooks.deltas["default"], torch.ones_like(IDS)
    given = {"input_ids": IDS, "token_type_ids": ones, "attention_mask": ones.bool()}
    _, kwargs = delta.enter(model.bert, (), given)
    assert kwargs["token_type_ids"].tolist() == [[0, 0, 1, 1, 1]] * 2
    assert kwargs["attention_mask"].dtype == torch.bool and kwargs["attention_mask"].all()


# Checkpoints


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


def test_the_state_of_a_run_has_that_of_fp16s_scaler(tmp_path):
    model = attach(build("gpt2"), LoRA(r=1))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

    def snapshot(scale):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return Snapshot(tmp_path / "run.pt", {}, model, optimizer, scaler)

    first = snapshot(8.0)
    first.scaler.scale(torch.zeros(1))  # it begins to count
    first.save([{"step": 1}])
    again = snapshot(2.0)
    again.restore()
    assert again.scaler.state_dict()["scale"] == 8.0


# Training and memory


def test_weights_do_not_decay_unless_asked():
    examples = [{"input_ids": [3, 4], "labels": [3, 4]}]
    for decay, moves in ((0.0, False), (0.1, True)):
        model = attach(build("gpt2"), LoRA(r=2))
        A = model.transformer.h[0].attn.c_attn.deltas["default"].lora_A.weight
        before = A.detach().clone()  # B is zero, so its first gradient is too
        train(model, examples, steps=1, lr=0.1, weight_decay=decay, progress=False)
        assert torch.equal(A, before) != moves


def test_a_batch_is_padded_with_zero():
    batch = pad_collate()([{"input_ids": [5]}, {"input_ids": [6, 7]}])
    assert batch["input_ids"].tolist() == [[5, 0], [6, 7]]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_layer_keeps_exactly_the_bytes_of_the_formula(kind):
    def found(layers):
        if kind == "gpt2":
            model = gpt2(vocab_size=90, n_embd=8, n_layer=layers, n_head=1, n_positions=64)
        else:
            config = llama(num_key_value_heads=4).config
            config.num_hidden_layers = layers
            model = hf.LlamaForCausalLM(config)
        ids = torch.randint(5, 80, (4, 40))
        kept = kept_by_autograd(model, {"input_ids": ids, "labels": ids})
        return kept, activations(Decoder.of(model.config), 4, 40)

    (one, by_formula), (three, again) = found(1), found(3)
    assert three - one == again - by_formula


# Figures and the pocket world


def test_figures_carry_the_data_they_are_given():
    chosen = data_of(chooser({"size": {"small": (2, "It is small.")}}))
    assert chosen["questions"] == ["size"]
    assert set(chosen["options"]) == {"LoRA", "full"}
    assert data_of(curves(log_y=True))["logY"] is True and data_of(curves())["logY"] is False
    matrix = np.arange(6.0).reshape(2, 3) + 1
    assert data_of(rank_explorable(matrix, 2, alt=ALT))["name"] == "ΔW"
    assert data_of(rank_explorable(matrix, 2, alt=ALT, name="W"))["name"] == "W"
    assert Slider("k", "k", [1, 2]).html().endswith('aria-hidden="true"></span></label>')


def drawn(*boxes, arrow):
    return _lay_out(
        Diagram([Box(n, n, "frozen", row, column) for n, row, column in boxes], [arrow], "")
    )


def test_an_arrow_bends_in_the_gap_between_rows_and_ends_at_the_box():
    column = [("a", 0, 0), ("b", 1, 0), ("c", 2, 0)]
    boxes, round_it = (drawn(*column, arrow=("a", "c"))[key] for key in ("boxes", "arrows"))
    away = drawn(*column, ("d", 2, 1), arrow=("a", "d"))["arrows"]
    for (line,) in (round_it, away):
        assert boxes[1]["y"] + boxes[1]["h"] < line[1][1] < boxes[0]["y"]
    beside = drawn(("a", 0, 0), ("b", 0, 1), arrow=("a", "b"))
    (left, right), ((start, end),) = beside["boxes"], beside["arrows"]
    assert start[0] == left["x"] + left["w"] and end[0] == right["x"]


def test_the_still_of_a_diagram_is_as_wide_as_the_diagram():
    frame = drawn(("a", 0, 0), ("b", 0, 1), arrow=("a", "b"))
    width, height = _diagram_still(frame).get_size_inches()
    assert width / height == pytest.approx(frame["width"] / frame["height"], rel=0.01)


def test_the_books_figures_are_wide_and_low():
    import matplotlib.pyplot as plt

    with plt.rc_context():
        use_style()
        assert plt.rcParams["figure.figsize"] == [6.0, 3.2]


def test_pictures_are_those_to_train_on_unless_others_are_asked_for():
    assert len(pictures("pocket-vit")) == 1100


def test_rates_for_pictures_are_below_one():
    for base in ("pocket-vit", "google/vit"):
        rates = picture_rates(base)
        assert rates.keys() == {"head", "LoRA", "full"}
        assert all(0 < rate < 0.1 for rate in rates.values())


def test_a_checkpoint_of_dora_is_loaded_as_dora(tmp_path):
    save(attach(build("gpt2"), DoRA(r=2)), tmp_path)
    (method,) = adaptations_of(load(build("gpt2"), tmp_path)).methods.values()
    assert type(method) is DoRA


def test_a_save_that_never_gets_its_turn_says_so(tmp_path, monkeypatch):
    def busy(source, target):
        target.mkdir(exist_ok=True)  # another process has always been faster
        raise OSError("Directory not empty")

    model = attach(build("gpt2"), LoRA(r=2))
    monkeypatch.setattr("os.rename", busy)
    with pytest.raises(OSError, match="not empty"):
        save(model, tmp_path)


# What survives has an explanation, and that is of the code as it is


def test_each_explained_survivor_is_still_in_the_code():
    entries = tomllib.loads((ROOT / "tests" / "survivors.toml").read_text())["survivor"]
    assert len({(e["file"], e["was"], e["now"]) for e in entries}) == len(entries)
    for entry in entries:
        lines = [line.strip() for line in (ROOT / entry["file"]).read_text().splitlines()]
        assert all(line in lines for line in entry["was"].strip().splitlines()), entry
        assert entry["now"].strip() != entry["was"].strip() and len(entry["why"]) > 20
