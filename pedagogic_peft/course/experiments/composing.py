"""Page 3.3: what a fusion of three adapters is worth on a stream of requests, and on a new task.

    python -m pedagogic_peft.course.experiments.composing    # what is missing: 15 minutes of one core in all

"stream": requests of the three tasks of `task_adapters`, mixed. No word says which is which: summaries
and translations are asked for by the same words. "dialect": Toli with another order of words. Each method
gets 60 examples of each task. The rule of `search` chooses its rate by exact match on validation examples;
the best rate has five seeds. A seed decides the examples, their order and the initial values.
"""

import copy
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pedagogic_peft import AdapterFusion, activate, attach, load, train
from pedagogic_peft.core.sites import sites
from pedagogic_peft.course.experiments import search, task_adapters
from pedagogic_peft.course.experiments.store import Cell, read, run_missing
from pedagogic_peft.course.pocket import tasks
from pedagogic_peft.course.pocket.stories import WORLD
from pedagogic_peft.course.pocket.tasks import Example

RESULTS = Path(__file__).with_name("composing.jsonl")
SEEDS = (0, 1, 2, 3, 4)
STEPS = {"stream": 75, "dialect": 120}
BATCH_SIZE = 12
EXAMPLES, LONGEST = 60, 40  # of each task, and the words of a request
HELD_OUT = {
    "val": (40, 3),
    "test": (100, 2),
}  # how many of each task, and the seed they are drawn with
TRAINING = 100  # the seed of the first seed's examples
GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
NAMES = list(task_adapters.TASKS)


# --- the requests -------------------------------------------------------------------------------


def requests(task: str, n: int, seed: int) -> list[Example]:
    """Return n requests of one of the three tasks, none long; a summary is asked for as a translation."""
    short = (
        Example(e.prompt.replace(WORLD["summary"]["opening"], WORLD["toli"]["opening"]), e.answer)
        for e in task_adapters.TASKS[task](10 * n, seed)
        if len(e.prompt.split()) <= LONGEST
    )
    return [example for example, _ in zip(short, range(n), strict=False)]


def dialect(n: int, seed: int) -> list[Example]:
    """Return n translations into Toli's words in the order: verb, who, thing, colour."""
    found = []
    for example in tasks.translation(n, seed):
        thing, colour, who, verb, stop = example.answer.split()
        found.append(Example(example.prompt, " ".join([verb, who, thing, colour, stop])))
    return found


def draw(task: str, n: int, seed: int) -> dict[str, list[Example]]:
    """Return n examples of each kind that a task has: {kind: examples}."""
    if task == "dialect":
        return {"dialect": dialect(n, seed)}
    return {name: requests(name, n, seed) for name in NAMES}


# --- the methods --------------------------------------------------------------------------------


def fresh(model: Any) -> None:
    """Attach one new adapter."""
    attach(model, task_adapters.METHOD)


def go_on(model: Any) -> None:
    """Load the translation adapter, to be trained on."""
    load(model, task_adapters.FOLDER / "translation", name="translation")


def stack(model: Any) -> None:
    """Put a new adapter on top of the translation adapter, which stays as it is."""
    go_on(model)
    attach(model, task_adapters.METHOD, "above")
    for _, site in sites(model):
        site.deltas["translation"].requires_grad_(False)
    activate(model, "translation", "above")


def fuse(model: Any) -> None:
    """Load the three adapters and attach a fusion whose scores begin nearly equal."""
    for name in NAMES:
        load(model, task_adapters.FOLDER / name, name=name)
    attach(model, AdapterFusion(adapters=NAMES), "fusion")
    calm(model)


def calm(model: Any, spread: float = 0.1) -> None:
    """Make Q and K smaller: at each place the scores over a story begin with this standard deviation."""
    seen: dict[Any, float] = {}

    def look(fusion: Any, args: Any, out: Any) -> None:
        h = args[1]
        z = torch.stack([a.module.change(h) for a in fusion.adapters], dim=-2)
        scores = fusion.key(z) @ fusion.query(h).unsqueeze(-1)
        seen[fusion] = scores.std().item()

    fusions = [site.deltas["fusion"] for _, site in sites(model)]
    hooks = [fusion.register_forward_hook(look) for fusion in fusions]
    with torch.no_grad():
        model(**material()[1](story(), return_tensors="pt"))
        for fusion, std in seen.items():
            fusion.query.weight *= (spread / std) ** 0.5
            fusion.key.weight *= (spread / std) ** 0.5
    for hook in hooks:
        hook.remove()


@cache
def story() -> str:
    """Return the story that `calm` measures on."""
    return requests("summary", 1, HELD_OUT["val"][1])[0].prompt


def rates_of_fusion(model: Any, rate: float) -> list[dict[str, Any]]:
    """Return groups of parameters: Q and K move by ``rate`` of their own size in a step, V by rate / 50."""
    groups = []
    for _, site in sites(model):
        fusion = site.deltas["fusion"]
        for part in (fusion.query, fusion.key):
            groups.append({"params": [part.weight], "lr": rate * part.weight.std().item()})
        groups.append({"params": [fusion.value.weight], "lr": rate / 50})
    return groups


# {task: {method: (what it attaches to a copy of the base, the middle one of the first three rates)}}
METHODS: dict[str, dict[str, tuple[Callable[[Any], None], float]]] = {
    "stream": {"fusion": (fuse, 3e-2), "one adapter": (fresh, 1e-2)},
    "dialect": {
        "fresh adapter": (fresh, 1e-2),
        "translation, trained on": (go_on, 1e-2),
        "new one on top of translation": (stack, 1e-2),
        "fusion": (fuse, 3e-2),
    },
}


# --- one run ------------------------------------------------------------------------------------

material = task_adapters.material


def prepare(task: str, method: str, seed: int) -> Any:
    """Return a copy of the base with what the method trains."""
    torch.manual_seed(seed)
    model = copy.deepcopy(material()[0])
    METHODS[task][method][0](model)
    return model


def fit(model: Any, task: str, method: str, rate: float, seed: int) -> Any:
    """Train a prepared model; return the history."""
    examples = [e for kind in draw(task, EXAMPLES, TRAINING + seed).values() for e in kind]
    data = tasks.encode(material()[1], examples)
    options: dict[str, Any] = {"lr": rate}
    if method == "fusion":
        options = {"optimizer": torch.optim.AdamW(rates_of_fusion(model, rate), weight_decay=0.0)}
    settings = {"steps": STEPS[task], "batch_size": BATCH_SIZE, "seed": seed, "progress": False}
    return train(model, data, **settings, **options)


def exact(model: Any, held_out: dict[str, list[Example]]) -> dict[str, float]:
    """Return the share that is answered word for word, of each kind of request."""
    tokenizer = material()[1]
    return {
        kind: tasks.exact_match(model, tokenizer, examples) for kind, examples in held_out.items()
    }


def mean(shares: dict[str, float]) -> float:
    """Return the mean over the kinds of requests."""
    return sum(shares.values()) / len(shares)


def run(task: str, method: str, rate: float, seed: int) -> Cell:
    """Train one cell and score it; a training that diverged has None for its scores."""
    model = prepare(task, method, seed)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if method == "fusion":
        trainable = sum(
            p.numel() for _, site in sites(model) for p in site.deltas["fusion"].parameters()
        )
    try:
        fit(model, task, method, rate, seed)
    except FloatingPointError:
        return dict.fromkeys(("val", "val_loss", "test", "each")) | {"trainable": trainable}
    held_out = {name: draw(task, *drawn) for name, drawn in HELD_OUT.items()}
    both = [e for kind in held_out["val"].values() for e in kind]
    each = exact(model, held_out["test"])
    return {
        "val": round(mean(exact(model, held_out["val"])), 4),
        "val_loss": round(tasks.loss_per_token(model, material()[1], both), 4),
        "test": round(mean(each), 4),
        "each": each,
        "trainable": trainable,
    }


# --- which runs ---------------------------------------------------------------------------------


def runs(records: Sequence[Cell], task: str, method: str) -> list[Cell]:
    """Return the records of a method on a task."""
    return [r for r in records if (r["task"], r["method"]) == (task, method)]


def missing(records: Sequence[Cell]) -> list[Cell]:
    """Return the runs that the rule asks for next, given those that are known; none at the end."""
    asked = []
    for task, methods in METHODS.items():
        for name, (_, middle) in methods.items():
            known = runs(records, task, name)
            more = search.wanted(known, GRID, middle)
            more = more or [(search.best_rate(known), seed) for seed in SEEDS]
            asked += [{"task": task, "method": name, "rate": r, "seed": s} for r, s in more]
    done = [{key: r[key] for key in ("task", "method", "rate", "seed")} for r in records]
    return [cell for cell in asked if cell not in done]


def at_best_rate(task: str) -> dict[str, list[Cell]]:
    """Return the stored runs of each method of a task at its rate, in the order of the seeds."""
    records = read(RESULTS)
    found = {}
    for name in METHODS[task]:
        known = runs(records, task, name)
        best = search.best_rate(known)
        found[name] = sorted((r for r in known if r["rate"] == best), key=lambda r: r["seed"])
    return found


def scores(found: Sequence[Cell]) -> dict[int, float]:
    """Return {seed: test score} of the runs of one method."""
    return {r["seed"]: r["test"] for r in found}


if __name__ == "__main__":
    while todo := missing(read(RESULTS)):
        run_missing(todo, run, RESULTS)
