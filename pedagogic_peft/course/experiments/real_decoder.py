"""The bench on a real language model: SmolLM2 writes sentences from records (E2E), and three tasks more.

    python -m pedagogic_peft.course.experiments.real_decoder    # what is missing; --help says more

SmolLM2 has 134.5 million parameters; its base weights here are those of its 4-bit release. It is asked
through its chat template, with the task in the system message, so the frozen base is told what is wanted
of it. A run has 400 rows and 150 steps of about 256 tokens. The rate is chosen by the loss on 48 other rows
(by the share of right labels on SST-2), methods are ranked by the same measure on 96 rows that chose
nothing. "kept" is minus the loss, per token, on news, a kind of text that pretraining held: where it falls,
the model forgot. A seed decides the rows, their order and the method's first values.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F

from pedagogic_peft import (
    IA3,
    BottleneckAdapter,
    DoRA,
    LoRA,
    PrefixTuning,
    PromptTuning,
    attach,
    load_base,
    train,
)
from pedagogic_peft.course.evidence import FEWEST_SEEDS, Difference, paired
from pedagogic_peft.course.experiments import real_data
from pedagogic_peft.course.experiments.real_bench import (
    SCORES,
    Bench,
    alone,
    clocked,
    costs,
    device,
    measured,
    of_like_length,
)
from pedagogic_peft.course.experiments.store import Cell
from pedagogic_peft.course.pocket.tasks import Example

RESULTS = Path(__file__).with_name("real_decoder.jsonl")
BASE = "smollm2-135m"
N, STEPS = 400, 150
CHOOSING, RANKING, NEWS = 48, 96, 24  # rows that choose a rate, that rank, and of news
WRITTEN = 24  # of the rows that rank are written by the model
TRAINING, VALIDATION = 100, 10_001  # seeds of the rows; runs add their own
VERDICTS = (" bad", " good")  # SST-2's labels 0 and 1
LONGEST = 128  # tokens of a prompt's text and of an answer


@dataclass(frozen=True)
class Task:
    """A task of the bench.

    Attributes:
        data: a key of `real_data.SETS`.
        system: what the model is told to do.
        example: makes an `Example` of a row.
        splits: of the rows to train on, of those that choose a rate, and of those that rank.
        batch_size: rows a step, so that it has about 256 tokens.
        new_tokens: how many the model may write; none where only labels count.
    """

    data: str
    system: str
    example: Callable[[Any], Example]
    splits: tuple[str, str, str]
    batch_size: int
    new_tokens: int = 0


def pair(source: str, target: str) -> Callable[[Any], Example]:
    """Return a function that makes an example of two columns."""
    return lambda row: Example(row[source], row[target])


TASKS = {
    "records": Task(
        "e2e",
        "Tell all of this record in plain words.",
        pair("source", "target"),
        ("dev", "dev", "test"),
        3,
        48,
    ),
    "style": Task(
        "shakespeare",
        "Say it as Shakespeare would.",
        pair("source", "target"),
        ("train", "valid", "test"),
        6,
        40,
    ),
    "translation": Task(
        "multi30k",
        "Translate into German.",
        pair("en", "de"),
        ("train", "valid", "test"),
        4,
        40,
    ),
    "sentiment": Task(
        "sst2",
        "Is this film review good or bad?",
        lambda row: Example(row["text"], VERDICTS[row["label"]].strip()),
        ("train", "train", "dev"),
        6,
    ),
}
FEW_METHODS = (
    "translation",
    "sentiment",
)  # tasks of full fine-tuning, LoRA and prompt tuning alone
EVERYWHERE: dict[str, Any] = {"target_modules": "all-linear"}
# Where soft prompts begin: the words of the task, as often as they fit into twenty tokens.
PROMPT, PREFIX = "prompt tuning", "prefix tuning"
# What costs little and is asked for most is first.
METHODS: dict[str, tuple[Any, float]] = {
    "LoRA": (LoRA(r=8, alpha=16, **EVERYWHERE), 1e-3),
    "full": (None, 1e-4),
    PROMPT: (PromptTuning(num_virtual_tokens=20), 3e-2),
    "LoRA, q and v": (LoRA(r=8, alpha=16), 3e-3),
    "Pfeiffer": (BottleneckAdapter(reduction_factor=8, placement="pfeiffer"), 1e-3),
    "(IA)³": (IA3(), 3e-2),
    PREFIX: (PrefixTuning(num_virtual_tokens=20), 1e-2),
    "DoRA": (DoRA(r=8, alpha=16, **EVERYWHERE), 1e-3),
}
LEFT_OUT = frozenset(
    (method, task)
    for task in FEW_METHODS
    for method in METHODS
    if method not in ("LoRA", "full", PROMPT)
)


@cache
def load(base: str = BASE) -> tuple[Any, Any]:
    """Return the frozen base and its tokenizer; a run works on a new one."""
    torch.set_num_threads(1)
    model, tokenizer = load_base(base)
    return model.to(device()), tokenizer


def prepare(task: str, method: str, seed: int = 0, base: str = BASE) -> tuple[Any, Any]:
    """Return the base, whose trainable parameters are the method's, and its tokenizer."""
    torch.manual_seed(seed)
    model, tokenizer = load_base(base)
    model.to(device())
    if method == "full":
        return model, tokenizer
    chosen = METHODS[method][0]
    if method in (PROMPT, PREFIX):
        words = tokenizer(TASKS[task].system).input_ids
        chosen = type(chosen)(num_virtual_tokens=chosen.num_virtual_tokens, init=words)
    return attach(model, chosen), tokenizer


# --- rows ----------------------------------------------------------------------------------------


@cache
def parts(task: str) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the rows to draw training rows from, those that choose a rate, and those that rank.

    E2E says one record in several ways: no record is in two parts.
    """
    the = TASKS[task]
    training, choosing, ranking = (real_data.rows(the.data, split) for split in the.splits)
    shuffled = real_data.sample(choosing, len(choosing), VALIDATION)
    held = shuffled[:CHOOSING]
    rest = list(training)
    if the.splits[0] == the.splits[1]:
        prompts = {the.example(row).prompt for row in held}
        rest = [row for row in shuffled[CHOOSING:] if the.example(row).prompt not in prompts]
    return rest, held, real_data.sample(ranking, min(RANKING, len(ranking)), VALIDATION)


@cache
def news() -> list[str]:
    """Return texts of the kind that pretraining held."""
    rows = real_data.sample(real_data.rows("ag_news", "test"), NEWS, VALIDATION)
    return [row["text"] for row in rows]


def asked(tokenizer: Any, task: str, text: str, shots: Sequence[Example] = ()) -> list[int]:
    """Return the ids of the chat in which the model is asked, up to where its answer begins.

    Args:
        shots: examples that stand before the question, as turns that were answered already.
    """
    chat = [{"role": "system", "content": TASKS[task].system}]
    for shot in shots:
        chat += [
            {"role": "user", "content": shot.prompt},
            {"role": "assistant", "content": shot.answer},
        ]
    chat += [{"role": "user", "content": text}]
    written = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer(written, add_special_tokens=False).input_ids
    return ids


def encode(
    tokenizer: Any, task: str, rows: Sequence[Any], shots: Sequence[Example] = ()
) -> list[dict[str, list[int]]]:
    """Turn rows into examples for `train`: only the answer, and its end, is learned."""
    found = []
    for row in rows:
        prompt, answer = TASKS[task].example(row)
        before = asked(tokenizer, task, prompt, shots)
        after = tokenizer(answer, add_special_tokens=False).input_ids[:LONGEST]
        after = [*after, tokenizer.eos_token_id]
        found.append({"input_ids": before + after, "labels": [-100] * len(before) + after})
    return found


# --- scores --------------------------------------------------------------------------------------


@torch.no_grad()
def loss_of(model: Any, examples: Sequence[dict[str, Any]], pad: int) -> float:
    """Return the mean loss in nats for each learned token."""
    total = count = 0.0
    for batch in of_like_length(examples, 8, 0, pad):
        labels = batch.pop("labels")[:, 1:].to(model.device)
        logits = model(**{key: value.to(model.device) for key, value in batch.items()}).logits
        logits = logits[:, :-1].float().transpose(1, 2)
        total += float(F.cross_entropy(logits, labels, reduction="sum"))
        count += int((labels != -100).sum())
    return total / count


@torch.no_grad()
def verdicts_right(model: Any, tokenizer: Any, task: str, rows: Sequence[Any]) -> float:
    """Return the share of the rows whose own label word is the likelier one where the answer begins."""
    choices = [tokenizer(v.strip(), add_special_tokens=False).input_ids[0] for v in VERDICTS]
    right = 0
    for row in rows:
        ids = torch.tensor([asked(tokenizer, task, row["text"])], device=model.device)
        logits = model(input_ids=ids).logits[0, -1, choices]
        right += int(logits.argmax()) == row["label"]
    return right / len(rows)


def score(model: Any, tokenizer: Any, task: str, rows: Sequence[Any]) -> tuple[float, float]:
    """Return the score by which methods are ranked, the greater the better, and the loss."""
    loss = loss_of(model, encode(tokenizer, task, rows), tokenizer.pad_token_id)
    if TASKS[task].new_tokens:
        return -loss, loss
    return verdicts_right(model, tokenizer, task, rows), loss


def kept(model: Any, tokenizer: Any) -> float:
    """Return minus the loss on news, in nats per token."""
    ids = tokenizer(news(), truncation=True, max_length=LONGEST).input_ids
    examples = [{"input_ids": i, "labels": i} for i in ids]
    return -loss_of(model, examples, tokenizer.pad_token_id)


@torch.no_grad()
def written(
    model: Any, tokenizer: Any, task: str, texts: Sequence[str], shots: Sequence[Example] = ()
) -> list[str]:
    """Return what the model answers, greedily."""
    found = []
    for text in texts:
        ids = torch.tensor([asked(tokenizer, task, text, shots)], device=model.device)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TASKS[task].new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        found.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip())
    return found


def values(record: str) -> list[str]:
    """Return the values of a record: ``name[Aromi], area[riverside]`` has Aromi and riverside."""
    return [part.partition("[")[2].removesuffix("]") for part in record.split("], ") if "[" in part]


def said(record: str, sentence: str) -> float:
    """Return the share of a record's values that the sentence has word for word, yes and no apart."""
    told = [value for value in values(record) if value not in ("yes", "no")]
    return sum(v.lower() in sentence.lower() for v in told) / len(told) if told else 1.0


def template(record: str) -> str:
    """Return what a template makes of a record: every value, in a sentence of one form."""
    told = dict(part.rstrip("]").split("[", 1) for part in record.split("], "))
    words = [told.pop(key, "") for key in ("name", "priceRange", "food", "eatType")]
    name, price, food, kind = words
    middle = " ".join(w for w in (price and f"{price} price", food, kind or "restaurant") if w)
    ends = {"area": "in the {}", "near": "near {}", "customer rating": "with a rating of {}"}
    more = "".join(f" {how.format(told[key])}" for key, how in ends.items() if key in told)
    friendly = {"yes": " It is family friendly.", "no": " It is not family friendly.", None: ""}
    return f"{name} is a {middle}{more}.{friendly[told.get('familyFriendly')]}"


def rule(task: str, prompt: str) -> str:
    """Return what a rule of a few lines answers: a template for records, else the prompt as it is."""
    return template(prompt) if task == "records" else prompt


def scores_of_texts(task: str, examples: Sequence[Example], texts: Sequence[str]) -> Cell:
    """Return BLEU (0 to 100) of answers, and for records the share of their values in it."""
    import sacrebleu

    found = {"bleu": sacrebleu.corpus_bleu(texts, [[e.answer for e in examples]]).score}
    if task == "records":
        shares = [said(e.prompt, text) for e, text in zip(examples, texts, strict=True)]
        found["said"] = sum(shares) / len(shares)
    return found


def floors(task: str) -> Cell:
    """Return what the `rule` scores on the rows that the model writes for, and what people's own answers say.

    A person's answer has no BLEU here, for the sets have one reference for each row; of records it has the
    share of the values that are said, because people paraphrase and leave out, too.
    """
    if not TASKS[task].new_tokens:
        return {}
    examples = [TASKS[task].example(row) for row in parts(task)[2][:WRITTEN]]
    found = scores_of_texts(task, examples, [rule(task, e.prompt) for e in examples])
    people = scores_of_texts(task, examples, [e.answer for e in examples])
    found = {f"rule_{key}": value for key, value in found.items()}
    found |= {f"people_{key}": value for key, value in people.items() if key != "bleu"}
    return {key: round(value, 4) for key, value in found.items()}


def text_scores(
    model: Any, tokenizer: Any, task: str, rows: Sequence[Any], shots: Sequence[Example] = ()
) -> Cell:
    """Return the `scores_of_texts` of what the model writes."""
    if not TASKS[task].new_tokens:
        return {}
    examples = [TASKS[task].example(row) for row in rows[:WRITTEN]]
    texts = written(model, tokenizer, task, [e.prompt for e in examples], shots)
    return scores_of_texts(task, examples, texts)


# --- one run -------------------------------------------------------------------------------------


def run(
    task: str, method: str, rate: float, seed: int, n: int, steps: int, base: str = BASE
) -> Cell:
    """Train one cell; return its scores and what it cost. "frozen" trains nothing, and has the `floors` too.

    A training whose loss stopped being finite has None for its scores.
    """
    torch.set_num_threads(1)
    cost: Cell = {}
    if method == "frozen":
        model, tokenizer = load(base)
    else:
        model, tokenizer = prepare(task, method, seed, base)
        rows = real_data.sample(parts(task)[0], n, TRAINING + seed)
        examples = encode(tokenizer, task, rows)
        batches = of_like_length(examples, TASKS[task].batch_size, seed, tokenizer.pad_token_id)
        cost = costs(model, batches)
        options: dict[str, Any] = {
            "steps": steps,
            "batch_size": 1,
            "collate_fn": alone,
            "lr": rate,
            "seed": seed,
        }
        try:
            with clocked(cost):
                train(model, batches, progress=False, **options)
        except FloatingPointError:
            return measured(cost, dict.fromkeys((*SCORES, "kept")))
    _, choosing, ranking = parts(task)
    numbers = (
        *score(model, tokenizer, task, choosing),
        *score(model, tokenizer, task, ranking),
    )
    scores = dict(zip(SCORES, numbers, strict=True)) | {"kept": kept(model, tokenizer)}
    scores |= text_scores(model, tokenizer, task, ranking)
    return measured(cost, scores | (floors(task) if method == "frozen" else {}))


BENCH = Bench(RESULTS, dict.fromkeys(TASKS, (N, STEPS)), METHODS, run, LEFT_OUT, frozen=True)


# --- what pages show -----------------------------------------------------------------------------


def apart(
    records: Sequence[Cell],
    task: str,
    one: str,
    other: str,
    key: str = "test_loss",
    comparisons: int = 1,
    fewest: int = FEWEST_SEEDS,
) -> Difference:
    """Return a loss of one method minus that of another, in nats per token, seed by seed.

    Args:
        records: of this bench.
        task: one of `TASKS`.
        one, other: methods, each taken at its best rate.
        key: "test_loss" for the loss on the rows that rank, "kept" for that on news.
        comparisons, fewest: as in `evidence.paired`.

    Raises:
        ValueError: the search of a method is not over, or `evidence.paired` refuses.
    """
    sign = -1 if key == "kept" else 1  # "kept" is minus a loss
    a, b = (
        {r["seed"]: sign * r[key] for r in BENCH.chosen(records, task, method)}
        for method in (one, other)
    )
    return paired(a, b, comparisons, fewest)


def table(records: Sequence[Cell], task: str, names: Mapping[str, str]) -> str:
    """Return a Markdown table of searched ways, each at its best rate, below the frozen base and the floors.

    Losses are in nats per token; time and memory are shares of full fine-tuning's, which must be searched.

    Args:
        records: of this bench.
        task: one whose answers the model writes.
        names: {method: its name on the page}, in the order of the rows.

    Raises:
        ValueError: the search of a method, or of full fine-tuning, is not over.
    """
    frozen, full = BENCH.runs(records, task, "frozen")[0], BENCH.chosen(records, task, "full")
    texts = {"said": "values said", "bleu": "BLEU"}
    texts = {key: name for key, name in texts.items() if key in frozen}
    titles = ["", "trained", "rate", "loss (each seed)", *texts.values()]
    titles += ["loss on news", "time", "memory"]
    rows = [titles, ["---"] * len(titles)]
    for name, of in (("rule", "rule_"), ("people", "people_"), ("frozen", "")):
        has = {key: frozen[of + key] for key in (*texts, "test_loss", "kept") if of + key in frozen}
        rows.append([f"*{name}*", "–", "–", _number(has, "test_loss")])
        rows[-1] += [_number(has, key) for key in (*texts, "kept")] + ["–", "–"]
    for method, name in names.items():
        runs = BENCH.chosen(records, task, method)
        mean = {key: fmean(r[key] for r in runs) for key in (*texts, "test_loss", "kept")}
        each = ", ".join(f"{run['test_loss']:.3f}" for run in runs)
        rows.append([name, f"{runs[0]['trainable']:,}", f"{runs[0]['rate']:g}"])
        rows[-1] += [f"{mean['test_loss']:.3f} ({each})"]
        rows[-1] += [_number(mean, key) for key in (*texts, "kept")]
        for key in ("cpu_seconds", "peak_bytes"):
            rows[-1].append(f"{fmean(r[key] for r in runs) / fmean(r[key] for r in full):.0%}")
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _number(scores: Mapping[str, float], key: str) -> str:
    """Return a score as a table shows it; a dash where there is none."""
    if key not in scores:
        return "–"
    how = {"said": ".0%", "bleu": ".1f"}.get(key, ".3f")
    return f"{-scores[key] if key == 'kept' else scores[key]:{how}}"


if __name__ == "__main__":
    BENCH.main(__doc__.split("\n")[0])
