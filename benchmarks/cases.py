"""The cases: what is measured, in which settings, and what each measure should not exceed.

A case returns ``{"measures": {name: measure}}`` and perhaps facts besides.
"""

import copy
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
import transformers as hf

import pedagogic_peft as pp
from benchmarks import models
from benchmarks.measure import (
    DEVICE,
    Measure,
    Times,
    excess,
    interleaved,
    peak_bytes,
    ratio,
    ratio_of_medians,
    rounded,
    seconds,
    summary,
)
from benchmarks.models import SHAPES, both, bound, deep_llama, fresh, inputs, methods, stepper

Result = dict[str, Any]
ROUNDS = 5
ADAPTERS = os.environ.get("ADAPTERS_PYTHON")  # a Python that has the `adapters` library


@dataclass(frozen=True)
class Case:
    """A thing to measure.

    Attributes:
        measure: takes a setting, returns a result.
        settings: those to measure.
        targets: {measure: what it should not exceed}.
    """

    measure: Callable[[str], Result]
    settings: list[str]
    targets: dict[str, float] = field(default_factory=dict)


def train_step(setting: str) -> Result:
    """One training step, ours beside PEFT's and the bound."""
    kind, name, shape = setting.split(", ")
    batch = inputs(name, SHAPES[shape])
    steps = {who: stepper(model, batch) for who, model in both(kind, name).items()}
    times = interleaved(steps | {"bound": bound(fresh(name), batch)}, ROUNDS)
    measures = {"ours / peft": ratio(times, "ours", "theirs")}
    measures |= {f"{who} / bound": ratio(times, who, "bound") for who in ("ours", "theirs")}
    return {"measures": measures}


def lora_step(setting: str) -> Result:
    """The same for LoRA, which has a target beside the bound too."""
    return train_step(f"LoRA, {setting}")


@contextmanager
def worker(kind: str, name: str, shape: str):
    """Yield a process that runs the `adapters` library: ``ask("adapted")`` returns seconds."""
    rows, length = SHAPES[shape]
    script = Path(__file__).with_name("adapters_worker.py")
    command = [str(ADAPTERS), "-W", "ignore", str(script), kind, name, str(rows), str(length)]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    pipe: dict[str, Any] = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean)
    with subprocess.Popen(command, **pipe) as process:

        def ask(what: str) -> float:
            process.stdin.write(f"{what}\n")
            process.stdin.flush()
            return float(process.stdout.readline())

        yield int(process.stdout.readline()), ask
        process.stdin.close()


def bottleneck(setting: str) -> Result:
    """One training step with bottleneck adapters, ours beside that of the `adapters` library.

    Theirs runs on an older transformers, so each is also divided by the bound on its own.
    """
    kind, name, shape = setting.split(", ")
    batch, head = inputs(name, SHAPES[shape]), ["classifier"] if name == "bert" else []
    act = {"pfeiffer": "relu", "houlsby": "swish"}[kind]
    method = pp.BottleneckAdapter(placement=kind, non_linearity=act, modules_to_save=head)
    model = pp.attach(fresh(name), method).train()
    with worker(kind, name, shape) as (trained, ask):
        runs = {
            "ours": stepper(model, batch),
            "bound": bound(fresh(name), batch),
            "theirs": partial(ask, "adapted"),
            "their bound": partial(ask, "bound"),
        }
        times = interleaved(runs, ROUNDS)
    own = [a / b for a, b in zip(times["ours"], times["bound"], strict=True)]
    other = [a / b for a, b in zip(times["theirs"], times["their bound"], strict=True)]
    measures = {
        "ours / adapters": ratio(times, "ours", "theirs"),
        "the same, each over its own bound": summary(
            [a / b for a, b in zip(own, other, strict=True)]
        ),
        "ours / bound": summary(own),
    }
    counts = {"trained": pp.count_parameters(model).trainable, "trained by adapters": trained}
    return {"measures": measures} | counts


def memory(setting: str) -> Result:
    """Peak memory of a training step, ours / PEFT's."""
    kind, name, shape = setting.split(", ")
    batch, found = inputs(name, SHAPES[shape]), both(kind, name)
    peaks = {who: peak_bytes(model, stepper(model, batch)) for who, model in found.items()}
    measures = {"ours / peft": {"value": rounded(peaks["ours"] / peaks["theirs"])}}
    return {"measures": measures, "MB": {who: round(b / 1e6) for who, b in peaks.items()}}


def top_layers(setting: str) -> Result:
    """A step with LoRA in the top layers only / in all twelve: time and memory, ours and PEFT's."""
    batch, first = inputs("gpt2", SHAPES["batch 4 x 64"]), 12 - int(setting.split()[1])
    steps, peaks = {}, {}
    for which, layers in (("top", range(first, 12)), ("all", range(12))):
        pattern = rf".*h\.({'|'.join(map(str, layers))})\.attn\.c_attn"
        _, config = methods("LoRA", "gpt2", layers_to_transform=[*layers], layers_pattern="h")
        for who, model in {
            "ours": pp.attach(fresh("gpt2"), pp.LoRA(target_modules=pattern)),
            "peft": peft.get_peft_model(fresh("gpt2"), config),
        }.items():
            steps[f"{who} {which}"] = stepper(model.train(), batch)
            peaks[f"{who} {which}"] = peak_bytes(model, steps[f"{who} {which}"])
    times, measures = interleaved(steps, ROUNDS), {}
    for who in ("ours", "peft"):
        measures[f"{who}: time"] = ratio(times, f"{who} top", f"{who} all")
        peak = peaks[f"{who} top"] / peaks[f"{who} all"]
        measures[f"{who}: peak memory"] = {"value": rounded(peak)}
    return {"measures": measures}


LORA_OF_ALL = dict(r=2, target_modules="all-linear")


def their_lora() -> Any:
    return peft.LoraConfig(task_type="CAUSAL_LM", **LORA_OF_ALL)


def attach(setting: str) -> Result:
    """Attach a LoRA to 560 linear maps, ours / PEFT's."""
    runs = {
        "ours": lambda model: pp.attach(model, pp.LoRA(**LORA_OF_ALL)),
        "theirs": lambda model: peft.get_peft_model(model, their_lora()),
    }
    return {"measures": {"ours / peft": ratio(interleaved(runs, ROUNDS, deep_llama), *runs)}}


def attach_another(setting: str) -> Result:
    """Attach a LoRA beside 49 others / beside one other, on 560 linear maps."""

    def beside(count: int) -> Callable[[], float]:
        model = deep_llama()
        for i in range(count):
            pp.attach(model, pp.LoRA(**LORA_OF_ALL), f"n{i}")

        def again() -> float:
            took = seconds(lambda: pp.attach(model, pp.LoRA(**LORA_OF_ALL), "new"))
            pp.detach(model, "new")
            return took

        return again

    times = interleaved({"50th": beside(49), "second": beside(1)}, ROUNDS)
    return {"measures": {"50th / second": ratio(times, "50th", "second")}}


def switch(setting: str) -> Result:
    """Switch or disable adaptations of 560 linear maps, ours / PEFT's."""
    ours, theirs = deep_llama(), peft.get_peft_model(deep_llama(), their_lora())
    for name in ("default", "other"):
        pp.attach(ours, pp.LoRA(**LORA_OF_ALL), name)
    theirs.add_adapter("other", their_lora())

    def disable(disabled: Any) -> None:
        with disabled:
            pass

    runs = {
        "ours": lambda: pp.activate(ours, "other"),
        "theirs": lambda: theirs.set_adapter("other"),
    }
    if setting == "disable":
        runs = {
            "ours": lambda: disable(pp.disabled(ours)),
            "theirs": lambda: disable(theirs.disable_adapter()),
        }
    return {"measures": {"ours / peft": ratio(interleaved(runs, ROUNDS), "ours", "theirs")}}


def generate(setting: str) -> Result:
    """What an unmerged LoRA adds to a token at batch 1 over the merged model, ours / PEFT's.

    Timed is the model's step for one more token behind 16 in the cache, which is what generation
    repeats. What is added is a few per cent of it, so there are many rounds: over a whole text the
    rest of the step, and of `generate`, hides it.
    """
    name = setting.split(", ")[0]
    found = both("LoRA", name)
    plain = pp.attach(copy.deepcopy(models.base(name)), methods("LoRA", name)[0])
    found["merged"] = pp.merge(plain, unload=True)
    ids = inputs(name, (1, 16))["input_ids"]

    def writer(model: Any) -> Callable[[], Any]:
        with torch.no_grad():
            cache = model.eval()(input_ids=ids, use_cache=True).past_key_values

        @torch.no_grad()
        def one_token() -> None:
            model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
            cache.crop(-1)

        return one_token

    runs = {who: writer(model) for who, model in found.items()}
    times = interleaved(runs, 80 * ROUNDS)
    own, other = (excess(times, who, "merged") for who in ("ours", "theirs"))
    measures = {
        "ours / peft, of what exceeds merged": ratio_of_medians(own, other),
        "ours / merged": ratio(times, "ours", "merged"),
        "peft / merged": ratio(times, "theirs", "merged"),
    }
    return {"measures": measures}


def serving(count: int) -> tuple[Any, Any, list[str]]:
    """Return the model with ``count`` LoRAs by us, and by PEFT, and their names."""
    names = [f"n{i}" for i in range(count)]
    ours, (own, other) = fresh("gpt2"), methods("LoRA", "gpt2")
    theirs = peft.get_peft_model(fresh("gpt2"), other, "n0")
    for name in names:
        pp.attach(ours, own, name)
        if name != "n0":
            theirs.add_adapter(name, other)
    return ours, theirs, names


def mixed_rows(setting: str) -> Result:
    """A batch whose rows all use different adaptations / the same batch with one, in evaluation.

    The rows are named before, as for all tokens that are generated. The first pass after naming them
    stacks their A and B: it is measured beside.
    """
    count, length = (int(word) for word in setting.replace(",", "").split() if word.isdigit())
    ours, theirs, names = serving(count)
    batch = inputs("gpt2", (count, length))
    batch = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    alone = pp.attach(fresh("gpt2"), methods("LoRA", "gpt2")[0])
    alone.eval(), ours.eval(), theirs.eval()
    pp.activate(ours, rows=names)

    @torch.no_grad()
    def run(model: Any, named: bool = False) -> None:
        if named:
            pp.activate(model, rows=names)
        model(**batch)

    @torch.no_grad()
    def run_theirs() -> None:
        theirs(**batch, adapter_names=names)

    runs = {"mixed": partial(run, ours), "first": partial(run, ours, named=True)}
    times = interleaved(runs | {"one": partial(run, alone), "peft": run_theirs}, ROUNDS)
    measures = {
        "mixed / one": ratio(times, "mixed", "one"),
        "mixed / one, the first pass": ratio(times, "first", "one"),
    }
    return {"measures": measures | {"ours / peft, mixed": ratio(times, "mixed", "peft")}}


def mixed_training(setting: str) -> Result:
    """A training step on a batch whose rows all use different adaptations; PEFT refuses it."""
    ours, theirs, names = serving(8)
    batch = inputs("gpt2", (8, 16))
    try:
        theirs.train()(**batch, adapter_names=names)
        refused = "no error"
    except Exception as error:  # it is the text that is stored
        refused = f"{type(error).__name__}: {error}"
    ours.train()

    def run(*which: str, rows: list[str] | None = None) -> None:
        pp.activate(ours, *which, rows=rows)
        ours(**batch).loss.backward()

    run(rows=names)
    untouched = [n for n, p in ours.named_parameters() if p.requires_grad and p.grad is None]
    runs = {"mixed": lambda: run(rows=names), "one": lambda: run(names[0])}
    measures: dict[str, Measure] = {"tensors without a gradient": {"value": len(untouched)}}
    measures["mixed / one"] = ratio(interleaved(runs, ROUNDS), "mixed", "one")
    return {"measures": measures, "peft": refused}


def child_seconds(code: str) -> float:
    """Return the seconds of processor time that a fresh Python takes for this code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def importing(setting: str) -> Result:
    """Import the library, PEFT, and torch alone, in fresh processes."""
    modules = {"ours": "pedagogic_peft", "peft": "peft", "torch": "torch"}
    runs = {who: partial(child_seconds, f"import {name}") for who, name in modules.items()}
    times: Times = interleaved(runs, ROUNDS)
    found = {
        f"{who}: seconds beyond torch": excess(times, who, "torch") for who in ("ours", "peft")
    }
    return {"measures": {name: summary(values) for name, values in found.items()}}


def save_and_load(setting: str) -> Result:
    """Save, or load, a LoRA on 560 linear maps, ours / PEFT's."""
    ours = pp.attach(deep_llama(), pp.LoRA(**LORA_OF_ALL))
    theirs = peft.get_peft_model(deep_llama(), their_lora())
    with tempfile.TemporaryDirectory() as folder:
        mine, other = Path(folder) / "ours", Path(folder) / "theirs"
        saves = {
            "ours": lambda: pp.save(ours, mine),
            "theirs": lambda: theirs.save_pretrained(str(other)),
        }
        times = interleaved(saves, ROUNDS)
        if setting == "load":
            loads = {
                "ours": lambda model: pp.load(model, mine),
                "theirs": lambda model: peft.PeftModel.from_pretrained(model, str(other)),
            }
            times = interleaved(loads, ROUNDS, deep_llama)
    return {"measures": {"ours / peft": ratio(times, "ours", "theirs")}}


def meta(setting: str) -> Result:
    """Attach a LoRA to a 7 B-shaped model on the meta device, where nothing is allocated."""

    def empty() -> Any:
        with torch.device("meta"):
            return hf.LlamaForCausalLM(hf.LlamaConfig())  # its defaults are Llama-7B's sizes

    def run(model: Any) -> float:
        with torch.device("meta"):
            return seconds(lambda: pp.attach(model, pp.LoRA(r=8, target_modules="all-linear")))

    model = empty()
    times = interleaved({"attach": run}, 3, empty)
    run(model)
    allocated = sum(p.nbytes for p in model.parameters() if p.device.type != "meta")
    sizes = {"parameters": pp.count_parameters(model).total}
    measures = {"seconds": summary(times["attach"]), "bytes allocated": {"value": allocated}}
    return {"measures": measures} | sizes


def settings(kinds: list[str], names: list[str]) -> list[str]:
    """Return every combination, in every shape."""
    return [f"{kind}, {name}, {shape}" for kind in kinds for name in names for shape in SHAPES]


LORA = [setting.removeprefix("LoRA, ") for setting in settings(["LoRA"], ["gpt2", "bert"])]
OTHERS = settings(["DoRA"], ["gpt2", "bert"])
OTHERS += settings(["prompt tuning", "prefix tuning"], ["gpt2"])
BOTTLENECKS = settings(["pfeiffer", "houlsby"], ["bert"])
ROWS = [f"{n} adaptations, length {t}" for n in (8, 64) for t in (16, 1)]
CASES: dict[str, Case] = {
    "LoRA step": Case(lora_step, LORA, {"ours / bound": 1.02, "ours / peft": 1.0}),
    "step": Case(train_step, OTHERS, {"ours / peft": 1.0}),
    "bottleneck adapters": Case(
        bottleneck,
        BOTTLENECKS if ADAPTERS and DEVICE == "cpu" else [],
        {"ours / adapters": 1.0},
    ),
    "memory": Case(memory, settings(["LoRA"], ["gpt2", "bert"]) + OTHERS, {"ours / peft": 1.0}),
    "top layers": Case(
        top_layers,
        [f"top {n} of 12" for n in (6, 4, 2, 1)],
        {"ours: time": 1.0, "ours: peak memory": 1.0},
    ),
    "attach": Case(attach, ["560 targets"], {"ours / peft": 0.10}),
    "attach another": Case(attach_another, ["560 targets"], {"50th / second": 1.1}),
    "switch": Case(switch, ["switch", "disable"], {"ours / peft": 0.01}),
    "generate unmerged": Case(
        generate, ["gpt2, batch 1"], {"ours / peft, of what exceeds merged": 0.5}
    ),
    "mixed rows": Case(mixed_rows, ROWS, {"mixed / one": 1.05}),
    "mixed rows, training": Case(
        mixed_training, ["8 adaptations, length 16"], {"tensors without a gradient": 0}
    ),
    "import": Case(importing, ["fresh process"], {"ours: seconds beyond torch": 0.1}),
    "save and load": Case(save_and_load, ["save", "load"], {"ours / peft": 0.5}),
    "attach on meta": Case(meta, ["7 B"], {"seconds": 1.0, "bytes allocated": 0}),
}
