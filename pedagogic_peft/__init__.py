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
    average,
    detach,
    disabled,
    merge,
    unmerge,
)
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
from pedagogic_peft.lora import LoRA, lora_plus_groups
from pedagogic_peft.nf4 import dequantize_nf4, quantize_nf4
from pedagogic_peft.pissa import PiSSA
from pedagogic_peft.prefix_tuning import PrefixTuning, PTuningV2
from pedagogic_peft.prompt_tuning import PromptTuning, PTuning
from pedagogic_peft.training import train
from pedagogic_peft.vera import VeRA

__version__ = "0.1.0"

__all__ = ["LoRA", "DoRA", "PiSSA", "VeRA", "AdaLoRA", "AdaLoRABudget", "lora_plus_groups"]
__all__ += ["BottleneckAdapter", "Compacter", "AdapterFusion", "load_adapterhub", "IA3", "BitFit"]
__all__ += ["PromptTuning", "PTuning", "PrefixTuning", "PTuningV2", "LlamaAdapter"]
__all__ += ["load_base", "quantize_nf4", "dequantize_nf4", "count_parameters", "model_bytes"]
__all__ += ["attach", "detach", "activate", "disabled", "adapter_drop", "merge", "unmerge"]
__all__ += ["average", "save", "load", "train"]
