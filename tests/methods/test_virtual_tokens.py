"""Soft prompts in many architectures: what as many typed words do, or an error when they are attached."""

import copy
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers as hf
from helpers.models import build, randomise
from torch import Tensor, nn

from pedagogic_peft import LoRA, PromptTuning, PTuning, activate, attach, disabled
from pedagogic_peft.core.architectures import backbone_of
from pedagogic_peft.core.sites import Adaptations, Hooks, sites
from pedagogic_peft.methods.prompt_tuning import SoftPrompt
from pedagogic_peft.methods.virtual_tokens import columns, rows_read, widened

SIZES = dict(vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
HEADS = dict(num_attention_heads=4, num_key_value_heads=2)
SPECIAL = dict(pad_token_id=0, bos_token_id=1, eos_token_id=None, initializer_range=0.2)
LLAMA = SIZES | HEADS | SPECIAL
STATE = SPECIAL | dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, state_size=8)
MAMBA2 = dict(mamba_d_state=8, mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1)
MAMBA2 |= dict(mamba_chunk_size=8, mamba_expand=2, num_local_experts=2, num_experts_per_tok=1)
OLD = dict(vocab_size=99, initializer_range=0.2, pad_token_id=0)
ENCODER = SIZES | dict(num_attention_heads=4, initializer_range=0.2, pad_token_id=1)
JAMBA = dict(attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_d_state=8)

MODELS = {
    "Llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)),
    "Mamba": lambda: hf.MambaForCausalLM(hf.MambaConfig(**STATE, time_step_rank=4)),
    "Mamba-2": lambda: hf.Mamba2ForCausalLM(
        hf.Mamba2Config(**STATE, num_heads=8, head_dim=8, n_groups=1, chunk_size=8, expand=2)
    ),
    "Jamba": lambda: hf.JambaForCausalLM(
        hf.JambaConfig(
            **LLAMA, **JAMBA, num_experts_per_tok=1, mamba_dt_rank=4, use_mamba_kernels=False
        )
    ),
    "Granite-4": lambda: hf.GraniteMoeHybridForCausalLM(
        hf.GraniteMoeHybridConfig(
            **LLAMA, **MAMBA2, layer_types=["mamba", "attention"], shared_intermediate_size=24
        )
    ),
    "LFM2": lambda: hf.Lfm2ForCausalLM(
        hf.Lfm2Config(**LLAMA, layer_types=["conv", "full_attention"])
    ),
    "GPT-Neo": lambda: hf.GPTNeoForCausalLM(
        hf.GPTNeoConfig(
            **OLD,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=4,
        )
    ),
    "MPT": lambda: hf.MptForCausalLM(hf.MptConfig(**OLD, d_model=32, n_layers=2, n_heads=4)),
    "BLOOM": lambda: hf.BloomForCausalLM(
        hf.BloomConfig(**OLD, hidden_size=32, n_layer=2, n_head=4)
    ),
}
TRAINED = [17, 40, 50]


def made(name: str, n: int = 3) -> nn.Module:
    """Return the model with a trained prompt."""
    torch.manual_seed(0)
    model = attach(MODELS[name]().eval(), PromptTuning(n, init=TRAINED))
    randomise(model)
    return model


IDS = torch.randint(5, 90, (2, 9), generator=torch.Generator().manual_seed(1))
ONES = torch.ones_like(IDS)
LEFT = torch.tensor([[1] * 9, [0] * 4 + [1] * 5])  # the second row begins with padding


def steps(model: nn.Module, ids: Tensor, mask: Tensor | None = None, **options) -> Tensor:
    """Return the logits of four greedy steps, (batch, 4, vocabulary)."""
    found = generated(model, ids, mask, **options)
    return torch.stack(found.logits, 1)


def generated(model: nn.Module, ids: Tensor, mask: Tensor | None = None, **options):
    mask = torch.ones_like(ids) if mask is None else mask
    options = dict(max_new_tokens=4, do_sample=False, pad_token_id=0, output_logits=True) | options
    model.generation_config.eos_token_id = None
    return model.generate(ids, attention_mask=mask, return_dict_in_generate=True, **options)


def logits(model: nn.Module, ids: Tensor, **more) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **more)[0]


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# Claim: padding, prompt, text: a row padded on the left computes what it computes alone


@pytest.mark.parametrize("name", MODELS)
def test_a_row_padded_on_the_left_generates_what_it_generates_alone(name):
    model = made(name)
    ids = IDS.masked_fill(LEFT == 0, 0)
    same(steps(model, ids, LEFT)[1:], steps(model, IDS[1:, 4:]))
    if "position_ids" not in backbone_of(model).forward.__code__.co_varnames:
        same(logits(model, ids, attention_mask=LEFT)[1:, 4:], logits(model, IDS[1:, 4:]))


@pytest.mark.parametrize("kind", ["Roberta", "XLMRoberta", "MPNet", "RoFormer", "Data2VecText"])
def test_an_encoder_whose_positions_skip_padding_may_have_it_on_the_left(kind):
    torch.manual_seed(0)
    base = getattr(hf, f"{kind}Model")(getattr(hf, f"{kind}Config")(**ENCODER)).eval()
    model = attach(base, PromptTuning(3))
    found = logits(model, IDS.masked_fill(LEFT == 0, 1), attention_mask=LEFT)
    assert found.shape == (2, 9, 32)
    same(found[1:, 4:], logits(model, IDS[1:, 4:], attention_mask=ONES[1:, 4:]))


def test_gradients_loss_and_beams_of_a_row_padded_on_the_left_are_those_of_the_row_alone():
    model, ids = made("Jamba"), IDS.masked_fill(LEFT == 0, 0)
    [P] = [p for p in model.parameters() if p.requires_grad]
    labels = ids.masked_fill(LEFT.cumsum(1) < 2, -100)  # padding does not predict the first word
    together = model(input_ids=ids[1:], attention_mask=LEFT[1:], labels=labels[1:]).loss
    alone = model(input_ids=IDS[1:, 4:], labels=IDS[1:, 4:]).loss
    same(together, alone)
    found, expected = (torch.autograd.grad(loss, P)[0] for loss in (together, alone))
    assert expected.any(1).all()
    same(found, expected)
    beams = dict(num_beams=3)
    found = generated(model, ids, LEFT, **beams).sequences[1:, 9:]
    assert torch.equal(found, generated(model, IDS[1:, 4:], **beams).sequences[:, 5:])


def test_rows_with_prompts_of_their_own_may_be_padded_too():
    model = made("Llama")
    attach(model, PromptTuning(5), "longer")
    ids, rows = IDS.masked_fill(LEFT == 0, 0), ["default", "longer"]
    found = steps(activate(model, rows=rows), ids, LEFT)
    for i, (name, text) in enumerate(zip(rows, (IDS[:1], IDS[1:, 4:]), strict=True)):
        same(found[i : i + 1], steps(activate(model, name), text))


def test_a_model_whose_positions_come_from_ids_it_does_not_get_refuses_padding_on_the_left():
    config = hf.M2M100Config(vocab_size=99, d_model=32, encoder_layers=1, decoder_layers=1)
    for key in ("attention_heads", "ffn_dim"):
        for part in ("encoder", "decoder"):
            setattr(config, f"{part}_{key}", 4)
    model = attach(hf.M2M100ForConditionalGeneration(config).eval(), PromptTuning(3))
    logits(model, IDS, attention_mask=LEFT.flip(1), decoder_input_ids=IDS)
    with pytest.raises(ValueError, match="padding on the left .* pad on the right"):
        logits(model, IDS, attention_mask=LEFT, decoder_input_ids=IDS)


XLM = dict(vocab_size=99, emb_dim=32, n_layers=2, n_heads=4, embed_init_std=0.2, init_std=0.2)


@pytest.mark.parametrize("kind", ["XLM", "Flaubert", "Roberta", "MPNet", "Data2VecText"])
def test_padding_that_a_model_finds_by_the_ids_a_prompt_finds_too(kind):
    torch.manual_seed(0)
    config = getattr(hf, f"{kind}Config")(**(XLM if kind in ("XLM", "Flaubert") else ENCODER))
    model = attach(getattr(hf, f"{kind}Model")(config).eval(), PromptTuning(3))
    randomise(model)
    for mask in (LEFT, LEFT.flip(1)):
        ids = IDS.masked_fill(mask == 0, config.pad_token_id)
        found, expected = logits(model, ids), logits(model, ids, attention_mask=mask)
        same(found[mask.bool()], expected[mask.bool()])
    same(found[1:, :5], logits(model, IDS[1:, :5], attention_mask=ONES[1:, :5]))


@pytest.mark.parametrize("kind", ["XLM", "Flaubert"])
def test_what_writes_without_a_mask_writes_behind_padding_what_it_writes_with_it(kind):
    torch.manual_seed(0)
    config = getattr(hf, f"{kind}Config")(**XLM, mask_token_id=4)
    base = getattr(hf, f"{kind}WithLMHeadModel")(config).eval()
    model = attach(base, PromptTuning(3, init=TRAINED))
    randomise(model)
    ids = torch.cat([IDS.masked_fill(LEFT == 0, 2), torch.full((2, 1), 4)], 1)
    mask = torch.cat([LEFT, ONES[:, :1]], 1)
    expected = logits(model, ids, attention_mask=mask)[:, -1]
    found = generated(model, ids[:, :-1], LEFT, max_new_tokens=1, pad_token_id=2).logits[0]
    same(found, expected)


@pytest.mark.parametrize("name, kind", [("lengths", "XLM"), ("input_mask", "XLNet")])
def test_what_says_where_padding_is_in_another_way_is_refused(name, kind):
    sizes = XLM if kind == "XLM" else dict(vocab_size=99, d_model=32, n_layer=1, n_head=4)
    model = attach(
        getattr(hf, f"{kind}Model")(getattr(hf, f"{kind}Config")(**sizes)), PromptTuning(3)
    )
    with pytest.raises(ValueError, match=f"{name} says where padding is.* attention_mask"):
        model(IDS, **{name: torch.tensor([9, 5]) if name == "lengths" else 1 - LEFT})


# Claim: with a cache of any kind, the prompt is put in once


@pytest.mark.parametrize("name", MODELS)
def test_generation_with_a_cache_is_generation_without(name):
    model = made(name)
    same(steps(model, IDS), steps(model, IDS, use_cache=False))


@pytest.mark.parametrize("name", ["Llama", "LFM2", "BLOOM"])
@pytest.mark.parametrize("turn", [2, 3, 6])  # of fewer tokens than the prompt, as many, more
def test_a_second_turn_goes_on_from_the_cache_of_the_first(name, turn):
    model = made(name)
    first = generated(model, IDS)
    cache, new = first.past_key_values, IDS[:, :turn]
    whole = torch.cat([first.sequences, new], dim=1)
    assert cache.get_seq_length() == first.sequences.shape[1] - 1  # the prompt is no text
    expected, ones = steps(model, whole), torch.ones_like(whole)
    same(steps(model, whole, past_key_values=copy.deepcopy(cache)), expected)
    rest = whole[:, cache.get_seq_length() :]  # only the new tokens, with the mask of all
    same(steps(model, rest, ones, past_key_values=cache), expected)


def test_a_second_turn_of_a_batch_that_is_padded_on_the_left():
    model, ids = made("Granite-4"), IDS.masked_fill(LEFT == 0, 0)
    first = generated(model, ids, LEFT)
    whole = torch.cat([first.sequences, IDS[:, :4]], dim=1)
    mask = torch.cat([LEFT, torch.ones(2, 8, dtype=torch.long)], dim=1)
    found = steps(model, whole, mask, past_key_values=first.past_key_values)
    same(found, steps(model, whole, mask))


@pytest.mark.parametrize("filled", ["without", "by another"])
def test_a_cache_that_was_filled_without_the_prompt_is_refused(filled):
    model = made("Llama")
    attach(model, PromptTuning(5), "other")
    if filled == "without":
        with disabled(model), torch.no_grad():
            cache = model(IDS, use_cache=True).past_key_values
    else:
        cache = activate(model, "other")(IDS, use_cache=True).past_key_values
    activate(model, "default")
    rows = {"without": 0, "by another": 5}[filled]
    with pytest.raises(ValueError, match=f"holds {rows} rows of a prompt, but .* 3 virtual tokens"):
        model(IDS[:, :1], past_key_values=cache)


# Claim: a row holds one text


@pytest.mark.parametrize("mask", [None, torch.ones(1, 9)])
def test_several_texts_packed_into_a_row_are_refused(mask):
    model = made("Llama")
    packed = torch.tensor([[*range(5), *range(4)]])
    with pytest.raises(ValueError, match="begin again inside a row"):
        model(IDS[:1], position_ids=packed, attention_mask=mask)
    with pytest.raises(ValueError, match="begin again inside a row"):
        model(IDS[:1], cu_seq_lens_q=torch.tensor([0, 5, 9]))
    padded = torch.tensor([[1, 1, 1, 0, 1, 2, 3, 4, 5]])  # some give padding the position 1
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]])
    found = logits(model, IDS[:1], position_ids=padded, attention_mask=mask)
    same(found[:, 3:], logits(model, IDS[:1, 3:]))


def test_a_mask_of_pairs_of_tokens_is_refused():
    model = made("Llama")
    with pytest.raises(ValueError, match=r"attention_mask=\(batch, tokens\)"):
        model(IDS, attention_mask=torch.ones(2, 1, 9, 9))


# Claim: what reads ids besides embeddings is refused when the prompt is attached, or right

GEMMA = LLAMA | dict(head_dim=8, layer_types=["sliding_attention", "full_attention"])
GEMMA |= dict(hidden_size_per_layer_input=8, vocab_size_per_layer_input=99, num_kv_shared_layers=0)


def gemma_3n() -> nn.Module:
    model = hf.Gemma3nForCausalLM(
        hf.Gemma3nTextConfig(**GEMMA, activation_sparsity_pattern=[0.0, 0.0])
    )
    for name, parameter in model.named_parameters():
        if "correct_output_scale" in name:  # zero in a new model: no layer's embedding counts
            nn.init.constant_(parameter, 0.3)
    return model


def modern_bert(pooling: str) -> nn.Module:
    sizes = SIZES | dict(num_attention_heads=4, pad_token_id=0)
    return hf.ModernBertForSequenceClassification(
        hf.ModernBertConfig(**sizes, classifier_pooling=pooling)
    )


def xlnet() -> hf.XLNetConfig:
    return hf.XLNetConfig(vocab_size=99, d_model=32, n_layer=2, n_head=4, d_inner=48)


REFUSED = {
    "Gemma3n": (gemma_3n, "computes something else than with the ids"),
    "Gemma4": (
        lambda: hf.Gemma4ForCausalLM(hf.Gemma4TextConfig(**GEMMA, global_head_dim=16)),
        "it fails",
    ),
    "CpmAnt": (
        lambda: hf.CpmAntForCausalLM(
            hf.CpmAntConfig(
                vocab_size=99,
                hidden_size=32,
                num_attention_heads=4,
                dim_head=8,
                dim_ff=48,
                num_hidden_layers=1,
                prompt_types=4,
                prompt_length=4,
                segment_types=4,
            )
        ),
        "takes no inputs_embeds",
    ),
    "ModernBert": (lambda: modern_bert("mean"), "computes something else"),
    "XLNet": (lambda: hf.XLNetLMHeadModel(xlnet()), "its generate gives it perm_mask"),
}


@pytest.mark.parametrize("method", [PromptTuning(3), PTuning(3)])
@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_ids_is_refused_and_left_as_it_was(name, method):
    make, message = REFUSED[name]
    torch.manual_seed(0)
    model = make()
    model.train()
    next(iter(model.children())).eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    with pytest.raises(ValueError, match=f"{name}.* {message}"):
        attach(model, method)
    assert flags == [module.training for module in model.modules()]
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters()) and not list(sites(model))
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_a_model_with_a_cache_of_its_own_is_refused():
    sizes = dict(vocab_size=60, hidden_size=16, attn_layers=["local"], attention_head_size=8)
    more = dict(num_attention_heads=2, feed_forward_size=16, axial_pos_embds=False, is_decoder=True)
    model = hf.ReformerModelWithLMHead(hf.ReformerConfig(**sizes, **more))
    with pytest.raises(ValueError, match=r"keeps a cache of its own \(past_buckets_states\)"):
        attach(model, PromptTuning(3))


def test_a_trial_uses_up_no_random_numbers_and_leaves_what_is_attached():
    model = attach(build("gpt2"), LoRA(), "lora").train()
    torch.manual_seed(5)
    attach(model, PromptTuning(3, init=TRAINED))
    found = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(found, torch.rand(1))
    assert all(module.training for module in model.modules())


def test_a_model_on_meta_is_not_tried():
    with torch.device("meta"):
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA))
        attach(model, PromptTuning(3))
    assert len(list(sites(model))) == 1


@pytest.mark.parametrize("name", ["ModernBert", "Bloom classifier", "XLNet", "Llama4"])
def test_a_prompt_of_typed_words_is_these_words(name):
    torch.manual_seed(0)
    llama_4 = LLAMA | dict(intermediate_size_mlp=48, num_local_experts=2, head_dim=8)
    base = {
        "ModernBert": lambda: modern_bert("cls"),
        "Bloom classifier": lambda: hf.BloomForSequenceClassification(
            hf.BloomConfig(**OLD, hidden_size=32, n_layer=2, n_head=4)
        ),
        "XLNet": lambda: hf.XLNetModel(xlnet()),
        "Llama4": lambda: hf.Llama4ForCausalLM(hf.Llama4TextConfig(**llama_4)),
    }[name]().eval()
    front = torch.tensor([TRAINED, TRAINED])
    longer = torch.cat([front, IDS], dim=1)
    expected = logits(base, longer, attention_mask=torch.ones_like(longer))
    model = attach(base, PromptTuning(3, init=TRAINED))
    same(
        logits(model, IDS, attention_mask=ONES),
        expected[:, 3:] if expected.dim() == 3 else expected,
    )


VISION = dict(depth=1, hidden_size=32, intermediate_size=48, num_heads=4, patch_size=4)
VISION |= dict(spatial_merge_size=2, temporal_patch_size=2, out_hidden_size=32, in_channels=3)
MARKS = dict(image_token_id=90, video_token_id=91, vision_start_token_id=92, vision_end_token_id=93)


def qwen_vl(version: str) -> nn.Module:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    text = LLAMA | {"rope_parameters": rope}
    if version == "2.5":
        vision = VISION | dict(fullatt_block_indexes=[0], window_size=16)
        config = hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **MARKS)
        return hf.Qwen2_5_VLForConditionalGeneration(config).eval()
    rope |= {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
    vision = VISION | dict(deepstack_visual_indexes=[0], num_position_embeddings=64)
    config = hf.Qwen3VLConfig(text_config=text | {"head_dim": 8}, vision_config=vision, **MARKS)
    return hf.Qwen3VLForConditionalGeneration(config).eval()


@pytest.mark.parametrize("version", ["2.5", "3"])
def test_images_keep_their_positions_behind_a_prompt(version):
    torch.manual_seed(0)
    base = qwen_vl(version)
    ids = torch.tensor([[5, 92, 90, 90, 90, 90, 93, 11, 12, 13]])
    image = dict(pixel_values=torch.randn(16, 96), image_grid_thw=torch.tensor([[1, 4, 4]]))

    def seen(model, ids, **more):
        return logits(model, ids, mm_token_type_ids=(ids == 90).long(), **image, **more)

    model = attach(copy.deepcopy(base), PromptTuning(3, init=TRAINED))
    front = torch.tensor([TRAINED])
    for _ in range(2):  # the model remembers where the last image was
        same(seen(model, ids), seen(base, torch.cat([front, ids], 1))[:, 3:])
        plain = torch.tensor([[5, 6, 7, 8]])
        same(logits(model, plain), logits(base, torch.cat([front, plain], 1))[:, 3:])
    mask, padded = torch.tensor([[0, 0] + [1] * 10]), torch.cat([ids.new_zeros(1, 2), ids], 1)
    same(seen(model, padded, attention_mask=mask)[:, 2:], seen(model, ids))


# Claim: two forward passes at once do not mix, and a replica computes with its own prompt


def test_two_threads_inside_one_model_do_not_mix():
    model, waiting, go_on = made("Llama"), threading.Event(), threading.Event()
    expected = logits(model, IDS), logits(model, IDS[:, :5], attention_mask=LEFT[:, 4:].flip(1))

    def wait(module, args):
        if threading.current_thread() is not threading.main_thread():
            waiting.set()
            go_on.wait(10)

    handle = model.model.layers[0].register_forward_pre_hook(wait)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(logits, model, IDS)
        waiting.wait(10)
        second = logits(model, IDS[:, :5], attention_mask=LEFT[:, 4:].flip(1))
        go_on.set()
        assert torch.equal(first.result(), expected[0])
    assert torch.equal(second, expected[1])
    handle.remove()
    [place] = [place for _, place in sites(model)]
    assert not place.deltas["default"].steps


def replica(network: nn.Module) -> nn.Module:
    """Return a replica as `nn.DataParallel` makes it, with numbers of its own: twice as large."""
    modules = {module: module._replicate_for_data_parallel() for module in network.modules()}
    for module, copied in modules.items():
        copied._former_parameters = OrderedDict()
        for key, child in module._modules.items():
            if child is not None:
                setattr(copied, key, modules[child])
        for key, parameter in module._parameters.items():
            if parameter is None:
                copied._parameters[key] = None
            else:
                setattr(copied, key, 2 * parameter)
                copied._former_parameters[key] = getattr(copied, key)
        copied._buffers = dict(module._buffers)
    return modules[network]


@pytest.mark.parametrize("method", [PromptTuning(3), PTuning(3), PTuning(3, "LSTM")])
def test_a_replica_computes_with_its_own_prompt(method):
    model = attach(MODELS["Llama"]().eval(), method)
    randomise(model)
    found = logits(replica(model), IDS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    same(found, logits(model, IDS))


class Summing(nn.Module):
    """A backbone that adds up the text so far."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(99, 4)

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None):
        return ((inputs_embeds * attention_mask[..., None]).cumsum(1),)


def test_torch_compile_makes_one_graph_of_a_backbone_with_a_prompt():
    backbone, delta = Summing(), SoftPrompt(torch.randn(3, 4))
    Hooks(backbone, Adaptations(active=("default",))).deltas["default"] = delta
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    expected = backbone(IDS, LEFT)[0]
    same(expected[:, -1], delta.prompt().sum(0) + (backbone.words(IDS) * LEFT[..., None]).sum(1))
    same(compiled(IDS, LEFT)[0], expected)


def test_what_concerns_the_encoder_is_not_widened():
    mask = torch.ones(2, 3, dtype=torch.long)
    where = columns(mask, 4)
    assert widened({"encoder_attention_mask": mask}, 4, where, (2, 3)) == {}
    wider = widened({"some_ids": mask}, 4, where, (2, 3))["some_ids"]
    assert wider.tolist() == [[0] * 4 + [1] * 3] * 2


def test_a_cache_that_does_not_tell_its_length_is_refused():
    class Silent:
        pass

    with pytest.raises(ValueError, match="needs a dynamic cache.*Silent"):
        rows_read(Silent(), 4, several=False)
