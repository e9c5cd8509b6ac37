"""What a verb costs, counted in function calls: unlike seconds, they are the same on each machine."""

import cProfile
import pstats

import pytest
import transformers as hf
from torch import nn

from pedagogic_peft import LoRA, activate, attach, disabled


def calls(action) -> int:
    profile = cProfile.Profile()
    profile.runcall(action)
    return pstats.Stats(profile).total_calls


def llama(layers: int) -> nn.Module:
    sizes = dict(hidden_size=8, intermediate_size=8, num_attention_heads=1, num_key_value_heads=1)
    return hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=9, num_hidden_layers=layers, **sizes))


def carrying(layers: int, *names: str) -> nn.Module:
    model = llama(layers)
    for name in names:
        attach(model, LoRA(r=1, target_modules="all-linear"), name)
    return model


@pytest.mark.parametrize("verb", ["activate", "rows", "disabled"])
def test_switching_costs_the_same_in_a_deep_model(verb):
    def switch(model):
        if verb == "activate":
            activate(model, "a")
        elif verb == "rows":
            activate(model, rows=["a", None, "b"])
        else:
            with disabled(model):
                pass

    shallow, deep = (carrying(layers, "a", "b") for layers in (1, 12))
    assert calls(lambda: switch(deep)) == calls(lambda: switch(shallow)) < 60


def test_the_fiftieth_adaptation_costs_what_the_second_did():
    model = carrying(3, "first")
    costs = []
    for i in range(49):
        method = LoRA(r=1, target_modules="all-linear")
        costs.append(calls(lambda name=f"n{i}", method=method: attach(model, method, name)))
    assert costs[-1] < 1.1 * costs[0]


def test_attaching_grows_in_proportion_to_the_targets():
    costs = [calls(lambda n=n: carrying(n, "a")) - calls(lambda n=n: llama(n)) for n in (10, 40)]
    assert costs[1] < 4.4 * costs[0]
