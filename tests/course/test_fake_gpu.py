"""The emulated GPU refuses what a GPU refuses, and lets through what it lets through."""

import copy

import pytest
import torch
from helpers.fake_gpu import FakeGPU
from torch import nn

from pedagogic_peft import LoRA, attach, load_base, merge, train
from pedagogic_peft.course.pocket import tasks


@pytest.fixture
def gpu():
    with FakeGPU() as gpu:
        yield gpu


REFUSED = {
    "a sum": lambda x: x + torch.ones(3),
    "a matrix product": lambda x: torch.ones(3, 3) @ x,
    "a layer that was not moved": lambda x: nn.Linear(3, 2)(x),
    "an index of the GPU into a tensor of the CPU": lambda x: torch.ones(3)[x.long()],
    "a comparison of two places": lambda x: torch.equal(x, torch.ones(3)),
    "numbers of two places, stacked": lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
    "a number of the GPU times a tensor of the CPU": lambda x: torch.ones(3) * x.sum(),
    "NumPy": lambda x: x.numpy(),
    "a generator of the CPU": lambda x: torch.rand(3, device=x.device, generator=torch.Generator()),
}
ALLOWED = {
    "a Python number": lambda x: x + 1,
    "a number of the CPU": lambda x: x * torch.tensor(2.0),
    "an index of the CPU": lambda x: x[torch.tensor([0, 1])],
    "a slice that is set": lambda x: x.__setitem__(slice(0, 2), torch.zeros(2)) or x,
    "a copy": lambda x: x.copy_(torch.zeros(3)),
    "like another": lambda x: torch.zeros_like(x),
    "moved before": lambda x: x + torch.ones(3).to(x),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_gpu_refuses(what, gpu):
    with pytest.raises((RuntimeError, TypeError), match="emulated"):
        REFUSED[what](torch.ones(3, device="cuda"))


@pytest.mark.parametrize("what", ALLOWED)
def test_what_a_gpu_allows_stays_there(what, gpu):
    assert ALLOWED[what](torch.ones(3, device="cuda")).device.type == "cuda"


def test_tensors_come_back(gpu):
    x = torch.ones(3, device="cuda")
    for back in (x.cpu(), x.to("cpu"), x.to(torch.ones(1))):
        assert back.device.type == "cpu" and x.device.type == "cuda"
    assert x.cpu().numpy().sum() == x.sum().item() == 3 and x.tolist() == [1, 1, 1]


def test_a_module_moves_with_parameters_gradients_and_copies(gpu):
    layer = nn.Linear(3, 2).to("cuda")
    layer(torch.ones(3, device="cuda")).sum().backward()
    assert {p.device.type for p in layer.parameters()} == {"cuda"}
    assert {p.grad.device.type for p in layer.parameters()} == {"cuda"}
    assert copy.deepcopy(layer).weight.device.type == "cuda"
    assert layer.state_dict()["weight"].device.type == "cuda"
    assert layer.cpu().weight.device.type == "cpu"


def test_train_moves_the_model_there_and_it_stays(gpu):
    model, tokenizer = load_base("pocket-gpt-tiny")
    data = tasks.encode(tokenizer, tasks.sentiment(8, seed=0))
    train(attach(model, LoRA(r=2)), data, steps=2, batch_size=4, progress=False)
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    with pytest.raises(RuntimeError, match="two devices"):
        model(**tokenizer("tom went", return_tensors="pt"))
    batch = tokenizer("tom went", return_tensors="pt").to(model.device)
    assert merge(model)(**batch).logits.device.type == "cuda"


def test_afterwards_there_is_no_gpu():
    from accelerate import Accelerator

    with FakeGPU():
        assert Accelerator().device.type == "cuda"
    assert Accelerator().device.type == "cpu"
    assert nn.Parameter(torch.ones(1)).device.type == "cpu"
