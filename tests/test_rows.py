"""A batch whose rows use different adaptations equals running them one by one."""

import pytest
import torch
from models import batch, build, logits, randomise

from pedagogic_peft import LoRA, PrefixTuning, activate, attach, disabled, merge

NAMES = ["a", "b", None, "a"]


def carrying_two(architecture="gpt2", **options):
    """A model with the trained adaptations "a" and "b"."""
    torch.manual_seed(3)
    model = build(architecture)
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
    with torch.no_grad():
        expected = one_by_one(model, inputs, NAMES)
        found = activate(model, rows=NAMES)(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found[1], found[2], atol=1e-3)  # the same input, b and frozen


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
        torch.testing.assert_close(gradient, expected[key], atol=1e-3, rtol=1e-3)


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
    attach(model, PrefixTuning(num_virtual_tokens=2), "prefix")
    with pytest.raises(ValueError, match="'prefix'.*whole batch"):
        activate(model, rows=["a", "prefix"])
    activate(model, rows=["a", "b", "a"])
    with pytest.raises(ValueError, match="batch of 2 rows.*named 3"):
        logits(model, "gpt2")
    activate(model, "a")
    with pytest.raises(RuntimeError, match="merged"):
        activate(merge(model), rows=["a"])
