"""No best rate that a page uses is at the edge of what was tried, or a cell of the page says that it is.

A best rate at an edge is not known: a better one may lie beyond. Two kinds are let pass: a score that
cannot be better (1 of a share), and a training at one given rate, which nobody calls the best.

CHAPTERS names the folder whose pages are judged; the default is the book's own chapters.
"""

import json
import os
import re
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

from pedagogic_peft.course.experiments import (
    adapters,
    comparison,
    composing,
    dialect,
    instruction_tuning,
    lora_family,
    lora_grid,
    prefix_grid,
    prompt_grid,
    prompt_limits,
    real_decoder,
    real_encoder,
    store,
    tuning,
    without_regret,
)

CHAPTERS = Path(os.environ.get("CHAPTERS") or Path(__file__).parents[2] / "chapters").resolve()
SAYS_SO = re.compile(r"\b(at_edge|edge)\b")  # `search.at_edge`, or a word of the page's own
SEEDS = (0, 1, 2)  # that choose a rate


def series(records, *keys):
    """Return {a search: its records}: those that agree in ``keys``."""
    found = defaultdict(list)
    for record in records:
        found[tuple(record[key] for key in keys)].append(record)
    return found


def by_mean(score, rate="lr"):
    """Return a function that chooses by the mean of the first three seeds."""

    def choose(_, found):
        means = {
            r[rate]: statistics.fmean(
                x[score] for x in found if x[rate] == r[rate] and x["seed"] in SEEDS
            )
            for r in found
        }
        return max(means, key=lambda each: means[each])

    return choose


def read(script):
    return store.read(script.RESULTS)


def of_known(script):
    """Return a real bench's records of the searches that are over: no page can use the others."""
    records = read(script)
    return [r for r in records if (r["task"], r["method"]) in script.BENCH.known(records)]


def real(script):
    """Return a real bench's search."""
    return (
        of_known(script),
        ("task", "method"),
        "rate",
        "val",
        lambda key, _: script.BENCH.best_rate(read(script), *key),
    )


# name: (records, what a search is, the field of the rate, that of the score, how the experiment chooses)
SEARCHES = {
    "adapters": (
        read(adapters),
        ("method",),
        "lr",
        None,
        lambda key, _: adapters.best_rate(read(adapters), *key),
    ),
    "comparison": (
        [r for r in read(comparison) if r["method"] != "frozen"],
        ("task", "method"),
        "rate",
        "val",
        lambda key, _: comparison.best_rate(read(comparison), *key),
    ),
    "composing": (
        read(composing),
        ("method",),
        "rate",
        "val",
        lambda key, _: composing.at_best_rate()[key[0]][0]["rate"],
    ),
    "dialect": (
        read(dialect),
        ("method",),
        "rate",
        "val",
        lambda key, _: dialect.at_best_rate()[key[0]][0]["rate"],
    ),
    "instruction_tuning": (
        instruction_tuning.of(read(instruction_tuning)),
        ("arm",),
        "rate",
        "val",
        lambda key, _: instruction_tuning.rate_of(read(instruction_tuning)),
    ),
    "lora_family": (
        read(lora_family),
        ("task", "method"),
        "lr",
        None,
        lambda key, _: lora_family.best_rate(read(lora_family), *key),
    ),
    "lora_grid": (
        read(lora_grid),
        ("part", "name", "r"),
        "lr",
        "accuracy",
        by_mean("accuracy"),
    ),
    "prefix_grid": (
        read(prefix_grid),
        ("kind",),
        "lr",
        "val",
        lambda key, found: prefix_grid.best(found, *key)["lr"],
    ),
    "prompt_grid": (
        read(prompt_grid),
        ("init", "n"),
        "lr",
        "val",
        lambda key, found: prompt_grid.best(found, *key)["lr"],
    ),
    "prompt_limits": (
        read(prompt_limits),
        ("base_name", "task", "method", "steps"),
        "lr",
        "val",
        lambda key, found: prompt_limits.best(found, *key)["lr"],
    ),
    "real_decoder": real(real_decoder),
    "real_encoder": real(real_encoder),
    "without_regret": (
        [
            r
            for arm in without_regret.known(read(without_regret))
            for r in without_regret.of(read(without_regret), arm)
        ],
        ("arm",),
        "rate",
        "val",
        lambda key, _: without_regret.rate_of(read(without_regret), *key),
    ),
    "tuning": (
        tuning.of_ranks(read(tuning), read(lora_grid)),
        ("part", "size"),
        "lr",
        "accuracy",
        lambda key, _: tuning.best_rate(tuning.of_ranks(read(tuning), read(lora_grid)), *key),
    ),
}


def edges(records, keys, rate, score, choose):
    """Return {a search: the best rate} of those whose best rate is the lowest or highest that was tried."""
    found = {}
    for key, of_search in series(records, *keys).items():
        rates = sorted({r[rate] for r in of_search})
        best = choose(key, of_search)
        top = [r[score] for r in of_search if score and r[rate] == best and r["seed"] in SEEDS]
        perfect = bool(top) and min(top) == 1
        if len(rates) > 1 and best in (rates[0], rates[-1]) and not perfect:
            found[key] = best
    return found


def code_of(page):
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def pages_with(experiment):
    """Return the pages that read an experiment's records, with their code."""
    codes = {page: code_of(page) for page in sorted(CHAPTERS.rglob("*.ipynb"))}
    return {page: code for page, code in codes.items() if re.search(rf"\b{experiment}\.", code)}


def reads(code, search):
    """Tell whether a page has to do with a search {field: value}: it names its task, or takes all tasks."""
    task = search.get("task")
    return not task or "TASKS" in code or bool(re.search(rf"\b{task}\b", code))


@pytest.mark.parametrize("experiment", SEARCHES)
def test_a_best_rate_is_inside_its_grid_or_the_page_says_that_it_is_not(experiment):
    keys = SEARCHES[experiment][1]
    silent = {
        (str(page.relative_to(CHAPTERS)), *key): best
        for key, best in edges(*SEARCHES[experiment]).items()
        for page, code in pages_with(experiment).items()
        if reads(code, dict(zip(keys, key, strict=True))) and not SAYS_SO.search(code)
    }
    assert not silent, (
        f"best rates of {experiment} at an edge, and the page does not say so: {silent}; "
        "run the rates beyond, or print `search.at_edge`"
    )


def test_every_experiment_with_a_search_is_here():
    scripts = {path.stem for path in Path(store.__file__).parent.glob("*.jsonl")}
    without_search = {"comparison_costs", "harness", "in_the_page", "learned_and_kept"}
    without_search |= {"sums_of_skills", "task_adapters", "real_adaptations", "real_shots"}
    without_search |= {"real_readouts"}  # of no rate
    without_search |= {f"{name}_again" for name in SEARCHES}  # a few runs, repeated elsewhere
    assert scripts - without_search == SEARCHES.keys()


def planted(folder, code):
    cell = {"cell_type": "code", "source": code, "outputs": [], "metadata": {}}
    (folder / "page.ipynb").write_text(json.dumps({"cells": [cell]}), encoding="utf-8")


def test_a_page_that_hides_an_edge_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "CHAPTERS", tmp_path)
    records = [record(float(i), score) for i, score in enumerate((0.5, 0.6, 0.7), start=1)]
    rest = (("method",), "lr", "val", by_mean("val"))
    monkeypatch.setitem(SEARCHES, "adapters", (records, *rest))
    check = test_a_best_rate_is_inside_its_grid_or_the_page_says_that_it_is_not
    planted(tmp_path, "rates = adapters.at_best_rate()")
    with pytest.raises(AssertionError, match="LoRA.*: 3.0"):
        check("adapters")
    planted(tmp_path, "print(search.at_edge(adapters.known(records)), adapters.at_best_rate())")
    check("adapters")
    monkeypatch.setitem(SEARCHES, "adapters", (records + [record(4.0, 0.6)], *rest))
    planted(tmp_path, "rates = adapters.at_best_rate()")
    check("adapters")


def record(rate, val, seed=0):
    return {"method": "LoRA", "lr": rate, "seed": seed, "val": val}


@pytest.mark.parametrize(
    "scores, at",
    [
        ((0.5, 0.7, 0.6), {}),
        ((0.5, 0.6, 0.7), {("LoRA",): 3.0}),
        ((0.8, 0.6, 0.7), {("LoRA",): 1.0}),
        ((0.5, 0.6, 1.0), {}),  # nothing is better
        ((0.5,), {}),  # one given rate
    ],
)
def test_a_planted_edge_is_found(scores, at):
    records = [record(float(i), score) for i, score in enumerate(scores, start=1)]
    assert edges(records, ("method",), "lr", "val", by_mean("val")) == at
