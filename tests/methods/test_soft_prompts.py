"""Prompt tuning, P-tuning, prefix tuning and LLaMA-Adapter: what they compute, and with what."""

import copy
import io
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
import transformers as hf
from helpers.models import BUILDERS, VOCAB, batch, build, gradients, logits, randomise
from torch import Tensor, nn

from pedagogic_peft import LoRA, activate, attach, count_parameters, detach, disabled, load, save
from pedagogic_peft.core.attention import NAME, attention
from pedagogic_peft.core.sites import View, deltas_of, sites
from pedagogic_peft.files.codecs import codec_of
from pedagogic_peft.methods.llama_adapter import GatedPrompt, LlamaAdapter
from pedagogic_peft.methods.prefix_tuning import Prefix, PrefixTuning, PTuningV2
from pedagogic_peft.methods.prompt_tuning import PromptTuning, PTuning

METHODS = {
    "prompt": PromptTuning(4),
    "p-tuning": PTuning(4, encoder_hidden_size=12),
    "lstm": PTuning(4, "LSTM", encoder_hidden_size=12),
    "prefix": PrefixTuning(4),
    "prefix, projected": PrefixTuning(4, prefix_projection=True, encoder_hidden_size=12),
    "prefix, not shifted": PrefixTuning(4, shift_positions=False),
    "llama-adapter": LlamaAdapter(4),
}
DECODERS = ["gpt2", "llama", "opt"]
ENCODERS = ["bert", "roberta", "distilbert"]
ON_ATTENTION = [key for key in METHODS if "prefix" in key or "llama" in key]


def adapted(model_name: str, method, adaptation: str = "default") -> nn.Module:
    """Return the model with the method attached and its tensors random."""
    model = attach(build(model_name), method, adaptation)
    randomise(model)
    return model


def text(model: nn.Module, name: str, ids: Tensor, **more) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


# Claim: a prompt of the embeddings of tokens is these tokens; a prefix of their keys and values too


IDS = torch.tensor([[5, 9, 31, 7, 22], [8, 3, 3, 40, 11]])
FIRST = [17, 4, 50]


@pytest.mark.parametrize("name", DECODERS)
def test_a_prompt_that_begins_as_tokens_computes_what_these_tokens_in_front_compute(name):
    front = torch.tensor([FIRST, FIRST])
    expected = text(build(name), name, torch.cat([front, IDS], dim=1))[:, 3:]
    model = attach(build(name), PromptTuning(3, init=FIRST))
    torch.testing.assert_close(text(model, name, IDS), expected)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("padded", [False, True])
def test_a_prefix_of_tokens_keys_and_values_computes_what_these_tokens_compute(name, padded):
    base, front = build(name), torch.tensor([FIRST, FIRST])
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, 6:] = 1 - int(padded)
    expected = text(base, name, torch.cat([front, IDS], dim=1), attention_mask=mask)[:, 3:]
    cache = base(torch.tensor([FIRST]), use_cache=True).past_key_values
    model = attach(build(name), PrefixTuning(3))
    places = [p for p, place in sites(model) if hasattr(place.deltas["default"], "prefix")]
    for path, layer in zip(places, cache.layers, strict=True):
        delta = model.get_submodule(path).hooks.deltas["default"]
        KV = torch.stack([layer.keys[0], layer.values[0]])  # (2, heads, n, size)
        delta.prefix.data = KV.permute(2, 0, 1, 3).detach()
    found = text(model, name, IDS, attention_mask=mask[:, 3:])
    kept = mask[:, 3:].bool()
    torch.testing.assert_close(found[kept], expected[kept])


def test_an_encoder_decoders_prompt_that_begins_as_tokens_computes_what_these_compute():
    inputs = batch("t5")
    front = torch.tensor([FIRST, FIRST])
    longer = {
        "input_ids": torch.cat([front, inputs["input_ids"]], dim=1),
        "attention_mask": torch.cat([torch.ones_like(front), inputs["attention_mask"]], dim=1),
        "labels": inputs["labels"],
    }
    with torch.no_grad():
        expected = build("t5")(**longer).logits
    model = attach(build("t5"), PromptTuning(3, init=FIRST))
    torch.testing.assert_close(logits(model, "t5"), expected)


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_an_encoders_prompt_stands_in_front_and_its_first_vector_is_what_a_classifier_reads(name):
    inputs = batch(name)
    front = torch.tensor([FIRST, FIRST])
    longer = {
        "input_ids": torch.cat([front, inputs["input_ids"]], dim=1),
        "attention_mask": torch.cat([torch.ones_like(front), inputs["attention_mask"]], dim=1),
    }
    with torch.no_grad():
        expected = build(name)(**longer).logits
    model = attach(build(name), PromptTuning(3, init=FIRST))
    torch.testing.assert_close(logits(model, name), expected)


def test_two_prefixes_together_are_one_with_the_vectors_of_both():
    both = attach(build("llama"), PrefixTuning(2, shift_positions=False), "a")
    attach(both, PrefixTuning(3, shift_positions=False), "b")
    randomise(both)
    one = attach(build("llama"), PrefixTuning(5, shift_positions=False))
    for (_, place), (_, other) in zip(sites(both), sites(one), strict=True):
        parts = [place.deltas[key].prefix for key in ("a", "b")]
        other.deltas["default"].prefix.data = torch.cat(parts).detach()
    activate(both, "a", "b")
    torch.testing.assert_close(logits(both, "llama"), logits(one, "llama"))


def test_two_prompts_together_are_one_with_the_rows_of_both():
    both = attach(build("gpt2"), PromptTuning(2), "a")
    attach(both, PromptTuning(3), "b")
    activate(both, "b", "a")  # the last one stands in front
    deltas = both.transformer.hooks.deltas
    one = attach(build("gpt2"), PromptTuning(5))
    rows = [deltas[key].prompt_embeddings for key in ("a", "b")]
    one.transformer.hooks.deltas["default"].prompt_embeddings.data = torch.cat(rows).detach()
    torch.testing.assert_close(logits(both, "gpt2"), logits(one, "gpt2"))


# Claim: the shape of what comes out is the shape of the text; the model is as it was afterwards


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("key", METHODS)
def test_logits_keep_their_shape_change_and_are_the_models_own_when_disabled(name, key):
    if name == "vit" and key in ("prompt", "p-tuning", "lstm"):
        with pytest.raises(ValueError, match="no embedding of tokens"):
            attach(build(name), METHODS[key])
        return
    model = build(name)
    before = logits(model, name)
    attach(model, METHODS[key])
    randomise(model)
    found = logits(model, name)
    assert found.shape == before.shape and torch.isfinite(found).all()
    assert not torch.allclose(found, before, atol=1e-3)
    with disabled(model):
        assert torch.equal(logits(model, name), before)
    activate(model)
    assert torch.equal(logits(model, name), before)
    detach(model)
    assert torch.equal(logits(model, name), before)
    assert model.config._attn_implementation == "sdpa"
    assert not any("hooks" in path for path, _ in model.named_modules())


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama", "opt", "distilbert", "t5", "vit"])
def test_closed_gates_leave_the_model_bit_for_bit_as_it_was(name):
    model = build(name)
    before = logits(model, name)
    attach(model, LlamaAdapter(4))
    assert torch.equal(logits(model, name), before)
    for key, gradient in gradients(model, name).items():
        assert bool(gradient.any()) == key.endswith(".gate"), key  # the prompt waits for the gate


def test_a_gated_prompt_has_a_softmax_of_its_own():
    torch.manual_seed(0)
    delta = GatedPrompt(3, width=8, heads=4, keys=(2, 5), maps=("k", "v"))
    randomise(delta)
    module = nn.ModuleDict({"k": nn.Linear(8, 10), "v": nn.Linear(8, 10)})
    query, y = torch.randn(1, 4, 6, 5), torch.randn(1, 6, 4, 5)
    run = lambda *args, **kwargs: (y, None)  # noqa: E731
    found, _ = delta.attend(run, module, query, None, None, None, scaling=0.3)
    for head in range(4):
        K, V = (module[m](delta.prompt).view(3, 2, 5)[:, head // 2] for m in ("k", "v"))  # (3, 5)
        weights = (0.3 * query[0, head] @ K.T).softmax(-1)  # (6, 3)
        expected = y[0, :, head] + torch.tanh(delta.gate[head]) * weights @ V
        torch.testing.assert_close(found[0, :, head], expected)


def test_a_model_loaded_with_eager_attention_gets_it_back():
    model = build("gpt2")
    model.set_attn_implementation("eager")
    before = logits(model, "gpt2")
    attach(model, PrefixTuning(4))
    assert model.config._attn_implementation == NAME
    with disabled(model):
        torch.testing.assert_close(logits(model, "gpt2"), before)
    detach(model)
    assert model.config._attn_implementation == "eager"
    assert torch.equal(logits(model, "gpt2"), before)


@pytest.mark.parametrize("name", ENCODERS)
def test_token_labels_need_no_padding_for_the_prompt(name):
    import transformers as hf

    cls = {"bert": hf.BertForTokenClassification, "roberta": hf.RobertaForTokenClassification}
    cls = cls.get(name, hf.DistilBertForTokenClassification)
    model = attach(cls(build(name).config), PromptTuning(4))
    inputs = batch(name) | {"labels": torch.zeros(2, 9, dtype=torch.long)}
    output = model(**inputs)
    assert output.logits.shape == (2, 9, 3) and torch.isfinite(output.loss)


def test_a_bare_backbone_and_tuples_for_outputs_serve_too():
    model = attach(build("gpt2").transformer, PromptTuning(4))
    assert [path for path, _ in sites(model)] == [""]
    found = model(IDS).last_hidden_state
    assert found.shape == (2, 5, 32)
    assert torch.equal(model(IDS, return_dict=False)[0], found)


# Claim: the number of trained parameters


@pytest.mark.parametrize(
    "name, method, expected",
    [
        ("gpt2", PromptTuning(7), 7 * 32),
        ("t5", PromptTuning(7), 7 * 32),  # PEFT makes twice as many and uses half
        ("gpt2", PTuning(7, encoder_hidden_size=5), 7 * 32 + 32 * 5 + 5 + 30 + 5 * 32 + 32),
        ("gpt2", PrefixTuning(7), 7 * 2 * 2 * 32),
        ("llama", PrefixTuning(7), 7 * 2 * 2 * 16),  # grouped queries: half the keys and values
        ("t5", PrefixTuning(7), 7 * 2 * 2 * 32),  # the decoder's self-attention
        (
            "gpt2",
            PrefixTuning(7, prefix_projection=True, encoder_hidden_size=5),
            7 * 32 + 32 * 5 + 5 + 2 * (5 * 64 + 64),
        ),
        ("llama", LlamaAdapter(7), 2 * (7 * 32 + 4)),
        ("llama", LlamaAdapter(7, adapter_layers=1), 7 * 32 + 4),
    ],
)
def test_the_number_of_trained_parameters(name, method, expected):
    model = attach(build(name), method)
    assert count_parameters(model).trainable == expected
    randomise(model)
    found = gradients(model, name)
    assert sum(g.numel() for g in found.values()) == expected
    assert all(g.any() for g in found.values())


def test_llama_adapter_sits_in_the_topmost_layers():
    model = attach(build("llama"), LlamaAdapter(adapter_layers=1))
    deltas = deltas_of(model, "default").items()
    gated = [path for path, delta in deltas if isinstance(delta, GatedPrompt)]
    assert gated == ["model.layers.1.self_attn"]


# Claim: initial values


def test_a_prompt_begins_at_rows_of_the_vocabulary():
    for init in ("vocab", [3, 7]):
        model = attach(build("gpt2"), PromptTuning(5, init=init))
        P, table = (
            model.transformer.hooks.deltas["default"].prompt_embeddings,
            model.transformer.wte,
        )
        ids = [int(((table.weight - row) ** 2).sum(1).argmin()) for row in P]
        assert torch.equal(P, table(torch.tensor(ids)))
        assert init == "vocab" or ids == [3, 7, 3, 7, 3]
    torch.manual_seed(3)
    again = [attach(build("gpt2"), PromptTuning(5)) for _ in range(2)]
    first, second = (m.transformer.hooks.deltas["default"].prompt_embeddings for m in again)
    assert not torch.equal(first, second)


def test_a_random_prompt_is_as_spread_as_the_embeddings():
    model = attach(build("gpt2"), PromptTuning(30, init="random"))
    P = model.transformer.hooks.deltas["default"].prompt_embeddings
    assert P.std().item() == pytest.approx(model.transformer.wte.weight.std().item(), rel=0.1)


def test_a_prefix_that_begins_at_zero_stays_one_token_repeated():
    model = attach(build("gpt2"), PrefixTuning(3, init_weights="zero"))
    for gradient in gradients(model, "gpt2").values():
        assert gradient.any()
        torch.testing.assert_close(gradient[1:], gradient[:-1])
    projected = PrefixTuning(3, init_weights="zero", prefix_projection=True)
    model = attach(build("gpt2"), projected)
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    model(**batch("gpt2")).loss.backward()
    optimiser.step()
    KV = model.transformer.h[0].attn.hooks.deltas["default"].keys_and_values()
    assert not torch.allclose(KV[1:], KV[:-1], rtol=1e-2)


# Claim: generation is the same with a cache, without, with beams, and for rows padded on the left


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("key", METHODS)
def test_generation_does_not_depend_on_cache_or_padding(name, key):
    model = adapted(name, METHODS[key])
    model.generation_config.eos_token_id = None
    rows = [[7, 8, 9, 10, 11, 12], [30, 31, 32]]
    ids = torch.tensor([rows[0], [0] * 3 + rows[1]])
    mask = torch.tensor([[1] * 6, [0] * 3 + [1] * 3])
    for beams in (1, 3):
        options = dict(max_new_tokens=6, do_sample=False, num_beams=beams)
        together = model.generate(ids, attention_mask=mask, **options)
        for i, row in enumerate(rows):
            own = torch.tensor([row])
            ones = torch.ones_like(own)
            cached = model.generate(own, attention_mask=ones, **options)
            plain = model.generate(own, attention_mask=ones, use_cache=False, **options)
            assert cached.tolist() == plain.tolist()
            assert together[i, 6:].tolist() == cached[0, len(row) :].tolist()


@pytest.mark.parametrize("key", METHODS)
def test_an_encoder_decoder_generates_the_same_with_and_without_a_cache(key):
    model = adapted("t5", METHODS[key])
    model.generation_config.eos_token_id = None
    inputs = {k: v for k, v in batch("t5").items() if k != "labels"}
    for beams in (1, 3):
        options = dict(max_new_tokens=6, do_sample=False, num_beams=beams)
        cached = model.generate(**inputs, **options)
        assert cached.tolist() == model.generate(**inputs, use_cache=False, **options).tolist()
        alone = model.generate(inputs["input_ids"][1:, :6], **options)
        assert cached[1:].tolist() == alone.tolist()


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("key", METHODS)
def test_steps_by_hand_with_a_cache_give_the_logits_of_the_whole_text(name, key):
    model = adapted(name, METHODS[key])
    mask = torch.tensor([[1] * 5, [0] * 2 + [1] * 3])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        whole = model(IDS, attention_mask=mask, position_ids=positions).logits
        first = model(
            IDS[:, :3], attention_mask=mask[:, :3], position_ids=positions[:, :3], use_cache=True
        )
        more = model(
            IDS[:, 3:],
            attention_mask=mask,
            position_ids=positions[:, 3:],
            past_key_values=first.past_key_values,
        )
    torch.testing.assert_close(more.logits, whole[:, 3:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key", METHODS)
def test_an_encoder_decoders_steps_by_hand_give_the_logits_of_the_whole_text(key):
    model = adapted("t5", METHODS[key])
    inputs = {k: v for k, v in batch("t5").items() if k != "labels"}
    with torch.no_grad():
        whole = model(**inputs, decoder_input_ids=IDS).logits
        first = model(**inputs, decoder_input_ids=IDS[:, :3], use_cache=True)
        cache = first.past_key_values
        more = model(**inputs, decoder_input_ids=IDS[:, 3:], past_key_values=cache)
    torch.testing.assert_close(more.logits, whole[:, 3:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_without_positions_a_decoder_with_a_prompt_counts_them_along_the_mask(name):
    model = adapted(name, PromptTuning(4))
    mask = torch.tensor([[1] * 5, [0] * 2 + [1] * 3])
    found = text(model, name, IDS, attention_mask=mask)
    alone = text(model, name, IDS[1:, 2:])
    torch.testing.assert_close(found[1:, 2:], alone, rtol=1e-4, atol=1e-5)


# Claim: gradient checkpointing, copies, pickles, low precision, other adaptations


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5"])
@pytest.mark.parametrize(
    "key", ["prompt", "p-tuning", "prefix", "prefix, projected", "llama-adapter"]
)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(name, key, reentrant):
    model = build(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for dropout in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, dropout, None), float):
                setattr(module, dropout, 0.0)
    attach(model, METHODS[key])
    randomise(model)
    model.train()
    expected = gradients(model, name)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    found = gradients(model, name)
    assert set(found) == set(expected)
    for k in found:
        torch.testing.assert_close(found[k], expected[k], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("key", METHODS)
def test_a_copy_and_a_pickle_compute_the_same_and_share_nothing(key):
    model = adapted("llama", METHODS[key])
    expected = logits(model, "llama")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other, "llama"), expected)
        assert set(gradients(other, "llama")) == set(gradients(model, "llama"))
        randomise(other)
        assert not torch.equal(logits(other, "llama"), expected)
        assert torch.equal(logits(model, "llama"), expected)
        detach(other)
        assert torch.equal(logits(other, "llama"), logits(build("llama"), "llama"))


@pytest.mark.parametrize("key", ON_ATTENTION)
def test_a_pickle_serves_in_a_process_that_has_attached_nothing_yet(key, monkeypatch):
    from transformers import AttentionInterface, AttentionMaskInterface

    model = adapted("gpt2", METHODS[key])
    expected = logits(model, "gpt2")
    file = pickle.dumps(model)
    monkeypatch.delitem(AttentionInterface._global_mapping, NAME)
    monkeypatch.delitem(AttentionMaskInterface._global_mapping, NAME)
    assert torch.equal(logits(pickle.load(io.BytesIO(file)), "gpt2"), expected)


@pytest.mark.parametrize("key", METHODS)
def test_a_half_precision_model_keeps_its_dtype_and_gradients_are_float32(key):
    model = attach(build("llama").to(torch.bfloat16), METHODS[key])
    randomise(model)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model(**batch("llama")).logits.dtype == torch.bfloat16
    assert {g.dtype for g in gradients(model, "llama").values()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(adapted("llama", METHODS[key])(**batch("llama")).loss)


def test_an_lstm_runs_under_autocast_on_a_processor_without_16_bit_kernels():
    """oneDNN is told to use AVX2 only, as on such a processor; it reads that when it starts."""
    program = (
        "import torch; from pedagogic_peft.methods.prompt_tuning import EncodedPrompt\n"
        "network = EncodedPrompt(3, 8, 8, lstm_layers=2)\n"
        "with torch.autocast('cpu', torch.bfloat16): network.prompt().float().sum().backward()\n"
        "print({p.grad.dtype for p in network.parameters()})"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip() == "{torch.float32}", run.stderr[-500:]


@pytest.mark.parametrize("key", METHODS)
def test_switching_between_two_and_together_with_lora(key):
    model = adapted("gpt2", METHODS[key], "one")
    first = logits(model, "gpt2")
    attach(model, METHODS[key], "two")
    randomise(model)
    activate(model, "one")
    again = logits(model, "gpt2")
    activate(model, "two")
    second = logits(model, "gpt2")
    assert not torch.allclose(second, again, atol=1e-3)
    attach(model, LoRA(target_modules=["c_attn", "wte", "wpe"]), "lora")
    activate(model, "two", "lora")
    assert torch.equal(logits(model, "gpt2"), second)  # ΔW is zero
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora" in parameter_name:
                parameter.add_(0.3)
    together = logits(model, "gpt2")
    activate(model, "two")
    assert torch.equal(logits(model, "gpt2"), second)
    assert not torch.allclose(together, second, atol=1e-3)
    for name in ("one", "lora", "two"):
        detach(model, name)
    assert torch.equal(logits(model, "gpt2"), logits(build("gpt2"), "gpt2"))
    assert set(model.state_dict()) == set(build("gpt2").state_dict())
    assert not torch.equal(first, second)


# Claim: what is saved is loaded again, exactly, and Hugging Face PEFT computes the same with it


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama", "t5"])
@pytest.mark.parametrize("key", METHODS)
def test_what_is_saved_is_loaded_again_with_its_hyper_parameters(name, key, tmp_path):
    model = adapted(name, METHODS[key])
    save(model, tmp_path)
    again = load(build(name), tmp_path)
    assert torch.equal(logits(again, name), logits(model, name))
    assert again._adaptations.methods["default"] == METHODS[key]
    assert set(gradients(again, name)) == set(gradients(model, name))


def test_targets_and_heads_are_saved_too(tmp_path):
    method = PrefixTuning(
        3, target_modules=["layer.1.attention.self"], modules_to_save=["classifier"]
    )
    model = adapted("bert", method)
    assert {path for path, _ in sites(model) if "self" in path} == {
        "bert.encoder.layer.1.attention.self"
    }
    save(model, tmp_path)
    assert torch.equal(logits(load(build("bert"), tmp_path), "bert"), logits(model, "bert"))


def of_the_text(name: str, found: Tensor) -> Tensor:
    """Return the logits at the text's own positions (PEFT returns the prompt's as well)."""
    if found.dim() < 3 or name == "t5":
        return found
    mask = batch(name)["attention_mask"].bool()
    return found[:, -mask.shape[1] :][mask]


def pefts_config(key: str, name: str):
    peft = pytest.importorskip("peft")
    task = {"bert": "SEQ_CLS", "roberta": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM"}.get(name, "CAUSAL_LM")
    options = dict(num_virtual_tokens=4, task_type=task)
    network = dict(encoder_hidden_size=12)
    return {
        "prompt": lambda: peft.PromptTuningConfig(**options),
        "p-tuning": lambda: peft.PromptEncoderConfig(**options, **network),
        "lstm": lambda: peft.PromptEncoderConfig(
            **options, **network, encoder_reparameterization_type="LSTM"
        ),
        "prefix": lambda: peft.PrefixTuningConfig(**options),
        "prefix, projected": lambda: peft.PrefixTuningConfig(
            **options, **network, prefix_projection=True
        ),
    }[key]()


IN_PEFT = ["prompt", "p-tuning", "lstm", "prefix", "prefix, projected"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "bert", "roberta", "t5"])
@pytest.mark.parametrize("key", IN_PEFT)
def test_logits_of_pefts_checkpoints_equal_pefts(name, key, tmp_path):
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(build(name), pefts_config(key, name)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.mul_(0.5)
    theirs.save_pretrained(tmp_path)
    ours = load(build(name), tmp_path)
    expected = of_the_text(name, logits(theirs, name))
    torch.testing.assert_close(
        of_the_text(name, logits(ours, name)), expected, rtol=1e-5, atol=1e-5
    )
    assert not torch.allclose(expected, of_the_text(name, logits(build(name), name)), atol=1e-2)
    assert all(g.any() for g in gradients(ours, name).values())  # a prompt that trains


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "bert", "roberta", "t5"])
@pytest.mark.parametrize("key", IN_PEFT)
def test_peft_computes_our_logits_with_our_checkpoints(name, key, tmp_path):
    peft = pytest.importorskip("peft")
    heads = ["classifier"] if name in ("bert", "roberta") and key != "lstm" else []
    method = copy.copy(METHODS[key])
    object.__setattr__(method, "modules_to_save", heads)
    ours = adapted(name, method)
    deltas = {path: place.deltas["default"] for path, place in sites(ours)}
    save(
        ours,
        tmp_path,
        task_type=codec_of(type(method)).to_peft(View(ours), method, deltas)[0]["task_type"],
    )
    theirs = peft.PeftModel.from_pretrained(build(name), tmp_path).eval()
    expected = of_the_text(name, logits(ours, name))
    torch.testing.assert_close(
        of_the_text(name, logits(theirs, name)), expected, rtol=1e-5, atol=1e-5
    )


def test_a_prefix_peft_cannot_compute_is_one_it_refuses_to_load(tmp_path):
    peft = pytest.importorskip("peft")
    save(adapted("gpt2", METHODS["prefix, not shifted"]), tmp_path, task_type="CAUSAL_LM")
    with pytest.raises(KeyError, match="prompt_embeddings"):
        peft.PeftModel.from_pretrained(build("gpt2"), tmp_path)


def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(tmp_path):
    save(adapted("gpt2", PrefixTuning(4)), tmp_path / "a")
    save(adapted("gpt2", PromptTuning(4)), tmp_path / "b")
    model = build("llama")  # keys and values half as wide
    with pytest.raises(ValueError, match="128 numbers for each virtual token.* 2 heads"):
        load(model, tmp_path / "a")
    load(model, tmp_path / "b")  # as wide
    detach(model)
    assert set(model.state_dict()) == set(build("llama").state_dict())
    assert model.config._attn_implementation == "sdpa"


# Claim: what cannot work is refused with the numbers and the names


@pytest.mark.parametrize(
    "name, method, room",
    [
        ("gpt2", PromptTuning(36), 40),
        ("llama", PromptTuning(36), 40),
        ("bert", PromptTuning(36), 40),
        ("roberta", PromptTuning(34), 38),  # RoBERTa's positions begin behind its padding index
        ("gpt2", PrefixTuning(36), 40),
        ("llama", PrefixTuning(36), 40),
        ("roberta", PrefixTuning(34), 38),
    ],
)
def test_a_prompt_and_a_text_too_long_for_the_model_are_refused(name, method, room):
    model = attach(build(name), method)
    n = method.num_virtual_tokens
    model(input_ids=torch.full((1, room - n), 5))
    longer = room - n + 1
    with pytest.raises(ValueError, match=f"{n} .*{longer} tokens.*{n + longer} positions.*{room}"):
        model(input_ids=torch.full((1, longer), 5))


@pytest.mark.parametrize("key", ["prefix", "llama-adapter"])
def test_other_attention_implementations_are_refused_before_anything_changes(key):
    model = build("llama")
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2.*set_attn_implementation"):
        attach(model, METHODS[key])
    assert not list(sites(model)) and all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="Sequential does not compute its attention"):
        attach(nn.Sequential(nn.Linear(2, 2)), METHODS[key])


@pytest.mark.parametrize("name", ["CTRL", "DiffLlama"])
@pytest.mark.parametrize("key", ["prefix", "llama-adapter"])
def test_architectures_whose_attention_is_another_are_refused(name, key):
    import transformers

    config = getattr(transformers, f"{name}Config")(hidden_size=32, vocab_size=VOCAB)
    model = nn.Module()
    model.config = config
    head = {"CTRL": "CTRLLMHeadModel"}.get(name, f"{name}ForCausalLM")
    model.__class__ = getattr(transformers, head)
    with pytest.raises(ValueError, match=f"{head} does not compute its attention"):
        attach(model, METHODS[key])


def test_an_attention_may_pass_its_mask_by_name():  # as those of transformers' Afmoe do
    module = adapted("llama", METHODS["prefix"]).model.layers[0].self_attn
    Q, K = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8)
    expected, _ = attention(module, Q, K, K, None)
    assert torch.equal(attention(module, Q, K, K, attention_mask=None)[0], expected)


def test_a_static_cache_is_refused_with_a_prompt():
    model = attach(build("llama"), PromptTuning(4))
    with pytest.raises(ValueError, match="static cache"):
        model.generate(IDS, max_new_tokens=3, cache_implementation="static", disable_compile=True)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PromptTuning(0), "num_virtual_tokens=0"),
        (lambda: PromptTuning(init="words"), "init='words'"),
        (lambda: PromptTuning(init=[]), r"init=\[\]"),
        (lambda: PTuning(encoder_reparameterization_type="GRU"), "'GRU'"),
        (lambda: PTuning(encoder_hidden_size=0), "encoder_hidden_size=0"),
        (lambda: PTuning(encoder_dropout=1.0), "encoder_dropout=1.0"),
        (lambda: PrefixTuning(init_weights="one"), "init_weights='one'"),
        (lambda: PrefixTuning(prefix_projection=1), "prefix_projection=1"),
        (lambda: LlamaAdapter(adapter_len=0), "adapter_len=0"),
        (
            lambda: attach(build("gpt2"), LlamaAdapter(adapter_layers=3)),
            "adapter_layers=3.*2 layers",
        ),
        (lambda: attach(build("gpt2"), PromptTuning(init=[VOCAB])), f"from 0 to {VOCAB - 1}"),
        (
            lambda: attach(build("gpt2"), PrefixTuning(target_modules=["att"])),
            "did you mean 'attn'",
        ),
    ],
)
def test_impossible_hyper_parameters_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_p_tuning_v2_is_prefix_tuning():
    assert PTuningV2 is PrefixTuning


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


THREE = torch.tensor([[3, 4, 5], [6, 7, 8]])


def test_a_prefix_has_the_heads_own_size():
    sizes = dict(hidden_size=32, intermediate_size=16, num_hidden_layers=1, head_dim=24)
    config = hf.LlamaConfig(vocab_size=VOCAB, num_attention_heads=2, num_key_value_heads=1, **sizes)
    model = attach(hf.LlamaForCausalLM(config), PrefixTuning(num_virtual_tokens=3))
    assert model.model.layers[0].self_attn.hooks.deltas["default"].prefix.shape == (3, 2, 1, 24)
    assert model(input_ids=THREE).logits.shape == (2, 3, VOCAB)


def test_a_prompts_rows_have_the_segment_zero_and_a_mask_of_the_dtype_given():
    model = attach(build("bert"), PromptTuning(num_virtual_tokens=2))
    delta, ones = model.bert.hooks.deltas["default"], torch.ones_like(THREE)
    given = {"input_ids": THREE, "token_type_ids": ones, "attention_mask": ones.bool()}
    _, kwargs = delta.enter(model.bert, (), given)
    assert kwargs["token_type_ids"].tolist() == [[0, 0, 1, 1, 1]] * 2
    assert kwargs["attention_mask"].dtype == torch.bool and kwargs["attention_mask"].all()
