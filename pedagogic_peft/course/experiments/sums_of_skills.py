"""Page 2.4: what a weighted sum of two LoRAs keeps of either skill, for five trainings of each.

    python -m pedagogic_peft.course.experiments.sums_of_skills    # what is missing, in 15 minutes

A seed decides the initial values and the order of the examples, and with them three adaptations: shout,
sentiment and recipes. Of a sum is stored which share of each skill's gain over the base it keeps, so 1 is
as good as alone. The weights are those at which the worse-kept skill keeps most on validation data: both 1,
one and the same λ (as Ilharco et al., 2023), or a weight for each; the shares are measured on test data.
"""

import copy
import itertools
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pedagogic_peft import LoRA, activate, attach, load_base, train
from pedagogic_peft.core.sites import sites
from pedagogic_peft.course.experiments.store import Cell, run_missing
from pedagogic_peft.course.pocket import tasks
from pedagogic_peft.course.pocket.lessons import lesson

RESULTS = Path(__file__).with_name("sums_of_skills.jsonl")
LESSON = lesson("pocket-gpt")
METHOD = LoRA(r=8, alpha=16, target_modules="all-linear")
SEEDS = (0, 1, 2, 3, 4)
PAIRS = (("shout", "sentiment"), ("recipes", "sentiment"))
WEIGHTS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
HOW = ("1 and 1", "one λ", "two weights")


@cache
def material() -> tuple[Any, Any]:
    """Return pocket-gpt and its tokenizer."""
    torch.set_num_threads(1)
    return load_base("pocket-gpt")


def short(examples: list[tasks.Example], words: int) -> list[tasks.Example]:
    """Return the examples of at most so many words: they train faster."""
    return [e for e in examples if len(f"{e.prompt} {e.answer}".split()) <= words]


def training(skill: str) -> tuple[list[Any], int, int]:
    """Return the examples of a skill, the steps and the batch size."""
    if skill == "sentiment":
        return short(LESSON.sentiment(1500, seed=1), 17), 100, 16
    if skill == "recipes":
        return LESSON.recipes(400, seed=1), 40, 8
    return short(tasks.styled(skill, 600, seed=1), 40), 30, 8


@cache
def held_out(split: str) -> dict[str, Any]:
    """Return the validation or the test data of each skill."""
    seed, n = {"validation": (3, 100), "test": (2, 200)}[split]
    return {
        "shout": tasks.styled("shout", n // 10, seed),
        "sentiment": LESSON.sentiment(n, seed=seed, split=split),
        "recipes": LESSON.recipes(n // 5, seed=seed),
    }


def score(model: Any, skill: str, split: str) -> float:
    """Return the share of right verdicts or of sentences in style; for recipes the loss in nats per token."""
    tokenizer, data = material()[1], held_out(split)[skill]
    if skill == "sentiment":
        return tasks.word_accuracy(model, tokenizer, data, LESSON.labels)
    if skill == "recipes":
        return tasks.loss_per_token(model, tokenizer, data)
    return tasks.style_accuracy(model, tokenizer, skill, data)


def learn(model: Any, skill: str, seed: int) -> None:
    """Attach a LoRA under the skill's name and train it alone."""
    torch.manual_seed(seed)
    attach(model, METHOD, skill)
    examples, steps, batch_size = training(skill)
    settings: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "progress": False}
    data = tasks.encode(material()[1], examples)
    train(model, data, lr=LESSON.lr_lora, seed=seed, **settings)


def weigh(model: Any, skill: str, weight: float) -> None:
    """Set the weight of an update: ΔW becomes weight · (α / r) B A."""
    for _, site in sites(model):
        delta: Any = site.deltas[skill]
        delta.scaling = weight * METHOD.alpha / METHOD.r


def ends(model: Any, pair: tuple[str, str], split: str) -> list[tuple[float, float]]:
    """Return the scores of the base and of the skill alone, for both skills."""
    alone = []
    for skill in pair:
        activate(model, skill)
        alone.append((score(material()[0], skill, split), score(model, skill, split)))
    return alone


def kept(
    model: Any, pair: tuple[str, str], weights: tuple[float, float], split: str, of: Any
) -> list[float]:
    """Return the share of each skill's gain that the weighted sum has; ``of`` is what `ends` returned."""
    activate(model, *pair)
    for skill, weight in zip(pair, weights, strict=True):
        weigh(model, skill, weight)
    shares = [
        (score(model, skill, split) - low) / (high - low)
        for skill, (low, high) in zip(pair, of, strict=True)
    ]
    for skill in pair:
        weigh(model, skill, 1)
    return [round(share, 4) for share in shares]


def run(pair: list[str], seed: int) -> Cell:
    """Train both skills; return, for each way to choose the weights, these and what the sum keeps."""
    two, model = (pair[0], pair[1]), copy.deepcopy(material()[0])
    for skill in two:
        learn(model, skill, seed)
    before, after = ends(model, two, "validation"), ends(model, two, "test")
    grid = list(itertools.product(WEIGHTS, WEIGHTS))
    tried = {weights: kept(model, two, weights, "validation", before) for weights in grid}
    allowed = ([(1.0, 1.0)], [w for w in grid if w[0] == w[1]], grid)
    found: Cell = {"base": [low for low, _ in after], "alone": [high for _, high in after]}
    for how, choices in zip(HOW, allowed, strict=True):
        best = max(choices, key=lambda weights: min(tried[weights]))
        found[how] = {"weights": best, "kept": kept(model, two, best, "test", after)}
    return found


def cells() -> list[Cell]:
    """Return every cell."""
    return [{"pair": list(pair), "seed": seed} for pair in PAIRS for seed in SEEDS]


if __name__ == "__main__":
    run_missing(cells(), run, RESULTS)
