"""Details that no other test would have missed: each kills a mutant that had survived `make mutants`."""

import pytest
import torch
from models import build
from torch import nn

from pedagogic_peft import IA3, AdaLoRA, DoRA, VeRA, attach, load, save
from pedagogic_peft.fusion import Fusion


class Scaled(nn.Module):
    """Stands for an adapter of width d that changes h by a factor."""

    def __init__(self, d, factor):
        super().__init__()
        self.adapter_up, self.factor = nn.Linear(1, d), factor

    def change(self, h, frozen):
        assert frozen
        return self.factor * h


def test_queries_and_keys_of_a_fusion_begin_small():
    fusion = Fusion([Scaled(200, 1.0)])
    assert fusion.query.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert fusion.key.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(fusion.value.weight, torch.eye(200))


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6), (2, 3, 5, 6)])
def test_a_fusion_works_on_any_number_of_dimensions(shape):
    fusion, h = Fusion([Scaled(6, 1.0), Scaled(6, -2.0)]), torch.randn(shape)
    for row, out in zip(h.reshape(-1, 6), fusion.change(h).reshape(-1, 6), strict=True):
        z = torch.stack([row, -2 * row])  # (2, 6)
        a = (fusion.key(z) @ fusion.query(row)).softmax(0)
        torch.testing.assert_close(out, a @ z)


def test_a_fusion_computes_in_the_dtype_of_its_input():
    out = Fusion([Scaled(6, 1.0)]).change(torch.randn(2, 6, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize("method", [DoRA(r=2), VeRA(r=4), IA3()], ids=lambda m: type(m).__name__)
def test_a_base_in_bfloat16_stays_so(method):
    model = attach(build("gpt2").bfloat16(), method)
    seen = {}
    for path, module in model.named_modules():
        if hasattr(module, "deltas"):
            module.register_forward_hook(
                lambda m, i, out, path=path: seen.update({path: out.dtype})
            )
    model(input_ids=torch.tensor([[3, 4, 5]]))
    assert seen and set(seen.values()) == {torch.bfloat16}


def test_vera_has_its_dropout():
    model = attach(build("gpt2"), VeRA(r=4, dropout=0.3))
    delta = model.transformer.h[0].attn.c_attn.deltas["default"]
    assert isinstance(delta.dropout, nn.Dropout) and delta.dropout.p == 0.3
    plain = attach(build("gpt2"), VeRA(r=4)).transformer.h[0].attn.c_attn.deltas["default"]
    assert not isinstance(plain.dropout, nn.Dropout)


def test_a_checkpoint_of_adalora_without_init_r_has_pefts_default(tmp_path):
    import json

    torch.manual_seed(0)
    save(attach(build("gpt2"), AdaLoRA(init_r=12, target_r=4)), tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    del config["init_r"]
    file.write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="edited|changed|saved"):
        model = load(build("gpt2"), tmp_path)
    assert model._adaptations.methods["default"].init_r == 12


def test_a_quantised_map_follows_the_dtype_of_its_model():
    from pedagogic_peft.nf4 import NF4Linear

    layer = NF4Linear(nn.Linear(64, 64))
    assert layer.weight.dtype == torch.float32
    assert layer.bfloat16().weight.dtype == torch.bfloat16
    assert layer.to("cpu").weight.dtype == torch.bfloat16  # a move alone changes no dtype
    assert layer.float().weight.dtype == torch.float32


def test_the_total_of_adalora_in_a_checkpoint_is_the_least_peft_takes(tmp_path):
    import json

    save(attach(build("gpt2"), AdaLoRA(init_r=4, target_r=2, tinit=3, tfinal=5)), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["total_step"] == 9
