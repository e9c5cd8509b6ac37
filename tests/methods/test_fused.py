"""LoRA in fewer steps computes what `LoRALinear` does, and gives way where that does more."""

import pytest
import torch
from torch import nn

from pedagogic_peft.core.delta import EMPTY, HOLDERS, blank, linear
from pedagogic_peft.methods.fused import fused_lora
from pedagogic_peft.methods.lora import LoRALinear


def trained(**options):
    torch.manual_seed(0)
    delta = LoRALinear(6, 5, 3, 8, **options).eval()
    nn.init.normal_(delta.lora_B.weight)
    return delta


@pytest.mark.parametrize("shape", [(4,), (2, 3), (1, 1), (2, 3, 4), ()])
def test_it_is_the_formula(shape):
    delta, x, y = trained(), torch.randn(*shape, 6), torch.randn(*shape, 5)
    with torch.no_grad():
        torch.testing.assert_close(fused_lora(delta, x, y), delta(x, y))


def test_a_changed_or_replaced_weight_is_seen():
    delta, x, y = trained(), torch.randn(1, 1, 6), torch.randn(1, 1, 5)
    with torch.no_grad():
        before = fused_lora(delta, x, y)
        delta.lora_B.weight.mul_(2)
        written = fused_lora(delta, x, y)
        delta.lora_B.weight = nn.Parameter(2 * delta.lora_B.weight)
        replaced = fused_lora(delta, x, y)
    torch.testing.assert_close(written - y, 2 * (before - y))
    torch.testing.assert_close(replaced - y, 4 * (before - y))


def test_hooks_dropout_and_other_dtypes_take_the_deltas_own_forward():
    x, y = torch.randn(1, 4, 6), torch.randn(1, 4, 5)
    hooked, calls = trained(), []
    hooked.register_forward_hook(lambda *args: calls.append(1))
    with torch.no_grad():
        fused_lora(hooked, x, y)
        assert calls == [1]
        dropping = trained(dropout=0.5).train()
        assert not torch.equal(fused_lora(dropping, x, y), fused_lora(dropping, x, y))
        half = fused_lora(trained(), x.bfloat16(), y.bfloat16())
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
