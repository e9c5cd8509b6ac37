"""A path that is the end of another path: what is saved means the one, for us and for PEFT."""

import copy

import peft
import pytest
import torch
from helpers.models import randomise
from torch import nn

from pedagogic_peft import IA3, DoRA, LoRA, PiSSA, VeRA, attach, load, save


class Net(nn.Module):
    """fc, block.fc, block.block.fc, and a module whose name has signs of regular expressions."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.block = nn.ModuleDict({"fc": nn.Linear(6, 6), "xfc": nn.Linear(6, 6)})
        self.block["block"] = nn.ModuleDict({"fc": nn.Linear(6, 6)})

    def forward(self, x):
        h = self.block["xfc"](torch.tanh(self.block["fc"](torch.tanh(self.fc(x)))))
        return self.block["block"]["fc"](torch.tanh(h))


def sequential() -> nn.Module:
    inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    return nn.Sequential(nn.Linear(6, 6), inner, nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6)))


NETS = {"named": Net, "sequential": sequential}
CASES = [
    ("named", LoRA(r=2, target_modules="fc")),
    ("named", LoRA(r=2, target_modules=r"(block\.)?fc")),
    ("named", LoRA(r=2, target_modules=["fc"], rank_pattern={"^fc": 3})),
    ("named", LoRA(r=2, target_modules=["fc"], rank_pattern={r"block\.fc": 3, "fc": 1})),
    ("named", LoRA(r=2, target_modules=["fc"], alpha_pattern={"^fc": 3.0, r"^block\.fc": 5.0})),
    ("named", LoRA(r=2, target_modules="fc", alpha_pattern={"fc": 3.0}, rank_pattern={"fc": 4})),
    ("named", DoRA(r=2, target_modules="fc")),
    ("named", VeRA(r=2, target_modules="fc")),
    ("named", IA3(target_modules=r"fc|block\.fc", feedforward_modules="fc")),
    ("named", IA3(target_modules=["fc", "xfc"], feedforward_modules=["fc"])),
    ("named", IA3(target_modules="fc", feedforward_modules=[])),
    ("sequential", LoRA(r=2, target_modules="0|2")),
    ("sequential", LoRA(r=2, target_modules=["0"], rank_pattern={"^0": 3})),
    ("sequential", LoRA(r=2, target_modules=["0", "2"], rank_pattern={"1.0": 3, "^2": 1})),
]


@pytest.mark.parametrize(
    "net, method",
    CASES,
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_load_gives_back_what_was_saved_and_peft_reads_the_same(net, method, tmp_path):
    torch.manual_seed(0)
    base, x = NETS[net]().eval(), torch.randn(3, 6)
    model = attach(copy.deepcopy(base), method)
    randomise(model)
    save(model, tmp_path)
    with torch.no_grad():
        expected = model(x)
        again = load(copy.deepcopy(base), tmp_path)
        assert torch.equal(again(x), expected)
        save(again, tmp_path / "again")
        assert torch.equal(load(copy.deepcopy(base), tmp_path / "again")(x), expected)
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
        torch.testing.assert_close(theirs(x), expected)
    shapes = sorted(tuple(p.shape) for p in model.parameters() if p.requires_grad)
    own = [p for key, p in theirs.named_parameters() if "lora_" in key or "ia3_" in key]
    if not isinstance(method, VeRA | DoRA):
        assert sorted(tuple(p.shape) for p in own) == shapes


def test_a_pissa_beside_a_module_of_the_same_end_is_read_as_the_lora_that_it_equals(tmp_path):
    torch.manual_seed(0)
    base, x = Net().eval(), torch.randn(3, 6)
    method = PiSSA(r=2, target_modules=["fc"], rank_pattern={"^fc": 3})
    model = attach(copy.deepcopy(base), method)
    randomise(model)
    save(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(load(copy.deepcopy(base), tmp_path)(x), model(x))
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
        torch.testing.assert_close(theirs(x), model(x))
