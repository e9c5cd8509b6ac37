"""The run of page 6.2: SmolLM2 with and without an adaptation, by lm-evaluation-harness and by ourselves.

    python -m pedagogic_peft.course.experiments.harness    # minutes; needs `pip install "lm-eval[hf]"`

The task is local: after a question at a library's desk and the answer's sentence, which of four desks is
in charge? The adaptation is a LoRA that took `STEPS` steps of four of the conversations in
`without_regret.LEARNED`; the documents are the other conversations, which it never met. The harness gets
what its command line gets: a folder with the base, a folder with the adaptation, a task in a file.
"""

import json
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pedagogic_peft import LoRA, attach, load_base, save, train
from pedagogic_peft.course import desk
from pedagogic_peft.course.experiments.store import Cell, run_missing
from pedagogic_peft.course.experiments.without_regret import BASE, CHOOSING, LEARNED, rows

RESULTS = Path(__file__).with_name("harness.jsonl")
MODELS = ("frozen", "adapted")
STEPS, RATE = 16, 1e-3  # the rate was not searched: the run compares programs, not methods
DESKS = ("fees", "loans", "rooms", "stacks")
TASK = """task: desks
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


def documents(tokenizer: Any, exchanges: Sequence[desk.Exchange]) -> list[dict[str, Any]]:
    """Return what is asked: the conversation up to the desk, the desks, and which of them is right."""
    chat = {"tokenize": False, "add_generation_prompt": True}
    return [
        {
            "text": tokenizer.apply_chat_template(e.prompt, **chat) + f"{e.fact}.",
            "choices": [f"[{name}]" for name in DESKS],
            "label": DESKS.index(e.desk),
        }
        for e in exchanges
    ]


def write_task(folder: Path, docs: Sequence[dict[str, Any]]) -> None:
    """Write the task "desks", its file and its data, for the harness's ``include_path``."""
    data = folder / "desks.jsonl"
    data.write_text("\n".join(json.dumps(doc) for doc in docs))
    (folder / "desks.yaml").write_text(TASK.replace("DATA", json.dumps(str(data))))


def by_harness(lm: Any, folder: Path) -> tuple[list[list[float]], Cell]:
    """Return each choice's log-probability by the harness, and its two accuracies."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(lm, tasks=["desks"], task_manager=manager, log_samples=True)
    samples = sorted(found["samples"]["desks"], key=lambda sample: sample["doc_id"])
    sums = [[float(answer[0]) for answer in s["filtered_resps"]] for s in samples]
    scores = found["results"]["desks"]
    return sums, {key: round(float(scores[f"{key},none"]), 4) for key in ("acc", "acc_norm")}


@torch.no_grad()
def choice_scores(model: Any, tokenizer: Any, text: str, choices: Sequence[str]) -> torch.Tensor:
    """Return the sum of the log-probabilities of each choice's tokens, after a space: (choices,).

    The text is a rendered conversation: it has the special tokens that the tokenizer would add.
    """
    plain = {"add_special_tokens": False}
    found = []
    for choice in choices:
        start = len(tokenizer(text, **plain).input_ids)
        ids = tokenizer(f"{text} {choice}", return_tensors="pt", **plain).input_ids.to(model.device)
        logs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        found.append(logs[start - 1 :].gather(1, ids[0, start:, None]).sum())
    return torch.stack(found).cpu()


def accuracies(sums: Sequence[Sequence[float]], docs: Sequence[dict[str, Any]]) -> Cell:
    """Return ``acc`` and ``acc_norm`` of the choices' log-probabilities."""
    right: Cell = {"acc": 0, "acc_norm": 0}
    for scores, doc in zip(sums, docs, strict=True):
        lengths = torch.tensor([len(choice) for choice in doc["choices"]])
        picks = {"acc": torch.tensor(scores), "acc_norm": torch.tensor(scores) / lengths}
        for key, values in picks.items():
            right[key] += int(values.argmax()) == doc["label"]
    return {key: round(found / len(docs), 4) for key, found in right.items()}


def run(model: str) -> Cell:
    """Score one of `MODELS` by both programs."""
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(1)
    ours: Any
    ours, tokenizer = load_base(BASE)
    docs = documents(tokenizer, (*CHOOSING, *desk.TEST))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        options: dict[str, Any] = {"pretrained": str(place / "base")}
        ours.save_pretrained(place / "base")
        tokenizer.save_pretrained(place / "base")
        if model == "adapted":
            torch.manual_seed(0)
            attach(ours, LoRA(r=8, alpha=32, target_modules="all-linear"))
            train(ours, rows(LEARNED), steps=STEPS, batch_size=4, lr=RATE, progress=False)
            options["peft"] = str(save(ours, place / "adaptation", task_type="CAUSAL_LM"))
        write_task(place, docs)
        lm = HFLM(**options, device="cpu", dtype="float32", batch_size=8, add_bos_token=False)
        sums, theirs = by_harness(lm, place)
    own = [choice_scores(ours.eval(), tokenizer, d["text"], d["choices"]).tolist() for d in docs]
    apart = (torch.tensor(own) - torch.tensor(sums)).abs().max().item()
    return {
        "documents": len(docs),
        "harness": theirs,
        "own": accuracies(own, docs),
        "apart": round(apart, 6),
        "versions": {name: version(name) for name in ("lm_eval", "transformers", "peft")},
    }


if __name__ == "__main__":
    run_missing([{"model": model} for model in MODELS], run, RESULTS)
