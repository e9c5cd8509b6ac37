"""Measure whether pocket-gpt is good enough to teach with.

    python -m pedagogic_peft.course.pocket.measure

adapts the shipped base to four tasks, by full fine-tuning, LoRA and prompt tuning, three seeds each,
and writes ``measurements.json`` beside its weights. Learning rates are chosen for every method from a
grid of the same size, on a validation seed; results are means over test examples that no choice saw.
"""

import argparse
import copy
import datetime
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from tqdm import tqdm

from pedagogic_peft import LoRA, PromptTuning, attach, train
from pedagogic_peft.course.models import load_base, pocket_folder
from pedagogic_peft.course.pocket import check, tasks
from pedagogic_peft.training.train import History

Result = dict[str, Any]  # what is written as JSON

SEEDS = (0, 1, 2)
STEPS = 120
MAPPING_STEPS = 400
RATES = {"full": (5e-4, 1e-3, 2e-3), "lora": (5e-3, 1e-2, 2e-2), "prompt": (1e-2, 3e-2, 1e-1)}
VIRTUAL_TOKENS = 20
VALIDATION, TEST = 10_001, 20_001  # seeds of the examples; training uses the run's own seed


def adapted(base: Any, method: str, seed: int) -> nn.Module:
    """A copy of the base, ready to train by ``"full"``, ``"lora"`` or ``"prompt"``."""
    torch.manual_seed(seed)
    model: nn.Module = copy.deepcopy(base)
    if method == "lora":
        attach(model, LoRA(r=8, alpha=16, target_modules="all-linear"))
    if method == "prompt":
        words = torch.randint(4, base.config.vocab_size, (VIRTUAL_TOKENS,))  # no special tokens
        attach(model, PromptTuning(num_virtual_tokens=VIRTUAL_TOKENS, init=words.tolist()))
    return model


class Bench:
    """Runs one task by several methods: chooses each learning rate, then runs the seeds."""

    def __init__(self, folder: Path, steps: int):
        torch.set_num_threads(1)  # small matrices, and one process for each task
        self.base, self.tokenizer = load_base(str(folder))
        self.folder, self.steps = folder, steps

    def run(
        self, method: str, examples: list[Any], seed: int, lr: float, **options: Any
    ) -> tuple[nn.Module, History, float]:
        """Train one copy; returns it with its history and the seconds that training took."""
        model = adapted(self.base, method, seed)
        data = tasks.encode(self.tokenizer, examples)
        start = time.perf_counter()
        options = {"steps": self.steps, "progress": False} | options
        history = train(model, data, lr=lr, seed=seed, **options)
        return model, history, time.perf_counter() - start

    def best_rate(
        self, method: str, examples: list[Any], score: Callable[[nn.Module], float]
    ) -> float:
        """The learning rate of the method's grid with the highest validation score."""
        rates = RATES[method]
        scores = [score(self.run(method, examples, seed=9, lr=lr)[0]) for lr in rates]
        return rates[int(np.argmax(scores))]

    def compare(
        self,
        methods: Sequence[str],
        draw: Callable[[int, int], list[Any]],
        score: Callable[[nn.Module, list[Any]], float],
    ) -> Result:
        """Score every method on a task: ``draw(n, seed)`` gives examples, ``score(model, examples)``."""
        valid, test = draw(200, VALIDATION), draw(500, TEST)
        results: Result = {}
        for method in methods:
            lr = self.best_rate(method, draw(2000, 9), lambda model: score(model, valid))
            runs = [self.run(method, draw(2000, seed), seed, lr) for seed in SEEDS]
            results[method] = summary(score(model, test) for model, _, _ in runs) | {
                "lr": lr,
                "seconds": round(statistics.mean(seconds for *_, seconds in runs), 1),
            }
        return {"frozen": round(score(self.base, test), 4), **results}


def summary(values: Iterable[float]) -> Result:
    """Mean and every value, four decimals."""
    values = [round(v, 4) for v in values]
    return {"mean": round(statistics.mean(values), 4), "runs": values}


def probe(
    base: Any, tokenizer: Any, train_set: list[tasks.Example], test_set: list[tasks.Example]
) -> float:
    """Accuracy of a linear probe on the frozen base: logistic regression on its last hidden state."""

    def features(examples: list[tasks.Example]) -> Any:
        prompts = [e.prompt for e in examples]
        batch = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
        with torch.no_grad():
            return base(**batch, output_hidden_states=True).hidden_states[-1][:, -1].numpy()

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    classifier.fit(features(train_set), [e.answer for e in train_set])
    accuracy: float = classifier.score(features(test_set), [e.answer for e in test_set])
    return accuracy


def sentiment(bench: Bench) -> Result:
    """(b) LoRA against full fine-tuning and against a linear probe of the frozen base."""
    base, tokenizer = bench.base, bench.tokenizer
    test = tasks.sentiment(500, TEST)

    def score(model: nn.Module, examples: list[tasks.Example]) -> float:
        return tasks.word_accuracy(model, tokenizer, examples, labels=tasks.VERDICTS)

    results = bench.compare(("full", "lora"), tasks.sentiment, score)
    return results | {
        "linear probe": summary(
            probe(base, tokenizer, tasks.sentiment(2000, s), test) for s in SEEDS
        )
    }


def domain(bench: Bench) -> Result:
    """(c) the loss gap on recipes that LoRA closes, and (d) what is forgotten at equal target loss."""
    tokenizer = bench.tokenizer
    test, kept = tasks.recipes(100, TEST), tasks.held_out_stories(100)

    def losses(model: nn.Module) -> dict[str, float]:
        loss = tasks.loss_per_token
        return {"target": loss(model, tokenizer, test), "stories": loss(model, tokenizer, kept)}

    before, rates = losses(bench.base), {}
    curves: dict[str, list[History]] = {}
    valid = tasks.recipes(200, VALIDATION)
    for method in ("full", "lora"):
        rates[method] = bench.best_rate(
            method, tasks.recipes(1000, 9), lambda m: -tasks.loss_per_token(m, tokenizer, valid)
        )
        options: dict[str, Any] = {"lr": rates[method], "evaluate": losses, "eval_every": 10}
        curves[method] = [bench.run(method, tasks.recipes(1000, s), s, **options)[1] for s in SEEDS]
    # the loss that every run reaches: the worst of their best
    common = max(min(h.column("target")) for runs in curves.values() for h in runs)
    results: Result = {"before": round_all(before), "target loss compared at": round(common, 4)}
    for method, runs in curves.items():
        results[method] = {
            "lr": rates[method],
            "target loss": summary(h.column("target")[-1] for h in runs),
            "stories loss at equal target loss": summary(at_target(h, common) for h in runs),
            "stories loss at the end": summary(h.column("stories")[-1] for h in runs),
        }
    gap = {m: before["target"] - results[m]["target loss"]["mean"] for m in curves}
    return results | {"share of the gap that LoRA closes": round(gap["lora"] / gap["full"], 4)}


def forgetting(bench: Bench) -> Result:
    """(d) again, for several learning rates, one seed: what decides how much is forgotten?"""
    tokenizer, test, kept = bench.tokenizer, tasks.recipes(100, TEST), tasks.held_out_stories(100)

    def losses(model: nn.Module) -> dict[str, float]:
        loss = tasks.loss_per_token
        return {"target": loss(model, tokenizer, test), "stories": loss(model, tokenizer, kept)}

    rates = {"full": (5e-4, 2e-3), "lora": (2e-3, 5e-3, 1e-2)}
    curves: dict[str, History] = {}
    for method, lr in ((method, lr) for method, some in rates.items() for lr in some):
        options: dict[str, Any] = {"lr": lr, "steps": 160, "evaluate": losses, "eval_every": 10}
        curves[f"{method}, lr {lr}"] = bench.run(method, tasks.recipes(1000, 0), 0, **options)[1]
    common = max(min(h.column("target")) for h in curves.values())
    found = {name: round(at_target(h, common), 4) for name, h in curves.items()}
    return {"target loss compared at": round(common, 4), "stories loss there": found}


def at_target(history: History, target: float) -> float:
    """The stories' loss when the target loss first falls to ``target``, between two evaluations."""
    x: list[float] = history.column("target")
    y: list[float] = history.column("stories")
    i = next(i for i, loss in enumerate(x) if loss <= target)
    if i == 0:
        return y[0]
    weight = (x[i - 1] - target) / (x[i - 1] - x[i])
    return y[i - 1] + weight * (y[i] - y[i - 1])


def style(bench: Bench) -> Result:
    """(e) a style that pretraining held, but seldom: every sentence ends in "so they say"."""
    tokenizer, name = bench.tokenizer, "tale"
    return bench.compare(
        ("full", "lora", "prompt"),
        lambda n, seed: tasks.styled(name, n, seed),
        lambda m, examples: tasks.style_accuracy(m, tokenizer, name, examples[:100]),
    )


def translation(bench: Bench, method: str) -> Result:
    """(e) a mapping that pretraining did not hold; it takes more steps than the other tasks."""
    tokenizer, bench.steps = bench.tokenizer, MAPPING_STEPS
    return bench.compare(
        (method,), tasks.translation, lambda m, some: tasks.exact_match(m, tokenizer, some)
    )


def base_quality(bench: Bench) -> Result:
    """(a) what pretraining recorded, and how sampled stories follow the grammar."""
    recorded = json.loads((bench.folder / "pretraining.json").read_text())
    torch.manual_seed(0)
    prompts = [text.partition(" . ")[0] + " ." for text in tasks.held_out_stories(200)]
    texts = tasks.continuations(
        bench.base, bench.tokenizer, prompts, max_new_tokens=100, do_sample=True
    )
    counts = [check.count_sentences(text.rpartition(" .")[0] + " .") for text in texts]
    right, sampled = (sum(column) for column in zip(*counts, strict=True))
    keys = ("parameters", "training_loss", "held_out_loss", "held_out_questions")
    return {key: recorded[key] for key in keys} | {
        "sampled sentences": sampled,
        "share that follow the grammar": round(right / sampled, 4),
    }


def round_all(values: Mapping[str, float]) -> dict[str, float]:
    return {key: round(value, 4) for key, value in values.items()}


PARTS: dict[str, Callable[[Bench], Result]] = {
    "base": base_quality,
    "sentiment accuracy": sentiment,
    "domain adaptation": domain,
    "forgetting by learning rate": forgetting,
    "style accuracy": style,
    "translation exact match, LoRA": partial(translation, method="lora"),
    "translation exact match, prompt tuning": partial(translation, method="prompt"),
}


def measure(part: str, folder: Path, steps: int) -> Result:
    """One part of the measurements, in a process of its own."""
    return PARTS[part](Bench(folder, steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, default=pocket_folder("pocket-gpt"))
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of every run")
    parser.add_argument("--jobs", type=int, default=2, help="parts measured at the same time")
    parser.add_argument("--only", help="measure the parts that begin so, keep the stored others")
    args = parser.parse_args()
    stored = args.base / "measurements.json"
    parts = [part for part in PARTS if part.startswith(args.only or "")]
    if not parts:
        parser.error(f"no part begins with {args.only!r}; there are: {', '.join(PARTS)}")
    results = json.loads(stored.read_text()) if args.only else {}
    results |= {
        "command": "python -m pedagogic_peft.course.pocket.measure",
        "date": datetime.date.today().isoformat(),
        "seeds": SEEDS,
        "steps": args.steps,
    }
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        running = {part: pool.submit(measure, part, args.base, args.steps) for part in parts}
        for part, future in tqdm(running.items(), unit="part"):
            results[part] = future.result()
    stored.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
