"""The bench on a real encoder: MiniLM learns sentiment (SST-2) and topics (AG News).

    python -m pedagogic_peft.course.experiments.real_encoder    # what is missing; --help says more

MiniLM has 22.7 million parameters and a new head, which every method trains; "head" trains nothing else.
A run has 2,000 rows of the training split and three passes over them, 16 rows a step. The rate is chosen
by the accuracy on 500 other rows of that split; methods are ranked by the accuracy on SST-2's development
split, whose labels are public, and on 800 rows of AG News' test split. A seed decides the rows, their
order, the head's first values and the method's.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from pedagogic_peft import (
    IA3,
    AdaLoRA,
    AdaLoRABudget,
    BitFit,
    BottleneckAdapter,
    Compacter,
    DoRA,
    LoRA,
    PiSSA,
    PrefixTuning,
    PromptTuning,
    PTuning,
    VeRA,
    attach,
    load_base,
    train,
)
from pedagogic_peft.course.experiments import real_data
from pedagogic_peft.course.experiments.comparison_costs import quiet
from pedagogic_peft.course.experiments.comparison_floors import most_frequent, words_and_pairs
from pedagogic_peft.course.experiments.real_bench import (
    SCORES,
    Bench,
    alone,
    clocked,
    costs,
    device,
    measured,
    of_like_length,
)
from pedagogic_peft.course.experiments.store import Cell
from pedagogic_peft.course.pocket.tasks import Example

RESULTS = Path(__file__).with_name("real_encoder.jsonl")
BASE = "minilm"
N, BATCH_SIZE, EPOCHS = 2000, 16, 3
STEPS = EPOCHS * N // BATCH_SIZE
LONGEST = 128  # tokens of a text; AG News has a few longer ones
TRAINING, VALIDATION = 100, 10_001  # seeds of the rows; runs add their own
CHOOSING, RANKING = 500, 800  # rows that choose a rate; rows of AG News that rank

# {task: (classes, split of the rows that rank, how many of them or all)}
TASKS: dict[str, tuple[int, str, int | None]] = {
    "sst2": (2, "dev", None),
    "ag_news": (4, "test", RANKING),
}
HEAD: dict[str, Any] = {"modules_to_save": ["classifier"]}
ALL: dict[str, Any] = {"target_modules": "all-linear"} | HEAD
# The first three are those of which another library's numbers are known.
METHODS: dict[str, tuple[Any, float]] = {
    "head": (None, 3e-2),
    "LoRA, q and v": (LoRA(r=8, alpha=16, **HEAD), 3e-3),
    "full": (None, 3e-4),
    "BitFit": (BitFit(**HEAD), 3e-3),
    "(IA)³": (IA3(**HEAD), 3e-2),
    "Pfeiffer": (BottleneckAdapter(reduction_factor=8, placement="pfeiffer", **HEAD), 3e-3),
    "LoRA": (LoRA(r=8, alpha=16, **ALL), 1e-3),
    "prefix tuning": (PrefixTuning(num_virtual_tokens=20, **HEAD), 1e-1),
    "prompt tuning": (PromptTuning(num_virtual_tokens=20, **HEAD), 3e-2),
    "Houlsby": (BottleneckAdapter(reduction_factor=8, placement="houlsby", **HEAD), 3e-3),
    "parallel": (BottleneckAdapter(reduction_factor=8, placement="parallel", **HEAD), 3e-3),
    "DoRA": (DoRA(r=8, alpha=16, **ALL), 1e-3),
    "PiSSA": (PiSSA(r=8, alpha=8, **ALL), 1e-3),
    "Compacter": (Compacter(reduction_factor=8, **HEAD), 3e-3),
    "VeRA": (VeRA(r=128, save_projection=False, **ALL), 3e-2),
    "AdaLoRA": (
        AdaLoRA(init_r=12, target_r=8, alpha=24, tinit=40, tfinal=75, **ALL),
        1e-2,
    ),
    "P-tuning": (PTuning(num_virtual_tokens=20, **HEAD), 3e-3),
}


def prepare(task: str, method: str, seed: int = 0, base: str = BASE) -> tuple[Any, Any]:
    """Return the base with a new head, whose trainable parameters are the method's, and its tokenizer."""
    torch.manual_seed(seed)  # of the head's first values, then of the method's
    with quiet():  # transformers reports that the head is new
        model, tokenizer = load_base(base, num_labels=TASKS[task][0])
    if method == "head":
        model.requires_grad_(False).classifier.requires_grad_(True)
    elif method != "full":
        attach(model, METHODS[method][0])
    return model.to(device()), tokenizer


@cache
def parts(task: str) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the rows to draw training rows from, those that choose a rate, and those that rank."""
    _, split, many = TASKS[task]
    every = real_data.rows(task, "train")
    shuffled = real_data.sample(every, len(every), VALIDATION)
    ranking = list(real_data.rows(task, split))
    if many is not None:
        ranking = real_data.sample(ranking, min(many, len(ranking)), VALIDATION)
    return shuffled[CHOOSING:], shuffled[:CHOOSING], ranking


def training_rows(task: str, n: int, seed: int) -> list[Any]:
    """Return a run's rows."""
    return real_data.sample(parts(task)[0], n, TRAINING + seed)


def encode(tokenizer: Any, rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Turn rows into examples for `train`."""
    ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=LONGEST).input_ids
    return [{"input_ids": i, "labels": row["label"]} for i, row in zip(ids, rows, strict=True)]


@torch.no_grad()
def score(model: Any, tokenizer: Any, rows: Sequence[Any]) -> tuple[float, float]:
    """Return the share of the rows that are classified right, and the mean loss in nats."""
    right = loss = 0.0
    for batch in of_like_length(encode(tokenizer, rows), 64, 0, tokenizer.pad_token_id):
        labels = batch.pop("labels").to(model.device)
        logits = model(**{key: value.to(model.device) for key, value in batch.items()}).logits
        right += int((logits.argmax(-1) == labels).sum())
        loss += float(F.cross_entropy(logits.float(), labels, reduction="sum"))
    return right / len(rows), loss / len(rows)


def run(
    task: str, method: str, rate: float, seed: int, n: int, steps: int, base: str = BASE
) -> Cell:
    """Train one cell; return its scores and what it cost.

    A training whose loss stopped being finite has None for its scores. "frozen" trains nothing, and with a
    new head it would guess: in its place stand the `floors`.
    """
    if method == "frozen":
        return dict.fromkeys(SCORES) | floors(task)
    torch.set_num_threads(1)
    model, tokenizer = prepare(task, method, seed, base)
    examples = encode(tokenizer, training_rows(task, n, seed))
    batches = of_like_length(examples, BATCH_SIZE, seed, tokenizer.pad_token_id)
    options: dict[str, Any] = {"steps": steps, "batch_size": 1, "collate_fn": alone, "lr": rate}
    if method == "AdaLoRA":
        budget = AdaLoRABudget(model, total_steps=steps)
        options |= {"before_step": budget.before_step, "after_step": budget.after_step}
    cost = costs(model, batches)
    torch.manual_seed(seed)  # what was measured drew dropout's numbers
    try:
        with clocked(cost):
            train(model, batches, seed=seed, progress=False, **options)
    except FloatingPointError:
        return measured(cost, dict.fromkeys(SCORES))
    _, choosing, ranking = parts(task)
    scores = (*score(model, tokenizer, choosing), *score(model, tokenizer, ranking))
    return measured(cost, dict(zip(SCORES, scores, strict=True)))


def floors(task: str, seed: int = 0) -> dict[str, float]:
    """Return what the most frequent class, and a rule of words and pairs, have on the rows that rank."""
    train_rows, ranking = training_rows(task, N, seed), parts(task)[2]
    told, asked = (
        [Example(row["text"], str(row["label"])) for row in rows] for rows in (train_rows, ranking)
    )
    return {
        "guess": round(most_frequent(told, asked), 4),
        "words": round(words_and_pairs(told, asked), 4),
    }


BENCH = Bench(RESULTS, dict.fromkeys(TASKS, (N, STEPS)), METHODS, run, frozen=True)

if __name__ == "__main__":
    BENCH.main(__doc__.split("\n")[0])
