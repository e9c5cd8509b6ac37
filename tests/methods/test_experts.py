"""LoRA of parameters: the experts of a mixture."""

import copy
import sys
import threading

import pytest
import torch
from helpers.asserts import assert_as_before, snapshot
from helpers.mixtures import EXPERTS, IDS, MIXTURES, logits, mixture
from helpers.models import randomise
from torch import nn

from pedagogic_peft import (
    DoRA,
    LoRA,
    activate,
    attach,
    average,
    count_parameters,
    detach,
    disabled,
    lora_plus_groups,
    merge,
    unmerge,
)
from pedagogic_peft.core.sites import deltas_of

IMPLEMENTATIONS = ["eager", "batched_mm", "grouped_mm"]


def of_experts(**options):
    return LoRA(**{"r": 2, "target_modules": [], "target_parameters": EXPERTS} | options)


def adapted(name="Mixtral", **options):
    """Return the base and the same with a LoRA on its experts, as if trained."""
    base = mixture(name)
    model = attach(copy.deepcopy(base), of_experts(**options))
    randomise(model)
    return base, model


@torch.no_grad()
def changed_by_hand(base, model):
    """Return the base with W_e + (α / r) B_e A_e written into each expert's weight."""
    base = copy.deepcopy(base)
    for path, delta in deltas_of(model, "default").items():
        for name, lora in delta.loras.items():
            W = base.get_submodule(path).get_parameter(name).data
            r = len(lora.lora_A.weight) // len(W)
            for e in range(len(W)):
                A = lora.lora_A.weight[e * r : (e + 1) * r]
                B = lora.lora_B.weight[:, e :: len(W)]
                update = lora.scaling * (B @ A)
                W[e] += update if update.shape == W[e].shape else update.T
    return base


# Claim: W_e = W_0,e + (α / r) B_e A_e, however the experts compute


@pytest.mark.parametrize("name", MIXTURES)
def test_each_expert_has_its_own_update(name):
    base, model = adapted(name, alpha=3, use_rslora=True)
    reference = changed_by_hand(base, model)
    assert not torch.allclose(logits(model), logits(base), atol=1e-2)
    for implementation in IMPLEMENTATIONS:
        model.config._experts_implementation = implementation
        reference.config._experts_implementation = implementation
        torch.testing.assert_close(logits(model), logits(reference), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MIXTURES)
def test_it_starts_at_the_base_and_only_A_and_B_get_gradients(name):
    base = mixture(name)
    before = logits(base)
    model = attach(base, of_experts())
    assert torch.equal(logits(model), before)
    randomise(model)
    model(input_ids=IDS).logits.square().sum().backward()
    trained = {key for key, p in model.named_parameters() if p.grad is not None}
    assert trained == {key for key, _ in model.named_parameters() if ".lora_" in key}
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.grad is not None)


def test_the_gradients_are_those_of_the_changed_weight():
    base, model = adapted()
    reference = changed_by_hand(base, model)
    for each in (model, reference):
        each(input_ids=IDS).logits.square().sum().backward()
    path, name = "model.layers.0.mlp.experts", "down_proj"
    dW = reference.get_submodule(path).get_parameter(name).grad  # (E, d_out, d_in)
    lora = deltas_of(model, "default")[path].loras[name]
    B = lora.lora_B.weight.unflatten(1, (-1, len(dW)))  # (d_out, r, E)
    dA = lora.scaling * torch.einsum("jre,eji->eri", B, dW).flatten(0, 1)
    torch.testing.assert_close(lora.lora_A.weight.grad, dA, rtol=1e-3, atol=1e-3)


def test_recomputed_activations_give_the_same_gradients():
    found = []
    for recompute in (False, True):
        _, model = adapted()
        model.train()
        if recompute:
            model.gradient_checkpointing_enable()
        model(input_ids=IDS).logits.square().sum().backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# Claim: all verbs do what they do elsewhere


@pytest.mark.parametrize("name", MIXTURES)
def test_merging_changes_nothing_and_all_can_be_taken_back(name):
    base = mixture(name)
    before, untouched = snapshot(base), logits(base)
    model = attach(base, of_experts())
    randomise(model)
    own = logits(model)
    with disabled(model):
        assert torch.equal(logits(model), untouched)
    merge(model)
    assert torch.equal(logits(model), own)
    unmerge(model)
    assert torch.equal(logits(model), own)
    assert_as_before(detach(model), before)


def test_a_merged_model_without_the_adaptation_is_an_ordinary_one():
    base, model = adapted()
    own = logits(model)
    merge(model, unload=True)
    assert torch.equal(logits(model), own)
    assert list(model.state_dict()) == list(base.state_dict())


def test_several_add_up_and_can_be_averaged():
    base, model = adapted()
    alone = logits(model)
    attach(model, of_experts(r=3, target_modules=["q_proj"], target_parameters=["down_proj"]), "b")
    randomise(model)
    activate(model, "default", "b")
    both = logits(model)
    merge(model)
    torch.testing.assert_close(logits(model), both, rtol=1e-4, atol=1e-4)
    unmerge(model)
    activate(model, "default")
    own = logits(model)
    assert not torch.equal(own, alone)  # they were drawn again
    average(model, ["default"])
    assert torch.equal(logits(model), own)


def test_it_generates_with_a_cache_what_it_does_without():
    _, model = adapted()
    options = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
    kept, again = (model.generate(IDS, use_cache=use, **options) for use in (True, False))
    assert torch.equal(kept, again)


def test_rows_of_a_batch_are_refused():
    _, model = adapted()
    attach(model, of_experts(target_parameters=["gate.weight"]), "router")
    for name in ("default", "router"):
        with pytest.raises(ValueError, match=f"{name}.*can only act on a whole batch"):
            activate(model, rows=[name, None])


def test_threads_that_share_a_model_do_not_see_each_other():
    _, model = adapted()
    inputs = [torch.randint(3, 60, (2, 7)) for _ in range(3)]
    alone, wrong = [logits(model, ids) for ids in inputs], []

    def run(ids, expected):
        for _ in range(15):
            wrong.extend([] if torch.equal(logits(model, ids), expected) else [ids])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [
            threading.Thread(target=run, args=pair) for pair in zip(inputs, alone, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_a_replica_of_another_device_uses_its_own_weights():
    """As `nn.DataParallel` makes them: what were parameters are plain attributes."""
    base, model = adapted()
    experts = model.model.layers[0].mlp.experts
    replica = experts.base._replicate_for_data_parallel()
    for name, p in experts.base.named_parameters(recurse=False):
        setattr(replica, name, 2 * p.detach())
    twin = experts.deltas["default"].stand_in(replica)
    lora = experts.deltas["default"].loras["down_proj"]
    assert torch.equal(twin.down_proj, lora(2 * experts.base.down_proj))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_beside_a_base_of_another_dtype_the_factors_are_float32(dtype):
    model = attach(mixture("Mixtral").to(dtype), of_experts())
    model.config._experts_implementation = "eager"  # torch's grouped product knows no float64
    randomise(model)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    own = logits(model)
    assert own.dtype == dtype
    merge(model)
    rtol = 0.1 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(logits(model), own, rtol=rtol, atol=rtol)


def test_under_autocast_the_sum_keeps_the_weights_dtype():
    _, model = adapted()
    with torch.autocast("cpu", torch.bfloat16):
        own = logits(model)
        assert torch.equal(logits(merge(model)), own)


def test_lora_plus_has_the_experts_B_among_the_fast():
    _, model = adapted()
    slow, fast = lora_plus_groups(model, lr=1e-3, ratio=16)
    assert len(slow["params"]) == len(fast["params"]) == 4


# Claim: what is meant is found, and what would have no effect is refused before anything changes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"target_parameters": ["gate_up_prj"]},
            "'gate_up_prj' matches no.*did you mean 'gate_up_proj'",
        ),
        ({"target_parameters": "down_proj"}, "target_parameters='down_proj': expected a list"),
        ({"target_parameters": ["q_proj.weight"]}, "belongs to a Linear: name the module"),
        ({"target_parameters": ["embed_tokens.weight"]}, "belongs to a Embedding: name the module"),
        ({"target_parameters": ["norm.weight"]}, r"norm.weight' is \(32,\).*expected floats"),
        ({"dropout": 0.1}, "without dropout"),
        ({"rank_pattern": {"up_proj": 1}}, r"rank_pattern: \['up_proj'\] match none"),
        ({"modules_to_save": ["experts"]}, "adapters sit at"),
    ],
)
def test_what_cannot_be_adapted_is_refused(options, words):
    model = mixture("Mixtral")
    before = snapshot(model)
    with pytest.raises(ValueError, match=words):
        attach(model, of_experts(**options))
    assert_as_before(model, before)


def test_relatives_of_lora_refuse_parameters():
    with pytest.raises(ValueError, match="only LoRA adapts them"):
        DoRA(target_parameters=EXPERTS)


class ReadByItsParent(nn.Module):
    """As in DBRX, where the block hands the weights of its child to the child's forward."""

    def __init__(self):
        super().__init__()
        self.experts = nn.Module()
        self.experts.w1 = nn.Parameter(torch.randn(4, 3, 3))

    def forward(self, x):
        return x @ self.experts.w1[0]


class ReadsItsOwn(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 3, 3))

    def forward(self, x):
        return sum(x @ W for W in [self.w[i] for i in range(2)])


def test_a_parameter_that_its_module_does_not_read_itself_is_refused():
    model = nn.Sequential(ReadByItsParent())
    with pytest.raises(ValueError, match=r"w1' is not read by the Module's forward alone"):
        attach(model, of_experts(target_parameters=["w1"]))


def test_a_module_whose_forward_was_replaced_is_refused():
    model = nn.Sequential(ReadsItsOwn())
    attach(model, of_experts(target_parameters=["w"]))
    detach(model)
    model[0].forward = model[0].forward  # as accelerate does for several devices
    with pytest.raises(ValueError, match="is not read by the ReadsItsOwn's forward alone"):
        attach(model, of_experts(target_parameters=["w"]))


def test_a_forward_that_is_replaced_later_does_not_hide_the_changed_weights():
    _, model = adapted()
    own, experts = logits(model), model.model.layers[0].mlp.experts.base
    experts.forward = experts.forward
    assert torch.equal(logits(model), own)


def test_quantised_experts_are_refused():
    model = nn.Sequential(ReadsItsOwn())
    model[0].w = nn.Parameter(torch.zeros(2, 3, 3, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"uint8: expected floats"):
        attach(model, of_experts(target_parameters=["w"]))


def test_ranks_and_alphas_of_single_parameters():
    _, model = adapted(rank_pattern={"down_proj": 3}, alpha_pattern={r"1\..*gate_up_proj": 7})
    first, last = deltas_of(model, "default").values()
    ranks = [len(lora.lora_A.weight) // 4 for lora in first.loras.values()]
    assert ranks == [2, 3]
    assert [first.loras["gate_up_proj"].scaling, last.loras["gate_up_proj"].scaling] == [8, 3.5]


# Claim: what "all-linear" leaves out is said


@pytest.mark.parametrize("name", MIXTURES)
def test_all_linear_says_that_the_experts_stay_frozen(name):
    model = mixture(name)
    frozen = sum(p.numel() for key, p in model.named_parameters() if key.endswith(tuple(EXPERTS)))
    words = (
        f"leaves out {frozen:,} parameters.*target_parameters has experts.down_proj, experts.gate"
    )
    with pytest.warns(UserWarning, match=words):
        attach(model, LoRA(r=1, target_modules="all-linear"))
    count = count_parameters(model)
    assert count.frozen_experts == frozen
    assert str(count).endswith(f"; experts that stay frozen: {frozen:,}")


@pytest.mark.filterwarnings("error:all-linear leaves out")
def test_what_is_named_is_not_said_to_be_left_out():
    model = mixture("Mixtral")
    assert (
        count_parameters(model).frozen_experts == 0
    )  # of the model as it comes, nothing is frozen
    attach(model, of_experts(r=1, target_modules="all-linear"))
    assert count_parameters(model).frozen_experts == 0
    assert "experts" not in str(count_parameters(model))


class Routed(nn.Module):
    """Its router is a linear map, as in Jamba."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(3, 2)
        self.experts = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])


class Gated(Routed):
    """Its router is called a gate, as in HunYuan; another gate is none."""

    def __init__(self):
        super().__init__()
        self.gate = nn.ModuleDict({"wg": nn.Linear(3, 2)})
        self.output = nn.ModuleDict({"gate": nn.Linear(3, 3)})


def test_all_linear_does_not_mean_routers():
    model = nn.Sequential(Gated())
    attach(model, LoRA(r=1, target_modules="all-linear"))
    paths = ["0.experts.0", "0.experts.1", "0.output.gate"]
    assert list(deltas_of(model, "default")) == paths
    detach(model)
    attach(model, LoRA(r=1, target_modules=["router"]))  # but they can be named
    assert list(deltas_of(model, "default")) == ["0.router"]
