"""The grid of page 4.2: a prefix trained directly, from small values or words, and one that a network makes.

    python -m pedagogic_peft.course.experiments.prefix_grid    # runs what is missing, 3 minutes in all

The task, the examples and the search are those of `prompt_grid`: seed 0 tries four or five learning
rates, and the best of them by the validation score is run on four seeds more.
"""

import copy
from pathlib import Path

import torch

from pedagogic_peft import PrefixTuning, attach, count_parameters, train
from pedagogic_peft.course.experiments.prompt_grid import SEEDS, SETTINGS, TEXT, base, data, score
from pedagogic_peft.course.experiments.store import Cell, read, run_missing

RESULTS = Path(__file__).with_name("prefix_grid.jsonl")
N = 8  # virtual tokens, as many as TEXT has words
KINDS = {  # the learning rates; Adam needs small ones for the network's weights
    "direct": (0.1, 0.3, 1.0, 3.0, 10.0),
    "network": (1e-3, 3e-3, 1e-2, 3e-2),
    "words": (0.03, 0.1, 0.3, 1.0),
}


def method(kind: str) -> PrefixTuning:
    """Return the prefix; "words" begins with the keys and values of TEXT in the frozen model."""
    if kind == "words":
        return PrefixTuning(N, init=base()[1](TEXT, add_special_tokens=False).input_ids)
    return PrefixTuning(N, prefix_projection=kind == "network")


def run(kind: str, lr: float, seed: int) -> Cell:
    """Train one prefix; return its scores, the mean of its last ten losses, and its size."""
    torch.manual_seed(seed)
    model = attach(copy.deepcopy(base()[0]), method(kind))
    losses = train(model, data(), lr=lr, seed=seed, **SETTINGS).column("loss")[-10:]
    scores = {name: round(score(model, held), 4) for name, held in (("val", 3), ("test", 2))}
    trainable = count_parameters(model).trainable
    return scores | {"loss": round(sum(losses) / len(losses), 4), "trainable": trainable}


def search() -> list[Cell]:
    """Return the cells that choose the rates."""
    return [{"kind": k, "lr": lr, "seed": 0} for k, rates in KINDS.items() for lr in rates]


def best(records: list[Cell], kind: str) -> Cell:
    """Return the record of seed 0 with the best validation score; of equal ones, the lower rate."""
    mine = [r for r in records if (r["kind"], r["seed"]) == (kind, 0)]
    return max(mine, key=lambda r: (r["val"], -r["lr"]))


def repeats(records: list[Cell]) -> list[Cell]:
    """Return the cells that repeat the best rates with other seeds."""
    rates = {kind: best(records, kind)["lr"] for kind in KINDS}
    return [{"kind": k, "lr": lr, "seed": seed} for seed in SEEDS[1:] for k, lr in rates.items()]


if __name__ == "__main__":
    run_missing(search(), run, RESULTS)
    run_missing(repeats(read(RESULTS)), run, RESULTS)
