"""The models, adaptations and steps that the cases time.

Models have the sizes of the real ones and random weights: nothing here depends on what they learned.
"""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import peft
import torch
import transformers as hf
from torch import nn

import pedagogic_peft as pp
from benchmarks.measure import DEVICE

SHAPES = {"batch 4 x 64": (4, 64), "batch 1 x 16": (1, 16)}
TARGETS = {"gpt2": ["c_attn"], "bert": ["query", "value"]}
N = 20  # virtual tokens
Batch = dict[str, torch.Tensor]


@cache
def base(name: str) -> Any:
    """Return GPT-2's smallest size (124 M parameters) or BERT-base (109 M), frozen, no dropout."""
    torch.manual_seed(0)
    if name == "gpt2":
        model: Any = hf.GPT2LMHeadModel(hf.GPT2Config())
    else:
        model = hf.BertForSequenceClassification(hf.BertConfig())
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.to(DEVICE).requires_grad_(False).train()


def fresh(name: str) -> Any:
    """Return a model of its own on the same frozen weights, so that caches treat all alike."""
    weights = {id(p): p for p in base(name).parameters()}
    return copy.deepcopy(base(name), weights)


def inputs(name: str, shape: tuple[int, int]) -> Batch:
    """Return random tokens (batch, sequence) with labels."""
    ids = torch.randint(0, 1000, shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    labels = ids if name == "gpt2" else ids[:, 0] % 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def methods(kind: str, name: str, **theirs: Any) -> tuple[Any, Any]:
    """Return our hyper-parameters and PEFT's, for the same adaptation."""
    theirs["task_type"] = "CAUSAL_LM" if name == "gpt2" else "SEQ_CLS"
    head = [] if name == "gpt2" else ["classifier"]  # PEFT adds it for SEQ_CLS
    if kind in ("LoRA", "DoRA"):
        theirs |= {"target_modules": TARGETS[name], "fan_in_fan_out": name == "gpt2"}
        method = pp.LoRA if kind == "LoRA" else pp.DoRA
        return (
            method(r=8, alpha=16, target_modules=TARGETS[name], modules_to_save=head),
            peft.LoraConfig(r=8, lora_alpha=16, use_dora=kind == "DoRA", **theirs),
        )
    soft: dict[str, Any] = {"num_virtual_tokens": N, "modules_to_save": head}
    config = {"prompt tuning": peft.PromptTuningConfig, "prefix tuning": peft.PrefixTuningConfig}
    method = pp.PromptTuning if kind == "prompt tuning" else pp.PrefixTuning
    return method(**soft), config[kind](num_virtual_tokens=N, **theirs)


def both(kind: str, name: str) -> dict[str, Any]:
    """Return the model adapted by us and by PEFT."""
    own, other = methods(kind, name)
    theirs = peft.get_peft_model(fresh(name), other)
    return {"ours": pp.attach(fresh(name), own).train(), "theirs": theirs.train()}


def stepper(model: Any, batch: Batch) -> Callable[[], None]:
    """Return one training step: forward, backward and AdamW."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def bound(model: Any, batch: Batch) -> Callable[[], None]:
    """Return the least that a method at every layer must do with a frozen model.

    That is the forward pass, and the activations' gradient down to the lowest layer.
    """
    embedded = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_(True)
    rest = {key: value for key, value in batch.items() if key != "input_ids"}
    return lambda: model(inputs_embeds=embedded, **rest).loss.backward()


def deep_llama() -> Any:
    """Return a Llama of 80 layers, 560 linear maps in them, narrow so that only counts matter."""
    config = hf.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=80,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config)
