"""Attention weights: those that transformers computes, and those that it cannot ask of a prefix."""

import torch
from helpers.models import build

from pedagogic_peft import PrefixTuning, attach, attention_shares
from pedagogic_peft.course.attention import attention_weights

IDS = torch.tensor([[5, 6, 7, 8, 9], [3, 4, 5, 6, 7]])


def test_without_a_prefix_they_are_the_weights_of_the_eager_attention():
    model = build("llama").eval()
    found = attention_weights(model, {"input_ids": IDS})
    assert list(found) == [f"model.layers.{i}.self_attn" for i in range(len(found))]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(IDS, output_attentions=True).attentions
    for weights, one in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(weights, one)


def test_with_a_prefix_its_share_stands_in_front_and_rows_sum_to_one():
    model = attach(build("llama"), PrefixTuning(3)).eval()
    found = attention_weights(model, {"input_ids": IDS})
    shares = attention_shares(model, {"input_ids": IDS})
    for path, weights in found.items():
        assert weights.shape[-1] == 3 + IDS.shape[1]
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        assert torch.equal(weights[..., :3], shares[path])
