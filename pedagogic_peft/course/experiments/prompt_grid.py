"""The grid of page 4.1: how a soft prompt begins, how long it is, and its learning rate.

    python -m pedagogic_peft.course.experiments.prompt_grid    # runs what is missing, 6 minutes in all

The task is a style that pocket-gpt's pretraining held, but seldom: every sentence ends in "so they
say". Seed 0 tries the learning rates; the one with the best validation score is run on four seeds more.
The page reports test scores.
"""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pedagogic_peft import PromptTuning, attach, load_base, train
from pedagogic_peft.core.sites import sites
from pedagogic_peft.course.experiments.store import Cell, read, run_missing
from pedagogic_peft.course.pocket import tasks

RESULTS = Path(__file__).with_name("prompt_grid.jsonl")
STYLE, TEXT = "tale", "leo was happy , so they say ."  # eight words
SEEDS, RATES = (0, 1, 2, 3, 4), (0.01, 0.03, 0.1, 0.3, 1.0)
SETTINGS: dict[str, Any] = {"steps": 60, "batch_size": 16, "progress": False}


@cache
def base() -> tuple[Any, Any]:
    """Return pocket-gpt and its tokenizer."""
    torch.set_num_threads(1)
    return load_base("pocket-gpt")


@cache
def data() -> list[dict[str, list[int]]]:
    """Return the training examples: a plain sentence, then one in the style."""
    return tasks.encode(base()[1], tasks.styled(STYLE, 1000, seed=1, sentences=1))


def prompted(init: str, n: int) -> Any:
    """Return a copy of the base with a prompt of n virtual tokens.

    ``init`` is "random" or "vocab" as in `PromptTuning`; "text" for the words of TEXT; "wrong scale"
    for Gaussian values of standard deviation 1, several times that of the embeddings.
    """
    model, tokenizer = copy.deepcopy(base()[0]), base()[1]
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    attach(model, PromptTuning(n, {"text": ids, "wrong scale": "random"}.get(init, init)))
    if init == "wrong scale":
        P = next(sites(model))[1].deltas["default"].prompt_embeddings
        P.data /= model.get_input_embeddings().weight.std()
    return model


def score(model: Any, seed: int) -> float:
    """Return the share of sentences in 50 continuations that wear the style."""
    return tasks.style_accuracy(model, base()[1], STYLE, tasks.styled(STYLE, 50, seed))


def run(init: str, n: int, lr: float, seed: int) -> Cell:
    """Train one prompt; return its scores on validation and test set, and its last losses' mean."""
    torch.manual_seed(seed)
    model = prompted(init, n)
    losses = train(model, data(), lr=lr, seed=seed, **SETTINGS).column("loss")[-10:]
    scores = {name: round(score(model, held), 4) for name, held in (("val", 3), ("test", 2))}
    return scores | {"loss": round(sum(losses) / len(losses), 4)}


def search() -> list[Cell]:
    """Return the cells that choose the rates: four ways to begin, then other lengths."""
    kinds = [(init, 8) for init in ("wrong scale", "random", "vocab", "text")]
    kinds += [("vocab", n) for n in (1, 4, 16)]
    return [{"init": init, "n": n, "lr": lr, "seed": 0} for init, n in kinds for lr in RATES]


def best(records: list[Cell], init: str, n: int) -> Cell:
    """Return the record of seed 0 with the best validation score; of equal ones, the lower rate."""
    mine = [r for r in records if (r["init"], r["n"], r["seed"]) == (init, n, 0)]
    return max(mine, key=lambda r: (r["val"], -r["lr"]))


def repeats(records: list[Cell]) -> list[Cell]:
    """Return the cells that repeat the best rates with other seeds."""
    kinds = dict.fromkeys((cell["init"], cell["n"]) for cell in search())
    chosen = [best(records, *kind) for kind in kinds]
    return [
        {key: r[key] for key in ("init", "n", "lr")} | {"seed": seed}
        for seed in SEEDS[1:]
        for r in chosen
    ]


if __name__ == "__main__":
    run_missing(search(), run, RESULTS)
    run_missing(repeats(read(RESULTS)), run, RESULTS)
