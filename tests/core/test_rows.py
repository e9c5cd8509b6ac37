"""A batch whose rows use different adaptations equals running them one by one."""

import pytest
import torch
import transformers as hf
from helpers.models import batch, build, logits, randomise

from pedagogic_peft import (
    IA3,
    BottleneckAdapter,
    DoRA,
    LoRA,
    PiSSA,
    PromptTuning,
    activate,
    adapter_drop,
    attach,
    disabled,
    merge,
)
from pedagogic_peft.core.sites import sites

NAMES = ["a", "b", None, "a"]


def carrying_two(architecture="gpt2", **options):
    """A model with the trained adaptations "a" and "b"."""
    model = build(architecture)  # the first time it draws weights, so the seed comes after it
    torch.manual_seed(3)
    for name in ("a", "b"):
        attach(model, LoRA(r=2, **options), name)
    randomise(model)
    return model


def four_rows(architecture="gpt2"):
    two = batch(architecture)
    return {key: torch.cat([value, value.flip(0)]) for key, value in two.items()}


def one_by_one(model, inputs, names):
    rows = []
    for i, name in enumerate(names):
        activate(model, *([name] if name else []))
        rows.append(model(**{key: value[i : i + 1] for key, value in inputs.items()}).logits)
    return torch.cat(rows)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bert", "vit"])
def test_mixed_rows_equal_single_ones(architecture):
    model, inputs = carrying_two(architecture, target_modules="all-linear"), four_rows(architecture)
    model.double()  # Llama's norms enlarge float32's rounding by thousands, which kernels do in many ways
    inputs = {k: x.double() if x.is_floating_point() else x for k, x in inputs.items()}
    with torch.no_grad():
        expected = one_by_one(model, inputs, NAMES)
        found = activate(model, rows=NAMES)(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    assert not torch.allclose(found[1], found[2], atol=1e-3)  # the same input, b and frozen


OTHERS = {
    "ranks": (LoRA(r=2), LoRA(r=3)),
    "scalings": (LoRA(r=2, alpha=3), LoRA(r=2, use_rslora=True)),
    "dora and lora": (DoRA(r=2), LoRA(r=2)),
    "doras": (DoRA(r=2), DoRA(r=2)),
    "pissas": (PiSSA(r=2), PiSSA(r=2)),
    "inputs": (IA3(), BottleneckAdapter(bottleneck_size=4, placement="parallel")),
    "parts": (LoRA(parts=("q",)), LoRA(parts=("v",))),
}


@pytest.mark.parametrize("methods", OTHERS.values(), ids=OTHERS)
def test_rows_of_different_methods_equal_single_ones(methods):
    model, inputs = build("gpt2"), four_rows()
    for name, method in zip("ab", methods, strict=True):
        attach(model, method, name)
    randomise(model)
    with torch.no_grad():
        expected = one_by_one(model, inputs, NAMES)
        found = activate(model, rows=NAMES)(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_base_is_computed_once_for_all_rows():
    model, calls = carrying_two(), []
    for _, site in sites(model):
        site.base.register_forward_hook(lambda module, x, y: calls.append(len(y)))
    activate(model, rows=NAMES)(**four_rows())
    assert calls == [len(NAMES)] * len(list(sites(model)))


def test_mixed_rows_have_heads_of_their_own():
    model, inputs = carrying_two("bert", modules_to_save=["classifier"]), four_rows("bert")
    with torch.no_grad():
        expected = one_by_one(model, inputs, NAMES)
        found = activate(model, rows=NAMES)(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_mixed_rows_train_as_single_ones_do():
    model, inputs = carrying_two(), four_rows()
    one_by_one(model, inputs, NAMES).square().sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    activate(model, rows=NAMES)(**inputs).logits.square().sum().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        bound = 1e-4 * expected[key].abs().max().item()  # float32, in another order
        torch.testing.assert_close(gradient, expected[key], atol=bound, rtol=1e-3)


@pytest.mark.parametrize("beams", [1, 3])
def test_mixed_rows_generate_what_single_ones_do(beams):
    model = carrying_two()
    ids = torch.randint(3, 60, (2, 5), generator=torch.Generator().manual_seed(1))
    options = dict(max_new_tokens=5, num_beams=beams, do_sample=False, pad_token_id=0)
    options["attention_mask"] = torch.ones_like(ids)
    alone = []
    for i, name in enumerate(("b", "a")):
        activate(model, name)
        mask = options["attention_mask"][i : i + 1]
        alone.append(model.generate(ids[i : i + 1], **options | {"attention_mask": mask}))
    activate(model, rows=["b", "a"])
    assert torch.equal(model.generate(ids, **options), torch.cat(alone))


def test_rows_end_with_the_next_switch_and_pause_while_disabled():
    model = carrying_two()
    activate(model, "a")
    expected = logits(model, "gpt2")
    activate(model, rows=["b", None])
    with disabled(model):
        assert torch.equal(logits(model, "gpt2"), logits(build("gpt2"), "gpt2"))
    assert not torch.equal(logits(model, "gpt2"), expected)
    activate(model, "a")
    assert torch.equal(logits(model, "gpt2"), expected)


def test_rows_that_cannot_be_are_refused():
    model = carrying_two()
    with pytest.raises(ValueError, match="'c'.*there are: a, b"):
        activate(model, rows=["a", "c"])
    with pytest.raises(ValueError, match="one of the two"):
        activate(model, "a", rows=["a"])
    activate(model, rows=["a", "b", "a"])
    with pytest.raises(ValueError, match="batch of 2 rows.*named 3"):
        logits(model, "gpt2")
    activate(model, "a")
    with pytest.raises(RuntimeError, match="merged"):
        activate(merge(model), rows=["a"])


def test_dropped_layers_are_dropped_for_rows_too():
    model, inputs = carrying_two(), four_rows()
    with adapter_drop(model, 1), torch.no_grad():
        expected = one_by_one(model, inputs, NAMES)
        activate(model, rows=NAMES)
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-4, rtol=1e-4)


def test_rows_are_refused_by_what_has_more_inputs_than_one():
    model = carrying_two(
        "bert", target_modules=["output.dense"], modules_to_save=["attention.self"]
    )
    activate(model, rows=["a", "a"])
    with pytest.raises(TypeError, match="BertSelfAttention has more than one input"):
        logits(model, "bert")


OUT_OF_ORDER = {  # tokens before rows; experts that are modules
    "Longformer": {"attention_window": 4, "hidden_size": 16, "num_hidden_layers": 1},
    "XLNet": {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16},
    "SwitchTransformers": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
}


@pytest.mark.parametrize("kind", OUT_OF_ORDER)
def test_rows_are_refused_where_the_rows_of_a_batch_are_not_in_order(kind):
    heads = {"num_attention_heads": 2, "intermediate_size": 16} if kind == "Longformer" else {}
    sparse = {"num_experts": 2, "num_sparse_encoder_layers": 1} if kind.startswith("Switch") else {}
    config = getattr(hf, kind + "Config")(vocab_size=60, **OUT_OF_ORDER[kind], **heads, **sparse)
    model = attach(getattr(hf, kind + "Model")(config), LoRA(r=2, target_modules="all-linear"), "a")
    with pytest.raises(ValueError, match="'a'.*whole batch"):
        activate(model, rows=["a", None])


def with_prompts(architecture, lengths=(4, 2)):
    """A model with the prompts "a" and "b", and a LoRA "c" beside them."""
    model = build(architecture)
    torch.manual_seed(3)
    for name, n in zip(("a", "b"), lengths, strict=True):
        attach(model, PromptTuning(n), name)
    attach(model, LoRA(r=2), "c")
    randomise(model)
    return model


PROMPTED = ["b", None, "a", "c"]


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt"])
def test_rows_with_prompts_of_their_own_equal_single_ones(architecture):
    model, inputs = with_prompts(architecture), four_rows(architecture)
    plain = {"input_ids": inputs["input_ids"]}
    for given in (inputs, plain, plain | {"position_ids": torch.arange(9).expand(4, -1) + 1}):
        with torch.no_grad():
            expected = one_by_one(model, given, PROMPTED)
            found = activate(model, rows=PROMPTED)(**given).logits
        real = inputs["attention_mask"].bool()  # what stands at padding means nothing
        torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(found[0], found[3], atol=1e-3)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}])
def test_rows_with_prompts_of_their_own_generate_what_single_ones_do(architecture, options):
    model = with_prompts(architecture)
    model.generation_config.eos_token_id = None
    rows = [[7, 8, 9, 10, 11, 12], [30, 31, 32], [5, 6, 7, 8], [40, 41]]
    ids = torch.tensor([[0] * (6 - len(row)) + row for row in rows])  # padded on the left
    mask = torch.tensor([[0] * (6 - len(row)) + [1] * len(row) for row in rows])
    options = dict(max_new_tokens=6, do_sample=False) | options
    activate(model, rows=PROMPTED)
    together = model.generate(ids, attention_mask=mask, **options)[:, 6:]
    for i, (row, name) in enumerate(zip(rows, PROMPTED, strict=True)):
        activate(model, *([name] if name else []))
        own = torch.tensor([row])
        alone = model.generate(own, attention_mask=torch.ones_like(own), **options)
        assert together[i].tolist() == alone[0, len(row) :].tolist()


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "t5"])
def test_in_encoders_the_prompts_of_a_batch_have_one_length(architecture):
    model, inputs = with_prompts(architecture, lengths=(3, 3)), four_rows(architecture)
    names = ["b", "a", "a", "b"]
    with torch.no_grad():
        expected = one_by_one(model, inputs, names)
        found = activate(model, rows=names)(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    for lengths, rows in (((3, 2), names), ((3, 3), PROMPTED)):
        with pytest.raises(ValueError, match="the same number in every row"):
            logits(activate(with_prompts(architecture, lengths), rows=rows), architecture)


def test_rows_with_prompts_train_each_its_own():
    model, inputs = with_prompts("llama"), four_rows("llama")
    one_by_one(model, inputs, PROMPTED).square()[inputs["attention_mask"].bool()].sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    found = activate(model, rows=PROMPTED)(**inputs).logits
    found.square()[inputs["attention_mask"].bool()].sum().backward()
    for key, gradient in expected.items():
        torch.testing.assert_close(
            model.get_parameter(key).grad, gradient, atol=1e-3, rtol=1e-3, msg=key
        )
    assert sum("prompt_embeddings" in key for key in expected) == 2


def test_a_batch_of_another_size_than_its_rows_is_refused_by_prompts():
    model = activate(with_prompts("gpt2"), rows=["a", "b", "a"])
    with pytest.raises(ValueError, match="batch of 2 rows.*named 3"):
        logits(model, "gpt2")


IDS = torch.tensor([[3, 4, 5], [6, 7, 8]])


def test_prompts_of_several_lengths_are_named_with_the_model():
    model = build("bert")
    for n in (2, 3):
        attach(model, PromptTuning(num_virtual_tokens=n), f"n{n}")
    activate(model, rows=["n2", "n3"])
    with pytest.raises(ValueError, match=r"rows with prompts of \[2, 3\] .* in a BertModel they"):
        model(input_ids=IDS)


# Claim: what sees the images of a row, of which there may be any number, is not served by rows

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
TEXT = {**VISION, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 40}
VISION |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}


def llava():
    torch.manual_seed(0)
    vision, text = hf.CLIPVisionConfig(**VISION), hf.LlamaConfig(**TEXT)
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=39)
    config.vision_feature_layer = -1
    return hf.LlavaForConditionalGeneration(config).eval()


def whisper():
    sizes = {"d_model": 32, "vocab_size": 40, "pad_token_id": 0, "decoder_start_token_id": 1}
    for part in ("encoder", "decoder"):
        sizes |= {f"{part}_layers": 1, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 48}
    sizes |= {"bos_token_id": 1, "eos_token_id": 2}
    return hf.WhisperForConditionalGeneration(hf.WhisperConfig(**sizes)).eval()


def captions():
    text = {k: v for k, v in TEXT.items() if k != "num_key_value_heads"}
    decoder = hf.BertConfig(**text, is_decoder=True, add_cross_attention=True)
    kind = hf.VisionEncoderDecoderConfig
    config = kind.from_encoder_decoder_configs(hf.ViTConfig(**VISION), decoder)
    return hf.VisionEncoderDecoderModel(config).eval()


@pytest.mark.parametrize(
    "build_model, targets, refused",
    [
        (llava, r".*vision_tower.*q_proj", True),
        (llava, r".*multi_modal_projector.*linear_1", True),
        (llava, ["q_proj"], True),
        (llava, r".*language_model.*q_proj", False),
        (llava, ["lm_head"], False),
        (whisper, ["q_proj"], False),
        (captions, ["q_proj", "query"], False),
    ],
)
def test_rows_are_refused_where_the_first_dimension_is_images(build_model, targets, refused):
    model = build_model()
    for name in ("a", "b"):
        attach(model, LoRA(r=2, target_modules=targets), name)
    if refused:
        with pytest.raises(ValueError, match=r"\['a', 'b'\] can only act on a whole batch"):
            activate(model, rows=["a", "b"])
        assert activate(model, "a") is model
    else:
        activate(model, rows=["a", "b"])


def test_rows_of_the_text_are_right_where_one_row_has_two_images():
    model = llava()
    for name in ("a", "b"):
        attach(model, LoRA(r=2, target_modules=r".*language_model.*_proj"), name)
    randomise(model)
    ids = torch.randint(3, 30, (2, 14))
    ids[0, [*range(4), *range(6, 10)]] = 39  # two images of four patches
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        found = activate(model, rows=["a", "b"])(input_ids=ids, pixel_values=images).logits
        first = activate(model, "a")(input_ids=ids[:1], pixel_values=images).logits
        second = activate(model, "b")(input_ids=ids[1:]).logits
    torch.testing.assert_close(found, torch.cat([first, second]), atol=1e-5, rtol=1e-4)
