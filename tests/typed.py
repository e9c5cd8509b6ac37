"""Checked by mypy (`make lint`), never run: the types that code which uses the library gets."""

from typing import assert_type

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pedagogic_peft import (
    LoRA,
    activate,
    adapter_drop,
    attach,
    average,
    combine,
    dequantize_nf4,
    detach,
    disabled,
    load,
    load_adapterhub,
    load_base,
    merge,
    quantize_nf4,
    unmerge,
)


class Mine(nn.Module):
    """A model of one's own."""

    def answer(self) -> int:
        return 42


def a_verb_returns_the_type_that_it_was_given(mine: Mine) -> None:
    assert_type(attach(mine, LoRA(r=8)), Mine)
    assert_type(attach(mine, LoRA(r=8)).answer(), int)
    assert_type(activate(mine, "default"), Mine)
    assert_type(average(mine, ["a", "b"]), Mine)
    assert_type(combine(mine, ["a", "b"]), Mine)
    assert_type(merge(mine), Mine)
    assert_type(unmerge(mine), Mine)
    assert_type(detach(mine), Mine)
    assert_type(load(mine, "folder"), Mine)
    assert_type(load_adapterhub(mine, "folder"), Mine)
    assert_type(quantize_nf4(mine), Mine)
    assert_type(dequantize_nf4(mine), Mine)
    with disabled(mine) as same:
        assert_type(same, Mine)
    with adapter_drop(mine, 1) as same:
        assert_type(same, Mine)


def a_base_is_a_model_and_its_tokenizer() -> None:
    model, tokenizer = load_base("gpt2")
    assert_type(tokenizer, PreTrainedTokenizerBase)
    attach(model, LoRA(r=8)).to("cuda").generate(max_new_tokens=5)
    images, nothing = load_base("pocket-vit")
    assert_type(images, PreTrainedModel)
    assert_type(nothing, None)


def what_is_wrong_is_found(mine: Mine) -> None:
    attach(mine, LoRA(r="8"))  # type: ignore[arg-type]
    attach(mine, LoRA(rank=8))  # type: ignore[call-arg]
