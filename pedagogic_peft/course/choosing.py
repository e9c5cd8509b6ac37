"""Which method to start with: one rule, from the reader's answers to a ranking with reasons.

The rule, in order:

1. What a hard limit excludes is out: memory, what serves the model, many tasks on one base.
2. LoRA on all linear maps comes first, as is advised for large models (Dettmers et al. 2023, Schulman
   et al. 2025). Its base is in 16 bits where that fits, else in 4 (QLoRA).
3. Full fine-tuning comes first instead where there is one task, much data and memory enough, and nothing
   of the base's other skills has to stay.
4. Everything else stands behind these, in the order of what was measured against LoRA on the pocket model,
   which is no forecast (page 5.8): ties to break, not advice to begin with.

Memory comes from `memory.budget` at the size of the reader's model, for one row of tokens on one GPU (more
rows are accumulated), AdamW, and weights in 16 bits with a float32 copy of what is trained. What that
formula leaves out has to fit into a fifth of the card, whose GB are binary ones: 24 GB are 25.8 billion
bytes.
"""

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, NamedTuple

from pedagogic_peft.course.evidence import Difference, interval, paired
from pedagogic_peft.course.experiments import comparison
from pedagogic_peft.course.memory import CARD_GB, Budget, Decoder, budget

# The sizes of Llama 2 70B, Llama 3 8B, Llama 7B, Llama 3.2 1B and SmolLM2 135M.
MODELS = {
    "70B": Decoder("llama", 80, 8192, 28_672, 64, 32_000, 1024, tied=False),
    "8B": Decoder("llama", 32, 4096, 14_336, 32, 128_256, 1024, tied=False),
    "7B": Decoder("llama", 32, 4096, 11_008, 32, 32_000, 4096, tied=False),
    "1B": Decoder("llama", 16, 2048, 8192, 32, 128_256, 512),
    "135M": Decoder("llama", 30, 576, 1536, 9, 49_152, 192),
}
RANKS = {"hundreds": 8, "thousands": 16, "hundreds of thousands": 64}
LARGE = "hundreds of thousands"
ONE, MANY = "one", "many, on one base"
FREE, KEPT = "need not stay", "must stay"

VARIANTS = ("DoRA", "PiSSA", "VeRA", "AdaLoRA", "(IA)³")
ADAPTERS = ("Houlsby", "Pfeiffer", "parallel", "Compacter")
PROMPTS = ("prompt tuning", "P-tuning")  # nothing but vectors at the input
FULL = "full fine-tuning"
FORMULAS = (FULL, "LoRA", "QLoRA")  # those whose memory is a formula
OPTIONS = (*FORMULAS, *VARIANTS, *ADAPTERS, "prefix tuning", *PROMPTS)

OWN, PEFT, VLLM, LLAMA_CPP = "my own code", "Hugging Face PEFT", "vLLM", "llama.cpp or Ollama"
INPUTS = "an interface for input vectors"
# What each of them loads beside the base, or as a model.
SERVES = {
    PEFT: tuple(o for o in OPTIONS if o not in ADAPTERS),
    VLLM: (FULL, "LoRA", "QLoRA", "PiSSA", *PROMPTS),
    LLAMA_CPP: (FULL, "LoRA", "QLoRA", "PiSSA"),
    OWN: OPTIONS,
    INPUTS: PROMPTS,
}
MERGES = ("LoRA", "QLoRA", *VARIANTS)  # what can become a part of the weights

ROOM = 0.8  # of a card; the rest is for buffers, the allocator's fragments and the libraries
# No formula is here for the other methods. In Hugging Face's comparison on 3 billion parameters their
# peaks were 0.91 to 1.17 of LoRA's.
OTHERS = 1.2
VLLM_RANK = 16  # its default for --max-lora-rank


@dataclass(frozen=True)
class Case:
    """The reader's answers, each one of those in `QUESTIONS`.

    Attributes:
        card: the GPU's memory, such as "24 GB".
        model: a name in `MODELS`.
        tokens: length of a training text.
        data: how many training examples there are.
        tasks: one, or many that share one base in memory.
        skills: whether the base's other skills have to stay while it is adapted.
        serves: what runs the adapted model.

    Raises:
        ValueError: an answer is none of those that the question offers.
    """

    card: str
    model: str
    tokens: str
    data: str
    tasks: str
    skills: str
    serves: str

    def __post_init__(self) -> None:
        for name, (_, answers) in QUESTIONS.items():
            if getattr(self, name) not in answers:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {answers}")

    @property
    def room(self) -> float:
        """Bytes of the card that the formula may fill."""
        return ROOM * CARD_GB * int(self.card.split()[0])


# name: (as the reader is asked, the answers)
QUESTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "card": ("memory of the GPU", ("8 GB", "16 GB", "24 GB", "48 GB", "80 GB")),
    "model": ("model", tuple(MODELS)),
    "tokens": ("tokens in a text", ("512", "2,048", "8,192")),
    "data": ("training examples", tuple(RANKS)),
    "tasks": ("tasks", (ONE, MANY)),
    "skills": ("the base's other skills", (FREE, KEPT)),
    "serves": ("what serves it", tuple(SERVES)),
}
assert tuple(QUESTIONS) == tuple(f.name for f in fields(Case))


class Advice(NamedTuple):
    """One place in the ranking.

    Attributes:
        option: one of `OPTIONS`.
        title: the option with its settings.
        fits: whether no limit excludes it.
        reasons: what speaks for it, or what excludes it.
    """

    option: str
    title: str
    fits: bool
    reasons: tuple[str, ...]


class Plan(NamedTuple):
    """A way to train, by the formula of a method of `memory.METHODS`, and whether it fits the card."""

    method: str
    step: Budget
    checkpointing: bool
    fits: bool


def all_cases() -> Iterator[Case]:
    """Yield every combination of answers, the last question's changing fastest."""
    for answers in itertools.product(*(answers for _, answers in QUESTIONS.values())):
        yield Case(*answers)


def plan(case: Case, method: str, times: float = 1.0) -> Plan:
    """Return how a method of `memory.METHODS` trains: with checkpointing only where it must.

    Args:
        case: the answers.
        method: whose formula is taken.
        times: how many times the formula's bytes have to fit.
    """
    for checkpointing in (False, True):
        step = step_of(case.model, case.tokens, RANKS[case.data], method, checkpointing)
        if times * step.total <= case.room:
            break
    return Plan(method, step, checkpointing, times * step.total <= case.room)


@cache
def step_of(model: str, tokens: str, r: int, method: str, checkpointing: bool) -> Budget:
    """Return what a step on one text holds."""
    length = int(tokens.replace(",", ""))
    return budget(
        MODELS[model], 1, length, method, r=r, precision="mixed", checkpointing=checkpointing
    )


def plan_of(case: Case, option: str) -> Plan:
    """Return the plan that an option trains by: its own, or LoRA's, on a 4-bit base where it must."""
    if option in ("LoRA", "QLoRA"):
        return plan(case, option)
    if option == FULL:
        return plan(case, "full")
    lora = plan(case, "LoRA", OTHERS)
    return lora if lora.fits or option == "PiSSA" else plan(case, "QLoRA", OTHERS)


def advise(case: Case, margins: Mapping[str, Difference] | None = None) -> list[Advice]:
    """Rank the options for a case: first what to start with, last what is excluded.

    Args:
        case: the answers.
        margins: what `margins` returns; the ties are ordered by it.

    Returns:
        One `Advice` for each option. If none ``fits``, there is nothing to start with.
    """
    margins = margins or {}
    order = ["LoRA", "QLoRA"]
    order.insert(0 if full_first(case) else 2, FULL)
    rest = [option for option in OPTIONS if option not in (*order, *PROMPTS)]
    rest.sort(key=lambda option: -margins[option].mean if option in margins else 0.0)
    name = {FULL: "full"}  # in the bench
    options = (*order, *rest, *PROMPTS)
    found = [judge(case, option, margins.get(name.get(option, option))) for option in options]
    return sorted(found, key=lambda advice: not advice.fits)


def full_first(case: Case) -> bool:
    """Tell whether full fine-tuning is the first choice, if no limit excludes it."""
    return (case.data, case.tasks, case.skills) == (LARGE, ONE, FREE)


def judge(case: Case, option: str, margin: Difference | None = None) -> Advice:
    """Say of one option whether it is excluded, and why, or what speaks for it."""
    how = plan_of(case, option)
    if against := tuple(limits(case, option, how)):
        return Advice(option, option, False, against)
    reasons = {FULL: of_full, "LoRA": of_lora, "QLoRA": of_lora}.get(option, of_a_tie)
    title = option
    if option in ("LoRA", "QLoRA"):
        title += f", r = {RANKS[case.data]}, on all linear maps"
    title += {"LoRA": " of a 16-bit base", "QLoRA": " of a 4-bit base"}.get(option, "")
    if option not in FORMULAS and how.method == "QLoRA":
        title += " on a 4-bit base"
    title += ", with checkpointing" if how.checkpointing else ""
    return Advice(option, title, True, tuple(reasons(case, option, how, margin)))


# --- what excludes ------------------------------------------------------------------------------


def limits(case: Case, option: str, how: Plan) -> Iterator[str]:
    """Yield every hard limit that excludes an option."""
    if case.serves == INPUTS and option not in PROMPTS:
        yield "needs to reach into the model"
    elif option not in SERVES[case.serves]:
        if option not in MERGES:
            yield f"{case.serves} does not load it, and it cannot be merged"
        elif case.tasks == MANY:
            yield f"{case.serves} does not load it, and merged it would be a model for each task"
    if option == FULL and case.tasks == MANY:
        size = 2 * MODELS[case.model].parameters()  # in 16 bits
        yield f"would be a model of {gigabytes(size)} for each task"
    if not how.fits:
        held = gigabytes(how.step.total)
        if option in FORMULAS:
            yield f"a training step holds {held}, even with checkpointing"
        else:
            base = " on a 16-bit base" if option == "PiSSA" else ""
            yield f"may hold {OTHERS:g} times LoRA's {held}{base}"


# --- what speaks for it -------------------------------------------------------------------------

Measured = Difference | None


def of_full(case: Case, option: str, how: Plan, margin: Measured) -> Iterator[str]:
    """Yield what speaks for full fine-tuning, or why it is not the first choice."""
    if full_first(case):
        yield "one task, much data, and the memory for it: no rank limits what it learns"
    elif case.skills == KEPT:
        yield (
            "forgot more than LoRA at 7 billion parameters (Biderman et al. 2024), less at 135 million "
            "(page 2.7): the rate matters"
        )
    else:
        yield (
            "not ahead of LoRA in single runs at 3 billion parameters, rates not searched (Hugging Face "
            "PEFT)"
        )
    yield from of_a_step(case, how)
    yield said(margin)


def of_lora(case: Case, option: str, how: Plan, margin: Measured) -> Iterator[str]:
    """Yield what speaks for LoRA, or for QLoRA."""
    if option == "QLoRA":
        fits = plan(case, "LoRA").fits
        yield f"the base {'fits' if fits else 'does not fit'} in 16 bits" + (
            ", so this is for longer texts or a smaller card" if fits else ""
        )
    yield from of_a_step(case, how)
    r = RANKS[case.data]
    n = MODELS[case.model].trained("LoRA", r)
    yield f"trains {n / 1e6:,.1f} million parameters, a file of {2 * n / 1e6:,.0f} MB for each task"
    if case.serves == VLLM:
        more = f" --max-lora-rank {r}" if r > VLLM_RANK else ""
        yield f"vLLM: --enable-lora{more}; no modules_to_save"
    elif case.serves == LLAMA_CPP:
        yield "convert_lora_to_gguf.py makes the file that llama.cpp and Ollama load"
    if case.skills == KEPT:
        yield "a lower rate mostly forgot less on this book's bench; switched off, the base is as it was"


def of_a_step(case: Case, how: Plan) -> Iterator[str]:
    """Yield what a training step holds, and what it computes for each token, as page 6.6 counts it."""
    yield f"a training step holds {gigabytes(how.step.total)}"
    again = 2 if how.checkpointing else 0
    parts = (6 if how.method == "full" else 4) + again
    count = parts * MODELS[case.model].parameters() / 1e9
    beside = "" if how.method == "full" else f" (full fine-tuning {6 + again} N)"
    more = ", and unpacks the base" if how.method == "QLoRA" else ""
    yield f"computes {parts} N = {count:,.1f} billion operations a token{beside}{more}"


def of_a_tie(case: Case, option: str, how: Plan, margin: Measured) -> Iterator[str]:
    """Yield what was measured of another option, and how it is served."""
    if option in PROMPTS and case.serves == INPUTS:
        yield "vectors at the input are all that can be reached"
    elif option in PROMPTS and case.serves == VLLM:
        yield "vLLM: --enable-prompt-embeds, with its vectors before those of the text"
    elif option not in SERVES[case.serves]:
        yield "merged into the weights, and served as a model of its own"
    elif option == "PiSSA" and case.serves in (VLLM, LLAMA_CPP):
        r = 2 * RANKS[case.data]
        more = f"; vLLM: --max-lora-rank {r}" if case.serves == VLLM and r > VLLM_RANK else ""
        yield f"convert it to a LoRA of rank {r} first{more}"
    yield said(margin)


def said(margin: Measured) -> str:
    """Say a margin in words."""
    if margin is None:
        return "not measured against LoRA"
    word = "ahead of" if margin.low > 0 else "behind" if margin.high < 0 else "not told apart from"
    return f"{word} LoRA on the pocket model: {margin:+.2f} of the gap"


def gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"


# --- what was measured --------------------------------------------------------------------------


def margins(records: Sequence[dict[str, Any]]) -> dict[str, Difference]:
    """Return {method: by how much more of the gap it closes than LoRA}, by the bench's records.

    The gap of a task lies between the frozen base and full fine-tuning. A seed's difference is the mean
    over pocket-gpt's tasks; tasks on which full fine-tuning is not clearly better than the frozen base
    are left out. The intervals hold together (Bonferroni).

    Raises:
        ValueError: a method has too few seeds, or no task has a gap.
    """
    methods = ("full", *VARIANTS, *ADAPTERS, "prefix tuning", *PROMPTS)
    tasks = [t for t in comparison.TASKS if comparison.TASKS[t].base == "pocket-gpt"]
    tasks = [t for t in tasks if has_a_gap(records, t)]
    if not tasks:
        raise ValueError("full fine-tuning is on no task clearly better than the frozen base")
    return {
        method: paired(
            mean_share(records, tasks, method), mean_share(records, tasks, "LoRA"), len(methods)
        )
        for method in methods
    }


def has_a_gap(records: Sequence[dict[str, Any]], task: str) -> bool:
    """Tell whether full fine-tuning is clearly better than what the base begins with."""
    low = comparison.start(records, task)
    return interval([x - low for x in comparison.scores(records, task, "full").values()]).low > 0


def mean_share(
    records: Sequence[dict[str, Any]], tasks: Sequence[str], method: str
) -> dict[int, float]:
    """Return {seed: the mean share over tasks}, of the seeds that every task has."""
    found = [comparison.gain(records, task, method) for task in tasks]
    seeds = set.intersection(*(set(each) for each in found))
    return {seed: statistics.fmean(each[seed] for each in found) for seed in sorted(seeds)}
