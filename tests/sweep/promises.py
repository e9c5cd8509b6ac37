"""What a method has to do on any model: be right, or refuse when it is attached and change nothing.

`judge` returns what is wrong, in words. What the frozen model itself does not do (an encoder used as a
decoder has no cache, a table of positions counts padding) is not asked of the adapted one.
"""

import copy
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import pedagogic_peft as pp
from pedagogic_peft.core.delta import Delta, overrides
from pedagogic_peft.core.sites import deltas_of
from pedagogic_peft.testing.models import randomise
from pedagogic_peft.testing.subject import EXACT, FREE, NEAR, differences, own, snapshot

WITHIN = {
    EXACT: 1e-5,
    NEAR: 0.05,
    FREE: float("inf"),
}  # how far the start may be from the frozen model
ROUNDING, SAME = 1e-3, 1e-4  # relative; of the frozen model "the same" has to hold first
STEPS = 3
SAID = (
    "adding on the left",
    "a soft prompt has no values there",
)  # errors of a pass that say what it lacks


@dataclass
class Base:
    """A frozen model, and what it does by itself.

    Attributes:
        model: the model, in evaluation.
        task: one of `small.TASKS`.
    """

    model: Any
    task: str

    @cached_property
    def batch(self) -> dict[str, Tensor]:
        """Two rows of 9 tokens; of the second the last three are padding."""
        ids = torch.randint(5, 90, (2, 9), generator=torch.Generator().manual_seed(2))
        ids[:, 0] = 1
        ids[0, -1] = ids[1, -4] = 2  # ends, where some classifiers look
        ids[0, 4], ids[1, 3] = 7, 5  # tokens that are trained
        mask = torch.ones_like(ids)
        mask[1, 6:] = ids[1, 6:] = 0
        return self.inputs(ids, mask)

    def inputs(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the inputs of the model for a text."""
        more = {"decoder_input_ids": self.answer[: len(ids)]} if self.task == "translates" else {}
        return {"input_ids": ids, "attention_mask": mask} | more

    @cached_property
    def answer(self) -> Tensor:
        """The beginnings of two answers, in encoder-decoders."""
        return torch.randint(5, 90, (2, 5), generator=torch.Generator().manual_seed(3))

    @cached_property
    def logits(self) -> Tensor:
        """Those of the frozen model."""
        # Frozen as it will be: torch folds a product in another way if a factor requires a gradient.
        return logits(copy.deepcopy(self.model).requires_grad_(False), self)

    @cached_property
    def trainable(self) -> set[str]:
        """The paths of modules whose weights would get a gradient if all were trained."""
        model = copy.deepcopy(self.model).requires_grad_(True)
        found = gradients(model, self)
        return {name.rpartition(".")[0] for name, g in found.items() if g.any()}

    @cached_property
    def keeps(self) -> set[str]:
        """Which of `STAYS` hold for the frozen model."""
        return {
            name
            for name, check in STAYS.items()
            if gap(*held(check, copy.deepcopy(self.model).requires_grad_(False), self)) < SAME
        }


def held(check: Any, model: Any, base: Base) -> tuple[Tensor, Tensor]:
    """Return the two tensors that a check compares; what cannot be computed is not equal."""
    try:
        a, b = check(model, base)
        return a, b
    except Exception:
        return torch.zeros(1), torch.ones(1)


def logits(model: Any, base: Base, **inputs: Tensor) -> Tensor:
    """Return the model's logits for the batch, or for other inputs."""
    with torch.no_grad():
        found: Tensor = model(**inputs or base.batch).logits
    return found


def gradients(model: Any, base: Base) -> dict[str, Tensor]:
    """Return the gradients of one step of training, by the names of the parameters."""
    model.train().zero_grad()
    torch.manual_seed(8)
    model(**base.batch).logits.float().square().mean().backward()
    model.eval()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def gap(a: Tensor, b: Tensor) -> float:
    """Return how far two tensors are apart, as a part of the second; infinite for other shapes."""
    if a.shape != b.shape or not a.isfinite().all():
        return float("inf")
    return float((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-12))


def padded(model: Any, base: Base) -> tuple[Tensor, Tensor]:
    """The logits of a text behind padding, and of the text alone."""
    ids = base.batch["input_ids"][:1, 1:]
    left = torch.cat([torch.zeros_like(ids[:, :3]), ids], 1)
    mask = (left > 0).long()
    mask[:, 3:] = 1
    found = logits(model, base, **base.inputs(left, mask))
    alone = logits(model, base, **base.inputs(ids, torch.ones_like(ids)))
    return found[:, -alone.shape[1] :] if found.dim() == 3 else found, alone


def written(model: Any, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
    """Return by which logits the model chooses the next tokens: (rows, steps, vocabulary)."""
    options |= dict(do_sample=False, output_logits=True, return_dict_in_generate=True)
    lengths = dict(max_new_tokens=STEPS, min_new_tokens=STEPS, pad_token_id=0)
    with torch.no_grad():
        found = model.generate(input_ids=ids, attention_mask=mask, **lengths, **options)
    return torch.stack(found.logits, 1)


def generated_behind_padding(model: Any, base: Base) -> tuple[Tensor, Tensor]:
    """What is written after a text behind padding beside a longer one, and after the text alone."""
    ids = base.batch["input_ids"].clone()
    ids[1] = ids[0].flip(0)
    mask = torch.ones_like(ids)
    ids[1, :3] = mask[1, :3] = 0
    together = written(model, ids, mask)
    return together[1:], written(model, ids[1:, 3:], mask[1:, 3:])


def generated_without_cache(model: Any, base: Base) -> tuple[Tensor, Tensor]:
    """What is written without a cache, and with it."""
    ids = base.batch["input_ids"][:1]
    found = [written(model, ids, torch.ones_like(ids), use_cache=cache) for cache in (False, True)]
    return found[0], found[1]


STAYS = {
    "left padding": padded,
    "left padding, generate": generated_behind_padding,
    "generate without a cache": generated_without_cache,
}


def judge(base: Base, method: Any, start: str) -> tuple[str, list[str]]:
    """Return "right", "refused", "warned" (a pass says what had no effect) or "wrong", and what was said."""
    model = copy.deepcopy(base.model)
    logits(model, base)  # BigBird exchanges modules of its own at the first short text
    before = snapshot(model)
    torch.manual_seed(5)
    try:
        with warnings.catch_warnings(record=True):
            pp.attach(model, method)
    except ValueError as error:
        changed = differences(before, snapshot(model))
        return (
            ("wrong", [f"refused, but changed {changed[:3]}"])
            if changed
            else ("refused", [str(error)])
        )
    except Exception as error:
        return "wrong", [f"attach: {_said(error)}"]
    if not any(_runs(n, base.trainable) for n, p in own(model).items() if p.requires_grad):
        return "no meaning", []  # all of it is beside the text
    wrong: list[str] = []
    for promise in (begins, trains, stays, merges, serves_rows, loads):
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                wrong += promise(model, base, method, start)
            lost = {f"warned: {w.message}" for w in said if "had no effect" in str(w.message)}
            wrong += sorted(lost.difference(wrong))
        except Exception as error:
            wrong.append(f"{promise.__name__}: {_said(error)}")
    try:
        if changed := differences(before, snapshot(pp.detach(model))):
            wrong.append(f"detach leaves {changed[:3]}")
    except Exception as error:
        wrong.append(f"detach: {_said(error)}")
    only_said = all(what.startswith("warned: ") for what in wrong)
    return ("warned" if only_said else "wrong", wrong) if wrong else ("right", [])


def begins(model: Any, base: Base, method: Any, start: str) -> list[str]:
    """It starts as stated; disabled, the model is the frozen one."""
    wrong, away = [], gap(logits(model, base), base.logits)
    if start == NEAR:  # the choice of experts, or of what attention sees, may jump at a token
        found, own = logits(model, base), base.logits
        # The logits of a token may be all zero, as one of Zamba's here.
        away = float(((found - own).norm(dim=-1) / own.norm(dim=-1).clamp(min=1e-12)).median())
    if not away <= WITHIN[start]:
        wrong.append(f"start is {away:.0e} away")
    with pp.disabled(model):
        if not torch.equal(logits(model, base), base.logits):
            wrong.append("disabled is not the frozen model")
    return wrong


def trains(model: Any, base: Base, method: Any, start: str) -> list[str]:
    """Only its own parameters train; their gradients are finite, and not all zero at the start.

    A parameter whose gradient is zero also later is told of if its module could be trained.
    """
    wrong = []
    mine = {n for n, p in own(model).items() if p.requires_grad}
    if loose := {n for n, p in model.named_parameters() if p.requires_grad} - mine:
        wrong.append(f"trains {sorted(loose)[:3]}")
    first = gradients(model, base)
    if not any(g.any() for g in first.values()):
        wrong.append("no gradient at the start")
    randomise(model)
    if gap(logits(model, base), base.logits) < 1e-6:
        wrong.append("no effect")
    later = gradients(model, base)
    if (bad := not_finite(first | later)) and not not_finite(of_a_plain_model(model, base)):
        wrong.append(f"not finite: {bad[:3]}")
    lost = {n for n in mine if n not in later or not later[n].any()}
    lost = {n for n in lost if _runs(n, base.trainable)}
    if lost:
        wrong.append(f"{len(lost)} of {len(mine)} without gradient: {sorted(lost)[:3]}")
    return wrong


def not_finite(gradients: dict[str, Tensor]) -> list[str]:
    """Return the names of gradients that hold something else than numbers."""
    return [name for name, g in gradients.items() if not g.isfinite().all()]


def of_a_plain_model(model: Any, base: Base) -> dict[str, Tensor]:
    """Return the gradients of the plain model with the merged weights; none if it cannot be merged."""
    try:
        plain = pp.merge(copy.deepcopy(model), unload=True)
    except ValueError:
        return {}
    return gradients(plain.requires_grad_(True), base)


def _runs(name: str, trainable: set[str]) -> bool:
    """Tell whether a parameter's module, or for a hook what is inside of it, could be trained."""
    path = name.partition(".deltas")[0]
    inside = path.removesuffix(".hooks")
    return inside in trainable or (
        path != inside and any(t.startswith(f"{inside}.") for t in trainable)
    )


def stays(model: Any, base: Base, method: Any, start: str) -> list[str]:
    """What the frozen model does, whatever padding and caches, the adapted one does."""
    wrong = []
    for name in STAYS:
        if name not in base.keeps:
            continue
        try:
            a, b = STAYS[name](model, base)
        except ValueError as error:
            if not any(what in str(error) for what in SAID):
                wrong.append(f"{name}: {_said(error)}")
            continue
        away = gap(a, b)
        if away < ROUNDING or away < 2 * of_the_weights(model, base, name):
            continue
        if not away < 2 * of_last_digits(model, lambda m, check=STAYS[name]: check(m, base)[0]):
            wrong.append(f"{name}: {away:.0e}")
    return wrong


def of_the_weights(model: Any, base: Base, name: str) -> float:
    """Return the gap of a plain model with the merged weights: at these it may be transformers' own."""
    try:
        plain = pp.merge(copy.deepcopy(model), unload=True)
    except ValueError:  # cannot be merged
        return 0.0
    return gap(*held(STAYS[name], plain, base))


def of_last_digits(model: Any, compute: Callable[[Any], Tensor]) -> float:
    """Return how far a last digit of every weight moves what is computed: in a chaotic model, far."""
    expected, generator, found = compute(model), torch.Generator().manual_seed(6), [0.0]
    for _ in range(3):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for p in (p for p in other.parameters() if p.is_floating_point()):
                p.mul_(1 + 6e-8 * torch.randn(p.shape, generator=generator))
        found.append(gap(compute(other), expected))
    return max(found)


def merges(model: Any, base: Base, method: Any, start: str) -> list[str]:
    """Merged it is the same but for rounding, unmerged bit for bit; or `merge` refuses."""
    if not all(
        overrides(delta, Delta.merge_into) for delta in deltas_of(model, "default").values()
    ):
        return []
    wrong, expected = [], logits(model, base)
    try:
        pp.merge(model)
    except ValueError:
        return [] if torch.equal(logits(model, base), expected) else ["a refused merge changed it"]
    away = gap(logits(model, base), expected)
    if not away < ROUNDING and not away < 2 * of_last_digits(model, lambda m: logits(m, base)):
        wrong.append(f"merged: {away:.0e}")
    if not torch.equal(logits(pp.unmerge(model), base), expected):
        wrong.append("unmerged it is another")
    return wrong


def serves_rows(model: Any, base: Base, method: Any, start: str) -> list[str]:
    """Rows with adaptations of their own equal single ones; or `activate` or the model refuses."""
    expected = logits(model, base)
    pp.attach(model, method, "second")
    try:
        pp.activate(model, "second")
        randomise(model, among=".deltas.second.")
        other = logits(model, base)
        pp.activate(model, rows=["default", "second"])
        found = logits(model, base)
    except (ValueError, TypeError):
        return []
    finally:
        pp.detach(model, "second")
        pp.activate(model, "default")
    real = base.batch["attention_mask"].bool()
    real = real if found.dim() == 3 and found.shape[1] == real.shape[1] else torch.ones(2).bool()
    away = gap(found[real], torch.stack([expected[0], other[1]])[real])
    return [] if away < ROUNDING else [f"rows: {away:.0e}"]


def loads(model: Any, base: Base, method: Any, start: str) -> list[str]:
    """Saved and loaded onto a fresh model it computes the same."""
    expected, twin = logits(model, base), copy.deepcopy(base.model)
    with tempfile.TemporaryDirectory() as folder:
        pp.save(model, folder)
        torch.manual_seed(99)
        pp.load(twin, folder)
    away = gap(logits(twin, base), expected)
    return [] if away < 1e-6 else [f"loaded: {away:.0e}"]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
