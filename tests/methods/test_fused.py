"""LoRA in fewer steps computes what `LoRALinear` does, and gives way where that does more."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from pedagogic_peft import LoRA, attach, disabled
from pedagogic_peft.core.delta import EMPTY, FUSED, HOLDERS, blank, linear
from pedagogic_peft.methods.fused import fused_lora
from pedagogic_peft.methods.lora import LoRALinear


def trained(**options):
    torch.manual_seed(0)
    delta = LoRALinear(6, 5, 3, 8, **options).eval()
    nn.init.normal_(delta.lora_B.weight)
    return delta


def maps():
    """A frozen map of each kind that is computed without its module, and one that is called."""
    torch.manual_seed(1)
    conv = Conv1D(5, 6)
    nn.init.normal_(conv.bias)

    class Doubling(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    made = [nn.Linear(6, 5), nn.Linear(6, 5, bias=False), conv, Doubling(6, 5)]
    return [base.requires_grad_(False) for base in made]


def called(delta, base, x):
    return delta(x, base(x))


@pytest.mark.parametrize("base", maps(), ids=lambda base: type(base).__name__)
@pytest.mark.parametrize("shape", [(4,), (2, 3), (1, 1), (2, 3, 4), (), (0, 3)])
def test_it_is_the_formula(shape, base):
    delta, x = trained(), torch.randn(*shape, 6)
    with torch.no_grad():
        torch.testing.assert_close(fused_lora(delta, base, x), called(delta, base, x))


def test_what_is_no_stretch_of_memory_is_read_right():
    delta, base, x = trained(), maps()[2], torch.randn(6, 3, 2).permute(2, 1, 0)
    with torch.no_grad():
        torch.testing.assert_close(fused_lora(delta, base, x), called(delta, base, x.contiguous()))


def test_a_changed_or_replaced_weight_is_seen():
    delta, base, x = trained(), maps()[0], torch.randn(1, 1, 6)
    with torch.no_grad():
        y = base(x)
        before = fused_lora(delta, base, x)
        delta.lora_B.weight.mul_(2)
        written = fused_lora(delta, base, x)
        delta.lora_B.weight = nn.Parameter(2 * delta.lora_B.weight)
        replaced = fused_lora(delta, base, x)
        base.weight = nn.Parameter(torch.zeros(5, 6))
        without = fused_lora(delta, base, x)
    torch.testing.assert_close(written - y, 2 * (before - y))
    torch.testing.assert_close(replaced - y, 4 * (before - y))
    torch.testing.assert_close(without - base.bias, replaced - y)


@pytest.mark.parametrize("which", ["delta", "base"])
@pytest.mark.parametrize("how", ["register_forward_hook", "register_forward_pre_hook"])
def test_who_watches_a_module_sees_it_called(which, how):
    delta, base, x, seen = trained(), maps()[0], torch.randn(1, 4, 6), []
    module = {"delta": delta, "base": base}[which]
    getattr(module, how)(lambda *args: seen.append(args[-1]))
    with torch.no_grad():
        fused_lora(delta, base, x)
    assert len(seen) == 1


def test_what_a_hook_saw_of_the_frozen_map_is_not_written_into():
    delta, base, x, seen = trained(), maps()[0], torch.randn(1, 4, 6), []
    with torch.no_grad():
        own = base(x)
        base.register_forward_hook(lambda module, args, y: seen.append(y))
        fused_lora(delta, base, x)
    assert torch.equal(seen[0], own)


def test_who_watches_all_modules_sees_them_called():
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *more: seen.append(m))
    delta, base = trained(), maps()[0]
    try:
        with torch.no_grad():
            fused_lora(delta, base, torch.randn(1, 4, 6))
    finally:
        handle.remove()
    assert {delta, base} <= {*seen}


def test_a_forward_that_was_put_in_the_place_of_a_maps_own_is_called():
    """As accelerate does, whose forward brings an offloaded weight first."""
    delta, base, x = trained(), maps()[0], torch.randn(1, 4, 6)
    base.forward = lambda x: torch.ones(1, 4, 5)
    with torch.no_grad():
        torch.testing.assert_close(fused_lora(delta, base, x), delta(x, torch.ones(1, 4, 5)))


@pytest.mark.parametrize("base", maps()[:3], ids=lambda base: type(base).__name__)
def test_autocast_is_the_modules(base):
    delta, x = trained(), torch.randn(1, 4, 6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, own = fused_lora(delta, base, x), called(delta, base, x)
    assert ours.dtype == own.dtype and torch.equal(ours, own)


def test_dropout_and_other_dtypes_take_the_deltas_own_forward():
    base, x = maps()[0], torch.randn(1, 4, 6)
    with torch.no_grad():
        dropping = trained(dropout=0.5).train()
        assert not torch.equal(fused_lora(dropping, base, x), fused_lora(dropping, base, x))
        half = fused_lora(trained(), base.bfloat16(), x.bfloat16())
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("sizes", [(16, 2), (2, 16), (768, 8), (11, 1), (1, 3)])
def test_linear_is_torchs_own(sizes):
    """Type, attributes and numbers; also what the next draw is."""
    torch.manual_seed(0)
    ours, ours_next = linear(*sizes), torch.rand(3)
    torch.manual_seed(0)
    torchs, torchs_next = nn.Linear(*sizes, bias=False), torch.rand(3)
    assert type(ours) is nn.Linear and vars(ours).keys() == vars(torchs).keys()
    assert repr(ours) == repr(torchs) and ours.bias is None and ours.weight.requires_grad
    assert torch.equal(ours.weight, torchs.weight) and torch.equal(ours_next, torchs_next)
    assert list(ours.state_dict()) == ["weight"]


def test_a_lora_is_drawn_as_from_torchs_own_maps():
    torch.manual_seed(0)
    delta, after = LoRALinear(48, 32, 4, 8), torch.rand(3)
    torch.manual_seed(0)
    A, _ = nn.Linear(48, 4, bias=False), nn.Linear(4, 32, bias=False)
    nn.init.kaiming_uniform_(A.weight, a=5**0.5)
    assert torch.equal(delta.lora_A.weight, A.weight) and torch.equal(after, torch.rand(3))


def test_a_module_that_is_made_in_less_time_has_what_torchs_own_has():
    made, own = vars(blank(nn.Identity)), vars(nn.Identity())
    assert made == own and [*made] == [*own]
    assert not any(made[name] is EMPTY[name] for name in HOLDERS)
    assert all(isinstance(EMPTY[name], bool | None) for name in {*EMPTY} - {*HOLDERS})


def test_a_site_takes_the_fewer_steps_where_no_gradient_is_asked_for(monkeypatch):
    taken = []

    def recorded(delta, base, x):
        taken.append(base)
        return fused_lora(delta, base, x)

    monkeypatch.setitem(FUSED, LoRALinear, recorded)
    base = nn.Linear(6, 5)
    model, x = attach(nn.Sequential(base), LoRA(r=2, target_modules=["0"])), torch.randn(1, 6)
    model(x)
    assert taken == []  # a gradient would be lost
    with torch.no_grad():
        model(x)
    assert taken == [base]
    with torch.no_grad(), disabled(model):
        model(x)
    assert taken == [base]
