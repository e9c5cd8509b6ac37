"""Page 3.3: a fusion of three adapters, and one new adapter, on a stream of requests of three kinds.

    python -m pedagogic_peft.course.experiments.composing    # what is missing: 6 minutes of one core in all

The stream mixes the tasks of `task_adapters`, and no word names the task: summaries and translations are
asked for by the same words. Both methods get 60 examples of each task and as many steps. The rule of
`search` chooses the rate by exact match on validation requests; the best rate has five seeds. A seed
decides the examples, their order and the initial values.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pedagogic_peft import AdapterFusion, attach, load, train
from pedagogic_peft.core.sites import sites
from pedagogic_peft.course.experiments import search, task_adapters
from pedagogic_peft.course.experiments.store import Cell, read, run_missing
from pedagogic_peft.course.pocket import tasks
from pedagogic_peft.course.pocket.stories import WORLD
from pedagogic_peft.course.pocket.tasks import Example

RESULTS = Path(__file__).with_name("composing.jsonl")
SEEDS = (0, 1, 2, 3, 4)
STEPS, BATCH_SIZE = 60, 12
EXAMPLES, LONGEST = 60, 35  # of each task, and words in a request, as the adapters were trained
VALIDATION, TEST = (40, 3), (100, 2)  # how many of each task, and the seed that draws them
TRAINING = 100  # plus the run's seed: the seed that draws its examples
GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
NAMES = list(task_adapters.TASKS)
SPREAD = 0.1  # of the scores of a fusion at its start
material = task_adapters.material


# --- the stream ---------------------------------------------------------------------------------


def requests(n: int, seed: int) -> dict[str, list[Example]]:
    """Return n short requests of each task; a summary is asked for in the words of a translation."""
    return {name: _requests(name, n, seed) for name in NAMES}


def _requests(task: str, n: int, seed: int) -> list[Example]:
    drawn = task_adapters.TASKS[task](400 + 40 * n, seed)  # few are short
    short = [e for e in drawn if len(e.prompt.split()) <= LONGEST]
    words, others = WORLD["summary"]["opening"], WORLD["toli"]["opening"]
    return [Example(e.prompt.replace(words, others), e.answer) for e in short[:n]]


def exact(model: Any, held_out: dict[str, list[Example]]) -> dict[str, float]:
    """Return the share of requests that is answered word for word, for each task."""
    tokenizer = material()[1]
    return {name: tasks.exact_match(model, tokenizer, e) for name, e in held_out.items()}


def mean(shares: dict[str, float]) -> float:
    """Return the mean over the tasks."""
    return sum(shares.values()) / len(shares)


# --- the methods --------------------------------------------------------------------------------


def fuse(model: Any) -> None:
    """Load the three adapters and attach a fusion whose scores begin nearly equal."""
    for name in NAMES:
        load(model, task_adapters.FOLDER / name, name=name)
    attach(model, AdapterFusion(adapters=NAMES), "fusion")
    calm(model, requests(1, VALIDATION[1])["summary"][0].prompt)


def scores_of(model: Any, text: str) -> dict[str, torch.Tensor]:
    """Return {place: score of each adapter for each word, (words, N)} of a fused model."""
    seen: dict[str, torch.Tensor] = {}
    hooks = []
    for path, fusion in fusions_of(model).items():

        def look(fusion: Any, args: Any, out: Any, path: str = path) -> None:
            h = args[1]
            z = torch.stack([a.module.change(h) for a in fusion.adapters], dim=-2)
            seen[path] = (fusion.key(z) @ fusion.query(h).unsqueeze(-1)).squeeze(-1)[0]

        hooks.append(fusion.register_forward_hook(look))
    with torch.no_grad():
        model(**material()[1](text, return_tensors="pt").to(model.device))
    for hook in hooks:
        hook.remove()
    return seen


def fusions_of(model: Any) -> dict[str, Any]:
    """Return {place: its fusion}."""
    return {path: site.deltas["fusion"] for path, site in sites(model)}


@torch.no_grad()
def calm(model: Any, text: str, spread: float = SPREAD) -> None:
    """Make Q and K smaller: the scores of each place begin with this standard deviation over a text."""
    for path, scores in scores_of(model, text).items():
        for part in (fusions_of(model)[path].query, fusions_of(model)[path].key):
            part.weight *= (spread / scores.std()).sqrt()


def optimizer_of(model: Any, rate: float) -> torch.optim.Optimizer:
    """Return AdamW; Q and K move by ``rate`` of their entries' size in a step, V by a fiftieth of it."""
    groups = []
    for fusion in fusions_of(model).values():
        for part in (fusion.query, fusion.key):
            groups.append({"params": [part.weight], "lr": rate * part.weight.std().item()})
        groups.append({"params": [fusion.value.weight], "lr": rate / 50})
    return torch.optim.AdamW(groups, weight_decay=0.0)


def fresh(model: Any) -> None:
    """Attach one new adapter for all tasks."""
    attach(model, task_adapters.METHOD)


# {name: (what it attaches, the middle one of the first three rates)}
METHODS: dict[str, tuple[Callable[[Any], None], float]] = {
    "fusion": (fuse, 3e-2),
    "one adapter": (fresh, 1e-2),
}


# --- one run ------------------------------------------------------------------------------------


def trained(method: str, rate: float, seed: int) -> Any:
    """Return a copy of the base with the method, trained on the stream."""
    torch.manual_seed(seed)
    model = copy.deepcopy(material()[0])
    METHODS[method][0](model)
    examples = [e for some in requests(EXAMPLES, TRAINING + seed).values() for e in some]
    optimizer = optimizer_of(model, rate) if method == "fusion" else None
    settings: dict[str, Any] = {
        "steps": STEPS,
        "batch_size": BATCH_SIZE,
        "seed": seed,
        "progress": False,
    }
    data = tasks.encode(material()[1], examples)
    train(model, data, lr=rate, optimizer=optimizer, **settings)
    return model


def run(method: str, rate: float, seed: int) -> Cell:
    """Train one cell and score it; a training that diverged has None for its scores."""
    try:
        model = trained(method, rate, seed)
    except FloatingPointError:
        return dict.fromkeys(("val", "val_loss", "test", "each"))
    held_out, test = requests(*VALIDATION), exact(model, requests(*TEST))
    all_of_them = [e for some in held_out.values() for e in some]
    return {
        "val": round(mean(exact(model, held_out)), 4),
        "val_loss": round(tasks.loss_per_token(model, material()[1], all_of_them), 4),
        "test": round(mean(test), 4),
        "each": test,
    }


# --- which runs ---------------------------------------------------------------------------------


def missing(records: Sequence[Cell]) -> list[Cell]:
    """Return the runs that the rule asks for next, given those that are known; none at the end."""
    middles = {name: middle for name, (_, middle) in METHODS.items()}
    return search.missing_runs(records, middles, GRID, SEEDS)


def at_best_rate() -> dict[str, list[Cell]]:
    """Return the stored runs of each method at its rate, in the order of the seeds."""
    return search.at_best_rate(read(RESULTS), METHODS)


def scores(runs: Sequence[Cell]) -> dict[int, float]:
    """Return {seed: mean exact match on the test requests} of the runs of one method."""
    return {r["seed"]: r["test"] for r in runs}


if __name__ == "__main__":
    while todo := missing(read(RESULTS)):
        run_missing(todo, run, RESULTS)
