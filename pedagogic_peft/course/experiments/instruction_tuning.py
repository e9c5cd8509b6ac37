"""The runs of page 6.7: a small model learns to answer in a form, rightly and with three mistakes.

    python -m pedagogic_peft.course.experiments.instruction_tuning    # runs what is missing, one minute

pocket-gpt gets a chat template, and a LoRA on all linear maps takes 24 steps of eight conversations: a story,
and its record. The rate is chosen by the rule of `search`, the measure being the loss on validation
conversations in nats a token of the assistant. At that rate each mistake is made with three or five seeds,
and measured in the right form on test conversations.
"""

import copy
import statistics
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pedagogic_peft import LoRA, attach, load_base, train
from pedagogic_peft.course import desk
from pedagogic_peft.course.experiments import search
from pedagogic_peft.course.experiments.store import Cell, read, run_missing
from pedagogic_peft.course.pocket import tasks
from pedagogic_peft.training.train import pad_collate

RESULTS = Path(__file__).with_name("instruction_tuning.jsonl")
STEPS, BATCH_SIZE = 24, 8
ARMS = {"right": 5, "prompt": 5, "no end": 3, "twice": 3}  # how many seeds each
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # that may be tried
MIDDLE = 1e-2  # of the first three
# The beginning and the end of a text, which pretraining taught, begin and end a turn.
TEMPLATE = """{% for message in messages %}{{ '<bos> ' + message['content'] + ' <eos> ' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<bos>' }}{% endif %}"""


@cache
def base() -> tuple[Any, Any]:
    """Return pocket-gpt, and its tokenizer with a chat template."""
    torch.set_num_threads(1)
    model, tokenizer = load_base("pocket-gpt")
    tokenizer.chat_template = TEMPLATE
    return model, tokenizer


def conversations(n: int, seed: int) -> list[list[desk.Message]]:
    """Return stories, each with its record as the answer."""
    return [
        [{"role": "user", "content": e.prompt}, {"role": "assistant", "content": e.answer}]
        for e in tasks.formatted("record", n, seed)
    ]


def adapted() -> Any:
    """Return a model to train: a LoRA of rank 8 with alpha 32 on all linear maps."""
    return attach(copy.deepcopy(base()[0]), LoRA(r=8, alpha=32, target_modules="all-linear"))


def examples(arm: str, talks: Sequence[Sequence[desk.Message]]) -> list[dict[str, list[int]]]:
    """Return training examples: "right", or with the mistake that ``arm`` names."""
    tokenizer, made = base()[1], []
    for talk in talks:
        example = desk.encode(tokenizer, rendered_already(talk) if arm == "twice" else talk)
        if arm == "prompt":  # the loss is on every token
            example["labels"] = example["input_ids"]
        if arm == "no end":  # as a collator does that takes the end for padding
            end = tokenizer.eos_token_id
            example["labels"] = [-100 if label == end else label for label in example["labels"]]
        made.append(example)
    return made


def rendered_already(talk: Sequence[desk.Message]) -> list[desk.Message]:
    """Return a conversation whose turns hold what the template writes around them."""
    return [{**message, "content": f"<bos> {message['content']} <eos>"} for message in talk]


@torch.no_grad()
def measure(model: nn.Module, talks: Sequence[Sequence[desk.Message]]) -> tuple[float, float]:
    """Return the loss in nats a token of the assistant, and the mean probability of the end at its place."""
    end = base()[1].eos_token_id
    there = next(model.parameters()).device
    batch = {k: t.to(there) for k, t in pad_collate()(examples("right", talks)).items()}
    logits = model.eval()(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).item()
    return loss, logits[labels == end].softmax(dim=-1)[:, end].mean().item()


def answers(
    model: Any, talks: Sequence[Sequence[desk.Message]], most: int = 24
) -> list[tuple[str, bool]]:
    """Return what the model says to each question, greedily, and whether it stopped by itself."""
    tokenizer, said = base()[1], []
    write = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
    for talk in talks:
        asked = tokenizer.apply_chat_template(talk[:1], **write).to(model.device)
        ids = model.eval().generate(**asked, max_new_tokens=most, do_sample=False)[0]
        new = ids[asked["input_ids"].shape[1] :]
        text = tokenizer.decode(new, skip_special_tokens=True)
        said.append((text, tokenizer.eos_token_id in new.tolist()))
    return said


def run(arm: str, rate: float, seed: int) -> Cell:
    """Train one model; return its losses, and what it does on validation and test conversations."""
    torch.manual_seed(seed)
    model, train_on = adapted(), examples(arm, conversations(400, seed=1))
    options: dict[str, Any] = {"steps": STEPS, "batch_size": BATCH_SIZE, "progress": False}
    losses = train(model, train_on, lr=rate, seed=seed, **options).column("loss")
    val_loss, _ = measure(model, conversations(100, seed=3))
    loss, end = measure(model, conversations(100, seed=2))
    said = answers(model, conversations(4, seed=2))
    return {
        "losses": [round(loss, 4) for loss in losses],
        "val_loss": round(val_loss, 4),
        "val": -round(val_loss, 4),
        "loss": round(loss, 4),
        "end": round(end, 4),
        "stopped": sum(stopped for _, stopped in said),
    }


def of(records: Sequence[Cell], arm: str = "right") -> list[Cell]:
    """Return the records of an arm."""
    return [r for r in records if r["arm"] == arm]


def rate_of(records: Sequence[Cell]) -> float:
    """Return the rate that the validation loss chose."""
    return search.best_rate(of(records))


def of_seeds(records: Sequence[Cell], arm: str, key: str) -> dict[int, Any]:
    """Return {seed: what was measured} of the runs at the chosen rate."""
    rate = rate_of(records)
    return {r["seed"]: r[key] for r in of(records, arm) if r["rate"] == rate}


def mean(records: Sequence[Cell], arm: str, key: str) -> float:
    """Return the mean of a measure over the seeds."""
    return statistics.fmean(of_seeds(records, arm, key).values())


def made(todo: Sequence[tuple[float, int]], arm: str = "right") -> None:
    """Run and store (rate, seed) pairs."""
    cells = [{"arm": arm, "rate": rate, "seed": seed} for rate, seed in todo]
    run_missing(cells, run, RESULTS)


if __name__ == "__main__":
    while todo := search.wanted(of(read(RESULTS)), RATES, MIDDLE):
        made(todo)
    for name, seeds in ARMS.items():
        made([(rate_of(read(RESULTS)), seed) for seed in range(seeds)], name)
