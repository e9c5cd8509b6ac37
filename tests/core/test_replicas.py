"""Copies on other devices compute with their own parts, and threads do not see each other's states."""

import copy
import threading

import pytest
import torch
from helpers.models import build, logits, randomise
from torch import nn

from pedagogic_peft import (
    IA3,
    OFT,
    AdapterFusion,
    BottleneckAdapter,
    Compacter,
    DoRA,
    LNTuning,
    LoHa,
    LoKr,
    LoRA,
    LoReFT,
    PiSSA,
    VeRA,
    attach,
)
from pedagogic_peft.core.delta import Reference
from pedagogic_peft.methods.bottleneck import Tap

pytestmark = pytest.mark.filterwarnings("ignore:The head")
SMALL = {"bottleneck_size": 4}
CASES = [
    ("llama", [LoRA(r=2)]),
    ("llama", [DoRA(r=2)]),
    ("llama", [PiSSA(r=2)]),
    ("llama", [VeRA(r=4)]),
    ("llama", [IA3()]),
    ("llama", [LoHa(r=2)]),
    ("llama", [LoKr(r=2)]),
    ("llama", [LoKr(r=8)]),
    ("llama", [OFT(oft_block_size=8)]),
    ("llama", [LNTuning()]),
    ("llama", [LoReFT(r=2)]),
    ("llama", [BottleneckAdapter(placement="houlsby", **SMALL)]),
]
REFERRING = [  # to a module that has its place elsewhere
    ("llama", [Compacter(**SMALL)]),
    ("llama", [BottleneckAdapter(placement="parallel", **SMALL)]),
    ("bert", [BottleneckAdapter(**SMALL)]),
    ("bert", [Compacter(placement="pfeiffer", **SMALL)]),
    ("bert", [BottleneckAdapter(**SMALL), AdapterFusion(["0"])]),
]
CASES += REFERRING


def adapted(name: str, methods: list) -> nn.Module:
    model = build(name)
    for i, method in enumerate(methods):
        attach(model, method, str(i))
    randomise(model)
    return model.eval()


def replica(network: nn.Module) -> nn.Module:
    """Return a copy as `nn.DataParallel` makes it, in float64 instead of on another device."""
    modules = list(network.modules())
    copies = {module: module._replicate_for_data_parallel() for module in modules}
    new = {tensor: tensor.double() for tensor in network.parameters()}
    for module, twin in copies.items():
        for key, child in module._modules.items():
            setattr(twin, key, copies[child])
        for key, p in module._parameters.items():
            setattr(twin, key, None if p is None else new[p])
        for key, b in module._buffers.items():
            twin._buffers[key] = b.double() if b is not None and b.is_floating_point() else b
    return copies[network]


@pytest.mark.parametrize("name, methods", CASES, ids=lambda value: str(value)[:40])
def test_a_replica_computes_with_its_own_copies(name, methods):
    model = adapted(name, methods)
    twin = replica(model)
    found = logits(twin, name)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), logits(model, name), rtol=1e-3, atol=1e-4)
    mine = {id(module) for module in model.modules()}
    assert not any(id(module) in mine for module in twin.modules())
    for module in twin.modules():
        kept = [
            part for value in vars(module).values() if isinstance(value, tuple) for part in value
        ]
        assert not any(id(part) in mine for part in kept)


@pytest.mark.parametrize("name, methods", REFERRING, ids=lambda value: str(value)[:40])
def test_what_is_referred_to_is_named_saved_and_loaded_once(name, methods):
    model, again = adapted(name, methods), adapted(name, methods)
    names = [key for key, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names)) == len({id(p) for p in model.parameters()})
    assert sum("rule" in key for key in names) == isinstance(methods[0], Compacter)
    again.load_state_dict(model.state_dict())  # strict
    assert torch.equal(logits(again, name), logits(model, name))
    twin = copy.deepcopy(model)
    own = {id(module) for module in twin.modules()}
    references = [module for module in twin.modules() if isinstance(module, Reference)]
    assert references
    assert all(id(reference.module) in own for reference in references)


def test_a_reference_does_not_move_or_train_what_it_means():
    linear = nn.Linear(2, 2)
    holder = nn.Sequential(Reference(linear)).to(torch.float64).eval().requires_grad_(False)
    assert linear.weight.dtype == torch.float32 and linear.training and linear.weight.requires_grad
    assert not list(holder.parameters()) and not holder.state_dict()


@pytest.mark.parametrize("reads", ["residual", "normalised"])
def test_a_thread_does_not_see_what_another_thread_kept_in_a_tap(reads):
    model = adapted("llama", [BottleneckAdapter(placement="parallel", reads=reads, **SMALL)])
    expected, other = logits(model, "llama"), threading.Event()

    def run_another(module, args):
        if not other.is_set():  # between the first tap and its adapter
            other.set()
            thread = threading.Thread(target=lambda: model(torch.randint(5, 9, (2, 3))))
            thread.start()
            thread.join()

    handle = model.model.layers[0].mlp.act_fn.register_forward_pre_hook(run_another)
    assert torch.equal(logits(model, "llama"), expected)
    handle.remove()
    assert other.is_set()
    assert all(tap.here.seen is None for tap in model.modules() if isinstance(tap, Tap))


def test_a_parallel_adapter_compiles_as_one_graph():
    model = adapted("llama", [BottleneckAdapter(placement="parallel", **SMALL)])
    block = model.model.layers[0].mlp.down_proj
    tap = block.deltas["0"].tap.module

    def pair(h, x):
        return block(x + 0 * tap.before(h).sum())

    h, x = torch.randn(2, 32), torch.randn(2, 48)
    compiled = torch.compile(pair, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(h, x), pair(h, x))
