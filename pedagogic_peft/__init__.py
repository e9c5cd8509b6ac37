"""Parameter-efficient fine-tuning from scratch: the library of the book.

Nouns are methods (`LoRA`); verbs act on any `transformers` model or `torch.nn.Module` in place.

    model, tokenizer = load_base("gpt2")
    attach(model, LoRA(r=8))
    print(count_parameters(model))
    train(model, examples, steps=200)
    save(model, "my-lora")
"""

from pedagogic_peft.adaptation import activate, attach, detach, disabled, merge, unmerge
from pedagogic_peft.bases import load_base
from pedagogic_peft.checkpoint import load, save
from pedagogic_peft.counting import count_parameters
from pedagogic_peft.lora import LoRA
from pedagogic_peft.training import train

__all__ = [
    "LoRA",
    "activate",
    "attach",
    "count_parameters",
    "detach",
    "disabled",
    "load",
    "load_base",
    "merge",
    "save",
    "train",
    "unmerge",
]
