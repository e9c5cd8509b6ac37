"""Direct preference optimisation, as page 6.8 builds it: a loss whose reference needs no second model."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.core.verbs import disabled
from pedagogic_peft.course import desk
from pedagogic_peft.training.train import pad_collate


def encode_pair(
    tokenizer: Any, prompt: Sequence[desk.Message], chosen: str, rejected: str
) -> list[Any]:
    """Return the two conversations that end in the chosen and in the rejected answer, encoded."""
    answers = ({"role": "assistant", "content": text} for text in (chosen, rejected))
    return [desk.encode(tokenizer, [*prompt, answer]) for answer in answers]


def collate_pairs(pairs: Sequence[Sequence[Any]], pad_token_id: int = 0) -> dict[str, Tensor]:
    """Return one batch of (2 x pairs, length): first all chosen answers, then all rejected ones."""
    return pad_collate(pad_token_id)([pair[0] for pair in pairs] + [pair[1] for pair in pairs])


def log_probs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return log P(answer | prompt) of each row, the sum over its labelled tokens: (rows,)."""
    here = {key: tensor.to(next(model.parameters()).device) for key, tensor in batch.items()}
    logits = model(here["input_ids"], attention_mask=here["attention_mask"]).logits
    labels = here["labels"][:, 1:]  # position t predicts token t + 1
    each = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels, reduction="none")
    return -each.sum(dim=1)  # the loss of an ignored label is 0


def margins(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return how much more than the reference the model prefers each pair's chosen answer: (pairs,)."""
    with torch.no_grad(), disabled(model):
        reference = log_probs(model, batch)
    chosen, rejected = (log_probs(model, batch) - reference).chunk(2)
    return chosen - rejected


def dpo_loss(model: nn.Module, batch: dict[str, Tensor], beta: float = 0.1) -> Tensor:
    """Return the mean of -log sigmoid(beta * margin) over the pairs (Rafailov et al. 2023, equation 7)."""
    return -F.logsigmoid(beta * margins(model, batch)).mean()
