"""The memory budget: its formula against what a model really holds and what autograd really keeps."""

import pytest
import torch
import transformers as hf

from pedagogic_peft import LoRA, attach, count_parameters, load_base, model_bytes
from pedagogic_peft.course.memory import (
    METHODS,
    NF4_BYTES,
    Decoder,
    activations,
    budget,
    kept_by_autograd,
    loss_memory,
)

SHAPES = [(2, 16), (4, 40)]


def gpt2(**sizes):
    config = hf.GPT2Config(
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh",
        **sizes,
    )
    return hf.GPT2LMHeadModel(config)


def llama(**more):
    config = hf.LlamaConfig(
        vocab_size=90,
        hidden_size=48,
        intermediate_size=100,
        num_hidden_layers=3,
        num_attention_heads=4,
        **more,
    )
    return hf.LlamaForCausalLM(config)


def qwen3():
    sizes = {"hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12}
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(vocab_size=90, **sizes, **heads))


MODELS = {
    "pocket-gpt": lambda: load_base("pocket-gpt")[0],
    "gpt2": lambda: gpt2(vocab_size=90, n_embd=48, n_layer=3, n_head=4, n_positions=64),
    "llama": lambda: llama(num_key_value_heads=4, tie_word_embeddings=False),
    "qwen3": qwen3,
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def adapted(model, method):
    targets = {"LoRA": "all-linear", "LoRA, q and v": None}
    return attach(model, LoRA(r=8, target_modules=targets[method])) if method in targets else model


@pytest.mark.parametrize("method", ["full", "LoRA", "LoRA, q and v"])
def test_parameters_by_formula_are_those_of_the_model(model, method):
    decoder = Decoder.of(model.config)
    assert decoder.parameters() == count_parameters(model).total
    assert decoder.trained(method, r=8) == count_parameters(adapted(model, method)).trainable


@pytest.mark.parametrize("method", ["full", "LoRA", "LoRA, q and v"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_by_formula_are_what_autograd_keeps(model, method, dtype):
    decoder, size = Decoder.of(model.config), dtype.itemsize
    model = adapted(model, method).to(dtype)
    for batch, sequence in SHAPES:
        ids = torch.randint(5, 80, (batch, sequence))
        kept = kept_by_autograd(model, {"input_ids": ids, "labels": ids})
        expected = activations(decoder, batch, sequence, method, 8, size)
        assert kept == pytest.approx(expected, rel=0.03)


def test_a_step_of_a_124_m_model_holds_what_the_formula_says():
    model = gpt2()  # GPT-2's own sizes
    decoder = Decoder.of(model.config)
    assert decoder.parameters() == 124_439_808
    ids = torch.randint(0, 50_000, (1, 32))
    batch = {"input_ids": ids, "labels": ids}
    found = budget(decoder, 1, 32)
    assert model_bytes(model) == pytest.approx(found.weights, rel=1e-3)
    assert kept_by_autograd(model, batch) == pytest.approx(found.activations, rel=0.02)
    model(**batch).loss.backward()
    assert sum(p.grad.nbytes for p in model.parameters()) == found.gradients
    assert found.moments == 2 * found.gradients


def test_checkpointing_keeps_the_layers_inputs():
    model = MODELS["pocket-gpt"]()
    decoder = Decoder.of(model.config)
    model.gradient_checkpointing_enable()
    ids = torch.randint(5, 80, (4, 32))
    kept = kept_by_autograd(model, {"input_ids": ids, "labels": ids})
    by_formula = activations(decoder, 4, 32, checkpointing=True)
    one_layer = (activations(decoder, 4, 32) - tail(decoder, 128)) / decoder.layers
    assert kept == pytest.approx(by_formula - one_layer, rel=0.03)


def tail(decoder, tokens):
    return tokens * 4 * (3 * decoder.width + decoder.vocabulary)


def test_known_models_have_their_known_sizes():
    # Llama 2, 7 B and 70 B (Touvron et al. 2023): counted from the published configurations
    seven = Decoder("llama", 32, 4096, 11_008, 32, 32_000, 4096, tied=False)
    seventy = Decoder("llama", 80, 8192, 28_672, 64, 32_000, 1024, tied=False)
    assert seven.parameters() == 6_738_415_616
    assert seventy.parameters() == 68_976_648_192
    # Llama 3, 8 B, and Qwen3, 8 B: also from the published configurations
    llama3 = Decoder("llama", 32, 4096, 14_336, 32, 128_256, 1024, tied=False)
    assert llama3.parameters() == 8_030_261_248
    qwen = Decoder("llama", 36, 4096, 12_288, 32, 151_936, 1024, tied=False, head_norms=True)
    assert qwen.parameters() == 8_190_735_360


def test_precisions_and_optimisers_count_their_bytes():
    decoder = Decoder("llama", 2, 64, 128, 4, 100, 64)
    N, n = decoder.parameters(), decoder.trained("LoRA")
    mixed = budget(decoder, 1, 1, precision="mixed")
    assert mixed.weights + mixed.gradients + mixed.moments == 16 * N  # Rajbhandari et al. 2020
    assert budget(decoder, 1, 1, optimizer="SGD").moments == 0
    lora = budget(decoder, 1, 1, "LoRA", precision="bfloat16")
    assert (lora.weights, lora.gradients, lora.moments) == (2 * N + 2 * n, 2 * n, 4 * n)
    quantised = 2 * sum(a * b for a, b in decoder.maps())
    qlora = budget(decoder, 1, 1, "QLoRA", precision="bfloat16")
    assert qlora.weights == pytest.approx(2 * (N - quantised) + NF4_BYTES * quantised + 2 * n)
    assert qlora.activations == lora.activations and 0.5 < NF4_BYTES < 0.52
    assert qlora.total == sum((qlora.weights, qlora.gradients, qlora.moments, qlora.activations))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "lora"}, "method='lora': expected one of full, LoRA"),
        ({"precision": "fp16"}, "precision='fp16': expected one of float32"),
        ({"optimizer": "Adam"}, "optimizer='Adam': expected one of AdamW"),
    ],
)
def test_an_unknown_choice_is_an_error_that_lists_them(wrong, message):
    with pytest.raises(ValueError, match=message):
        budget(Decoder("gpt2", 1, 8, 32, 2, 50, 8), 1, 1, **wrong)
    assert "QLoRA" in METHODS


def test_an_untied_gpt2_has_a_head_of_its_own():
    model = gpt2(n_embd=48, n_layer=1, n_head=4, vocab_size=90, tie_word_embeddings=False)
    assert Decoder.of(model.config).parameters() == count_parameters(model).total


@pytest.mark.parametrize(
    "variant", [{"head_dim": 16}, {"attention_bias": True}, {"mlp_bias": True}]
)
def test_a_llama_that_the_formula_does_not_know_is_an_error(variant):
    with pytest.raises(ValueError, match=next(iter(variant))):
        Decoder.of(llama(**variant).config)


def test_gelu_new_keeps_three_more_tensors_in_each_layer():
    kept = []
    for function in ("gelu_pytorch_tanh", "gelu_new"):
        model = MODELS["gpt2"]()
        for block in model.transformer.h:
            block.mlp.act = hf.activations.ACT2FN[function]
        ids = torch.randint(5, 80, (2, 16))
        kept.append(kept_by_autograd(model, {"input_ids": ids, "labels": ids}))
    assert kept[1] - kept[0] == 3 * 3 * (2 * 16) * (4 * 48) * 4


def test_another_architecture_is_an_error():
    with pytest.raises(
        ValueError, match="model_type='opt': the formula knows gpt2, llama and qwen3"
    ):
        Decoder.of(hf.OPTConfig())


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


def test_the_peak_lies_at_the_loss_where_the_vocabulary_is_large():
    from pedagogic_peft.course.experiments.comparison_costs import highest_water

    config = llama(num_key_value_heads=4).config
    config.vocab_size = 20_000
    model = hf.LlamaForCausalLM(config).train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # so that no gradient is allocated
    decoder, ids = Decoder.of(config), torch.randint(5, 80, (4, 40))
    counted = highest_water(
        lambda: model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    )
    kept = activations(decoder, 4, 40)
    assert counted == pytest.approx(kept + loss_memory(decoder, 4, 40), rel=0.02)
    assert counted > 2 * kept


def test_a_chunked_loss_never_holds_all_logits():
    decoder = Decoder("llama", 2, 64, 128, 4, 1000, 64)
    whole, chunked = budget(decoder, 4, 40), budget(decoder, 4, 40, chunk=16)
    assert whole.activations - chunked.activations == 4 * 1000 * 160
    assert loss_memory(decoder, 4, 40) == 2 * 4 * 1000 * 160
    assert loss_memory(decoder, 4, 40, chunk=16) == 3 * 4 * 1000 * 16
    assert loss_memory(decoder, 4, 40, chunk=999) == 3 * 4 * 1000 * 160
    with pytest.raises(ValueError, match="chunk=0"):
        budget(decoder, 4, 40, chunk=0)


def test_8_bit_moments_take_a_byte_and_a_scale_for_each_block():
    decoder = Decoder("llama", 2, 64, 128, 4, 1000, 64)
    found = budget(decoder, 1, 1, optimizer="8-bit AdamW", precision="bfloat16").moments
    assert found == pytest.approx(2 * decoder.parameters() * (1 + 4 / 2048))
