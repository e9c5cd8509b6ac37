"""Parameter-efficient fine-tuning from scratch: the library of the book.

Nouns are methods (`LoRA`); verbs act on any `transformers` model or `torch.nn.Module` in place.

    model, tokenizer = load_base("gpt2")
    attach(model, LoRA(r=8))
    print(count_parameters(model))
    train(model, examples, steps=200)
    save(model, "my-lora")
"""

from pedagogic_peft.adalora import AdaLoRA, AdaLoRABudget
from pedagogic_peft.adaptation import (
    activate,
    adapter_drop,
    attach,
    detach,
    disabled,
    merge,
    unmerge,
)
from pedagogic_peft.averaging import average
from pedagogic_peft.bases import load_base
from pedagogic_peft.bitfit import BitFit
from pedagogic_peft.bottleneck import BottleneckAdapter
from pedagogic_peft.checkpoint import load, save
from pedagogic_peft.compacter import Compacter
from pedagogic_peft.counting import count_parameters, model_bytes
from pedagogic_peft.dora import DoRA
from pedagogic_peft.fusion import AdapterFusion
from pedagogic_peft.hub_adapters import load_adapterhub
from pedagogic_peft.ia3 import IA3
from pedagogic_peft.llama_adapter import LlamaAdapter
from pedagogic_peft.lora import LoRA
from pedagogic_peft.lora_plus import lora_plus_groups
from pedagogic_peft.nf4 import dequantize_nf4, quantize_nf4
from pedagogic_peft.pissa import PiSSA
from pedagogic_peft.prefix_tuning import PrefixTuning, PTuningV2
from pedagogic_peft.prompt_tuning import PromptTuning, PTuning
from pedagogic_peft.training import train
from pedagogic_peft.vera import VeRA

__all__ = [
    "IA3",
    "AdaLoRA",
    "AdaLoRABudget",
    "AdapterFusion",
    "BitFit",
    "BottleneckAdapter",
    "Compacter",
    "DoRA",
    "LlamaAdapter",
    "LoRA",
    "PTuning",
    "PTuningV2",
    "PiSSA",
    "PrefixTuning",
    "PromptTuning",
    "VeRA",
    "activate",
    "adapter_drop",
    "attach",
    "average",
    "count_parameters",
    "dequantize_nf4",
    "detach",
    "disabled",
    "load",
    "load_adapterhub",
    "load_base",
    "lora_plus_groups",
    "merge",
    "model_bytes",
    "quantize_nf4",
    "save",
    "train",
    "unmerge",
]
