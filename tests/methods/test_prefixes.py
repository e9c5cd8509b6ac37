"""Prefixes on many architectures: shapes, static caches, rows of a batch, words, replicas, PEFT's files."""

import copy
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers as hf
from helpers.models import batch, build, logits, randomise
from torch import nn

from pedagogic_peft import (
    LlamaAdapter,
    LoRA,
    PrefixTuning,
    PromptTuning,
    activate,
    attach,
    attention_shares,
    detach,
    disabled,
    load,
    save,
)
from pedagogic_peft.core.sites import sites

SMALL = dict(
    vocab_size=60,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    initializer_range=0.2,
)
GEMMA4 = SMALL | dict(
    head_dim=8,
    global_head_dim=16,
    hidden_size_per_layer_input=8,
    vocab_size_per_layer_input=60,
    num_kv_shared_layers=0,
    layer_types=["sliding_attention", "full_attention"],
    sliding_window=64,
)
IDS = torch.tensor([[5, 9, 31, 7, 22], [8, 3, 40, 41, 11]])
FIRST = [17, 4, 50]
HALVES = dict(
    vocab_size=60,
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    max_position_embeddings=40,
    pad_token_id=0,
    init_std=0.2,
)


def made(head: str, config: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return getattr(hf, head)(getattr(hf, config)(**options)).eval()


def llama(kind="Llama", **more) -> nn.Module:
    return made(f"{kind}ForCausalLM", f"{kind}Config", **SMALL | more)


def albert() -> nn.Module:
    """One layer, run twice."""
    sizes = {key: SMALL[key] for key in ("vocab_size", "hidden_size", "num_attention_heads")}
    return made("AlbertForMaskedLM", "AlbertConfig", **sizes, num_hidden_layers=2)


def adapted(model: nn.Module, method, name="default") -> nn.Module:
    attach(model, method, name)
    randomise(model)
    return model


def of(model: nn.Module, ids=IDS, **more):
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


def after(base: nn.Module, front=FIRST, ids=IDS):
    """The logits of the text behind the tokens in front of it."""
    return of(base, torch.cat([torch.tensor([front] * len(ids)), ids], 1))[:, len(front) :]


# Claim: a prefix that begins as words computes what these words in front of the text compute

WORDED = {
    "Llama": lambda: llama(),
    "Qwen3": lambda: llama("Qwen3", head_dim=8),
    "window": lambda: llama("Mistral", sliding_window=4),
    "GPT-2": lambda: build("gpt2"),
    "OPT": lambda: build("opt"),
    "fused, grouped": lambda: llama("Phi3"),
    "multi-query": lambda: made(
        "GPTBigCodeForCausalLM", "GPTBigCodeConfig", vocab_size=60, n_embd=32, n_layer=2, n_head=4
    ),
    "two kinds of layers": lambda: made("Gemma4ForCausalLM", "Gemma4TextConfig", **GEMMA4),
    "shared keys": lambda: made(
        "Gemma4ForCausalLM",
        "Gemma4TextConfig",
        **GEMMA4
        | dict(
            num_hidden_layers=4,
            layer_types=["sliding_attention", "full_attention"] * 2,
            num_kv_shared_layers=2,
        ),
    ),
    "a decoder alone": lambda: made("BartForCausalLM", "BartConfig", **HALVES),
}


@pytest.mark.parametrize("make", WORDED.values(), ids=WORDED)
def test_a_prefix_that_begins_as_words_is_these_words(make):
    base = make()
    expected = after(base)
    model = attach(copy.deepcopy(base), PrefixTuning(3, init=FIRST))
    torch.testing.assert_close(of(model), expected, atol=1e-4, rtol=1e-4)
    with disabled(model):
        torch.testing.assert_close(of(model), of(base))
    detach(model)
    assert torch.equal(of(model), of(base))


def test_words_are_repeated_or_cut_and_read_by_the_frozen_model_without_dropout():
    base = build("gpt2")
    for dropout in base.modules():
        if isinstance(dropout, nn.Dropout):
            dropout.p = 0.5
    model = adapted(base.train(), LoRA(r=2), "other")
    attach(model, PrefixTuning(5, init=FIRST))
    assert all(m.training for m in model.modules())
    assert model.config._attn_implementation == "pedagogic_peft"
    expected = after(build("gpt2"), [17, 4, 50, 17, 4])
    torch.testing.assert_close(of(model.eval()), expected, atol=1e-4, rtol=1e-4)
    cut = attach(build("gpt2"), PrefixTuning(2, init=FIRST))
    torch.testing.assert_close(of(cut), after(build("gpt2"), [17, 4]), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_words_give_the_prefix_that_pefts_function_gives(name, tmp_path):
    peft = pytest.importorskip("peft")
    base, ids = build(name), [17, 4, 50, 9]
    options = dict(num_virtual_tokens=3, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.PrefixTuningConfig(**options))
    tokenizer = lambda text, **more: {"input_ids": torch.tensor([ids])}  # noqa: E731
    P = peft.initialize_kv_prefix_from_text(theirs.eval(), tokenizer, text="four words")
    ours = attach(base, PrefixTuning(3, init=ids))
    deltas = [place.deltas["default"] for _, place in sites(ours)]
    found = torch.cat([d.prompt() for d in deltas if hasattr(d, "prefix")], 1)
    torch.testing.assert_close(found, P)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PrefixTuning(3, init="words"), "init='words': expected a list of token ids"),
        (lambda: PrefixTuning(3, init=[]), "a list of token ids"),
        (lambda: PrefixTuning(3, prefix_projection=True, init=[4]), "prefix_projection"),
        (lambda: attach(build("gpt2"), PrefixTuning(3, init=[999])), "from 0 to 59"),
        (lambda: attach(build("t5"), PrefixTuning(3, init=[4])), "its encoder"),
        (lambda: attach(build("vit"), PrefixTuning(3, init=[4])), "no embedding of tokens"),
        (lambda: attach(albert(), PrefixTuning(3, init=[4])), "runs several times"),
    ],
)
def test_words_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Claim: an attention whose keys have no such shape is refused before anything changes

LATENT = dict(
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_rope_head_dim=8,
    qk_nope_head_dim=8,
    v_head_dim=8,
    num_key_value_heads=4,
)
ODD = {
    "latent": lambda: made(
        "DeepseekV3ForCausalLM", "DeepseekV3Config", **SMALL | LATENT, first_k_dense_replace=2
    ),
    "MiniCPM3": lambda: llama("MiniCPM3", **LATENT),
    "JetMoe": lambda: made(
        "JetMoeForCausalLM",
        "JetMoeConfig",
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=1,
        num_key_value_heads=2,
        kv_channels=8,
        intermediate_size=48,
        num_local_experts=2,
    ),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_attentions_of_other_shapes_are_refused(make):
    model = make()
    before = set(model.state_dict())
    with pytest.raises(ValueError, match="does not make its keys and values by linear maps"):
        attach(model, PrefixTuning(3))
    assert set(model.state_dict()) == before and all(p.requires_grad for p in model.parameters())


def test_a_model_without_an_attention_that_is_marked_as_one_is_refused():
    sizes = dict(vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=1)
    model = hf.DogeForCausalLM(hf.DogeConfig(**sizes, num_attention_heads=4, pad_token_id=0))
    with pytest.raises(ValueError, match="This DogeForCausalLM has no self-attention"):
        attach(model, PrefixTuning(3))


def test_positions_that_cannot_be_shifted_are_refused():
    model = made("M2M100ForConditionalGeneration", "M2M100Config", **HALVES)
    with pytest.raises(ValueError, match="positions of its own.*shift_positions=False"):
        attach(model, PrefixTuning(3))
    model = adapted(model, PrefixTuning(3, shift_positions=False))
    assert of(model, decoder_input_ids=IDS).isfinite().all()


# Claim: a static cache, whose last places are empty, gives the logits of a dynamic one

STATIC = {
    "Llama": lambda: llama(),
    "Gemma 3": lambda: made("Gemma3ForCausalLM", "Gemma3TextConfig", **SMALL | dict(head_dim=8)),
    "window": lambda: llama("Mistral", sliding_window=6),
    "windows of two": lambda: made(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        **SMALL | dict(head_dim=8, sliding_window=6),
        layer_types=["sliding_attention", "full_attention"],
    ),
    "GPT-2": lambda: build("gpt2"),
    "OPT": lambda: build("opt"),
}


def steps(model: nn.Module, ids=IDS, **options):
    """The logits of six steps, (batch, 6, vocabulary)."""
    model.generation_config.eos_token_id = None
    mask = (ids > 0).long()
    more = dict(max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True)
    with torch.no_grad():
        found = model.generate(ids, attention_mask=mask, pad_token_id=0, **more, **options)
    return torch.stack(found.logits, 1)


@pytest.mark.parametrize("make", STATIC.values(), ids=STATIC)
@pytest.mark.parametrize("padded", [False, True])
def test_a_static_cache_gives_the_logits_of_a_dynamic_one(make, padded):
    model = adapted(make(), PrefixTuning(4))
    ids = torch.tensor([[5, 9, 31, 7, 22], [0, 0, 40, 41, 11]]) if padded else IDS
    expected = steps(model, ids)
    found = steps(model, ids, cache_implementation="static")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_an_encoder_decoders_static_cache_gives_the_logits_of_a_dynamic_one():
    model = adapted(build("t5"), PrefixTuning(4))
    expected = steps(model)
    found = steps(model, cache_implementation="static")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# Claim: decoders taken alone, and encoder-decoders, exchange prefix files with PEFT


def exchanged(base: nn.Module, task: str, folder, compute) -> None:
    """PEFT's file gives PEFT's logits here; ours, with another prefix in each layer, ours there."""
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(num_virtual_tokens=3, task_type=task)
    theirs = peft.get_peft_model(copy.deepcopy(base), config).eval()
    theirs.save_pretrained(folder / "theirs")
    ours = load(copy.deepcopy(base), folder / "theirs")
    torch.testing.assert_close(compute(ours), compute(theirs), atol=1e-4, rtol=1e-4)
    assert (compute(ours) - compute(base)).abs().max() > 0.01
    ours = adapted(copy.deepcopy(base), PrefixTuning(3))
    save(ours, folder / "ours", task_type=task)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder / "ours").eval()
    torch.testing.assert_close(compute(theirs), compute(ours), atol=1e-4, rtol=1e-4)
    again = load(copy.deepcopy(base), folder / "ours")
    assert torch.equal(compute(again), compute(ours))


ALONE = ["Bart", "MBart", "Pegasus", "Blenderbot", "Whisper"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ALONE)
def test_a_decoder_alone_has_prefixes_at_its_self_attentions_as_in_peft(name, tmp_path):
    sizes = HALVES | dict(max_target_positions=40, max_source_positions=40)
    base = made(f"{name}ForCausalLM", f"{name}Config", **sizes)
    places = [path for path, place in sites(attach(copy.deepcopy(base), PrefixTuning(3)))]
    assert not [path for path in places if "encoder_attn" in path]
    exchanged(base, "CAUSAL_LM", tmp_path, of)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Bart", "Blenderbot", "Marian", "Pegasus", "MBart"])
def test_encoder_decoders_exchange_prefixes_with_peft(name, tmp_path):
    head = "MarianMTModel" if name == "Marian" else f"{name}ForConditionalGeneration"
    base = made(head, f"{name}Config", **HALVES)
    mask = torch.ones_like(IDS)
    mask[1, 3:] = 0
    target = torch.tensor([[2, 8, 9, 10], [2, 11, 12, 13]])
    exchanged(
        base,
        "SEQ_2_SEQ_LM",
        tmp_path,
        lambda model: of(model, attention_mask=mask, decoder_input_ids=target),
    )


@pytest.mark.filterwarnings("ignore")
def test_an_odd_number_of_decoder_layers_is_read_as_in_peft(tmp_path):
    base = made(
        "BartForConditionalGeneration",
        "BartConfig",
        **HALVES | dict(decoder_layers=3, encoder_layers=3),
    )
    exchanged(base, "SEQ_2_SEQ_LM", tmp_path, lambda m: of(m, decoder_input_ids=IDS))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["two kinds of layers", "shared keys"])
def test_layers_of_several_shapes_exchange_prefixes_with_peft(kind, tmp_path):
    exchanged(WORDED[kind](), "CAUSAL_LM", tmp_path, of)


# Claim: each row of a batch has a prefix of its own, and computes what it computes alone

NAMES = ["b", None, "a", "c", "d"]


def with_prefixes(architecture: str, lengths=(4, 2)) -> nn.Module:
    """A model with the prefixes "a" and "b", a LLaMA-Adapter "c" and a LoRA "d"."""
    torch.manual_seed(3)
    model = build(architecture)
    for name, n in zip("ab", lengths, strict=True):
        attach(model, PrefixTuning(n, shift_positions=architecture != "distilbert" or n == 4), name)
    attach(model, LlamaAdapter(3), "c")
    attach(model, LoRA(r=2), "d")
    randomise(model)
    return model


def five_rows(architecture: str) -> dict:
    two = batch(architecture)
    return {key: torch.cat([value, value.flip(0), value[:1]]) for key, value in two.items()}


def one_by_one(model: nn.Module, inputs: dict, names) -> torch.Tensor:
    rows = []
    for i, name in enumerate(names):
        activate(model, *([name] if name else []))
        rows.append(model(**{key: value[i : i + 1] for key, value in inputs.items()}).logits)
    return torch.cat(rows)


@pytest.mark.parametrize(
    "architecture", ["gpt2", "llama", "opt", "bert", "distilbert", "t5", "vit"]
)
def test_rows_with_prefixes_of_their_own_equal_single_ones(architecture):
    model, inputs = with_prefixes(architecture), five_rows(architecture)
    with torch.no_grad():
        expected = one_by_one(model, inputs, NAMES)
        found = activate(model, rows=NAMES)(**inputs).logits
    if "attention_mask" in inputs and expected.dim() == 3 and architecture != "t5":
        real = inputs["attention_mask"].bool()
        found, expected = found[real], expected[real]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}])
def test_rows_with_prefixes_of_their_own_generate_what_single_ones_do(architecture, options):
    model = with_prefixes(architecture)
    attach(model, PromptTuning(3), "e")
    randomise(model)
    model.generation_config.eos_token_id = None
    names = [*NAMES, "e"]
    rows = [[7, 8, 9, 10, 11, 12], [30, 31, 32], [5, 6, 7, 8], [40, 41], [13, 14], [9, 8, 7]]
    ids = torch.tensor([[0] * (6 - len(row)) + row for row in rows])  # padded on the left
    options = dict(max_new_tokens=5, do_sample=False, pad_token_id=0) | options
    activate(model, rows=names)
    together = model.generate(ids, attention_mask=(ids > 0).long(), **options)[:, 6:]
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        activate(model, *([name] if name else []))
        own = torch.tensor([row])
        alone = model.generate(own, attention_mask=torch.ones_like(own), **options)
        assert together[i].tolist() == alone[0, len(row) :].tolist()


def test_rows_with_prefixes_train_each_its_own():
    model, inputs = with_prefixes("llama"), five_rows("llama")
    real = inputs["attention_mask"].bool()
    one_by_one(model, inputs, NAMES).square()[real].sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    activate(model, rows=NAMES)(**inputs).logits.square()[real].sum().backward()
    for key, gradient in expected.items():
        bound = 1e-4 * gradient.abs().max().item()
        found = model.get_parameter(key).grad
        torch.testing.assert_close(found, gradient, atol=bound, rtol=1e-3, msg=key)
    assert len(expected) == 16


def test_rows_in_a_window_see_as_much_of_their_prefixes_as_alone():
    model = llama("Mistral", sliding_window=5)
    for name, n in (("a", 4), ("b", 2)):
        attach(model, PrefixTuning(n), name)
    randomise(model)
    ids = torch.randint(5, 60, (3, 8), generator=torch.Generator().manual_seed(1))
    names = ["b", None, "a"]
    expected = one_by_one(model, {"input_ids": ids}, names)
    found = activate(model, rows=names)(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_where_all_rows_have_the_same_positions_their_prefixes_have_one_length():
    model = made("BartForCausalLM", "BartConfig", **HALVES)
    for name, n in (("a", 3), ("b", 3), ("c", 2)):
        attach(model, PrefixTuning(n), name)
    randomise(model)
    expected = one_by_one(model, {"input_ids": IDS}, ["b", "a"])
    found = activate(model, rows=["b", "a"])(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    for rows in (["a", "c"], ["a", None]):
        with pytest.raises(ValueError, match="the same number in every row"):
            activate(model, rows=rows)(input_ids=IDS)


@pytest.mark.parametrize("names", [["a", "b", "a"], ["c", None, "c"]])
def test_a_batch_of_another_size_than_its_rows_is_refused(names):
    model = activate(with_prefixes("llama"), rows=names)
    with pytest.raises(ValueError, match="batch of 2 rows.*named 3"):
        logits(model, "llama")


# Claim: the shares are what the attention of the adapted model gives to the prefix


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5"])
def test_shares_are_what_values_of_one_weigh(name):
    """With values of 1 in the prefix and 0 in the text, the attention's output is the share itself."""
    model = adapted(build(name), PrefixTuning(3))
    inputs = {k: v for k, v in batch(name).items() if k != "labels"}
    if name == "t5":
        inputs["decoder_input_ids"] = batch(name)["labels"].clamp(min=0)
    found = attention_shares(model, inputs)
    seen = {}
    for path in found:
        module = model.get_submodule(path)
        delta = module.hooks.deltas["default"]

        def attend(run, module, Q, K, V, mask, path=path, delta=delta, **kwargs):
            own = torch.eye(3, V.shape[-1]).expand(*V.shape[:2], -1, -1)
            inner = lambda m, Q, K, V2, mask, **more: run(  # noqa: E731
                m, Q, K, torch.cat([own, torch.zeros_like(V)], 2), mask, **more
            )
            seen[path] = type(delta).attend(delta, inner, module, Q, K, V, mask, **kwargs)[0]
            return type(delta).attend(delta, run, module, Q, K, V, mask, **kwargs)

        delta.attend = attend
    with torch.no_grad():
        model(**inputs)
    assert len(found) == 2
    for path, shares in found.items():
        expected = seen[path].transpose(1, 2)[..., :3]  # (batch, heads, tokens, n)
        torch.testing.assert_close(shares, expected, atol=1e-5, rtol=1e-4)


def test_shares_of_several_prefixes_and_of_none():
    model = attach(build("gpt2"), PrefixTuning(2), "a")
    attach(model, PrefixTuning(3), "b")
    randomise(model)
    before = of(activate(model, "a", "b"))
    shares = attention_shares(model, {"input_ids": IDS})
    assert [share.shape[-1] for share in shares.values()] == [5, 5]
    assert torch.equal(of(model), before)
    assert attention_shares(activate(model), {"input_ids": IDS}) == {}
    assert attention_shares(build("gpt2"), {"input_ids": IDS}) == {}
    mixed = attention_shares(activate(model, rows=["b", "a"]), {"input_ids": IDS})
    assert all(not share[1, ..., 0].any() and share[0].all() for share in mixed.values())
    with pytest.raises(ValueError, match="does not compute its attention"):
        attention_shares(nn.Linear(2, 2), {})


def test_the_network_of_all_layers_is_saved_with_the_first(tmp_path):
    from safetensors.torch import load_file

    save(adapted(build("gpt2"), PrefixTuning(3, prefix_projection=True)), tmp_path)
    keys = [key for key in load_file(tmp_path / "adapter_model.safetensors") if "network" in key]
    assert sorted(keys) == [
        f"prompt_encoder.transformer.h.0.attn.network.{end}"
        for end in ("E", "down.bias", "down.weight")
    ]


# Claim: a replica for another device computes with its own copies, and threads do not meet


def replica(network: nn.Module) -> nn.Module:
    """What torch's `replicate` makes for another device; here the copies are of float64."""
    new = {p: p.double() for p in network.parameters()}
    twins = {m: m._replicate_for_data_parallel() for m in network.modules()}
    for module, twin in twins.items():
        twin._former_parameters = OrderedDict()
        for key, child in module._modules.items():
            setattr(twin, key, None if child is None else twins[child])
        for key, p in module._parameters.items():
            if p is None:
                twin._parameters[key] = None
            else:
                setattr(twin, key, new[p])
        for key, buffer in module._buffers.items():
            real = buffer is not None and buffer.is_floating_point()
            twin._buffers[key] = buffer.double() if real else buffer
    return twins[network]


REPLICATED = {
    "prefix": PrefixTuning(4),
    "projected": PrefixTuning(4, prefix_projection=True, encoder_hidden_size=8),
    "llama-adapter": LlamaAdapter(4),
}


@pytest.mark.parametrize("method", REPLICATED.values(), ids=REPLICATED)
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_a_replica_computes_with_its_own_copies(name, method):
    model = adapted(build(name), method)
    twin, expected = replica(model), logits(model, name)
    for parameter in model.parameters():
        parameter.data = torch.full_like(parameter, torch.nan)  # elsewhere
    if name == "t5":
        table = model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias
        table.weight.data = (
            build("t5").decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.data
        )
    found = twin(**batch(name)).logits
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", REPLICATED.values(), ids=REPLICATED)
def test_two_threads_compute_what_one_does(method):
    model = adapted(build("llama"), method)
    texts = [torch.randint(5, 60, (2, 9)) for _ in range(4)]
    expected = [of(model, ids) for ids in texts]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda i: of(model, texts[i % 4]), range(40)))
    for i, one in enumerate(found):
        torch.testing.assert_close(one, expected[i % 4])


@pytest.mark.parametrize("method", [PrefixTuning(3), LlamaAdapter(3)], ids=["prefix", "adapter"])
def test_a_text_behind_padding_is_counted_from_its_first_token(method):
    """Also where nobody gives `position_ids`: to RoPE padding does not matter, but a prefix has a place."""
    model = adapted(llama(), method)
    alone = of(model, IDS[:1])
    padding = torch.zeros(1, 4, dtype=IDS.dtype)
    ids, mask = torch.cat([padding, IDS[:1]], 1), torch.cat([padding, torch.ones_like(IDS[:1])], 1)
    assert torch.allclose(of(model, ids, attention_mask=mask)[:, 4:], alone, atol=1e-5)
