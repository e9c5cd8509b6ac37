"""A readable training loop, used for every method in the book: `loop`, and what long runs need.

It runs on `accelerate`, so the same call uses a GPU or mixed precision where there is one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from pedagogic_peft.training.loop import repeat, shuffled, warmup_then_decay
from pedagogic_peft.training.snapshots import Snapshot

Hook = Callable[[int], None] | None  # called with the number of the step
IGNORED_LABEL = -100  # cross_entropy's ignore_index, as in all transformers models


class History(list[dict[str, Any]]):
    """A list of dicts, one a step, with "step", "loss", "lr", "grad_norm" and the metrics."""

    def column(self, key: str) -> list[Any]:
        """Return the values of ``key`` from the records that have it, in order of steps."""
        return [record[key] for record in self if key in record]


def train(
    model: nn.Module,
    examples: Sequence[Mapping[str, Any]],
    *,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int = 32,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    warmup: float = 0.1,
    max_grad_norm: float = 1.0,
    seed: int = 0,
    collate_fn: Callable[[list[Any]], dict[str, Tensor]] | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    eval_every: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    progress: bool = True,
    mixed_precision: str | None = None,
    before_step: Hook = None,
    after_step: Hook = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 100,
) -> History:
    """Train the parameters that require a gradient, and leave the model in evaluation mode.

    The optimiser is AdamW (Loshchilov & Hutter 2019); the learning rate rises linearly over the
    warm-up and then falls linearly to zero, as in the LoRA paper's GLUE runs. Dropout and the
    order of the examples depend on ``seed`` alone, so on a CPU two runs agree bit for bit. (An
    adaptation's initial values are drawn earlier, by `attach`: seed before that too.)

    Args:
        model: a transformers model, or any module whose ``model(**batch)`` has a ``.loss``. With an
            accelerator present it is moved there, and stays.
        examples: a sequence of dicts, such as ``{"input_ids": [...], "labels": [...]}``.
        steps: number of optimiser steps; or else
        epochs: number of passes over the examples.
        batch_size: examples per step; the last batch of a pass may be smaller.
        lr: the highest learning rate; ignored when ``optimizer`` is given.
        weight_decay: AdamW's decoupled weight decay; ignored when ``optimizer`` is given.
        warmup: share of the steps during which the learning rate rises, in [0, 1].
        max_grad_norm: gradients are scaled down to this global norm; infinity leaves them as they are.
        seed: seeds Python, NumPy and torch.
        collate_fn: makes a batch from a list of examples; default `pad_collate`.
        evaluate: called with the model, in evaluation mode and without gradients, every
            ``eval_every`` steps and after the last; its metrics join that step's record.
        eval_every: None means after the last step only.
        optimizer: used instead of AdamW; its learning rates are scaled by the same schedule.
        progress: show a progress bar.
        mixed_precision: None, "fp16" or "bf16".
        before_step: called with the number of the step, from 1, when the gradients are there, before
            they are clipped and the optimiser moves. It may read and change them.
        after_step: called with the number of the step when the optimiser has moved, before the
            gradients are deleted.
        checkpoint: a file for the state of the run. If it is there, the run goes on from it: on a
            CPU, one that was killed and called again ends with the same bits as one that was not.
        checkpoint_every: steps between two times that the state is stored; it is after the last.

    Returns:
        A `History` with one record per step.

    Raises:
        ValueError: no steps, no examples, nothing to train, an optimiser of other parameters, a
            warm-up outside [0, 1], a ``max_grad_norm`` that is not positive, or a model output without
            a loss; a checkpoint of another run (other examples, ``steps``, ``batch_size``, ``seed``,
            tensors or optimiser; another ``lr`` may be tried from there), or one together with
            ``before_step`` or ``after_step``, whose own state it would not have.
        FloatingPointError: the loss is not finite, or a parameter when the state is to be stored;
            the checkpoint is then the last one that was good.
        OSError: the checkpoint could not be written; the one before is whole.

    Example:
        >>> from pedagogic_peft import LoRA, attach, load_base, train
        >>> from pedagogic_peft.course.pocket import tasks
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> examples = tasks.encode(tokenizer, tasks.sentiment(64, seed=0))
        >>> model = attach(model, LoRA(r=4))
        >>> history = train(model, examples, steps=3, lr=1e-2, batch_size=8, progress=False)
        >>> history.column("step")
        [1, 2, 3]
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import set_seed
    from tqdm.auto import tqdm

    steps = _count_steps(len(examples), batch_size, steps, epochs)
    trainable = _trainable(model)
    if checkpoint and (before_step or after_step):
        raise ValueError("checkpoint: what before_step or after_step keep would not be in it")
    if not max_grad_norm > 0:  # below 0 the gradients would turn round, and the loss be maximised
        raise ValueError(f"max_grad_norm={max_grad_norm}: expected more than 0 (inf: no clipping)")
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every={checkpoint_every}: expected a number of steps")
    set_seed(seed)
    AcceleratorState._reset_state()  # or accelerate would keep the precision of an earlier call
    accelerator = Accelerator(mixed_precision=mixed_precision)
    optimizer = optimizer or torch.optim.AdamW(
        trainable, lr=lr, weight_decay=weight_decay, fused=True
    )
    _check_moves(optimizer, trainable)
    rate = warmup_then_decay(steps, warmup)
    collate_fn = collate_fn or pad_collate(_pad_token_id(model))
    loader = shuffled(examples, collate_fn, batch_size, seed)
    prepared, wrapped, loader = accelerator.prepare(model, optimizer, loader)
    history, state = History(), None
    bar = tqdm(total=steps, disable=not progress, desc="training")
    try:
        if checkpoint:
            run: dict[str, Any] = {"examples": len(examples), "steps": steps}
            run |= {"batch_size": batch_size, "optimizer": _kind(optimizer), "seed": seed}
            state = Snapshot(checkpoint, run, model, optimizer, accelerator.scaler)
            history.extend(state.restore())
        done = len(history)
        bar.update(done)
        schedule = _schedule(optimizer, rate, done)
        one_step = _Step(accelerator, prepared, wrapped, schedule, trainable, max_grad_norm)
        prepared.train()
        for step, batch in enumerate(repeat(loader, steps if done < steps else 0), start=1):
            if step <= done:  # only fetched, so that the examples keep their order
                if state and step == done:
                    state.restore_random()
                continue
            record = one_step(step, batch, state, before_step, after_step)
            if evaluate and (step == steps or (eval_every and step % eval_every == 0)):
                record.update(_evaluate(prepared, evaluate))
            history.append(record)
            if state and (step == steps or step % checkpoint_every == 0):
                state.save(history)
            bar.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
            bar.update()
    finally:
        bar.close()
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        vars(model).pop("_is_accelerate_prepared", None)
        model.eval()
    return history


@dataclass
class _Step:
    """One step of a training: the same as in `loop`, with accelerate's objects."""

    accelerator: Any
    model: nn.Module
    optimizer: Any
    schedule: LambdaLR
    trainable: list[nn.Parameter]
    max_grad_norm: float

    def __call__(
        self, step: int, batch: Any, state: Snapshot | None, before: Hook, after: Hook
    ) -> dict[str, Any]:
        """Return the step's record."""
        loss = _loss_of(self.model(**batch), step, state)
        self.accelerator.backward(loss)
        self.accelerator.unscale_gradients()  # fp16 scales the loss up; else this does nothing
        if before:
            before(step)
        norm = nn.utils.clip_grad_norm_(self.trainable, self.max_grad_norm)
        record = {"step": step, "loss": loss.item(), "lr": self.schedule.get_last_lr()[0]}
        self.optimizer.step()
        if after:
            after(step)
        self.schedule.step()
        self.optimizer.zero_grad()
        return record | {"grad_norm": float(norm)}


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    if trainable := [p for p in model.parameters() if p.requires_grad]:
        return trainable
    raise ValueError(
        "No parameter requires a gradient: attach an adaptation, or unfreeze the model"
    )


def _check_moves(optimizer: torch.optim.Optimizer, trainable: list[nn.Parameter]) -> None:
    moved = [p for group in optimizer.param_groups for p in group["params"]]
    if not set(trainable).intersection(moved):
        raise ValueError(
            "The optimizer has no parameter of this model that is trained: make it after attach"
        )


def _kind(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [type(optimizer).__name__, [len(group["params"]) for group in optimizer.param_groups]]


def _schedule(
    optimizer: torch.optim.Optimizer, rate: Callable[[int], float], done: int
) -> LambdaLR:
    for group in optimizer.param_groups if done else ():
        group["initial_lr"] = group["lr"]  # what LambdaLR needs to begin in the middle
    return LambdaLR(optimizer, rate, last_epoch=done - 1)


def pad_collate(pad_token_id: int = 0) -> Callable[[list[Any]], dict[str, Tensor]]:
    """Return a function that makes a batch of a list of examples, padded on the right.

    Sequences become (batch, longest length): ``input_ids`` are padded with ``pad_token_id``,
    ``labels`` with -100, everything else with 0. An ``attention_mask`` is made where the examples
    have none. Numbers (a class as label) become (batch,), tensors of two or more dimensions
    (images) are stacked. All examples have the same keys, and no sequence is empty.

    Args:
        pad_token_id: any token of the vocabulary serves, for padding is masked.
    """
    padding = {"input_ids": pad_token_id, "labels": IGNORED_LABEL}

    def collate(examples: list[Mapping[str, Any]]) -> dict[str, Tensor]:
        if other := next((e for e in examples if e.keys() != examples[0].keys()), None):
            raise ValueError(
                f"Examples with {list(examples[0])} and with {list(other)} in one batch"
            )
        columns = {key: [_as_tensor(key, e[key]) for e in examples] for key in examples[0]}
        if "input_ids" in columns and "attention_mask" not in columns:
            columns["attention_mask"] = [torch.ones_like(ids) for ids in columns["input_ids"]]
        return {key: _stack(tensors, padding.get(key, 0)) for key, tensors in columns.items()}

    return collate


def _as_tensor(key: str, value: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"{key}={value!r} is not numbers: drop {key!r} from the examples"
        ) from None
    if not tensor.numel():
        raise ValueError(f"{key} of an example is empty: drop that example")
    return tensor


def _pad_token_id(model: nn.Module) -> int:
    return getattr(getattr(model, "config", None), "pad_token_id", None) or 0


def _stack(tensors: list[Tensor], padding: int) -> Tensor:
    if tensors[0].dim() != 1:
        return torch.stack(tensors)
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=padding)


def _count_steps(size: int, batch_size: int, steps: int | None, epochs: float | None) -> int:
    if (steps is None) == (epochs is None):
        raise ValueError(f"steps={steps}, epochs={epochs}: give one of the two")
    if size == 0:
        raise ValueError("examples is empty")
    if epochs is not None:
        steps = math.ceil(epochs * math.ceil(size / batch_size))
    assert steps is not None
    if steps < 1 or steps % 1:  # half a step would never be reached
        raise ValueError(f"{steps} steps: expected a whole number, at least 1")
    return steps


def _loss_of(output: Any, step: int, state: Snapshot | None = None) -> Tensor:
    loss: Tensor | None = getattr(output, "loss", None)
    if loss is None:
        raise ValueError("The model returned no loss: the examples need labels")
    if not torch.isfinite(loss):
        problem = (
            f"The loss is {loss.item()} at step {step}. A smaller lr or longer warmup may help"
        )
        raise FloatingPointError(f"{problem}. {state.kept()}" if state else problem)
    return loss


def _evaluate(
    model: nn.Module, evaluate: Callable[[nn.Module], Mapping[str, float]]
) -> Mapping[str, float]:
    model.eval()
    with torch.no_grad():
        metrics = evaluate(model)
    model.train()
    return metrics
