"""The bench of chapter 5: its rule, its metric and its measurements of costs."""

from collections import Counter

import pytest
import torch

from pedagogic_peft.course.experiments import comparison, comparison_costs, store
from pedagogic_peft.course.pocket import stories, tasks

BASES = ("pocket-gpt", "pocket-vit")


def record(rate, val_loss, seed=0, method="LoRA"):
    cell = {"task": "sentiment", "method": method, "rate": rate, "seed": seed, "n": comparison.MANY}
    return cell | {"val_loss": val_loss}


def next_after(losses: dict) -> list:
    records = [record(rate, loss) for rate, loss in losses.items()]
    return comparison.next_rates(records, "sentiment", "LoRA")


def test_the_search_goes_on_until_both_neighbours_of_the_best_rate_were_tried():
    assert next_after({}) == [3e-3, 1e-2, 3e-2]
    assert next_after({3e-3: 2.0, 1e-2: 1.0}) == [3e-2]
    assert next_after({3e-3: 2.0, 1e-2: 1.0, 3e-2: 2.0}) == []
    assert next_after({3e-3: 1.0, 1e-2: 2.0, 3e-2: 3.0}) == [1e-3]
    assert next_after({3e-3: 3.0, 1e-2: 2.0, 3e-2: 1.0}) == [1e-1]
    assert next_after({3e-3: 3.0, 1e-2: 2.0, 3e-2: None}) == []  # the loss was not finite


def test_the_search_ends_after_so_many_rates():
    falling = {rate: -rate for rate in comparison.GRID[3 : 3 + comparison.MOST_RATES]}
    assert next_after(falling) == []


def quick_run(task, method, rate, seed, n):
    return {"val_loss": abs(torch.tensor(rate or 1).log10().item() + 1), "test": 1.0, "kept": seed}


def test_a_bench_that_was_killed_ends_with_the_same_runs(tmp_path, monkeypatch):
    found = {}
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
    best = {r["rate"] for r in store.read(path) if r["seed"] == 2}
    assert best == {0.1}  # where the loss is lowest


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
    keys = [tuple(r[k] for k in ("task", "method", "rate", "seed", "n")) for r in records]
    assert len(set(keys)) == len(keys)
    assert all(
        {"date", "torch", "machine", "val_loss", "test", "kept"} <= r.keys() for r in records
    )
    assert comparison.finished(records) == list(comparison.ALL)
    for task in comparison.ALL:
        for method in (m for m in comparison.METHODS if comparison.meaningful(m, task)):
            seeds = [r["seed"] for r in comparison.chosen(records, task, method)]
            assert sorted(seeds) == list(comparison.ALL[task].seeds)
    one = comparison.chosen(records, "vision", "LoRA")[2]
    assert "vision" not in comparison.finished([r for r in records if r != one])


def test_a_variant_with_a_shorter_search_stops_there():
    records = [record(rate, -rate) | {"task": "vision, long"} for rate in (3e-3, 1e-2, 3e-2)]
    assert comparison.next_rates(records, "vision, long", "LoRA") == []


def test_a_run_again_is_what_was_stored():
    for method in ("head", "(IA)³"):
        stored = comparison.chosen(store.read(comparison.RESULTS), "vision", method)[2]
        again = comparison.run("vision", method, stored["rate"], stored["seed"], stored["n"])
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
    model, tokenizer = comparison.load("pocket-gpt")
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
    found = comparison.words_right(model, tokenizer, examples)
    assert found == pytest.approx(sum(right) / len(right))


def test_chance_in_translation_is_the_name_and_the_most_frequent_words():
    answers = [e.answer.removesuffix(" .").split() for e in tasks.translation(1000, seed=9)]
    examples = tasks.translation(1000, seed=9)
    copied = sum(w in e.prompt.split() for e, a in zip(examples, answers, strict=True) for w in a)
    places = [Counter(words) for words in zip(*answers, strict=True)]
    likeliest = [place.most_common(1)[0][1] for place in (places[0], places[1], places[3])]
    share = (copied + sum(likeliest)) / (4 * len(answers))
    assert share == pytest.approx(comparison.TASKS["translation"].chance, abs=0.015)


def test_a_gain_counts_from_chance_where_the_base_is_below_it():
    frozen = [
        record(0.0, 1.0, method="frozen") | {"task": t, "test": 0.2} for t in comparison.TASKS
    ]
    assert comparison.start(frozen, "translation") == 0.36
    assert comparison.start(frozen, "vision") == 0.2  # above chance
    assert comparison.start(frozen, "questions") == 0.2  # no chance level


def test_telegrams_ask_what_the_story_answers():
    short = comparison.telegrams(50, seed=1)
    assert len(short) == 50
    assert all(e.prompt.endswith(" :") and e.answer in e.prompt.split() for e in short)
    assert not any({"was", "?"} & set(e.prompt.rpartition(".")[2].split()) for e in short)
    assert {e.answer for e in short} < set(stories.vocabulary())


def test_training_validation_and_test_pictures_are_apart():
    train, validation, test = (
        {e["pixel_values"].numpy().tobytes() for e in comparison.pictures(1000, seed)}
        for seed in (comparison.TRAINING, comparison.VALIDATION, comparison.TEST)
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
