"""The bench of chapter 5: its rule, its metric and its measurements of costs."""

import pytest
import torch

from pedagogic_peft.course.experiments import (
    comparison,
    comparison_costs,
    comparison_tasks,
    search,
    store,
)
from pedagogic_peft.course.experiments.comparison_floors import floors
from pedagogic_peft.course.pocket import stories, tasks

BASES = ("pocket-gpt", "pocket-vit")


def quick_run(task, method, rate, seed, n, steps):
    """Best at 0.1, whatever the seed, the task and the length; a lower rate keeps more."""
    val = 1 - 0.4 * abs(torch.tensor(rate).log10().item() + 1) if rate else -10.0
    return {"val": val, "val_loss": -val, "test": 1.0, "kept": -rate}


def test_a_bench_that_was_killed_ends_with_the_same_runs(tmp_path, monkeypatch):
    found = {}
    monkeypatch.setattr(comparison.os, "cpu_count", lambda: 1)  # in this process
    for name, deaths in (("whole", ()), ("killed", (3, 100, 101, 300))):
        path, ran = tmp_path / name, []

        def run(deaths=deaths, ran=ran, **cell):
            ran.append(cell)
            if len(ran) in deaths:
                raise KeyboardInterrupt
            return quick_run(**cell)

        monkeypatch.setattr(comparison, "RESULTS", path)
        monkeypatch.setattr(comparison, "run", run)
        for _ in deaths:
            with pytest.raises(KeyboardInterrupt):
                comparison.main()
        comparison.main()
        found[name] = sorted(map(str, store.read(path)))
        assert comparison.missing(store.read(path)) == []
    assert found["whole"] == found["killed"]
    records = store.read(path)
    long = [r for r in records if r["steps"] > comparison.ALL[r["task"]].steps]
    assert {(r["rate"], r["seed"]) for r in long} == {(0.1, seed) for seed in (0, 1, 2)}
    assert comparison.best_rate(records, "style", "LoRA") == 0.1  # where the score is highest
    gentle = comparison.gentlest_rate(records, "style", "LoRA")
    assert gentle == 0.01  # the lowest with half of what 0.1 has
    for method, rate in (("LoRA", gentle), ("VeRA", 0.1), ("full", 0.1)):
        at = comparison.at_rate(records, "style", method, rate)
        assert [r["seed"] for r in at] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", comparison.METHODS)
def test_a_method_without_meaning_is_one_that_the_library_refuses(method, base):
    if (method, base) in comparison.NO_MEANING:
        with pytest.raises(ValueError):
            comparison.prepare(base, method)
    else:
        model = comparison.prepare(base, method)
        assert any(p.requires_grad for p in model.parameters())


def test_nothing_of_the_bench_is_missing():
    records = store.read(comparison.RESULTS)
    keys = [tuple(r[k] for k in ("task", "method", "rate", "seed", "n", "steps")) for r in records]
    assert len(set(keys)) == len(keys)
    assert all(
        {"date", "torch", "machine", "val", "val_loss", "test", "kept"} <= r.keys() for r in records
    )
    assert comparison.missing(records) == []
    assert comparison.missing(records[:-1]) != []


def test_no_best_rate_of_the_bench_is_at_an_edge_and_every_number_has_five_seeds():
    records = store.read(comparison.RESULTS)
    for task in comparison.ALL:
        for method in (m for m in comparison.METHODS if comparison.meaningful(m, task)):
            known = comparison.runs(records, task, method)
            assert not search.at_edge(known), (task, method)
            assert set(comparison.scores(records, task, method)) == set(comparison.SEEDS)
            if comparison.ALL[task].long:
                long = comparison.longer(records, task, method)
                assert {r["steps"] for r in long} == {3 * comparison.ALL[task].steps}
                assert [r["seed"] for r in long] == [0, 1, 2]
    for task in comparison.TASKS:
        common = comparison.best_rate(records, task, "LoRA")
        gentle = [(m, comparison.gentlest_rate(records, task, m)) for m in comparison.METHODS
                  if comparison.meaningful(m, task)]  # fmt: skip
        for method, rate in [(m, common) for m in comparison.SHARED] + gentle:
            if rate and comparison.meaningful(method, task):
                at = comparison.at_rate(records, task, method, rate)
                assert [r["seed"] for r in at] == [0, 1, 2, 3, 4], (task, method, rate)


def test_a_gentlest_rate_learns_enough_on_validation_data_and_forgets_least():
    keys = frozen("questions", 0.4) | {"val_loss": 0.0}
    records = [frozen("questions", 0.4) | {"val": 0.4, "kept": 0.0}]
    records += [
        keys | {"method": "full", "rate": 1.0, "seed": s, "val": 0.8, "kept": -1.0}
        for s in range(5)
    ]
    for rate, val, kept in (
        (0.1, 0.5, -0.1),
        (0.3, 0.62, -0.5),
        (1.0, 0.7, -0.7),
        (3.0, None, None),
    ):
        records.append(keys | {"method": "LoRA", "rate": rate, "val": val, "kept": kept})
    assert comparison.gentlest_rate(records, "questions", "LoRA") == 0.3
    records = [r for r in records if r["rate"] not in (0.3, 1.0) or r["method"] != "LoRA"]
    assert comparison.gentlest_rate(records, "questions", "LoRA") is None


def test_a_run_again_is_what_was_stored():
    for method in ("head", "(IA)³"):
        stored = comparison.chosen(store.read(comparison.RESULTS), "vision", method)[2]
        cell = {key: stored[key] for key in ("rate", "seed", "n", "steps")}
        again = comparison.run("vision", method, **cell)
        assert again == pytest.approx({key: stored[key] for key in again}, abs=0.02)


def test_costs_are_stored_for_every_method_that_has_a_meaning():
    costs = store.read(comparison_costs.RESULTS)
    found = {(c["method"], c["base"]) for c in costs}
    assert found == {(m, b) for m in comparison.METHODS for b in BASES} - set(comparison.NO_MEANING)
    assert all(c["step_ratio"] > 0 and c["latency_ratio"] > 0 for c in costs)
    [stored] = [c for c in costs if (c["base"], c["method"]) == ("pocket-vit", "LoRA")]
    again = comparison_costs.peak_bytes("pocket-vit", "LoRA")
    assert again == pytest.approx({key: stored[key] for key in again}, rel=0.05)


def test_the_head_that_is_trained_is_not_the_input_embedding():
    model = comparison.prepare("pocket-gpt", "head")
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["lm_head.weight"]
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert model.get_input_embeddings().weight.any()


def test_words_right_counts_the_words_one_by_one():
    model, tokenizer = comparison_tasks.load("pocket-gpt")
    examples = tasks.translation(8, seed=5)
    right = []
    for example in examples:
        said = example.prompt
        for word in example.answer.removesuffix(" .").split():
            with torch.no_grad():
                logits = model(torch.tensor([tokenizer(said).input_ids])).logits[0, -1]
            right.append(tokenizer.decode(logits.argmax()).strip() == word)
            said += " " + word
    assert 0 < sum(right) < len(right)
    found = comparison_tasks.words_right(model, tokenizer, examples)
    assert found == pytest.approx(sum(right) / len(right))


def frozen(task, test):
    keys = {"task": task, "method": "frozen", "steps": comparison.ALL[task].steps}
    return keys | {"rate": 0.0, "seed": 0, "test": test}


def test_a_gain_counts_from_a_guess_where_the_base_is_below_it():
    guess = floors("translation")["guess"]
    assert comparison.start([frozen("translation", 0.1)], "translation") == guess > 0.3
    assert comparison.start([frozen("questions", 0.46)], "questions") == 0.46


def test_a_gain_is_a_share_of_full_fine_tunings():
    keys = frozen("questions", 0.4) | {"rate": 0.1, "val": 1.0, "val_loss": 0.0}
    records = [frozen("questions", 0.4)]
    for method, value in (("full", 0.8), ("LoRA", 0.6), ("head", None)):
        records += [keys | {"method": method, "seed": s, "test": value} for s in range(5)]
    for method, share in (("full", 1.0), ("LoRA", 0.5), ("head", 0.0)):
        gains = comparison.gain(records, "questions", method)
        assert gains == pytest.approx(dict.fromkeys(range(5), share))


@pytest.mark.parametrize("task", ["vision", "sentiment", "questions", "translation", "style"])
def test_a_rule_is_at_least_as_good_as_a_guess(task):
    found = floors(task)
    assert 0 <= found["guess"] <= found["rule"] <= 1


def test_the_counted_dictionary_knows_every_word_and_the_pairs_of_tokens_beat_single_ones():
    assert floors("translation")["rule"] == 1
    assert floors("recipes")["guess"] < floors("recipes")["rule"] < 0


def test_telegrams_ask_what_the_story_answers():
    short = comparison_tasks.telegrams(50, seed=1)
    assert len(short) == 50
    assert all(e.prompt.endswith(" :") and e.answer in e.prompt.split() for e in short)
    assert not any({"was", "?"} & set(e.prompt.rpartition(".")[2].split()) for e in short)
    assert {e.answer for e in short} < set(stories.vocabulary())


def test_training_validation_and_test_pictures_are_apart():
    train, validation, test = (
        {e["pixel_values"].numpy().tobytes() for e in comparison_tasks.pictures(1000, seed)}
        for seed in (comparison_tasks.TRAINING, comparison_tasks.VALIDATION, comparison_tasks.TEST)
    )
    assert not train & validation and not train & test and not validation & test


def test_the_highest_water_is_what_is_held_at_once():
    def action():
        first = torch.zeros(1000, 1000)
        second = first + 1
        del first
        third = second + 1  # again two
        return third.sum()

    assert comparison_costs.highest_water(action) == pytest.approx(8_000_000, abs=10_000)


def test_ratios_see_which_action_takes_longer():
    a = torch.randn(200, 200)
    actions = {n: lambda k=k: [a @ a for _ in range(k)] for n, k in (("one", 20), ("four", 80))}
    found = comparison_costs.ratios(actions, rounds=5)
    assert found["one"] == 1 and 2 < found["four"] < 8


def test_what_is_stored_is_what_was_trained():
    sizes = {m: comparison_costs.stored_bytes("pocket-vit", m) for m in ("full", "(IA)³")}
    assert 4 * 102_666 < sizes["full"] < 4 * 102_666 + 20_000
    assert 4 * 768 < sizes["(IA)³"] < 4 * 768 + 5_000
    assert comparison_costs.merges("pocket-vit", "LoRA")
    assert not comparison_costs.merges("pocket-vit", "Pfeiffer")
