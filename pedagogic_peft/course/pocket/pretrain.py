"""Pretrain pocket-gpt, or one of its smaller siblings, on the story world.

    python -m pedagogic_peft.course.pocket.pretrain --out FOLDER [--size pocket-gpt-small]

writes the model, its tokenizer and ``pretraining.json`` (how it was made, its losses, its checksums).
The weights in the package were made by this command with its defaults, one size after the other.
"""

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pedagogic_peft.course.pocket import stories, tasks
from pedagogic_peft.course.pocket.tokenizer import build_tokenizer

ANSWER_WEIGHT = 4.0  # an answer is one token in twelve: weigh it, or the look-up is learned late
SIZES = {  # width, width of the feed-forward layers, number of layers, heads
    "pocket-gpt": (160, 432, 4, 8),  # 1.3 M parameters
    "pocket-gpt-small": (96, 256, 3, 6),  # 374 k
    "pocket-gpt-tiny": (48, 128, 2, 8),  # 76 k
}
EARLY = 0.3  # the share of the steps in which most documents are short (see stories.EARLIER)


def build_model(tokenizer: PreTrainedTokenizerFast, size: str = "pocket-gpt") -> LlamaForCausalLM:
    """A decoder of Llama's architecture: separate q, k, v; RoPE; RMSNorm; tied head."""
    width, inner, layers, heads = SIZES[size]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, for weight matrices (Jordan et al. 2024).

    ``torch.optim.Muon`` does the same in bfloat16, which processors without such instructions run
    many times slower; this one stays in float32. The look-up that answers a question appears after
    several times fewer tokens than with AdamW.
    """

    def __init__(self, params: list[torch.nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # takes no closure
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                mean = state.setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalise(weight.grad.lerp(mean, group["momentum"]))
                shape = max(1, weight.shape[0] / weight.shape[1]) ** 0.5
                weight.add_(update, alpha=-group["lr"] * shape)


def orthogonalise(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Move the singular values of a matrix towards 1 by Newton–Schulz iterations."""
    x: torch.Tensor = matrix / (matrix.norm() + 1e-7)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.T


def optimisers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices of the layers; AdamW for embeddings and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if not any(p is m for m in matrices)]
    return [
        Muon(matrices, lr=0.02),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0),
    ]


def batches(tokenizer: Any, steps: int, batch_size: int, seed: int) -> Iterator[list[list[int]]]:
    """Yield lists of encoded documents of similar length, each document seen once."""
    pool = 16  # batches drawn and sorted together, so that little is padding
    for start in range(0, steps, pool):
        numbers = range(start * batch_size, (start + pool) * batch_size)
        documents = [stories.document(*source(seed, i, steps * batch_size)) for i in numbers]
        encoded = tokenizer([d + " <eos>" for d in documents]).input_ids
        encoded.sort(key=len)
        drawn = [encoded[i : i + batch_size] for i in range(0, len(encoded), batch_size)]
        Random(start).shuffle(drawn)
        yield from drawn[: steps - start]


def source(seed: int, i: int, total: int) -> tuple[Random, bool]:
    """What makes document ``i`` of ``total``: its own generator, and whether it comes early."""
    return Random(f"{seed}:{i}"), i < EARLY * total


def training_stories(n: int, seed: int, total: int) -> list[str]:
    """The last ``n`` stories with questions that pretraining with ``total`` documents saw."""
    found = []
    for i in reversed(range(total)):
        rng, early = source(seed, i, total)
        if stories.kind_of_document(rng, early) == "story":
            found.append(stories.KINDS["story"](rng))
        if len(found) == n:
            break
    return found


def weighted_loss(model: Any, tokenizer: Any, batch: list[list[int]]) -> torch.Tensor:
    """Cross-entropy of the next token, answers to questions weighing more."""
    rows = [torch.tensor(row) for row in batch]
    ids = torch.nn.utils.rnn.pad_sequence(rows, True, tokenizer.pad_token_id)
    inputs, targets = ids[:, :-1].to(model.device), ids[:, 1:].to(model.device)
    losses = cross_entropy(
        model(input_ids=inputs).logits.transpose(1, 2), targets, reduction="none"
    )
    after_question = inputs == tokenizer.convert_tokens_to_ids("?")
    weights: torch.Tensor = (targets != tokenizer.pad_token_id) * torch.where(
        after_question, ANSWER_WEIGHT, 1.0
    )
    return (losses * weights).sum() / weights.sum()


def rate(progress: float) -> float:
    """Learning-rate factor: short warm-up, flat, then a cosine to a fiftieth from 60 % on."""
    if progress < 0.01:
        return progress / 0.01
    return 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * max(0.0, (progress - 0.6) / 0.4)))


def pretrain(
    steps: int, batch_size: int, seed: int, size: str = "pocket-gpt", report_every: int = 500
) -> LlamaForCausalLM:
    """Train a fresh model for ``steps`` batches; report held-out question accuracy on the way."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, size)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()  # type: ignore[arg-type]  # transformers wraps `to` without types
    opts = optimisers(model)
    groups = [(group, group["lr"]) for opt in opts for group in opt.param_groups]
    check = tasks.questions(300, seed=2**41)
    bar = tqdm(batches(tokenizer, steps, batch_size, seed), total=steps, unit="step", mininterval=5)
    for step, batch in enumerate(bar, 1):
        for group, lr in groups:
            group["lr"] = lr * rate(step / steps)
        loss = weighted_loss(model, tokenizer, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        if step % report_every == 0:
            accuracy = tasks.word_accuracy(model.eval(), tokenizer, check)
            model.train()
            bar.write(f"step {step}: loss {loss.item():.3f}, held-out questions {accuracy:.1%}")
    model.eval().cpu()
    return model


def write(model: LlamaForCausalLM, out: Path, facts: dict[str, Any]) -> None:
    """Save model and tokenizer into the folder ``out``, and what :func:`describe` finds of them."""
    model.save_pretrained(out)
    build_tokenizer().save_pretrained(out)
    described = facts | describe(model, facts["seed"], facts["steps"] * facts["batch_size"])
    files = ("model.safetensors", "tokenizer.json")
    described["sha256"] = {name: sha256((out / name).read_bytes()) for name in files}
    (out / "pretraining.json").write_text(json.dumps(described, indent=2) + "\n")


def describe(model: LlamaForCausalLM, seed: int, total: int) -> dict[str, Any]:
    """Losses in nats for each token, accuracy on held-out questions, and a checksum of the text."""
    tokenizer = build_tokenizer()
    seen, unseen = training_stories(500, seed, total), tasks.held_out_stories(500)
    first = [stories.document(*source(seed, i, total)) for i in range(1000)]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_loss": round(tasks.loss_per_token(model, tokenizer, seen), 4),
        "held_out_loss": round(tasks.loss_per_token(model, tokenizer, unseen), 4),
        "held_out_stories_also_in_training": len(set(unseen) & set(seen)),
        "held_out_questions": tasks.word_accuracy(
            model, tokenizer, tasks.questions(1000, seed=2**42)
        ),
        "first_documents_sha256": sha256("\n".join(first).encode()),
    }


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished model")
    parser.add_argument("--size", choices=SIZES, default="pocket-gpt", help="which sibling")
    parser.add_argument("--steps", type=int, default=2800, help="batches to train on")
    parser.add_argument("--batch-size", type=int, default=32, help="documents in a batch")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.time()
    model = pretrain(args.steps, args.batch_size, args.seed, args.size)
    facts = {
        "command": "python -m pedagogic_peft.course.pocket.pretrain",
        "torch": torch.__version__,
    }
    facts |= {"size": args.size}
    facts |= {"steps": args.steps, "batch_size": args.batch_size, "seed": args.seed}
    write(model, args.out, facts | {"minutes": round((time.time() - start) / 60)})


if __name__ == "__main__":
    main()
