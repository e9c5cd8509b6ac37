"""The stored experiments: complete, and made by scripts that can be stopped and resumed."""

import json

import pytest
import torch

from pedagogic_peft import attach, load_base
from pedagogic_peft.core.sites import sites
from pedagogic_peft.course.experiments import (
    adapters,
    composing,
    dialect,
    harness,
    in_the_page,
    instruction_tuning,
    learned_and_kept,
    lora_family,
    lora_grid,
    prefix_grid,
    prompt_grid,
    prompt_limits,
    search,
    store,
    sums_of_skills,
    task_adapters,
    tuning,
    without_regret,
)
from pedagogic_peft.course.pocket import tasks
from pedagogic_peft.course.pocket.lessons import lesson


def test_every_run_of_the_family_and_of_its_repeats_is_stored_once():
    records = store.read(lora_family.RESULTS)
    cells = lora_family.cells() + lora_family.repeats(records)
    stored = [{key: record[key] for key in cells[0]} for record in records]
    assert len(records) == len(cells) and all(cell in stored for cell in cells)


def test_the_best_rate_of_every_member_of_the_family_is_no_edge():
    records = store.read(lora_family.RESULTS)
    for task in ("sentiment", "recipes"):
        for method in lora_family.METHODS:
            tried = lora_family.rates(records, task, method)
            assert lora_family.best_rate(records, task, method) in tried[1:-1], (task, method)


def test_every_run_of_instruction_tuning_is_stored_once_and_its_rate_is_no_edge():
    records = store.read(instruction_tuning.RESULTS)
    keys = [(r["arm"], r["rate"], r["seed"]) for r in records]
    assert len(keys) == len(set(keys))
    assert not search.at_edge(instruction_tuning.of(records))
    for arm, seeds in instruction_tuning.ARMS.items():
        assert sorted(instruction_tuning.of_seeds(records, arm, "loss")) == [*range(seeds)]


def test_every_run_on_the_recommendations_is_stored_once_and_no_rate_is_at_an_edge():
    records = store.read(without_regret.RESULTS)
    keys = [(r["arm"], r["rate"], r["seed"]) for r in records]
    assert len(keys) == len(set(keys))
    for arm in without_regret.known(records):
        assert not search.at_edge(without_regret.of(records, arm)), arm
        assert sorted(without_regret.at_best(records, arm)) == list(without_regret.SEEDS)


def test_the_attention_and_the_mlp_have_as_many_numbers_as_the_lora_on_all():
    records = store.read(without_regret.RESULTS)
    trained = {r["arm"]: r["trained"] for r in records if "trained" in r}
    for arm in {"attention", "MLP"} & trained.keys():
        assert abs(trained[arm] / trained["LoRA"] - 1) < 0.03


def test_a_rate_between_those_of_the_grid_is_where_the_parabola_is_lowest():
    records = [
        {
            "arm": "full",
            "rate": 10.0**x,
            "seed": 0,
            "val_loss": (x + 3.8) ** 2,
            "val": -((x + 3.8) ** 2),
        }
        for x in (-5, -4.5, -4, -3.5, -3)
    ]
    assert without_regret.lowest_at(records, "full", 0) == pytest.approx(-3.8)


def test_the_harness_and_our_own_scores_agree_in_the_record():
    for record in store.read(harness.RESULTS):
        assert record["harness"] == record["own"] and record["apart"] < 1e-3
        assert record["documents"] == 24 and "lm_eval" in record["versions"]


def test_every_run_of_the_grid_and_of_its_repeats_is_stored_once_and_tested():
    records = store.read(lora_grid.RESULTS)
    repeats = lora_grid.repeats(records)
    cells = lora_grid.cells() + repeats
    stored = [{key: record[key] for key in cells[0]} for record in records]
    assert len(records) == len(cells) and all(cell in stored for cell in cells)
    for part, name, r in {(c["part"], c["name"], c["r"]) for c in repeats}:
        assert sorted(lora_grid.chosen(records, part, name, r)) == [0, 1, 2, 3, 4]


def test_no_best_rate_of_the_grid_is_at_an_edge():
    records = store.read(lora_grid.RESULTS)
    for method in {(r["part"], r["name"], r["r"]) for r in records}:
        tried = lora_grid.rates(records, *method)
        assert lora_grid.best_rate(records, *method) in tried[1:-1], method


@pytest.mark.parametrize("script", [learned_and_kept, task_adapters])
def test_every_run_of_the_experiment_is_stored_once(script):
    cells, records = script.cells(), store.read(script.RESULTS)
    stored = [{key: record[key] for key in cells[0]} for record in records]
    assert len(records) == len(cells)
    assert all(cell in stored for cell in cells)
    assert all({"date", "torch", "trainable"} <= record.keys() for record in records)


@pytest.mark.parametrize(
    "script, keys",
    [(adapters, ("method", "lr", "seed")), (composing, ("method", "rate", "seed"))],
)
def test_the_search_of_the_experiment_is_finished_and_every_run_stored_once(script, keys):
    records = store.read(script.RESULTS)
    stored = {tuple(record[key] for key in keys) for record in records}
    assert script.missing(records) == []
    assert len(stored) == len(records)
    assert all({"date", "torch"} <= record.keys() for record in records)


def test_every_run_of_the_sizes_is_stored_once_and_no_best_rate_is_at_an_edge():
    records = store.read(tuning.RESULTS)
    ranks = tuning.of_ranks(records, store.read(lora_grid.RESULTS))
    cells = tuning.cells()
    stored = [{key: record[key] for key in cells[0]} for record in records]
    assert len(records) == len(cells) and all(cell in stored for cell in cells)
    frozen, tokenizer, _, reviews = tuning.material()
    floor = tasks.word_accuracy(frozen, tokenizer, reviews, lesson("pocket-gpt").labels)
    for part, size in {(r["part"], r["size"]) for r in ranks}:
        found = tuning.of_size(ranks, part, size)
        above = (
            search.merit(found, search.best_rate(found, edge=True))[0] > floor + 0.02
        )  # else none is best
        assert part == "examples" or not above or not search.at_edge(found), (part, size)
        best = tuning.best_rate(ranks, part, size)
        assert {r["seed"] for r in found if r["rate"] == best} >= {0, 1, 2}


@pytest.mark.parametrize("script", [prompt_grid, prefix_grid])
def test_every_run_of_a_search_and_of_its_repeats_is_stored_once(script):
    records = store.read(script.RESULTS)
    cells = script.search() + script.repeats(records)
    stored = [{key: record[key] for key in cells[0]} for record in records]
    assert len(records) == len(cells)
    assert all(cell in stored for cell in cells)


def test_every_run_of_the_comparison_of_sizes_is_stored_once():
    """And some more, of rates that were the best of fewer."""
    records = store.read(prompt_limits.RESULTS)
    cells = [
        cell
        for base in prompt_limits.BASES
        for kind in prompt_limits.kinds(base)
        for cell in prompt_limits.search(base, kind) + prompt_limits.repeats(records, base, kind)
    ]
    stored = [{key: record[key] for key in cells[0]} for record in records]
    assert all(stored.count(cell) == 1 for cell in cells + stored)


def test_every_run_of_the_dialect_and_of_the_sums_is_stored_once():
    assert not dialect.missing(store.read(dialect.RESULTS))
    for name, runs in dialect.at_best_rate().items():
        assert [r["seed"] for r in runs] == list(dialect.SEEDS), name
    records = store.read(sums_of_skills.RESULTS)
    stored = [{key: r[key] for key in ("pair", "seed")} for r in records]
    assert len(stored) == len(sums_of_skills.cells())
    assert all(cell in stored for cell in sums_of_skills.cells())


def test_a_dialect_has_the_words_of_a_translation_in_another_order():
    [plain], [other] = tasks.translation(1, 3), dialect.dialect(1, 3)
    assert other.prompt == plain.prompt and other.answer != plain.answer
    assert sorted(other.answer.split()) == sorted(plain.answer.split())


def test_a_weight_scales_what_an_update_adds():
    model, tokenizer = load_base("pocket-gpt-tiny")
    attach(model, sums_of_skills.METHOD, "shout")
    for _, site in sites(model):
        torch.nn.init.normal_(site.deltas["shout"].lora_B.weight, std=0.1)
    [site, *_] = [site for _, site in sites(model)]
    before = site.deltas["shout"].delta_weight()
    sums_of_skills.weigh(model, "shout", 0.5)
    torch.testing.assert_close(site.deltas["shout"].delta_weight(), before / 2)


def test_a_stopped_experiment_goes_on_where_it_was(tmp_path):
    path, ran = tmp_path / "runs.jsonl", []
    cells = [{"seed": seed} for seed in range(4)]

    def run(seed):
        ran.append(seed)
        if ran == [0, 1, 2]:
            raise KeyboardInterrupt
        return {"square": seed * seed}

    with pytest.raises(KeyboardInterrupt):
        store.run_missing(cells, run, path)
    path.write_text(path.read_text() + '{"seed": 2, "squ')  # killed while it wrote
    records = store.run_missing(cells, run, path)
    assert ran == [0, 1, 2, 2, 3]
    assert [record["square"] for record in records] == [0, 1, 4, 9]
    assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


def test_two_processes_store_what_one_does(tmp_path):
    cells = [{"x": float(x), "y": 2.0} for x in range(5)]
    records = store.run_missing(cells, power, tmp_path / "runs.jsonl", processes=2)
    assert sorted((r["x"], r["power"]) for r in records) == [(x, x**2) for x in range(5)]
    assert len(store.read(tmp_path / "runs.jsonl")) == 5
    assert store.run_missing(cells, power, tmp_path / "runs.jsonl", processes=2) == records


def power(x, y):
    return {"power": x**y}


@pytest.mark.parametrize("shape", [(6, 6), (6, 16), (16, 6)])
def test_muon_is_pytorchs(shape):
    ours, theirs = (torch.nn.Parameter(torch.zeros(shape)) for _ in range(2))
    pair = learned_and_kept.Muon([ours], lr=0.1), torch.optim.Muon([theirs], 0.1, weight_decay=0.0)
    for seed in range(3):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        for parameter, optimizer in zip((ours, theirs), pair, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=0.01, rtol=0)  # theirs works in bfloat16


def test_the_runs_beside_those_of_the_page_are_stored_once():
    records = store.read(in_the_page.RESULTS)
    assert sorted(r["kind"] for r in records) == sorted(in_the_page.RUNS)
    for record in records:
        if "losses" in record:
            assert len(record["losses"]) == in_the_page.STEPS
            measured = [step for step, _ in record["validation"]]
            assert measured == list(range(0, in_the_page.STEPS + 1, in_the_page.EVERY))
