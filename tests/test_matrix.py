"""Every method on every architecture: one table of promises, generated, so that no pair is missed.

Where a method has no meaning on an architecture, the promise is a clear error.
"""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
import transformers as hf
from helpers.asserts import assert_as_before, snapshot
from methods import CASES, EXACT, NEAR
from models import ARCHITECTURES, batch, build, gradients, logits, randomise
from safetensors.torch import load_file

from pedagogic_peft import attach, count_parameters, detach, disabled, load, save

PAIRS = [
    (method, architecture)
    for method, case in CASES.items()
    for architecture in ARCHITECTURES
    if architecture not in (case.refused or {})
]
REFUSED = [
    (method, architecture, words)
    for method, case in CASES.items()
    for architecture, words in (case.refused or {}).items()
]
DECODERS = ["gpt2", "llama", "opt", "t5"]

on_every_pair = pytest.mark.parametrize(
    ("method", "architecture"), PAIRS, ids=[f"{m}-{a}" for m, a in PAIRS]
)
on_decoders = pytest.mark.parametrize(
    ("method", "architecture"),
    [pair for pair in PAIRS if pair[1] in DECODERS],
    ids=[f"{m}-{a}" for m, a in PAIRS if a in DECODERS],
)


def adapted(method: str, architecture: str, trained: bool = True, layers: int = 2):
    """Return the model with the method attached; "trained" means random values, always the same.

    One layer is enough, and cheaper, where what is promised does not depend on their number.
    """
    torch.manual_seed(5)
    model = attach(build(architecture, layers), CASES[method].method)
    if trained:
        randomise(model)
    return model


@pytest.mark.parametrize(("method", "architecture", "words"), REFUSED)
def test_where_a_method_has_no_meaning_an_error_says_so(method, architecture, words):
    model = build(architecture)
    before = snapshot(model)
    with pytest.raises(ValueError, match=words):
        attach(model, CASES[method].method)
    assert_as_before(model, before)


@on_every_pair
def test_the_start_is_the_frozen_model(method, architecture):
    model, expected = (
        adapted(method, architecture, trained=False),
        logits(build(architecture), architecture),
    )
    found, start = logits(model, architecture), CASES[method].start
    assert found.shape == expected.shape
    if start == EXACT:
        assert torch.equal(found, expected)
    if start == NEAR:
        assert (found - expected).norm() < 0.05 * expected.norm()
    with disabled(model):
        assert torch.equal(logits(model, architecture), expected)


@on_every_pair
def test_only_the_method_trains_and_the_base_stays(method, architecture):
    base, model = build(architecture), adapted(method, architecture)
    trained = gradients(model, architecture)
    own = {n for n, p in model.named_parameters() if p.requires_grad}
    assert own and own == {n for n in own if ".deltas.default." in f".{n}"}
    assert set(trained) == own
    assert count_parameters(model).trainable < count_parameters(base).total
    values = {t.data_ptr(): t for t in model.state_dict().values()}.values()
    for key, expected in base.state_dict().items():
        assert any(t.shape == expected.shape and torch.equal(t, expected) for t in values), key


@on_every_pair
def test_detach_restores_the_model_bit_for_bit(method, architecture):
    model = build(architecture)
    list(model.parameters())[0].requires_grad_(False)
    before, implementation = snapshot(model), model.config._attn_implementation
    attach(model, CASES[method].method)
    randomise(model)
    gradients(model, architecture)
    assert_as_before(detach(model), before)
    assert model.config._attn_implementation == implementation
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@on_every_pair
def test_gradient_checkpointing_gives_the_same_gradients(method, architecture):
    model = adapted(method, architecture).train()
    model.config.use_cache = False
    torch.manual_seed(6)  # the same dropout twice
    expected = gradients(model, architecture)
    model.activation_checkpointing_enable()
    torch.manual_seed(6)
    found = gradients(model, architecture)
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], atol=1e-5, rtol=1e-3)


@on_every_pair
def test_copies_and_pickles_are_whole_and_independent(method, architecture):
    model = adapted(method, architecture, layers=1)
    expected = logits(model, architecture)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(twin, architecture), expected)
        randomise(twin)
        assert not torch.equal(logits(twin, architecture), expected)
        assert torch.equal(logits(model, architecture), expected)
        detach(twin)
        assert torch.equal(logits(twin, architecture), logits(build(architecture, 1), architecture))


@on_every_pair
def test_it_compiles(method, architecture):
    model, inputs = adapted(method, architecture, layers=1), batch(architecture)
    model.config.use_cache = False  # the loss and the cache are not ours, and cost most of the time
    labels = inputs.pop("labels")
    if architecture == "t5":
        inputs["decoder_input_ids"] = labels.clamp(min=0)
    with torch.no_grad():
        expected = model(**inputs).logits
        torch._dynamo.reset()
        found = torch.compile(model, backend="eager")(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@on_every_pair
def test_bfloat16_autocast_trains_float32_parameters(method, architecture):
    model = adapted(method, architecture, layers=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**batch(architecture))
    output.loss.float().backward()
    own = [p for p in model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in own)
    assert any(p.grad.abs().sum() > 0 for p in own)


@on_every_pair
def test_a_bfloat16_base_carries_it(method, architecture):
    model = attach(build(architecture, layers=1).bfloat16(), CASES[method].method)
    inputs = batch(architecture)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    output = model(**inputs)
    assert output.logits.dtype == torch.bfloat16
    output.loss.float().backward()
    own = [p for p in model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in own)


def new_tokens(model, ids, mask, **options):
    with torch.no_grad():
        found = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            pad_token_id=0,
            **options,
        )
    return found[:, -6:]


@on_decoders
def test_generation_is_the_same_with_and_without_cache_and_left_padded(method, architecture):
    model = adapted(method, architecture)
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, 60, (2, 8), generator=generator)
    mask = torch.ones_like(ids)
    padded, padded_mask = ids.clone(), mask.clone()
    padded[1, :3], padded_mask[1, :3] = 0, 0
    cached = new_tokens(model, padded, padded_mask)
    assert torch.equal(cached, new_tokens(model, padded, padded_mask, use_cache=False))
    alone = [new_tokens(model, ids[:1], mask[:1]), new_tokens(model, ids[1:, 3:], mask[1:, 3:])]
    assert torch.equal(cached, torch.cat(alone))
    beams = new_tokens(model, ids, mask, num_beams=2)
    assert torch.equal(beams, new_tokens(model, ids, mask, num_beams=2, use_cache=False))


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory):
    """Save every pair here and load it in one fresh process; return its logits."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for method, architecture in PAIRS:
        model = adapted(method, architecture)
        save(model, folder / f"{method}-{architecture}")
        torch.save(logits(model, architecture), folder / f"{method}-{architecture}" / "logits")
    program = (
        "import sys, torch, pathlib; sys.path.insert(0, sys.argv[2])\n"
        "from models import build, logits\n"
        "from pedagogic_peft import load\n"
        "for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    name = folder.name.rpartition('-')[2]\n"
        "    found = logits(load(build(name), folder), name)\n"
        "    torch.save(found, folder / 'reloaded')\n"
    )
    here = str(__import__("pathlib").Path(__file__).parent)
    subprocess.run([sys.executable, "-c", program, str(folder), here], check=True)
    return folder


@pytest.mark.xdist_group("one fresh process")  # so that the fixture is made once
@on_every_pair
def test_a_fresh_process_loads_identical_logits(method, architecture, reloaded):
    folder = reloaded / f"{method}-{architecture}"
    expected, found = torch.load(folder / "logits"), torch.load(folder / "reloaded")
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(found, logits(build(architecture), architecture), atol=1e-3)


@on_every_pair
def test_saving_again_what_was_loaded_changes_nothing(method, architecture, tmp_path):
    model = adapted(method, architecture)
    first = save(model, tmp_path / "first")
    again = save(load(build(architecture), first), tmp_path / "again")
    config, tensors = "adapter_config.json", "adapter_model.safetensors"
    assert (first / config).read_text() == (again / config).read_text()
    old, new = load_file(first / tensors), load_file(again / tensors)
    assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)


@on_every_pair
def test_trainer_trains_it(method, architecture, tmp_path):
    torch.manual_seed(5)
    model = attach(build(architecture), CASES[method].method)
    inputs = batch(architecture)
    rows = [{key: value[i] for key, value in inputs.items()} for i in range(2)]
    arguments = hf.TrainingArguments(
        output_dir=tmp_path,
        max_steps=8,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        warmup_steps=0,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    before = model(**inputs).loss.item()
    hf.Trainer(model, arguments, train_dataset=rows).train()
    assert model.eval()(**inputs).loss.item() < before
