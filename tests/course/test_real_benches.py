"""The benches on real models: their data, that they run and resume, and what their records hold.

They run here on small random checkpoints and a few rows of each set.
"""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pedagogic_peft import load, load_base
from pedagogic_peft.course.experiments import (
    real_adaptations,
    real_bench,
    real_data,
    real_decoder,
    real_encoder,
    real_readouts,
    real_shots,
    search,
    store,
)

ENDS = ["<|im_start|>", "<|im_end|>", "[PAD]", "[UNK]", "[CLS]", "[SEP]"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROWS = {
    "sst2": {"text": "a film as {} as the last", "label": 0},
    "ag_news": {"text": "the bank said that {} rose again", "label": 1},
    "e2e": {"source": "name[Aromi {}], area[riverside]", "target": "Aromi {} is by the river."},
    "shakespeare": {"source": "I love {} .", "target": "I do love {} ."},
    "multi30k": {"en": "A dog runs {}.", "de": "Ein Hund {}."},
}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder with sixty rows of each split, no two alike."""
    for name, row in ROWS.items():
        (tmp_path / name).mkdir()
        for split in real_data.SETS[name].splits:
            rows = [
                {key: v.format(f"{split}{i}") if isinstance(v, str) else i % 2 for key, v in row.items()}
                for i in range(60)
            ]  # fmt: skip
            lines = "".join(json.dumps(each) + "\n" for each in rows)
            (tmp_path / name / f"{split}.jsonl").write_text(lines)
    monkeypatch.setenv(real_data.FOLDER, str(tmp_path))
    caches = (real_data.rows, real_encoder.parts, real_decoder.parts, real_decoder.news)
    caches = (*caches, real_decoder.load, real_readouts.frozen, real_readouts.held)
    for each in caches:
        each.cache_clear()
    yield tmp_path
    for each in caches:
        each.cache_clear()


def tokenizer_in(folder, end):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*ENDS, *letters])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end, pad_token="[PAD]", additional_special_tokens=ENDS
    )
    made.chat_template = CHAT
    made.save_pretrained(folder)
    return len(vocab)


@pytest.fixture
def small_bert(tmp_path):
    folder = tmp_path / "bert"
    config = transformers.BertConfig(
        vocab_size=tokenizer_in(folder, "[SEP]"), intermediate_size=32, pad_token_id=2, **SIZES
    )
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def small_llama(tmp_path):
    folder = tmp_path / "llama"
    config = transformers.LlamaConfig(
        vocab_size=tokenizer_in(folder, "<|im_end|>"),
        intermediate_size=32,
        num_key_value_heads=1,
        pad_token_id=2,
        eos_token_id=1,
        tie_word_embeddings=True,
        **SIZES,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def small(monkeypatch):
    """The benches with a few rows."""
    monkeypatch.setattr(real_encoder, "CHOOSING", 10)
    monkeypatch.setattr(real_encoder, "RANKING", 10)
    for name, value in {"CHOOSING": 6, "RANKING": 6, "NEWS": 3, "WRITTEN": 2}.items():
        monkeypatch.setattr(real_decoder, name, value)


# --- data ----------------------------------------------------------------------------------------


def test_a_folder_gives_the_columns_in_their_order(data):
    rows = real_data.rows("e2e", "test")
    assert len(rows) == 60 and rows[0] == {
        "source": "name[Aromi test0], area[riverside]",
        "target": "Aromi test0 is by the river.",
    }


@pytest.mark.parametrize(
    "content, error, what",
    [
        (None, FileNotFoundError, "test.jsonl is not there: PEFT_BOOK_DATA names a folder"),
        ("", ValueError, "is empty"),
        ('{"text": "a"}\n', ValueError, "line 1: expected a JSON object with text, label"),
        ('{"text": "a", "label": 1}\n[', ValueError, "line 2"),
    ],
)
def test_a_bad_file_is_one_clear_error(data, content, error, what):
    path = data / "ag_news" / "test.jsonl"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(error, match=what):
        real_data.rows("ag_news", "test")


def test_without_a_folder_a_set_comes_from_the_hub_by_its_name(data, monkeypatch):
    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return [{"meaning_representation": "name[A]", "human_reference": "A.", "more": 1}]

    monkeypatch.delenv(real_data.FOLDER)
    monkeypatch.setattr(real_data, "load_dataset", load_dataset)
    assert real_data.rows("e2e", "dev") == ({"source": "name[A]", "target": "A."},)
    assert asked == [
        ("tuetschek/e2e_nlg", {"split": "validation", "revision": "refs/convert/parquet"})
    ]
    with pytest.raises(FileNotFoundError, match="shakespeare is not on the Hub: set PEFT_BOOK"):
        real_data.rows("shakespeare", "train")


def test_more_rows_than_there_are_is_an_error():
    assert sorted(real_data.sample(range(5), 5, seed=1)) == list(range(5))
    with pytest.raises(ValueError, match="6 rows asked for, 5 are there"):
        real_data.sample(range(5), 6, seed=1)


# --- the bench -----------------------------------------------------------------------------------


def test_batches_of_like_length_hold_each_row_once():
    rows = [{"input_ids": [i + 1] * (1 + i % 7), "labels": i} for i in range(50)]
    batches = real_bench.of_like_length(rows, 4, seed=3, pad=0)
    labels = [label for batch in batches for label in batch["labels"].tolist()]
    assert sorted(labels) == list(range(50)) and len(batches) == 13
    padded = sum(int((batch["attention_mask"] == 0).sum()) for batch in batches)
    assert padded < sum(b["input_ids"].numel() for b in batches) / 10
    again = real_bench.of_like_length(rows, 4, seed=3, pad=0)
    other = real_bench.of_like_length(rows, 4, seed=4, pad=0)
    assert torch.equal(batches[0]["labels"], again[0]["labels"])
    assert not torch.equal(batches[0]["labels"], other[0]["labels"])
    assert real_bench.alone([batches[0]]) is batches[0]


def quick(task, method, rate, seed, n, steps):
    val = 1 - 0.4 * abs(torch.tensor(rate).log10().item() + 2) if rate else 0.0
    return {"val": val, "val_loss": -val, "test": 1.0}


@pytest.fixture
def bench(tmp_path):
    return real_bench.Bench(
        tmp_path / "runs.jsonl",
        {"a": (10, 2), "b": (20, 3)},
        {"LoRA": (None, 1e-3), "full": (None, 1e-2)},
        quick,
        frozenset({("full", "b")}),
        frozen=True,
    )


def test_a_bench_that_stops_goes_on_and_ends_with_a_known_rate(bench):
    assert bench.missing([]) == [bench.cell("a", "frozen", 0.0, 0)]
    assert bench.go_on(minutes=0) == []
    records = bench.only(["a"], ["LoRA"]).go_on()
    assert {(r["task"], r["method"]) for r in records} == {("a", "frozen"), ("a", "LoRA")}
    assert bench.best_rate(records, "a", "LoRA") == 1e-2
    with pytest.raises(ValueError, match="search of full on a is not over"):
        bench.chosen(records, "a", "full")
    assert bench.known(records) == [("a", "LoRA")]
    records = bench.go_on()
    assert bench.missing(records) == [] and bench.go_on() == records
    assert set(bench.known(records)) == {("a", "LoRA"), ("a", "full"), ("b", "LoRA")}
    assert [r["seed"] for r in bench.chosen(records, "b", "LoRA")] == [0, 1, 2]
    assert len({tuple(r[key] for key in real_bench.KEYS) for r in records}) == len(records)


def test_a_share_of_the_runs_is_repeated_beside_them(bench):
    records = bench.go_on()
    trained = [r for r in records if r["method"] != "frozen"]
    found = bench.again(0.25)
    assert [stored for stored, _ in found] == trained[::4]
    assert all(new["test"] == stored["test"] for stored, new in found)
    assert store.read(bench.results) == records  # nothing is there twice
    with pytest.raises(ValueError, match="share=0.*more than 0"):
        bench.again(0)


@pytest.mark.parametrize("tasks, methods", [(["c"], None), (None, ["VeRA"])])
def test_an_unknown_name_is_an_error(bench, tasks, methods):
    with pytest.raises(ValueError, match="the bench has"):
        bench.only(tasks, methods)


# --- runs on small checkpoints -------------------------------------------------------------------


def check(record, more=()):
    assert {*real_bench.SCORES, *real_bench.COSTS, *more} <= record.keys()
    assert record["peak_bytes"] > 0 and record["trainable"] > 0 and record["hardware"]


@pytest.mark.parametrize("method", real_encoder.METHODS)
def test_every_method_of_the_encoder_trains_and_stores_its_fields(method, data, small, small_bert):
    task = "ag_news" if method == "full" else "sst2"
    check(real_encoder.run(task, method, 1e-3, 0, n=8, steps=130 if method == "AdaLoRA" else 2,
                           base=small_bert))  # fmt: skip


@pytest.mark.parametrize("method", ["frozen", *real_decoder.METHODS])
def test_every_method_of_the_decoder_trains_and_stores_its_fields(method, data, small, small_llama):
    record = real_decoder.run("records", method, 1e-3, 0, n=8, steps=2, base=small_llama)
    more = ("kept", "bleu", "said")
    if method == "frozen":
        assert {*real_bench.SCORES, *more, "rule_bleu", "rule_said", "people_said"} <= record.keys()
    else:
        check(record, more)
    assert record["val"] == pytest.approx(-record["val_loss"])


@pytest.mark.parametrize("task", ["style", "translation", "sentiment"])
def test_every_task_of_the_decoder_is_measured(task, data, small, small_llama):
    record = real_decoder.run(task, "LoRA", 1e-3, 0, n=8, steps=2, base=small_llama)
    check(record, ("kept",) if task == "sentiment" else ("kept", "bleu"))


def test_a_run_again_is_the_same(data, small, small_llama):
    first, again = (
        real_decoder.run("style", "LoRA", 1e-2, 1, n=8, steps=3, base=small_llama) for _ in range(2)
    )
    times = {"seconds", "cpu_seconds"}
    assert {k: v for k, v in first.items() if k not in times} == {
        k: v for k, v in again.items() if k not in times
    }


def test_a_training_that_diverges_has_no_score(data, small, small_bert, monkeypatch):
    def train(*args, **options):
        raise FloatingPointError

    monkeypatch.setattr(real_encoder, "train", train)
    record = real_encoder.run("sst2", "full", 1e3, 0, n=8, steps=2, base=small_bert)
    assert record["val"] is None and record["peak_bytes"]


def test_no_record_of_e2e_is_in_two_parts(data, small):
    training, choosing, _ = real_decoder.parts("records")
    assert not {r["source"] for r in training} & {r["source"] for r in choosing}
    assert len(training) == 54 and len(choosing) == 6


def test_only_the_answer_is_learned(data, small_llama):
    tokenizer = real_decoder.load(small_llama)[1]
    (example,) = real_decoder.encode(tokenizer, "records", [{"source": "name[A]", "target": "A."}])
    learned = [i for i in example["labels"] if i != -100]
    assert tokenizer.decode(learned) == "A.<|im_end|>"
    told = tokenizer.decode(example["input_ids"])
    assert told.index("Tell all of this") < told.index("name[A]") < told.index("A.<|im_end|>")


def test_the_share_of_a_record_that_is_said():
    record = "name[The Vaults], area[city centre], familyFriendly[no]"
    assert real_decoder.values(record) == ["The Vaults", "city centre", "no"]
    assert real_decoder.said(record, "The vaults is in the city centre.") == 1
    assert real_decoder.said(record, "It is in the City Centre.") == 0.5


def test_a_template_says_every_value_of_a_record():
    record = (
        "name[Aromi], eatType[pub], food[Thai], priceRange[cheap], customer rating[5 out of 5], "
    )
    record += "area[riverside], familyFriendly[no], near[The Portland Arms]"
    first = "Aromi is a cheap price Thai pub in the riverside near The Portland Arms "
    first += "with a rating of 5 out of 5."
    assert real_decoder.template(record) == f"{first} It is not family friendly."
    assert real_decoder.template("name[Aromi], food[Thai]") == "Aromi is a Thai restaurant."
    assert real_decoder.said(record, real_decoder.template(record)) == 1


def test_the_floor_of_a_task_that_writes_is_a_rule(data, small):
    found = real_decoder.floors("records")
    assert found["rule_said"] == 1 and 0 < found["rule_bleu"] <= 100 and found["people_said"] == 0.5
    assert real_decoder.rule("style", "I love you .") == "I love you ."
    assert real_decoder.floors("sentiment") == {} and set(real_decoder.floors("style")) == {
        "rule_bleu"
    }


def searched(method, rates, losses, **more):
    """Records of a search that is over: the middle one of three rates is the best."""
    low, middle, high = rates
    runs = [(low, 0, 9.5)] + [(high, seed, 9.0) for seed in range(3)]
    runs += [(middle, seed, loss) for seed, loss in enumerate(losses)]
    return [
        {"task": "records", "method": method, "rate": rate, "seed": seed, "val": -loss,
         "val_loss": loss, "test_loss": loss, "kept": -4.5, "bleu": 20.0, "said": 0.7} | more
        for rate, seed, loss in runs
    ]  # fmt: skip


def test_a_table_of_searched_ways_stands_below_its_floors():
    costs = {"trainable": 1000, "cpu_seconds": 50.0, "peak_bytes": 300}
    lora = searched("LoRA", (3e-4, 1e-3, 3e-3), [1.0, 2.0, 3.0], **costs)
    full = searched(
        "full", (3e-5, 1e-4, 3e-4), [1.5] * 3, **costs | {"cpu_seconds": 100.0, "peak_bytes": 400}
    )
    frozen = {"task": "records", "method": "frozen", "rate": 0.0, "seed": 0, "test_loss": 2.4}
    frozen |= {"kept": -4.4, "bleu": 5.0, "said": 0.5}
    frozen |= {"rule_bleu": 26.0, "rule_said": 1.0, "people_said": 0.9}
    table = real_decoder.table([frozen, *full, *lora], "records", {"LoRA": "mine"}).splitlines()
    assert [line.count("|") for line in table] == [10] * 6
    assert table[2] == "| *rule* | – | – | – | 100% | 26.0 | – | – | – |"
    assert table[3] == "| *people* | – | – | – | 90% | – | – | – | – |"
    assert table[4] == "| *frozen* | – | – | 2.400 | 50% | 5.0 | 4.400 | – | – |"
    mine = "| mine | 1,000 | 0.001 | 2.000 (1.000, 2.000, 3.000) | 70% | 20.0 | 4.500 | 50% | 75% |"
    assert table[5] == mine
    with pytest.raises(ValueError, match="the search of LoRA on records is not over"):
        real_decoder.table([frozen, *full, *lora[:-1]], "records", {"LoRA": "mine"})


def test_methods_are_compared_by_their_losses_seed_by_seed():
    lora = searched("LoRA", (3e-4, 1e-3, 3e-3), [1.0, 2.0, 3.0])
    full = searched("full", (3e-5, 1e-4, 3e-4), [1.5, 2.4, 3.6])
    more = [r | {"kept": -5.0 - r["seed"]} for r in full]
    found = real_decoder.apart([*lora, *full], "records", "LoRA", "full", fewest=3)
    assert found.mean == pytest.approx(-0.5) and found.seeds == 3 and found.low < -0.5 < found.high
    news = real_decoder.apart([*lora, *more], "records", "full", "LoRA", "kept", fewest=3)
    assert news.mean == pytest.approx(1.5)  # full's loss is the higher one
    with pytest.raises(ValueError, match="at least 5"):
        real_decoder.apart([*lora, *full], "records", "LoRA", "full")


def test_floors_see_the_words(data, small, monkeypatch):
    monkeypatch.setattr(real_encoder, "N", 20)
    found = real_encoder.run("ag_news", "frozen", 0.0, 0, n=20, steps=0)
    assert (
        found["test"] is None
        and 0 <= found["words"] <= 1
        and found["guess"] == pytest.approx(0.5, abs=0.4)
    )


@pytest.mark.parametrize("method", real_adaptations.METHODS)
def test_an_adaptation_is_trained_stored_in_half_precision_and_loads(
    method, data, small, small_llama, tmp_path, monkeypatch
):
    monkeypatch.setattr(real_adaptations, "FOLDER", tmp_path / "stored")
    monkeypatch.setattr(real_decoder, "N", 8)
    found = real_adaptations.run(method, 1e-3, 0, steps=2, base=small_llama)
    assert {"loss", "kept", "bleu", "said", "losses", *real_bench.COSTS} <= found.keys()
    assert len(found["losses"]) == 2
    folder = tmp_path / "stored" / real_adaptations.METHODS[method]
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    model = load(load_base(small_llama)[0], folder)
    own = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in own) == found["trainable"]
    assert {p.dtype for p in own} == {torch.float32}


def test_examples_stand_before_the_question_as_turns_that_were_answered(data, small_llama):
    tokenizer = real_decoder.load(small_llama)[1]
    shots = [real_shots.Example("name[B]", "B."), real_shots.Example("name[C]", "C.")]
    row = {"source": "name[A]", "target": "A."}
    (example,) = real_decoder.encode(tokenizer, "records", [row], shots)
    told = tokenizer.decode(example["input_ids"])
    places = [told.index(x) for x in ("Tell all", "name[B]", "B.<|im_end|>", "name[C]", "name[A]")]
    assert places == sorted(places)
    learned = [i for i in example["labels"] if i != -100]
    assert tokenizer.decode(learned) == "A.<|im_end|>"


def test_what_the_frozen_base_does_after_examples_is_measured(
    data, small, small_llama, monkeypatch
):
    monkeypatch.setattr(real_decoder, "N", 8)
    assert real_shots.examples(2, seed=0) == real_shots.examples(3, seed=0)[:2]
    assert not set(real_shots.examples(3, 0)) & {
        real_decoder.TASKS["records"].example(row) for row in real_decoder.parts("records")[2]
    }
    one, two = (real_shots.run(shots, 0, small_llama) for shots in (1, 2))
    assert {"loss", "said", "bleu", "tokens", "hardware"} <= one.keys()
    assert 0 < one["tokens"] < two["tokens"] and one["loss"] > 0


def test_a_regression_reads_a_frozen_encoder_at_three_places(data, small, small_bert, monkeypatch):
    monkeypatch.setattr(real_encoder, "N", 12)
    model, tokenizer = real_readouts.frozen(small_bert)
    texts = ["a film", "a longer film, and a text"]
    found = real_readouts.vectors(model, tokenizer, texts)
    assert {place: tuple(v.shape) for place, v in found.items()} == dict.fromkeys(
        real_readouts.PLACES, (2, SIZES["hidden_size"])
    )
    last = model.base_model(**tokenizer(texts[1], return_tensors="pt")).last_hidden_state[0]
    assert torch.allclose(found["mean"][1], last.mean(0), atol=1e-6)
    assert torch.allclose(found["first"][1], last[0], atol=1e-6)
    record = real_readouts.run("sst2", 0, small_bert)
    assert all(0 <= record[place] <= 1 for place in real_readouts.PLACES)
    assert record == real_readouts.run("sst2", 0, small_bert)
    records = [{"task": "sst2", "seed": 3, "mean": 0.5}, {"task": "ag_news", "seed": 3, "mean": 1}]
    assert real_readouts.scores(records, "sst2") == {3: 0.5}


def test_the_rows_that_are_stored_are_those_of_the_run(data, small, tmp_path, monkeypatch):
    monkeypatch.setattr(real_decoder, "N", 20)
    monkeypatch.setattr(real_adaptations, "SHIPPED", 5)
    real_adaptations.write_rows(tmp_path / "rows.jsonl")
    rows = store.read(tmp_path / "rows.jsonl")
    assert rows == real_adaptations.training_rows(0)[:5]


# --- what is stored ------------------------------------------------------------------------------


def test_every_stored_adaptation_writes_what_the_record_says_better_than_the_base():
    rows = real_adaptations.rows()
    assert len(rows) == real_adaptations.SHIPPED and {*rows[0]} == {"source", "target"}
    base, tokenizer = load_base(real_decoder.BASE)
    examples = real_decoder.encode(tokenizer, "records", rows[:3])
    frozen = real_decoder.loss_of(base, examples, tokenizer.pad_token_id)
    records = store.read(real_adaptations.RESULTS)
    assert records and all(len(r["losses"]) == r["steps"] for r in records)
    for record in records:
        name = real_adaptations.METHODS[record["method"]]
        model = load(base, real_adaptations.FOLDER / name, name)  # beside the others, alone active
        assert real_decoder.loss_of(model, examples, tokenizer.pad_token_id) < frozen - 0.5
    licence = (real_adaptations.FOLDER / "README.md").read_text("utf-8")
    assert "CC BY-SA 4.0" in licence and "1706.09254" in licence


@pytest.mark.parametrize("script", [real_shots, real_readouts])
def test_all_runs_without_training_are_stored(script):
    cells = script.cells()
    assert [{key: r[key] for key in cells[0]} for r in store.read(script.RESULTS)] == cells


def test_the_regression_that_pages_compare_with_has_its_strength_inside_the_grid():
    found = {r["mean_c"] for r in store.read(real_readouts.RESULTS)}
    assert min(real_readouts.STRENGTHS) < min(found) <= max(found) < max(real_readouts.STRENGTHS)


@pytest.mark.parametrize("script", [real_encoder, real_decoder])
def test_every_stored_run_has_the_named_fields_and_is_there_once(script):
    records = store.read(script.RESULTS)
    assert len({tuple(r[key] for key in real_bench.KEYS) for r in records}) == len(records)
    for record in records:
        assert {"date", "torch", "machine", *real_bench.SCORES} <= record.keys()
        if record["method"] != "frozen":
            assert set(real_bench.COSTS) <= record.keys()
    for pair in script.BENCH.known(records):
        known = script.BENCH.runs(records, *pair)
        assert not search.at_edge(known)
        assert {r["seed"] for r in script.BENCH.chosen(records, *pair)} >= {0, 1, 2}


def test_the_page_of_the_real_models_lists_the_searches_that_are_over():
    benches = {"MiniLM": real_encoder, "SmolLM2": real_decoder}
    there = {}
    for name, of in benches.items():
        for task, method in of.BENCH.known(store.read(of.RESULTS)):
            there.setdefault((name, task), []).append(method)
    page = (Path(__file__).parents[2] / "book" / "real_models.md").read_text()
    for (name, task), methods in there.items():
        every = len(methods) == len(benches[name].METHODS)
        ways = f"all {len(methods)}" if every else "; ".join(methods)
        assert f"| {name} | `{task}` | {ways} |" in page
