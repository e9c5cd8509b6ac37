"""Adapters and biases where a model hides padding in front of a convolution: right, or refused."""

import copy

import pytest
from helpers.models import randomise
from sweep import small
from sweep.promises import Base, gap, padded

import pedagogic_peft as pp
from pedagogic_peft.core.sites import View, deltas_of
from pedagogic_peft.core.targets import find_targets, is_linear
from pedagogic_peft.methods.padding_trial import reach_the_text
from pedagogic_peft.testing.subject import differences, snapshot

pytestmark = pytest.mark.filterwarnings("ignore:all-linear leaves out")
ADAPTER = dict(bottleneck_size=4, non_linearity="gelu")


@pytest.fixture(scope="module", params=["bamba", "lfm2_moe", "qwen3_next"])
def base(request):
    return Base(small.build(request.param, "writes"), "writes")


def test_all_linear_has_no_adapter_where_padding_would_come_back(base):
    model = pp.attach(
        copy.deepcopy(base.model), pp.BottleneckAdapter(**ADAPTER, target_modules="all-linear")
    )
    randomise(model)
    assert gap(*padded(model, base)) < 1e-4
    assert (
        0
        < len(deltas_of(model, "default"))
        < len(find_targets(base.model, "all-linear", is_linear))
    )


def test_what_is_named_there_is_refused_and_can_be_left_out(base):
    places = find_targets(base.model, "all-linear", is_linear)
    before = snapshot(base.model)
    [first, *_] = lost = reach_the_text(base.model, places)
    for method in (
        pp.BottleneckAdapter(**ADAPTER, target_modules=[first]),
        pp.LoRA(r=2, target_modules=[first], lora_bias=True),
    ):
        with pytest.raises(ValueError, match="exclude_modules"):
            pp.attach(base.model, method)
    assert not differences(before, snapshot(base.model))
    free = pp.BottleneckAdapter(**ADAPTER, target_modules=list(places), exclude_modules=lost)
    model = pp.attach(copy.deepcopy(base.model), free)
    randomise(model)
    assert gap(*padded(model, base)) < 1e-4


@pytest.mark.parametrize("kind", ["bailing_hybrid", "bamba"])
def test_what_is_left_out_is_left_out_again_when_the_file_is_loaded(kind, tmp_path):
    base = small.build(kind, "writes")  # so small that its pass makes larger tensors than it has
    model = pp.attach(
        copy.deepcopy(base), pp.BottleneckAdapter(**ADAPTER, target_modules="all-linear")
    )
    randomise(model)
    again = pp.load(copy.deepcopy(base), pp.save(model, tmp_path))
    assert deltas_of(again, "default").keys() == deltas_of(model, "default").keys()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_where_attention_hides_padding_nothing_is_left_out(kind):
    model = small.build(kind, "writes")
    assert reach_the_text(model, find_targets(View(model), "all-linear", is_linear)) == []


def test_a_trial_leaves_a_model_that_exchanges_its_modules_as_it_was():
    model = small.build("big_bird", "writes")  # it does so at the first short text
    before = snapshot(model)
    for method in (
        pp.BottleneckAdapter(**ADAPTER, target_modules="all-linear"),
        pp.PromptTuning(3),
        pp.LoReFT(r=2),
    ):
        assert not differences(before, snapshot(pp.detach(pp.attach(model, method))))
