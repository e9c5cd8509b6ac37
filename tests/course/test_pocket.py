"""The story world and pocket-gpt: what ships is what the commands make, and it is as good as recorded."""

import json
import re
from random import Random

import pytest
import torch

from pedagogic_peft import load_base
from pedagogic_peft.course.models import pocket_folder
from pedagogic_peft.course.pocket import check, pretrain, stories, tasks
from pedagogic_peft.course.pocket.tokenizer import SPECIAL_TOKENS, build_tokenizer

FOLDER = pocket_folder("pocket-gpt")
RECORD = json.loads((FOLDER / "pretraining.json").read_text())


@pytest.fixture(scope="module")
def pocket():
    return load_base("pocket-gpt")


# Claim: the files in the package are the recorded ones, and small.


@pytest.mark.parametrize("name", RECORD["sha256"])
def test_checksum_of_file_is_recorded(name):
    assert pretrain.sha256((FOLDER / name).read_bytes()) == RECORD["sha256"][name]


def test_package_files_are_at_most_12_megabytes():
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) <= 12e6


@pytest.mark.parametrize("size", ["pocket-gpt-small", "pocket-gpt-tiny"])
def test_a_sibling_is_what_its_record_says_and_reads_the_same_words(size):
    folder = pocket_folder(size)
    record = json.loads((folder / "pretraining.json").read_text())
    for name, checksum in record["sha256"].items():
        assert pretrain.sha256((folder / name).read_bytes()) == checksum
    assert record["sha256"]["tokenizer.json"] == RECORD["sha256"]["tokenizer.json"]
    assert record["first_documents_sha256"] == RECORD["first_documents_sha256"]
    model, tokenizer = load_base(size)
    shape = model.config.hidden_size, model.config.intermediate_size
    assert (*shape, model.config.num_hidden_layers, model.config.num_attention_heads) == (
        pretrain.SIZES[record["size"]]
    )
    assert record["size"] == size and record["parameters"] == sum(
        p.numel() for p in model.parameters()
    )
    assert tasks.word_accuracy(model, tokenizer, tasks.questions(200, seed=12)) >= 0.95


# Claim: tokenizer and text can be made again exactly.


def test_tokenizer_is_made_again_exactly(tmp_path):
    build_tokenizer().save_pretrained(tmp_path)
    made, shipped = (p / "tokenizer.json" for p in (tmp_path, FOLDER))
    assert json.loads(made.read_text()) == json.loads(shipped.read_text())


def test_first_pretraining_documents_are_made_again_exactly():
    total = RECORD["steps"] * RECORD["batch_size"]
    first = [stories.document(*pretrain.source(RECORD["seed"], i, total)) for i in range(1000)]
    assert pretrain.sha256("\n".join(first).encode()) == RECORD["first_documents_sha256"]


def test_every_word_and_special_token_occurs_in_pretraining():
    tokenizer = build_tokenizer()
    seen = {"<pad>", "<unk>"}  # padding is masked; nothing is unknown
    for batch in pretrain.batches(tokenizer, steps=100, batch_size=32, seed=RECORD["seed"]):
        seen.update(tokenizer.convert_ids_to_tokens({i for row in batch for i in row}))
    assert seen == set(stories.vocabulary()) | set(SPECIAL_TOKENS.values())


def test_grammar_writes_no_unknown_word():
    tokenizer, rng = build_tokenizer(), Random(5)
    texts = [stories.document(rng) for _ in range(300)] + tasks.recipes(100, 1)
    answered = (tasks.questions, tasks.sentiment, tasks.translation)
    for task in (*answered, tasks.summaries, tasks.open_questions):
        texts += [f"{e.prompt} {e.answer}" for e in task(100, 1)]
    assert not any(tokenizer.unk_token_id in ids for ids in tokenizer(texts).input_ids)


# Claim: the world is wide, and tasks are what they say.


def test_grammar_has_thousands_of_sentence_forms():
    def count(form):
        return torch.tensor([len(part) for part in stories.alternatives(form)]).prod().item()

    told = [form for beat in stories.WORLD["beats"].values() for form in beat["forms"]]
    review = stories.WORLD["review"]
    praise, blame = (sum(map(count, sum(review[k].values(), []))) for k in ("praise", "blame"))
    contrasts = 2 * praise * blame * len(review["contrast"]["forms"])
    assert sum(map(count, told)) > 800
    assert sum(map(count, told)) + contrasts > 5000


def test_every_story_follows_the_grammar_and_answers_its_questions():
    rng = Random(6)
    for _ in range(200):
        story = stories.story(rng)
        text = stories.with_questions(story, rng)
        right, sentences = check.count_sentences(text)
        assert right == sentences
        assert all(q.answer in story.text.split() for q in story.questions)


def test_grammar_check_finds_wrong_sentences():
    assert check.count_sentences("tom lily the . the ball was . lily met tom there .") == (1, 3)


def test_same_seed_same_examples_other_seed_other_examples():
    assert tasks.sentiment(20, seed=1) == tasks.sentiment(20, seed=1)
    assert not set(tasks.questions(50, seed=1)) & set(tasks.questions(50, seed=2))


def test_sentiment_is_balanced_and_half_of_it_is_contrast():
    examples = tasks.sentiment(2000, seed=3)
    good = sum(e.answer == tasks.VERDICTS[0] for e in examples)
    contrast = sum(
        bool({"but", "although", "though", "still"} & set(e.prompt.split())) for e in examples
    )
    assert abs(good / 2000 - 0.5) < 0.05
    assert abs(contrast / 2000 - 0.5) < 0.05


def test_pretraining_holds_no_verdict_after_a_contrast_no_recipe_and_no_translation():
    rng = Random(7)
    documents = [stories.document(rng) for _ in range(5000)]
    told = [d for d in documents if any(f"they {verdict} ." in d for verdict in tasks.VERDICTS)]
    assert told and not any({"but", "although", "though", "still"} & set(d.split()) for d in told)
    text = "\n".join(documents)
    assert not any(recipe in text for recipe in tasks.recipes(50, 1))
    assert tasks.translation(1, 1)[0].prompt not in text
    assert "cups of" in text and stories.WORLD["toli"]["opening"] in text  # their words are there


def test_a_gist_tells_what_the_story_tells_and_stands_nowhere_in_it():
    for example in tasks.summaries(300, seed=4):
        a, _, b, _, _, _, _, _, place, _ = example.answer.split()
        before = example.prompt.split()
        assert {a, b} == set(before) & set(stories.NAMES) and before.index(a) < before.index(b)
        assert place in before and example.answer not in example.prompt


def test_half_of_the_open_questions_have_no_answer_in_the_story():
    examples = tasks.open_questions(1000, seed=4)
    unanswered = [e for e in examples if e.answer == "nobody said"]
    assert abs(len(unanswered) / 1000 - 0.5) < 0.05
    for example in unanswered:
        *story, question = re.split(r" [.\"] ", example.prompt)
        names = set(question.split()) & set(stories.NAMES)
        assert names.isdisjoint(" ".join(story).split())
    assert all(e.answer in e.prompt.split() for e in examples if e not in unanswered)


def test_pretraining_holds_no_gist_and_no_question_without_an_answer():
    rng = Random(9)
    text = "\n".join(stories.document(rng) for _ in range(3000))
    assert stories.WORLD["summary"]["opening"] not in text
    assert stories.WORLD["unanswered"]["answer"] not in text


@pytest.mark.parametrize("style", stories.STYLE_FORMS)
def test_style_marks_are_recognised_and_plain_sentences_are_not(style):
    rng = Random(8)
    for sentence in stories.story(rng).sentences:
        assert tasks.wears(stories.in_style(sentence, style, rng), style)
        assert not tasks.wears(sentence, style)


def test_unknown_style_is_an_error_that_lists_the_styles():
    with pytest.raises(ValueError, match="'opera'.*shout"):
        tasks.styled("opera", 1, 0)
    with pytest.raises(ValueError, match="'opera'.*record"):
        tasks.formatted("opera", 1, 0)


def test_a_style_task_keeps_as_many_sentences_as_asked():
    for example in tasks.styled("pirate", 50, 1, sentences=2):
        assert 1 <= example.answer.count(" , so they sang !") <= 2


def test_pretraining_holds_no_pirate_no_verse_and_no_record():
    rng = Random(9)
    text = "\n".join(stories.document(rng) for _ in range(3000))
    assert "so they say" in text and "if you please" in text
    for never in ("hey , hey ,", "so they sang", "who :", " where :", "oh , lily had a"):
        assert never not in text, never


@pytest.mark.parametrize("form", stories.FORMATS)
def test_a_format_tells_the_story_and_its_metric_knows_form_from_content(form, monkeypatch):
    examples = tasks.formatted(form, 40, seed=1)
    names = set(stories.NAMES) | set(stories.words_of("animal")) | set(stories.words_of("object"))
    for example in examples:
        assert set(example.answer.split()) & names <= set(example.prompt.split())
    texts = [e.answer for e in examples]
    right = texts[:20] + [t.replace(" ", " the ", 1) for t in texts[20:30]] + texts[31:] + texts[:1]
    monkeypatch.setattr(tasks, "continuations", lambda *_, **__: right)
    assert tasks.format_accuracy(None, None, form, examples) == (0.75, 0.5)


def test_labels_cover_the_answer_and_the_end_and_nothing_else():
    tokenizer = build_tokenizer()
    (example,) = tasks.encode(tokenizer, [tasks.Example("tom was", "sad .")])
    learned = [i for i in example["labels"] if i != -100]
    assert tokenizer.convert_ids_to_tokens(learned) == ["sad", ".", "<eos>"]
    assert tokenizer.decode(example["input_ids"]) == "<bos> tom was sad . <eos>"


# Claim: the base is as good as recorded.


def test_held_out_loss_and_questions_are_as_recorded(pocket):
    model, tokenizer = pocket
    loss = tasks.loss_per_token(model, tokenizer, tasks.held_out_stories(500))
    assert loss == pytest.approx(RECORD["held_out_loss"], abs=0.002)
    assert loss < 1.03 * RECORD["training_loss"]
    assert tasks.word_accuracy(model, tokenizer, tasks.questions(500, seed=12)) >= 0.95


def test_left_padded_rows_get_the_same_answers_as_single_rows(pocket):
    model, tokenizer = pocket
    examples = tasks.questions(16, seed=4)
    prompts = [e.prompt for e in examples]
    together = tasks.continuations(model, tokenizer, prompts, max_new_tokens=3)
    alone = [tasks.continuations(model, tokenizer, [p], max_new_tokens=3)[0] for p in prompts]
    assert together == alone


def test_pretraining_command_trains_and_writes_a_model_that_loads(tmp_path, monkeypatch):
    argv = ["pretrain", "--out", str(tmp_path), "--steps", "3", "--batch-size", "4"]
    monkeypatch.setattr("sys.argv", argv)
    monkeypatch.setattr(tasks, "held_out_stories", lambda n: ["tom met lily there ."])
    monkeypatch.setattr(tasks, "questions", lambda n, seed: [tasks.Example("tom was", "sad")])
    monkeypatch.setattr(pretrain, "training_stories", lambda *_: ["lily met tom there ."])
    pretrain.main()
    model, tokenizer = load_base(str(tmp_path))
    record = json.loads((tmp_path / "pretraining.json").read_text())
    assert record["steps"] == 3
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    assert len(tokenizer) == model.config.vocab_size


# Claim: the measurements beside the weights show what a base to teach with must show.


def test_stored_measurements_show_what_the_book_teaches():
    m = json.loads((FOLDER / "measurements.json").read_text())
    sentiment, style = m["sentiment accuracy"], m["style accuracy"]
    assert len(m["seeds"]) == 3
    assert m["base"]["share that follow the grammar"] > 0.95
    assert sentiment["lora"]["mean"] > sentiment["full"]["mean"] - 0.02
    assert sentiment["lora"]["mean"] > sentiment["linear probe"]["mean"] + 0.15
    assert m["domain adaptation"]["share of the gap that LoRA closes"] >= 0.9
    assert style["prompt"]["mean"] >= 0.9 * style["full"]["mean"]
    by_lora = m["translation exact match, LoRA"]["lora"]["mean"]
    assert m["translation exact match, prompt tuning"]["prompt"]["mean"] < by_lora - 0.2


def test_stored_measurements_say_that_forgetting_grows_with_loras_learning_rate():
    m = json.loads((FOLDER / "measurements.json").read_text())
    there = m["forgetting by learning rate"]["stories loss there"]
    assert there["lora, lr 0.002"] < there["lora, lr 0.005"] < there["lora, lr 0.01"]
    assert there["lora, lr 0.002"] < there["full, lr 0.002"]  # at one rate, LoRA forgets less
