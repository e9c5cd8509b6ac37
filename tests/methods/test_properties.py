"""The algebra, on random shapes and ranks: what must hold for any size must hold for these."""

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pedagogic_peft import (
    LoRA,
    activate,
    attach,
    count_parameters,
    detach,
    load,
    merge,
    save,
    unmerge,
)

sizes = st.integers(1, 12)
ranks = st.integers(1, 6)
alphas = st.floats(0.1, 64)
seeds = st.integers(0, 2**16)
quick = settings(max_examples=40, deadline=None)


def stack(seed, *widths):
    """A few linear maps, alternately with and without a bias."""
    torch.manual_seed(seed)
    pairs = zip(widths, widths[1:], strict=False)
    return nn.Sequential(*(nn.Linear(a, b, bias=i % 2 == 0) for i, (a, b) in enumerate(pairs)))


def trained(model, name="default", **options):
    """The model with a LoRA of random values on every map."""
    attach(model, LoRA(target_modules=r"\d+", **options), name)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.5)
    return model


@quick
@given(seeds, sizes, sizes, sizes, ranks, alphas, st.booleans())
def test_merge_changes_no_output_and_unmerge_is_exact(seed, a, b, c, r, alpha, rslora):
    model = trained(stack(seed, a, b, c), r=r, alpha=alpha, use_rslora=rslora)
    x = torch.randn(5, a)
    before, weights = model(x), [m.base.weight.clone() for m in model]
    merged = merge(model)(x)
    torch.testing.assert_close(
        merged, before, atol=1e-3 * (1 + before.abs().max().item()), rtol=1e-3
    )
    unmerge(model)
    assert all(torch.equal(m.base.weight, w) for m, w in zip(model, weights, strict=True))
    assert torch.equal(model(x), before)


@quick
@given(seeds, st.lists(sizes, min_size=2, max_size=5), ranks)
def test_the_count_is_r_times_the_sum_of_the_sizes(seed, widths, r):
    model = stack(seed, *widths)
    total = count_parameters(model).total
    attach(model, LoRA(r=r, target_modules=r"\d+"))
    formula = sum(r * (a + b) for a, b in zip(widths, widths[1:], strict=False))
    assert count_parameters(model).trainable == formula
    assert count_parameters(model).total == total + formula


@quick
@given(seeds, sizes, sizes, st.lists(st.sampled_from(["a", "b", None]), min_size=1, max_size=6))
def test_mixed_batches_equal_single_rows(seed, a, b, rows):
    model = stack(seed, a, b)
    for name in ("a", "b"):
        trained(model, name, r=2)
    x = torch.randn(len(rows), a)
    mixed = activate(model, rows=rows)(x)
    for i, name in enumerate(rows):
        activate(model, *([name] if name else []))
        torch.testing.assert_close(mixed[i], model(x[i]), atol=1e-5, rtol=1e-4)


@quick
@given(seeds, sizes, sizes, ranks)
def test_the_update_has_at_most_rank_r(seed, a, b, r):
    model = trained(stack(seed, a, b), r=r)
    delta = model[0].deltas["default"].delta_weight()
    assert torch.linalg.matrix_rank(delta.double(), rtol=1e-5) <= r


@quick
@given(seeds, sizes, sizes, ranks, alphas)
def test_what_was_saved_comes_back(tmp_path_factory, seed, a, b, r, alpha):
    base = stack(seed, a, b)
    model = trained(copy.deepcopy(base), r=r, alpha=alpha)
    folder = save(model, tmp_path_factory.mktemp("saved"))
    x = torch.randn(3, a)
    assert torch.equal(load(copy.deepcopy(base), folder)(x), model(x))


@quick
@given(seeds, st.lists(sizes, min_size=2, max_size=4), st.permutations(["a", "b", "c"]))
def test_detaching_in_any_order_restores_everything(seed, widths, order):
    model = stack(seed, *widths)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for name in ("a", "b", "c"):
        trained(model, name, r=1)
    for name in order:
        detach(model, name)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(p.requires_grad for p in model.parameters())
