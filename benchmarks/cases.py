"""The cases: each returns a ratio, and `TARGETS` says what it should not exceed.

Models have the sizes of the real ones and random weights: nothing here depends on what they learned.
"""

import copy
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import peft
import torch
import transformers as hf
from torch import nn

import pedagogic_peft as pp
from benchmarks.measure import (
    DEVICE,
    Times,
    bytes_for_backward,
    fresh,
    interleaved,
    overhead_ratio,
    ratio,
    seconds,
)

Result = dict[str, Any]
ROUNDS = 9
SHAPES = {"batch 4 x 64": (4, 64), "batch 1 x 16": (1, 16)}
TARGETS = {"gpt2": ["c_attn"], "bert": ["query", "value"]}
N = 20  # virtual tokens


@cache
def base(name: str) -> Any:
    """Return GPT-2's smallest size (124 M parameters) or BERT-base (109 M)."""
    torch.manual_seed(0)
    if name == "gpt2":
        model: Any = hf.GPT2LMHeadModel(hf.GPT2Config())
    else:
        model = hf.BertForSequenceClassification(hf.BertConfig())
    return model.to(DEVICE)


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def inputs(name: str, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 1000, shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    labels = ids if name == "gpt2" else ids[:, 0] % 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def methods(kind: str, name: str) -> tuple[Any, Any]:
    """Return our hyper-parameters and PEFT's, for the same adaptation."""
    lm = "CAUSAL_LM" if name == "gpt2" else "SEQ_CLS"
    target: dict[str, Any] = {"target_modules": TARGETS[name]}
    theirs: dict[str, Any] = target | {"fan_in_fan_out": name == "gpt2", "task_type": lm}
    head = [] if name == "gpt2" else ["classifier"]
    soft: dict[str, Any] = {"num_virtual_tokens": N, "modules_to_save": head}
    if kind in ("LoRA", "DoRA"):
        method = pp.LoRA if kind == "LoRA" else pp.DoRA
        return (
            method(r=8, alpha=16, modules_to_save=head, **target),
            peft.LoraConfig(r=8, lora_alpha=16, use_dora=kind == "DoRA", **theirs),
        )
    if kind == "prompt tuning":
        return (
            pp.PromptTuning(**soft),
            peft.PromptTuningConfig(task_type=lm, num_virtual_tokens=N),
        )
    return pp.PrefixTuning(**soft), peft.PrefixTuningConfig(task_type=lm, num_virtual_tokens=N)


def both(kind: str, name: str) -> dict[str, Any]:
    """Return the model adapted by us and by PEFT, both training."""
    own, other = methods(kind, name)
    ours = pp.attach(copy.deepcopy(base(name)), own)
    theirs = peft.get_peft_model(copy.deepcopy(base(name)), other)
    return {"ours": without_dropout(ours), "theirs": without_dropout(theirs)}


def stepper(model: Any, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """Return one training step: forward, backward and AdamW."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def bound(name: str, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """Return the least a method at every layer must do: forward, and the activations' gradient."""
    model = without_dropout(copy.deepcopy(base(name)).requires_grad_(False))
    embedded = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_(True)
    rest = {key: value for key, value in batch.items() if key != "input_ids"}
    return lambda: model(inputs_embeds=embedded, **rest).loss.backward()


def train_step(setting: str) -> Result:
    """One training step, ours / PEFT's (and for LoRA, ours / bound)."""
    kind, name, shape = setting.split(", ")
    batch = inputs(name, SHAPES[shape])
    variants = {who: stepper(model, batch) for who, model in both(kind, name).items()}
    if kind == "LoRA":
        variants["bound"] = bound(name, batch)
    times = interleaved(variants, ROUNDS)
    found = ratio(times, "ours", "theirs")
    if kind == "LoRA":
        found["to bound"] = ratio(times, "ours", "bound")["ratio"]
    return found


def memory(setting: str) -> Result:
    """Bytes kept for the backward pass, ours / PEFT's; on a GPU, peak memory of a step."""
    kind, name, shape = setting.split(", ")
    batch = inputs(name, SHAPES[shape])
    models = both(kind, name)
    peaks = {}
    for who, model in models.items():
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
            stepper(model, batch)()
            peaks[who] = torch.cuda.max_memory_allocated()
        else:
            peaks[who] = bytes_for_backward(model, lambda model=model: model(**batch).loss)
    return {"ratio": round(peaks["ours"] / peaks["theirs"], 4), **peaks}


def top_layers(setting: str) -> Result:
    """A step with LoRA in the top layers only / in all twelve: time and bytes."""
    batch = inputs("gpt2", SHAPES["batch 4 x 64"])
    first = 12 - int(setting.split()[1])
    models = {}
    for who, layers in (("top", range(first, 12)), ("all", range(12))):
        pattern = rf".*h\.({'|'.join(map(str, layers))})\.attn\.c_attn"
        method = pp.LoRA(target_modules=pattern)
        models[who] = without_dropout(pp.attach(copy.deepcopy(base("gpt2")), method))
    times = interleaved({who: stepper(m, batch) for who, m in models.items()}, ROUNDS)
    kept = {w: bytes_for_backward(m, lambda m=m: m(**batch).loss) for w, m in models.items()}
    return ratio(times, "top", "all") | {"bytes": round(kept["top"] / kept["all"], 4)}


def deep_llama() -> Any:
    """Return a Llama of 80 layers, 560 linear maps in them, narrow so that only counts matter."""
    config = hf.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=80,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config)


THEIR_LORA = dict(r=2, target_modules="all-linear", task_type="CAUSAL_LM")


def attach(setting: str) -> Result:
    """Attach a LoRA to 560 linear maps, ours / PEFT's; or our fiftieth / our second."""
    if setting == "first":
        times: Times = {"ours": [], "theirs": []}
        for _ in range(ROUNDS):
            mine, other = deep_llama(), deep_llama()
            lora = pp.LoRA(r=2, target_modules="all-linear")
            times["ours"].append(seconds(lambda m=mine, lora=lora: pp.attach(m, lora)))
            config = peft.LoraConfig(**THEIR_LORA)
            times["theirs"].append(
                seconds(lambda m=other, config=config: peft.get_peft_model(m, config))
            )
        return ratio(times, "ours", "theirs")
    model, took = deep_llama(), []
    for i in range(50):
        lora = pp.LoRA(r=2, target_modules="all-linear")
        took.append(seconds(lambda i=i, lora=lora: pp.attach(model, lora, f"n{i}")))
    return ratio({"last": took[40:], "early": took[1:11]}, "last", "early")


def switch(setting: str) -> Result:
    """Switch or disable adaptations of 560 linear maps, ours / PEFT's."""
    ours, theirs = deep_llama(), peft.get_peft_model(deep_llama(), peft.LoraConfig(**THEIR_LORA))
    for name in ("default", "other"):
        pp.attach(ours, pp.LoRA(r=2, target_modules="all-linear"), name)
    theirs.add_adapter("other", peft.LoraConfig(**THEIR_LORA))

    def disable(model: Any, disabled: Callable[..., Any]) -> None:
        with disabled(model):
            pass

    if setting == "switch":
        runs = {
            "ours": lambda: pp.activate(ours, "other"),
            "theirs": lambda: theirs.set_adapter("other"),
        }
    else:
        runs = {
            "ours": lambda: disable(ours, pp.disabled),
            "theirs": lambda: disable(theirs, lambda model: model.disable_adapter()),
        }
    return ratio(interleaved(runs, ROUNDS), "ours", "theirs")


def generate(setting: str) -> Result:
    """What an unmerged LoRA adds to generation at batch 1 over the merged model, ours / PEFT's."""
    models = both("LoRA", "gpt2")
    models["merged"] = pp.merge(pp.attach(copy.deepcopy(base("gpt2")), methods("LoRA", "gpt2")[0]))
    ids = inputs("gpt2", (1, 16))["input_ids"]
    options: dict[str, Any] = dict(
        max_new_tokens=24, min_new_tokens=24, do_sample=False, pad_token_id=0
    )
    options |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    runs = {who: partial(model.eval().generate, **options) for who, model in models.items()}
    return overhead_ratio(interleaved(runs, ROUNDS), "ours", "theirs", "merged")


def mixed_rows(setting: str) -> Result:
    """A batch whose rows use different adaptations / the same batch with one, in evaluation."""
    count, length = (int(word) for word in setting.split() if word.isdigit())
    model = copy.deepcopy(base("gpt2")).eval()
    names = [f"n{i}" for i in range(count)]
    for name in names:
        pp.attach(model, pp.LoRA(r=8, target_modules=["c_attn"]), name)
    batch = {k: v for k, v in inputs("gpt2", (count, length)).items() if k != "labels"}

    def run(*which: str, rows: list[str] | None = None) -> None:
        pp.activate(model, *which, rows=rows)
        with torch.no_grad():
            model(**batch)

    runs = {"mixed": lambda: run(rows=names), "one": lambda: run(names[0])}
    return ratio(interleaved(runs, ROUNDS), "mixed", "one")


def importing(setting: str) -> Result:
    """Import the library / torch alone, in fresh processes."""
    imports = {"ours": "import pedagogic_peft", "theirs": "import peft", "torch": "import torch"}
    times: Times = {who: [] for who in imports}
    for _ in range(5):
        for who, code in imports.items():
            times[who].append(fresh(code))
    extra = sorted(a - b for a, b in zip(times["ours"], times["torch"], strict=True))
    return ratio(times, "ours", "torch") | {
        "extra seconds": round(extra[len(extra) // 2], 3),
        "peft / torch": ratio(times, "theirs", "torch")["ratio"],
    }


def save_and_load(setting: str) -> Result:
    """Save, or load, a LoRA on 560 linear maps, ours / PEFT's."""
    ours = pp.attach(deep_llama(), pp.LoRA(r=2, target_modules="all-linear"))
    theirs = peft.get_peft_model(deep_llama(), peft.LoraConfig(**THEIR_LORA))
    with tempfile.TemporaryDirectory() as folder:
        mine, other = Path(folder) / "ours", Path(folder) / "theirs"
        if setting == "save":
            runs = {
                "ours": lambda: pp.save(ours, mine),
                "theirs": lambda: theirs.save_pretrained(str(other)),
            }
            return ratio(interleaved(runs, ROUNDS), "ours", "theirs")
        pp.save(ours, mine)
        theirs.save_pretrained(str(other))
        times: Times = {"ours": [], "theirs": []}
        for _ in range(ROUNDS):
            a, b = deep_llama(), deep_llama()
            times["ours"].append(seconds(lambda a=a: pp.load(a, mine)))
            times["theirs"].append(
                seconds(lambda b=b: peft.PeftModel.from_pretrained(b, str(other)))
            )
    return ratio(times, "ours", "theirs")


def meta(setting: str) -> Result:
    """Seconds to attach a LoRA to a 7 B-shaped model on the meta device, where nothing is allocated."""
    with torch.device("meta"):
        model = hf.LlamaForCausalLM(hf.LlamaConfig())  # its defaults are Llama-7B's sizes
        took = seconds(lambda: pp.attach(model, pp.LoRA(r=8, target_modules="all-linear")))
    real = [name for name, p in model.named_parameters() if p.device.type != "meta"]
    return {"ratio": round(took, 3), "allocated": len(real)}


# case -> (its function, its settings, what its ratio should not exceed)
STEPS = [f"{k}, {n}, {s}" for k in ("LoRA", "DoRA") for n in ("gpt2", "bert") for s in SHAPES]
SOFT = [f"{k}, gpt2, {s}" for k in ("prompt tuning", "prefix tuning") for s in SHAPES]
CASES: dict[str, tuple[Callable[[str], Result], list[str], float]] = {
    "training step": (train_step, STEPS + SOFT, 1.0),
    "memory": (memory, [s for s in STEPS + SOFT if "4 x 64" in s], 1.0),
    "top layers": (top_layers, ["top 4 of 12", "top 1 of 12"], 1.0),
    "attach": (attach, ["first"], 0.10),
    "attach the fiftieth": (attach, ["fiftieth"], 1.1),
    "switch": (switch, ["switch", "disable"], 0.01),
    "generate unmerged": (generate, ["batch 1"], 0.5),
    "mixed rows": (
        mixed_rows,
        [f"{n} adaptations, length {t}" for n in (8, 64) for t in (16, 1)],
        1.05,
    ),
    "import": (importing, ["fresh process"], 1.1),
    "save and load": (save_and_load, ["save", "load"], 0.5),
    "attach on meta": (meta, ["7 B"], 1.0),
}
