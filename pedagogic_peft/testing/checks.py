"""What every method promises: one function a check, whose docstring is the promise.

A check gets a `Subject`. It returns nothing if the promise holds, raises `Failed` if it does not, and
`DoesNotApply` where it has no meaning. Anything else that is raised is a failure of the method.
"""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pedagogic_peft.core.counting import count_parameters
from pedagogic_peft.core.delta import Delta, overrides
from pedagogic_peft.core.sites import deltas_of
from pedagogic_peft.core.verbs import activate, attach, detach, disabled, merge, unmerge
from pedagogic_peft.files.checkpoint import load, save
from pedagogic_peft.testing.models import WRITERS, batch, build, gradients, logits, randomise
from pedagogic_peft.testing.report import DoesNotApply, Failed
from pedagogic_peft.testing.subject import (
    EXACT,
    NAME,
    NEAR,
    Subject,
    differences,
    own,
    snapshot,
)

Check = Callable[[Subject], None]
NEW_TOKENS = 6


def attaches(on: Subject) -> None:
    """attach finds the modules to adapt, and puts the method there."""
    on.fresh()


def starts_as_promised(on: Subject) -> None:
    """Untrained, the model computes what the frozen one computes: bit for bit if start="exact",
    within 5 % if "near", anything if "free". Disabled, it does so bit for bit.
    """
    model, expected = on.fresh(), logits(build(on.architecture), on.architecture)
    found = logits(model, on.architecture)
    look = "the start: one factor of what is added has to be zero, or what multiplies one"
    if on.start == EXACT:
        same(found, expected, look)
    away = (found - expected).norm() / expected.norm()
    if on.start == NEAR and not away < 0.05:
        raise Failed(f"they are {100 * away:.2g} % away (of their norm)", look)
    with disabled(model):
        same(logits(model, on.architecture), expected, "whether it writes into the base's tensors")


def trains_only_its_own(on: Subject) -> None:
    """Only the adaptation's own parameters get gradients; the base's weights stay as they are."""
    base, bare, model = build(on.architecture), on.bare(), on.trained()
    trained, mine = set(gradients(model, on.architecture)), set(own(model))
    if not mine:
        raise Failed("it has no parameter", "whether its tensors are nn.Parameter")
    if others := trained - mine:
        raise Failed(f"{some(others)} got a gradient", "whether it refers to modules of the base")
    had = {n for n, p in bare.named_parameters() if p.requires_grad and ".deltas." in n}
    loose = {n for n, p in model.named_parameters() if p.requires_grad} - mine - had
    if loose:
        raise Failed(f"{some(loose)} could be trained", "what it does to requires_grad")
    if not on.prepare and not count_parameters(model).trainable < count_parameters(base).total:
        count = count_parameters(model)
        raise Failed(f"it is larger than the model: {count}", "the shapes of its parameters")
    values = {t.data_ptr(): t for t in model.state_dict().values()}.values()
    for key, expected in base.state_dict().items():
        if not any(t.shape == expected.shape and torch.equal(t, expected) for t in values):
            raise Failed(f"the base's {key} changed", "what it writes into, in place or by .data")


def gradients_arrive(on: Subject) -> None:
    """A gradient reaches every parameter; before training, at least one gradient is not zero."""
    start = gradients(on.fresh(), on.architecture)
    if not any(gradient.any() for gradient in start.values()):
        look = "the start: if both factors of a product are zero, neither ever moves"
        raise Failed("at the start every gradient is zero", look)
    model = on.trained()
    found = gradients(model, on.architecture)
    wanted = {name for name, p in own(model).items() if p.requires_grad}
    if lost := {n for n in wanted if n not in found or not found[n].any()}:
        look = "whether forward uses it, and no .detach(), .data or no_grad() cuts it off"
        raise Failed(f"no gradient reaches {some(lost)}", look)


def detaches(on: Subject) -> None:
    """detach gives back modules, weights, hooks and requires_grad as they were, bit for bit."""
    model = build(on.architecture)
    next(model.parameters()).requires_grad_(False)
    before = snapshot(model)
    if on.prepare:
        on.prepare(model)
    attach(model, on.method, NAME)
    randomise(model)
    gradients(model, on.architecture)
    if changed := differences(before, snapshot(detach(model))):
        look = "what it writes into or hangs on the modules it is given"
        raise Failed(f"not as before: {some(changed)}", look)


def saves_and_loads(on: Subject) -> None:
    """Loaded onto a fresh model, what was saved computes the same; saved again, it is the same."""
    model = on.trained()
    expected = logits(model, on.architecture)
    with TemporaryDirectory() as place:
        first = save(model, Path(place, "first"), NAME)
        twin = on.bare()
        torch.manual_seed(99)  # what the file does not hold would now be drawn differently
        load(twin, first, NAME)
        again = save(twin, Path(place, "again"), NAME)
        old, new = read_folder(first), read_folder(again)
    look = "whether every tensor it needs is a parameter or a buffer, and every number a field"
    same(logits(twin, on.architecture), expected, look)
    if changed := [key for key in old.keys() | new.keys() if differ(old.get(key), new.get(key))]:
        raise Failed(f"saved again, {some(changed)} changed", look)
    idle = logits(build(on.architecture), on.architecture)
    if torch.allclose(expected, idle, atol=1e-3):
        raise Failed("with random values it computes what the frozen model does", "forward")


def copies(on: Subject) -> None:
    """Copies and pickles compute the same, and are independent of the original."""
    model = on.trained(layers=1)
    expected = logits(model, on.architecture)
    frozen = logits(build(on.architecture, 1), on.architecture)
    look = "whether it keeps tensors or functions of the original outside its parameters"
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        same(logits(twin, on.architecture), expected, look)
        randomise(twin)
        if torch.equal(logits(twin, on.architecture), expected):
            raise Failed("a copy with other values computes the same", look)
        same(logits(model, on.architecture), expected, look)
        same(logits(detach(twin), on.architecture), frozen, look)


def rows_do_not_mix(on: Subject) -> None:
    """A row alone, without its padding, gives what it gives within a batch."""
    model, inputs = on.trained(), batch(on.architecture)
    with torch.no_grad():
        together = model(**inputs).logits
        for i in range(len(together)):
            row = {key: tensor[i : i + 1] for key, tensor in inputs.items()}
            length = int(row["attention_mask"].sum()) if "attention_mask" in row else None
            row = {k: t[:, :length] if t.ndim == 2 else t for k, t in row.items()}
            alone, found = model(**row).logits, together[i : i + 1]
            found = found[:, :length] if found.ndim == 3 else found
            look = "sums, means and norms: along the last dimension only, or with the mask"
            same(found, alone, look, within=1e-4)


def serves_rows(on: Subject) -> None:
    """A batch whose rows use two adaptations equals running them one by one."""
    model, inputs = on.trained(), batch(on.architecture)
    attach(model, on.method, "second")
    randomise(model, among=".deltas.second.")
    try:
        activate(model, rows=["second", NAME])
    except ValueError as error:
        raise DoesNotApply(f"it acts on a whole batch ({error})") from None
    with torch.no_grad():
        found = model(**inputs).logits
        alone = [model(**inputs).logits[i] for i in (0, 1) if activate(model, ("second", NAME)[i])]
    real = inputs.get(
        "attention_mask", torch.ones(2)
    ).bool()  # what stands at padding means nothing
    real = real if found.ndim == 3 else torch.ones(2).bool()
    look = "its code for rows, or whether a row's result depends on others"
    same(found[real], torch.stack(alone)[real], look, within=1e-4)


def generates_with_and_without_cache(on: Subject) -> None:
    """generate with the cache of keys and values gives what it gives without, beams too."""
    model, (ids, mask) = on.trained(), prompts(on)
    look = "what it computes from other positions: with the cache it sees the newest token only"
    cached, plain = (new_tokens(model, ids, mask, use_cache=on_) for on_ in (True, False))
    same(cached[1], plain[1], look, within=1e-3)
    beams = [new_tokens(model, ids, mask, num_beams=2, use_cache=on_)[0] for on_ in (True, False)]
    if not torch.equal(cached[0], plain[0]) or not torch.equal(*beams):
        raise Failed("other tokens come out", look)


def ignores_left_padding(on: Subject) -> None:
    """A prompt padded on the left generates what it generates alone."""
    model, (ids, mask) = on.trained(), prompts(on)
    cut = 3
    padded, real = ids.clone(), mask.clone()
    padded[1, :cut], real[1, :cut] = 0, 0
    tokens, scores = new_tokens(model, padded, real)
    alone = [new_tokens(model, ids[i:, k:][:1], mask[i:, k:][:1]) for i, k in ((0, 0), (1, cut))]
    look = "the attention mask and the positions: padding is no token"
    same(scores, torch.cat([score for _, score in alone]), look, within=1e-3)
    if not torch.equal(tokens, torch.cat([token for token, _ in alone])):
        raise Failed("other tokens come out", look)


def merges(on: Subject) -> None:
    """merge changes nothing but rounding, unmerge gives back every bit, and a merged model can be
    unloaded.
    """
    model, frozen = on.trained(), build(on.architecture)
    if not all(overrides(delta, Delta.merge_into) for delta in deltas_of(model, NAME).values()):
        raise DoesNotApply("it is no change of a weight: its delta has no merge_into")
    expected = logits(model, on.architecture)
    look = "merge_into: the same scaling, the same sign, and Conv1D's weight is transposed"
    same(logits(merge(model), on.architecture), expected, look, within=1e-3)
    unmerged = logits(unmerge(model), on.architecture)
    same(unmerged, expected, "whether merge_into changes the delta itself")
    with disabled(model):
        same(logits(model, on.architecture), logits(frozen, on.architecture), look)
    merge(model, unload=True)
    same(logits(model, on.architecture), expected, look, within=1e-3)
    if list(model.state_dict()) != list(frozen.state_dict()):
        raise Failed("what is left is no ordinary model", "what merge_into adds to the base")


def survives_checkpointing(on: Subject) -> None:
    """With gradient checkpointing, which computes layers again, the gradients are the same."""
    model = on.trained().train()
    model.config.use_cache = False
    torch.manual_seed(6)  # the same dropout twice
    expected = gradients(model, on.architecture)
    model.gradient_checkpointing_enable()
    torch.manual_seed(6)
    found = gradients(model, on.architecture)
    look = "whether forward keeps something of one call for the next"
    if found.keys() != expected.keys():
        raise Failed(f"{some(found.keys() ^ expected.keys())}: gradient in one case only", look)
    for key, gradient in found.items():
        same(gradient, expected[key], look, f"gradient of {key}", within=1e-3)


def trains_under_autocast(on: Subject) -> None:
    """Under bfloat16 autocast its parameters stay float32 and get finite gradients."""
    model = on.trained(layers=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**batch(on.architecture))
    finite_float32(model, output.loss)


def trains_on_a_bfloat16_base(on: Subject) -> None:
    """On a bfloat16 base the output is bfloat16, its parameters float32, the gradients finite."""
    model = attach(on_bfloat16(on), on.method, NAME)
    inputs = batch(on.architecture)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    output = model(**inputs)
    if output.logits.dtype != torch.bfloat16:
        look = "forward: compute in the input's dtype, weight.to(x.dtype), and return y's"
        raise Failed(f"the output is {output.logits.dtype}", look)
    finite_float32(model, output.loss)


def learns_with_trainer(on: Subject) -> None:
    """Eight steps of transformers' Trainer make the loss smaller."""
    model, inputs = on.fresh(), batch(on.architecture)
    before = model(**inputs).loss.item()
    run_trainer(model, [{key: value[i] for key, value in inputs.items()} for i in range(2)])
    after = model.eval()(**inputs).loss.item()
    if not after < before:
        look = "whether gradients reach its parameters, and the size of its start"
        raise Failed(f"the loss was {before:.4g} and is {after:.4g}", look)


def compiles(on: Subject) -> None:
    """torch.compile computes the same."""
    model, inputs = on.trained(layers=1), batch(on.architecture)
    model.config.use_cache = False  # the loss and the cache are not ours, and cost most of the time
    labels = inputs.pop("labels")
    if on.architecture == "t5":
        inputs["decoder_input_ids"] = labels.clamp(min=0)
    with torch.no_grad():
        expected = model(**inputs).logits
        torch._dynamo.reset()
        compiled: Any = torch.compile(model, backend="eager")
        found = compiled(**inputs).logits
    same(found, expected, "Python in forward that depends on values", within=1e-4)


CHECKS: dict[str, Check] = {
    "attaches": attaches,
    "start": starts_as_promised,
    "only its own train": trains_only_its_own,
    "gradients": gradients_arrive,
    "detach": detaches,
    "save and load": saves_and_loads,
    "copies": copies,
    "rows apart": rows_do_not_mix,
    "rows of two": serves_rows,
    "cache": generates_with_and_without_cache,
    "left padding": ignores_left_padding,
    "merge": merges,
    "checkpointing": survives_checkpointing,
    "autocast": trains_under_autocast,
    "bfloat16 base": trains_on_a_bfloat16_base,
    "Trainer": learns_with_trainer,
    "compile": compiles,
}


# What the checks share


def same(
    found: Tensor, expected: Tensor, look: str, what: str = "logits", within: float = 0
) -> None:
    """Raise `Failed` unless two tensors are equal; or differ by rounding, within a part of the largest."""
    if found.shape != expected.shape:
        seen = f"{what} of shape {tuple(found.shape)}, not {tuple(expected.shape)}"
        raise Failed(seen, look)
    if torch.equal(found, expected):
        return
    away, size = (found - expected).abs().max(), expected.abs().max()
    if not (within and away <= 1e-5 + within * size):  # not a number is no number either
        raise Failed(f"{what} differ by up to {away:.2g} (the largest is {size:.2g})", look)


def differ(a: Any, b: Any) -> bool:
    """Tell whether two entries of a checkpoint are not the same."""
    both = isinstance(a, Tensor) and isinstance(b, Tensor)
    return not torch.equal(a, b) if both else bool(a != b)


def read_folder(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint holds: the text of its configuration, and its tensors."""
    tensors: dict[str, Any] = load_file(folder / "adapter_model.safetensors")
    return tensors | {"its configuration": (folder / "adapter_config.json").read_text()}


def some(names: Any) -> str:
    """Return the first three names."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def prompts(on: Subject) -> tuple[Tensor, Tensor]:
    """Return two rows of eight random tokens, and their mask."""
    if on.architecture not in WRITERS:
        raise DoesNotApply("the model generates no text")
    ids = torch.randint(3, 60, (2, 8), generator=torch.Generator().manual_seed(7))
    return ids, torch.ones_like(ids)


def new_tokens(model: Any, ids: Tensor, mask: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Return the new tokens, (rows, 6), and what they were chosen by, (rows, 6, vocabulary)."""
    options = dict(do_sample=False, output_logits=True, return_dict_in_generate=True) | options
    lengths = dict(min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, pad_token_id=0)
    with torch.no_grad():
        found = model.generate(input_ids=ids, attention_mask=mask, **lengths, **options)
    return found.sequences[:, -NEW_TOKENS:], torch.stack(found.logits, dim=1)


def on_bfloat16(on: Subject) -> Any:
    """Return the bare model, of one layer, in bfloat16."""
    model = build(on.architecture, 1).bfloat16()
    if on.prepare:
        on.prepare(model)
    return model


def finite_float32(model: Any, loss: Tensor) -> None:
    """Raise `Failed` unless its parameters are float32, with finite gradients, not all of them zero."""
    loss.float().backward()
    mine = {n: p for n, p in own(model).items() if p.requires_grad}
    look = "forward: leave the parameters as they are, and cast what it computes with"
    if wrong := {n for n, p in mine.items() if p.dtype != torch.float32}:
        raise Failed(f"{some(wrong)} is not float32", look)
    if wrong := {n for n, p in mine.items() if p.grad is None or not p.grad.isfinite().all()}:
        raise Failed(f"the gradient of {some(wrong)} is missing or not finite", look)
    if not any(p.grad is not None and p.grad.any() for p in mine.values()):
        raise Failed("every gradient is zero", look)


def run_trainer(model: Any, rows: list[dict[str, Tensor]]) -> None:
    """Train for eight steps as users of transformers do, without a word."""
    import transformers as hf
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # or accelerate would keep the device of an earlier call
    with TemporaryDirectory() as place:
        arguments = hf.TrainingArguments(
            output_dir=place,
            max_steps=8,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            warmup_steps=0,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = hf.Trainer(model, arguments, train_dataset=rows)
        trainer.remove_callback(hf.PrinterCallback)
        trainer.train()
    AcceleratorState._reset_state()
