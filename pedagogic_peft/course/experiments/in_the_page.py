"""The stored runs beside those that a reader trains in the page (2.2, 2.4, 3.2 and 4.1).

    python -m pedagogic_peft.course.experiments.in_the_page    # what is missing: 2 minutes in all

They have the page's data, batch size and steps, but are trained by the library: what the figures show where
no script runs, and what they compare with. One seed each.
"""

import copy
from pathlib import Path
from typing import Any

import torch

from pedagogic_peft import LoRA, PromptTuning, activate, attach, load, load_base, train
from pedagogic_peft.course.experiments import task_adapters
from pedagogic_peft.course.experiments.store import Cell, run_missing
from pedagogic_peft.course.pocket import tasks

RESULTS = Path(__file__).with_name("in_the_page.jsonl")
STEPS, BATCH, EVERY, SEED = 100, 8, 20, 0
LORA = LoRA(r=8, alpha=16, target_modules="all-linear")
RATES = {"full": 2e-3, "lora": 1e-2, "prompt": 0.1, "tale": 1e-2}
PROMPT = "leo was happy , so they say ."  # what the soft prompt begins as
REVIEW, OPENING = (
    "although the soup was tasty , the inn was dirty they",
    "leo went to the old park .",
)


def short_reviews() -> list[tasks.Example]:
    """Return the reviews of page 2.2 that train: those of up to 16 words."""
    return [e for e in tasks.sentiment(2000, 1) if len(e.prompt.split()) <= 16]


def tales(n: int, seed: int) -> list[tasks.Example]:
    """Return stories whose second sentence is told as a tale."""
    return tasks.styled("tale", n, seed, sentences=1)


def fit(
    model: Any, tokenizer: Any, kind: str, examples: Any, watch: Any, score: Any
) -> dict[str, Any]:
    """Train and measure as the page does; return the losses, and curves as [step, value]."""

    def evaluate(model: Any) -> dict[str, float]:
        return {
            "validation": tasks.loss_per_token(model, tokenizer, watch),
            "accuracy": score(model),
        }

    curves = {key: [[0, round(value, 4)]] for key, value in evaluate(model).items()}
    data = tasks.encode(tokenizer, examples)
    settings: dict[str, Any] = {
        "steps": STEPS,
        "batch_size": BATCH,
        "seed": SEED,
        "progress": False,
    }
    history = train(model, data, lr=RATES[kind], evaluate=evaluate, eval_every=EVERY, **settings)
    for record in history:
        for key in curves.keys() & record.keys():
            curves[key].append([record["step"], round(record[key], 4)])
    return {"losses": [round(loss, 4) for loss in history.column("loss")], **curves}


def reviews(kind: str) -> Cell:
    """Train on reviews, in full or by a LoRA."""
    model, tokenizer = load_base("pocket-gpt")
    if kind == "lora":
        attach(model, LORA)
    test = tasks.sentiment(100, 2)

    def score(model: Any) -> float:
        return tasks.word_accuracy(model, tokenizer, test, tasks.VERDICTS)

    return fit(model, tokenizer, kind, short_reviews(), tasks.sentiment(40, 3), score)


def prompt(kind: str) -> Cell:
    """Train a soft prompt on tales; return also the words nearest to its rows, before and after."""
    model, tokenizer = load_base("pocket-gpt")
    init = tokenizer(PROMPT, add_special_tokens=False).input_ids
    attach(model, PromptTuning(len(init), init=init))
    test = tasks.styled("tale", 10, 2)

    def score(model: Any) -> float:
        return tasks.style_accuracy(model, tokenizer, "tale", test)

    curves = fit(model, tokenizer, kind, tales(1000, 1), tales(40, 3), score)
    embeddings: Any = model.get_input_embeddings()
    table = torch.nn.functional.normalize(embeddings.weight, dim=1)
    rows = next(p for p in model.parameters() if p.requires_grad).detach()
    cosines, ids = (torch.nn.functional.normalize(rows, dim=1) @ table.T).max(dim=1)
    nearest = [
        [word, round(cosine, 2)]
        for word, cosine in zip(
            tokenizer.convert_ids_to_tokens(ids.tolist()), cosines.tolist(), strict=True
        )
    ]
    return {**curves, "nearest": nearest}


def serving(kind: str) -> Cell:
    """Train two LoRAs on one base; return what each row of one batch writes."""
    base, tokenizer = load_base("pocket-gpt")
    server = copy.deepcopy(base)
    parts = {"reviews": (short_reviews(), RATES["lora"]), "tales": (tales(1000, 1), RATES["tale"])}
    for name, (examples, lr) in parts.items():
        torch.manual_seed(SEED)
        attach(server, LORA, name)
        settings: dict[str, Any] = {
            "steps": STEPS,
            "batch_size": BATCH,
            "seed": SEED,
            "progress": False,
        }
        train(server, tasks.encode(tokenizer, examples), lr=lr, **settings)
    rows = [None, "reviews", "tales"]
    activate(server, rows=rows * 2)
    texts = [REVIEW] * len(rows) + [OPENING] * len(rows)
    written = tasks.continuations(server, tokenizer, texts, 12)
    return {"rows": [[t, r or "none", w] for t, r, w in zip(texts, rows * 2, written, strict=True)]}


def switching(kind: str) -> Cell:
    """Return what the three stored adapters of page 3.2 write, and what the base alone does."""
    model, tokenizer = load_base("pocket-gpt")
    found = []
    for name, draw in task_adapters.TASKS.items():
        [example] = draw(1, task_adapters.TEST)
        alone = tasks.continuations(model, tokenizer, [example.prompt], 12)[0]
        adapted = load(copy.deepcopy(model), task_adapters.FOLDER / name, name=name)
        [written] = tasks.continuations(adapted, tokenizer, [example.prompt], 12)
        found.append([name, example.prompt, example.answer, alone, written])
    return {"rows": found}


RUNS = {
    "full": reviews, "lora": reviews, "prompt": prompt, "serving": serving, "tasks": switching,
}  # fmt: skip


def run(kind: str) -> Cell:
    """Run one kind."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    return RUNS[kind](kind)


if __name__ == "__main__":
    run_missing([{"kind": kind} for kind in RUNS], run, RESULTS)
