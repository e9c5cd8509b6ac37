"""Several LoRAs made into one: equal to PEFT's add_weighted_adapter, and to the papers' definitions."""

import copy

import peft
import pytest
import torch
from helpers.models import build, logits, randomise
from torch import nn

from pedagogic_peft import DoRA, LoRA, PiSSA, activate, attach, combine, load, merge, save
from pedagogic_peft.core.sites import deltas_of
from pedagogic_peft.core.verbs import adaptations_of
from pedagogic_peft.methods.merging import HOW, added, nearest

TARGETS = ["q_proj", "v_proj", "down_proj", "embed_tokens"]
OPTIONS = {"ties": {"density": 0.4}, "ties_svd": {"density": 0.4}}
OPTIONS |= {how: {"density": 0.5} for how in HOW if how.startswith("dare")}


def carrying(*methods: LoRA, name: str = "llama") -> nn.Module:
    model = build(name)
    for i, method in enumerate(methods):
        torch.manual_seed(i)
        attach(model, method, "abc"[i])
    randomise(model)
    return model


def changes(model: nn.Module, name: str) -> dict:
    return {p: d.delta_weight().detach() for p, d in deltas_of(model, name).items()}


def theirs(model: nn.Module, names: str, folder) -> nn.Module:
    base = build("llama")
    for i, name in enumerate(names):
        save(model, folder / name, name)
        where = folder / name
        if i:
            base.load_adapter(where, name)
        else:
            base = peft.PeftModel.from_pretrained(base, where, adapter_name=name)
    return base


def masks(seed: int):
    """PEFT's pruning with the draws of ours, which come tensor by tensor."""
    generator, kept = torch.Generator().manual_seed(seed), {}

    def prune(tensor, density, rescale):
        if not kept.get("left"):
            drawn = torch.rand(2, *tensor.shape, generator=generator) < density
            kept["left"] = list(drawn)
        return tensor * kept["left"].pop(0) / density

    return prune


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("weights", [[0.7, 0.3], [1.5, -0.5]])
def test_it_equals_pefts_weighted_adapter(how, weights, tmp_path, monkeypatch):
    # The change of a table is transposed in PEFT, so that other entries of it would be dropped.
    targets = TARGETS[:-1] if how.startswith("dare") and how.endswith("svd") else TARGETS
    methods = [LoRA(r=3, alpha=a, target_modules=targets) for a in (6, 4)]
    model = carrying(*methods)
    options = OPTIONS.get(how, {})
    other = theirs(model, "ab", tmp_path)
    monkeypatch.setattr("peft.utils.merge_utils.random_pruning", masks(5))
    other.add_weighted_adapter(["a", "b"], weights, "c", combination_type=how, **options)
    other.set_adapter("c")
    combine(model, ["a", "b"], weights, "c", how, seed=5, **options)
    assert adaptations_of(model).active == ("c",)
    ours = {p.replace(".weight", ""): d for p, d in changes(model, "c").items()}
    for path, delta in ours.items():
        layer = other.base_model.model.get_submodule(path)
        expected = layer.get_delta_weight("c")
        torch.testing.assert_close(delta, expected.detach(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        logits(model, "llama"), logits(other.eval(), "llama"), atol=1e-3, rtol=1e-3
    )


def test_concatenated_it_is_the_weighted_sum_of_the_changes_of_any_ranks_at_any_modules(tmp_path):
    methods = [
        LoRA(r=2, target_modules=["q_proj", "down_proj"], use_rslora=True),
        LoRA(r=3, target_modules=["q_proj", "v_proj"], rank_pattern={"0.self_attn.q_proj": 1}),
        PiSSA(r=2, target_modules=["v_proj"]),
    ]
    model = carrying(*methods)
    each = [changes(model, n) for n in "abc"]
    combine(model, ["a", "b", "c"], [0.5, -2, 1], "sum")
    for path, found in changes(model, "sum").items():
        parts = [w * c[path] for w, c in zip((0.5, -2, 1), each, strict=True) if path in c]
        torch.testing.assert_close(found, sum(parts), rtol=1e-4, atol=1e-5)
    expected = logits(model, "llama")
    again = load(build("llama"), save(model, tmp_path, "sum"))
    assert torch.equal(logits(again, "llama"), expected)
    torch.testing.assert_close(logits(merge(again), "llama"), expected, atol=1e-3, rtol=1e-3)


def test_parts_of_a_projection_are_the_lora_that_they_equal():
    model = carrying(LoRA(r=2, parts=["q", "v"]), LoRA(r=2), name="gpt2")
    each = [changes(model, n) for n in "ab"]
    combine(model, ["a", "b"], [1, 1])
    for path, found in changes(model, "combined").items():
        torch.testing.assert_close(found, each[0][path] + each[1][path], rtol=1e-4, atol=1e-5)


def test_the_svd_is_the_nearest_of_its_rank():
    model = carrying(*[LoRA(r=3, target_modules=["q_proj"])] * 2)
    each = [changes(model, n) for n in "ab"]
    combine(model, ["a", "b"], how="svd", rank=2)
    for path, found in changes(model, "combined").items():
        target = (each[0][path] + each[1][path]) / 2
        values = torch.linalg.svdvals(target)
        torch.testing.assert_close((found - target).norm(), values[2:].norm())
        assert torch.linalg.matrix_rank(found) == 2
    A, B = nearest(torch.eye(3), torch.diag(torch.tensor([3.0, 2.0, 1.0])), 8)
    torch.testing.assert_close(B @ A, torch.diag(torch.tensor([3.0, 2.0, 1.0])))


def test_ties_by_hand():
    a, b = torch.tensor([3.0, -2.0, 0.1, 1.0]), torch.tensor([1.0, 4.0, 0.2, -0.1])
    found = added([a, b], [1.0, 1.0], "ties", 0.5, torch.Generator())
    # a keeps 3 and -2, b keeps 1 and 4: the signs are +, +; the second of a is against it
    assert torch.equal(found, torch.tensor([2.0, 4.0, 0.0, 0.0]))


def test_dare_keeps_the_mean_and_depends_on_its_seed_alone():
    ones = torch.ones(20_000)
    draw = [
        added([ones], [1.0], "dare_linear", 0.25, torch.Generator().manual_seed(i))
        for i in (1, 1, 2)
    ]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])
    assert set(draw[0].tolist()) == {0.0, 4.0} and abs(draw[0].mean() - 1) < 0.05
    state = torch.get_rng_state()
    added([ones], [1.0], "dare_linear", 0.25, torch.Generator())
    assert torch.equal(torch.get_rng_state(), state)


def test_one_alone_is_scaled():
    model = carrying(LoRA(r=2))
    before = changes(model, "a")
    for how in HOW:
        combine(copy.deepcopy(model), ["a"], [-1.0], how=how, **OPTIONS.get(how, {}))
    combine(model, ["a"], [-1.0], "negated", "ties", density=0.1)
    for path, found in changes(model, "negated").items():
        torch.testing.assert_close(found, -before[path])
    activate(model, "a", "negated")
    torch.testing.assert_close(logits(model, "llama"), logits(build("llama"), "llama"))


def test_a_head_that_one_of_them_trained_is_kept_and_of_two_refused():
    head = {"modules_to_save": ["lm_head"]}
    model = carrying(LoRA(r=2), LoRA(r=2, **head), LoRA(r=2, **head))
    combine(model, ["a", "b"])
    own, new = deltas_of(model, "b")["lm_head"], deltas_of(model, "combined")["lm_head"]
    assert torch.equal(own.module.weight, new.module.weight)
    with pytest.raises(
        ValueError, match=r"modules_to_save=\['lm_head'\]: expected no module trained"
    ):
        combine(model, ["b", "c"], name="other")
    assert "other" not in adaptations_of(model).methods


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"names": []}, "names"),
        ({"names": ["a", "a"]}, "different names"),
        ({"names": "a"}, "list of"),
        ({"names": ["a", "zzz"]}, "No adaptation is called 'zzz'"),
        ({"names": ["a", "dora"]}, "dora=DoRA.*an adaptation by LoRA or PiSSA; average"),
        ({"weights": [1.0]}, r"weights=\[1.0\]: expected 2 numbers"),
        ({"how": "dare"}, "how='dare': expected one of cat, svd, linear"),
        ({"how": "ties"}, "density=None: expected 0 < density <= 1"),
        ({"how": "dare_ties", "density": 1.5}, "density=1.5"),
        ({"how": "cat", "density": 0.5}, "density=0.5.*how='cat'"),
        ({"how": "linear", "rank": 3}, "rank=3: expected None with how='linear'"),
        ({"how": "svd", "rank": 0}, "rank=0"),
        ({"how": "linear", "names": ["a", "c"]}, "the ranks at .* differ; cat and svd"),
        ({"name": "a"}, "'a' is there already"),
    ],
)
def test_what_cannot_be_combined_is_named_and_nothing_changes(arguments, message):
    model = carrying(LoRA(r=2), LoRA(r=2), LoRA(r=3))
    attach(model, DoRA(r=2), "dora")
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        combine(model, **({"names": ["a", "b"]} | arguments))
    assert list(model.state_dict()) == before and adaptations_of(model).active == ("dora",)
