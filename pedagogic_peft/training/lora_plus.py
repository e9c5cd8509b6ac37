"""LoRA+ (Hayou et al. 2024, arXiv:2402.12354): LoRA with one learning rate for A and another for B."""

from typing import Any

from torch import nn

from pedagogic_peft.core import validation
from pedagogic_peft.methods.experts import LoRAParameter
from pedagogic_peft.methods.lora import LoRAEmbedding, LoRALinear


def lora_plus_groups(
    model: nn.Module, lr: float, ratio: float = 16, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Return parameter groups for an optimiser of torch, of all that is trained, as in LoRA+.

    LoRA+ (Hayou et al. 2024, arXiv:2402.12354) is not another form of ΔW but other learning rates.
    With one rate for A and B, a LoRA of a wide model learns less per step than it could: A, which
    sums over the many inputs, must move little for the output to stay bounded, and B, which sums over
    r numbers only, may move much more. So B gets a rate ``ratio`` times that of A; they propose 16::

        optimizer = torch.optim.AdamW(lora_plus_groups(model, lr=2e-4))
        train(model, examples, steps=1000, optimizer=optimizer)

    The fast group has the B of every LoRA beside a linear map, also where it is part of a `DoRA` or
    `PiSSA`. Beside an embedding the two are exchanged at the start, and A is the one that is zero
    (`LoRAEmbedding`); its input is a single token, so it does not sum over many, and it gets the
    fast rate. That is this library's choice: the paper has no embeddings, and PEFT gives both
    factors a rate of their own. Everything else, such as a new head, has the rate ``lr``.

    Args:
        model: a model with a LoRA.
        lr: learning rate of A and the rest.
        ratio: learning rate of B divided by that of A.
        weight_decay: of both groups.

    Returns:
        The slow group, then the fast one, as dicts with "params", "lr" and "weight_decay".

    Raises:
        ValueError: the model has no LoRA that is trained; a value is out of range.

    Example:
        >>> import torch
        >>> from pedagogic_peft import LoRA, attach, load_base, lora_plus_groups
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> groups = lora_plus_groups(attach(model, LoRA(r=4)), lr=2e-4)
        >>> [group["lr"] for group in groups]
        [0.0002, 0.0032]
        >>> optimizer = torch.optim.AdamW(groups)  # for train(..., optimizer=optimizer)
    """
    validation.positive("lr", lr)
    validation.positive("ratio", ratio)
    linear = LoRALinear | LoRAParameter
    fast = {m.lora_B.weight for m in model.modules() if isinstance(m, linear)}
    fast |= {m.lora_embedding_A for m in model.modules() if isinstance(m, LoRAEmbedding)}
    trained = [p for p in model.parameters() if p.requires_grad]
    if not fast.intersection(trained):
        raise ValueError(f"This {type(model).__name__} has no LoRA that is trained: attach one")
    slow, quick = [p for p in trained if p not in fast], [p for p in trained if p in fast]
    groups = [{"params": slow, "lr": lr}, {"params": quick, "lr": lr * ratio}]
    return [group | {"weight_decay": weight_decay} for group in groups]
