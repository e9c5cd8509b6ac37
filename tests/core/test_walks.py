"""A verb walks through the model once, however many functions look for modules in it."""

import copy

import pytest
from helpers.models import build

from pedagogic_peft import (
    BottleneckAdapter,
    LoRA,
    PrefixTuning,
    PromptTuning,
    attach,
    detach,
    load,
    save,
)
from pedagogic_peft.core import sites

CASES = {
    "LoRA": ("llama", LoRA(r=4)),
    "all-linear": ("llama", LoRA(r=4, target_modules="all-linear")),
    "head": ("bert", LoRA(r=4, modules_to_save=["classifier"])),
    "prefix tuning": ("llama", PrefixTuning(3)),
    "prompt tuning": ("llama", PromptTuning(3)),
    "bottleneck": ("bert", BottleneckAdapter(modules_to_save=["classifier"])),
}


@pytest.fixture
def walks(monkeypatch):
    """Return a list of the models that were walked through."""
    walked, walk = [], sites.walk
    monkeypatch.setattr(sites, "walk", lambda model: walked.append(model) or walk(model))
    return walked


@pytest.mark.parametrize("case", CASES)
def test_a_verb_walks_through_the_model_once(case, walks, tmp_path):
    name, method = CASES[case]
    model = build(name)
    other = copy.deepcopy(model)
    for verb in (
        lambda: attach(model, method),
        lambda: save(model, tmp_path),
        lambda: load(other, tmp_path),
        lambda: detach(model),
    ):
        walks.clear()
        verb()
        assert [m in (model, other) for m in walks].count(True) == 1
        assert len(walks) <= 3  # the backbone and the head, where they are told apart
