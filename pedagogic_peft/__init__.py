"""Parameter-efficient fine-tuning from scratch: the library of the book.

Nouns are methods (`LoRA`); verbs act on any `transformers` model or `torch.nn.Module` in place.

    model, tokenizer = load_base("gpt2")
    attach(model, LoRA(r=8))
    print(count_parameters(model))
    train(model, examples, steps=200)
    save(model, "my-lora")
"""

from pedagogic_peft.core.counting import count_parameters, model_bytes
from pedagogic_peft.core.verbs import (
    activate,
    adapter_drop,
    attach,
    average,
    detach,
    disabled,
    merge,
    unmerge,
)
from pedagogic_peft.course.attention import attention_shares
from pedagogic_peft.course.models import load_base
from pedagogic_peft.files.adapterhub import load_adapterhub
from pedagogic_peft.files.checkpoint import load, save
from pedagogic_peft.methods.adalora import AdaLoRA
from pedagogic_peft.methods.bitfit import BitFit
from pedagogic_peft.methods.bottleneck import BottleneckAdapter
from pedagogic_peft.methods.compacter import Compacter
from pedagogic_peft.methods.dora import DoRA
from pedagogic_peft.methods.fusion import AdapterFusion
from pedagogic_peft.methods.ia3 import IA3
from pedagogic_peft.methods.llama_adapter import LlamaAdapter
from pedagogic_peft.methods.ln_tuning import LNTuning
from pedagogic_peft.methods.loha import LoHa
from pedagogic_peft.methods.lokr import LoKr
from pedagogic_peft.methods.lora import LoRA
from pedagogic_peft.methods.loreft import LoReFT
from pedagogic_peft.methods.merging import combine
from pedagogic_peft.methods.nf4 import dequantize_nf4, quantize_nf4
from pedagogic_peft.methods.oft import OFT
from pedagogic_peft.methods.pissa import PiSSA
from pedagogic_peft.methods.prefix_tuning import PrefixTuning, PTuningV2
from pedagogic_peft.methods.prompt_tuning import PromptTuning, PTuning
from pedagogic_peft.methods.vera import VeRA
from pedagogic_peft.training.adalora_budget import AdaLoRABudget
from pedagogic_peft.training.lora_plus import lora_plus_groups
from pedagogic_peft.training.train import train

__version__ = "0.1.0"

__all__ = ["LoRA", "DoRA", "PiSSA", "VeRA", "AdaLoRA", "AdaLoRABudget", "lora_plus_groups"]
__all__ += ["LNTuning", "LoHa", "LoKr", "OFT", "LoReFT"]
__all__ += ["BottleneckAdapter", "Compacter", "AdapterFusion", "load_adapterhub", "IA3", "BitFit"]
__all__ += ["PromptTuning", "PTuning", "PrefixTuning", "PTuningV2", "LlamaAdapter"]
__all__ += ["attention_shares"]
__all__ += ["load_base", "quantize_nf4", "dequantize_nf4", "count_parameters", "model_bytes"]
__all__ += ["attach", "detach", "activate", "disabled", "adapter_drop", "merge", "unmerge"]
__all__ += ["average", "combine", "save", "load", "train"]
