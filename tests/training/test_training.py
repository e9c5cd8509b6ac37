"""The training loop: what it trains, that it repeats, and what it says when something is wrong."""

import copy
import math

import pytest
import torch
from helpers.deltas import deltas_of
from helpers.models import build
from torch import nn

from pedagogic_peft import LoRA, attach, train
from pedagogic_peft.training.loop import loop
from pedagogic_peft.training.snapshots import Snapshot
from pedagogic_peft.training.train import pad_collate

EXAMPLES = [{"input_ids": [3 + i, 4, 5, 6][: 2 + i % 3]} for i in range(10)]
for _example in EXAMPLES:
    _example["labels"] = _example["input_ids"]


def trained(**options):
    torch.manual_seed(0)
    model = attach(build("gpt2"), LoRA(r=4, dropout=0.2))
    options = {"steps": 6, "batch_size": 4, "progress": False} | options
    return model, train(model, EXAMPLES, **options)


# Claim: only the adaptation is trained, and it learns


def test_only_the_adaptation_moves_and_the_loss_falls():
    before = build("gpt2").state_dict()
    model, history = trained(steps=40, lr=1e-2)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    for key, value in model.state_dict().items():
        if ".deltas." not in key:
            assert torch.equal(value, before[key.replace(".base.", ".")]), key


def test_the_model_is_left_in_evaluation_mode_with_nothing_added():
    model, _ = trained()
    assert not any(module.training for module in model.modules())
    assert set(vars(model)) == set(vars(attach(build("gpt2"), LoRA())))


# Claim: the same seed gives the same run, bit for bit; another seed another one


def test_runs_repeat_bit_for_bit():
    (first, one), (second, two), (_, other) = trained(), trained(), trained(seed=1)
    assert one == two
    assert one.column("loss") != other.column("loss")
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_short_loop_does_the_same_steps_bit_for_bit():
    one = attach(build("llama"), LoRA(r=4, dropout=0.1))
    other = copy.deepcopy(one)
    options = dict(steps=7, batch_size=3, lr=1e-2, max_grad_norm=0.5, seed=5)
    history = train(one, EXAMPLES, **options, progress=False)
    assert loop(other, EXAMPLES, pad_collate(), **options) == history.column("loss")
    assert all(map(torch.equal, one.parameters(), other.parameters())) and not other.training


def test_the_order_of_the_examples_depends_on_the_seed_only():
    def order(**options):
        seen = []

        def collate(rows):
            seen.extend(row["input_ids"][0] for row in rows)
            return pad_collate()(rows)

        torch.manual_seed(len(options))
        trained(steps=5, batch_size=2, collate_fn=collate, **options)
        return seen

    assert order(seed=3) == order(seed=3, lr=0.5, weight_decay=0.1)
    assert sorted(order(seed=3)[:10]) == sorted(row["input_ids"][0] for row in EXAMPLES)
    assert order(seed=3) != order(seed=4)


# Claim: the learning rate rises over the warm-up and falls linearly towards zero


def test_the_schedule():
    _, history = trained(steps=10, lr=1.0, warmup=0.2)
    expected = [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert history.column("lr") == pytest.approx(expected)
    assert [record["lr"] for record in trained(steps=4, lr=1.0, warmup=0)[1]] == [
        1,
        0.75,
        0.5,
        0.25,
    ]


def test_gradients_are_clipped_to_the_norm():
    moved = {}
    for norm in (1e-3, 1e9):
        model = attach(build("gpt2"), LoRA(r=4))
        B = model.transformer.h[0].attn.c_attn.deltas["default"].lora_B.weight
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
        train(model, EXAMPLES, steps=1, progress=False, optimizer=optimizer, max_grad_norm=norm)
        moved[norm] = B.norm().item()
    assert 0 < moved[1e-3] <= 1e-3 < moved[1e9]


# Claim: steps or epochs, evaluation when asked


def test_epochs_count_passes_over_the_examples():
    assert len(trained(steps=None, epochs=2)[1]) == 6  # 10 examples in batches of 4: 3 steps a pass
    assert len(trained(steps=None, epochs=0.5)[1]) == 2
    assert [record["step"] for record in trained()[1]] == [1, 2, 3, 4, 5, 6]


def test_evaluation_sees_the_model_in_evaluation_mode_and_its_metrics_are_recorded():
    calls = []

    def evaluate(model):
        calls.append((model.training, torch.is_grad_enabled()))
        return {"accuracy": len(calls)}

    _, history = trained(steps=5, evaluate=evaluate, eval_every=2)
    assert calls == [(False, False)] * 3
    assert [record["step"] for record in history if "accuracy" in record] == [2, 4, 5]
    assert history.column("accuracy") == [1, 2, 3]


def test_mixed_precision_applies_to_its_own_call_only():
    full = trained()[1].column("loss")
    mixed = trained(mixed_precision="bf16")[1].column("loss")
    assert mixed != full
    assert mixed == pytest.approx(full, rel=0.05)
    assert trained()[1].column("loss") == full


def test_a_model_can_be_trained_again_in_another_precision():
    model, _ = trained()
    twin = copy.deepcopy(model)
    losses = [
        train(m, EXAMPLES, steps=1, progress=False, mixed_precision=precision)[0]["loss"]
        for m, precision in ((model, "bf16"), (twin, None))
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


# Claim: what cannot work is refused with a reason


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step():
    model = attach(build("gpt2"), LoRA())
    with pytest.raises(FloatingPointError, match=r"(nan|inf) at step [2-9]"):
        train(model, EXAMPLES, steps=9, lr=1e25, warmup=0, progress=False)
    assert not model.training


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": None}, "steps=None, epochs=None"),
        ({"steps": 3, "epochs": 1}, "steps=3, epochs=1"),
        ({"steps": 0}, "0 steps"),
        ({"steps": 2.5}, "2.5 steps"),  # half a step would never be reached
        ({"warmup": 100}, "warmup=100"),
    ],
)
def test_the_length_of_the_run_must_be_clear(options, message):
    with pytest.raises(ValueError, match=message):
        trained(**options)


def test_nothing_to_train_no_examples_and_no_labels_are_refused():
    with pytest.raises(ValueError, match="No parameter requires a gradient"):
        train(build("gpt2").requires_grad_(False), EXAMPLES, steps=1)
    with pytest.raises(ValueError, match="examples is empty"):
        train(build("gpt2"), [], steps=1)
    with pytest.raises(ValueError, match="text='a story' is not numbers"):
        train(build("gpt2"), [{"text": "a story"}], steps=1, progress=False)
    with pytest.raises(ValueError, match="need labels"):
        train(build("gpt2"), [{"input_ids": [3, 4]}], steps=1, progress=False)


def test_an_optimiser_of_other_parameters_is_refused():
    model = build("gpt2")
    optimizer = torch.optim.AdamW(model.parameters())  # made before attach: it would move nothing
    with pytest.raises(ValueError, match="make it after attach"):
        train(attach(model, LoRA()), EXAMPLES, steps=1, optimizer=optimizer, progress=False)


@pytest.mark.parametrize("norm", [-1, 0, float("nan")])
def test_a_norm_that_would_turn_the_gradients_round_is_refused(norm):
    with pytest.raises(ValueError, match="max_grad_norm"):
        trained(max_grad_norm=norm)


def test_a_checkpoint_of_another_optimiser_is_refused(tmp_path):
    def once(optimizer):
        model = attach(build("gpt2"), LoRA())
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = optimizer(parameters, lr=1e-3)
        options = {"steps": 1, "progress": False, "checkpoint": tmp_path / "run"}
        return train(model, EXAMPLES, optimizer=optimizer, **options)

    assert once(torch.optim.AdamW) == once(torch.optim.AdamW)
    with pytest.raises(ValueError, match="another run .optimizer: .*AdamW.* there, .*SGD.* here"):
        once(torch.optim.SGD)  # it would find no momentum in there, and say nothing


# Claim: padding is on the right, masked, and its labels do not count


@pytest.mark.parametrize(
    "rows, words",
    [
        ([{"input_ids": [5]}, {"input_ids": [6], "attention_mask": [0]}], "with .*attention_mask"),
        ([{"input_ids": []}, {"input_ids": [6]}], "input_ids of an example is empty"),
    ],
)
def test_examples_that_make_no_batch_are_refused(rows, words):
    with pytest.raises(ValueError, match=words):
        pad_collate()(rows)


def test_padding():
    rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    batch = pad_collate(pad_token_id=9)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, -100, -100]]


def test_padding_does_not_change_the_loss_of_a_row():
    model = build("gpt2")
    rows = [EXAMPLES[2], EXAMPLES[0]]  # 4 and 2 tokens
    alone = [model(**pad_collate()([row])).loss.item() for row in rows]
    together = model(**pad_collate(7)(rows)).loss.item()
    assert together == pytest.approx((3 * alone[0] + 1 * alone[1]) / 4, rel=1e-5)


def test_a_class_label_is_one_number_a_row_and_an_image_is_stacked():
    rows = [
        {"pixel_values": torch.zeros(1, 8, 8), "labels": 2},
        {"pixel_values": torch.ones(1, 8, 8), "labels": 0},
    ]
    batch = pad_collate()(rows)
    assert batch["labels"].tolist() == [2, 0]
    assert batch["pixel_values"].shape == (2, 1, 8, 8)
    assert math.isfinite(train(build("vit"), rows, steps=1, progress=False)[0]["loss"])


def test_a_plain_module_can_be_trained():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(1, 1)

        def forward(self, x, y):
            loss = (self.map(x[:, None]).squeeze(-1) - y).square().mean()
            return type("Output", (), {"loss": loss})()

    rows = [{"x": float(i), "y": 2.0 * i} for i in range(4)]
    history = train(Model(), rows, steps=50, lr=0.3, progress=False)
    assert history[-1]["loss"] < 0.1 < history[0]["loss"]


def test_the_state_of_a_run_has_that_of_fp16s_scaler(tmp_path):
    model = attach(build("gpt2"), LoRA(r=1))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

    def snapshot(scale):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return Snapshot(tmp_path / "run.pt", {}, model, optimizer, scaler)

    first = snapshot(8.0)
    first.scaler.scale(torch.zeros(1))  # it begins to count
    first.save([{"step": 1}])
    again = snapshot(2.0)
    again.restore()
    assert again.scaler.state_dict()["scale"] == 8.0


def test_weights_do_not_decay_unless_asked():
    examples = [{"input_ids": [3, 4], "labels": [3, 4]}]
    for decay, moves in ((0.0, False), (0.1, True)):
        model = attach(build("gpt2"), LoRA(r=2))
        A = model.transformer.h[0].attn.c_attn.deltas["default"].lora_A.weight
        before = A.detach().clone()  # B is zero, so its first gradient is too
        train(model, examples, steps=1, lr=0.1, weight_decay=decay, progress=False)
        assert torch.equal(A, before) != moves


def test_a_batch_is_padded_with_zero():
    batch = pad_collate()([{"input_ids": [5]}, {"input_ids": [6, 7]}])
    assert batch["input_ids"].tolist() == [[5, 0], [6, 7]]


def test_the_hooks_see_the_gradients_and_the_optimisers_step():
    model = attach(build("gpt2"), LoRA(r=2))
    B = deltas_of(model)[0].lora_B.weight
    seen = []

    def before_step(step):
        seen.append(("before", step, bool(B.grad.any()), B.detach().clone()))

    def after_step(step):
        seen.append(("after", step, bool(B.grad.any()), B.detach().clone()))

    options = {"steps": 3, "batch_size": 4, "progress": False}
    train(model, EXAMPLES, **options, before_step=before_step, after_step=after_step)
    assert [(when, step) for when, step, _, _ in seen] == [
        (when, step) for step in (1, 2, 3) for when in ("before", "after")
    ]
    assert all(gradient for _, _, gradient, _ in seen)
    for (_, _, _, before), (_, _, _, after) in zip(seen[::2], seen[1::2], strict=True):
        assert not torch.equal(before, after)
    for (_, _, _, after), (_, _, _, before) in zip(seen[1::2], seen[2::2], strict=False):
        assert torch.equal(after, before)


def test_what_before_step_does_to_the_gradients_counts_and_is_clipped():
    model = attach(build("gpt2"), LoRA(r=2))
    trained = [p for p in model.parameters() if p.requires_grad]

    def before_step(step):
        for parameter in trained:
            parameter.grad.fill_(3.0)

    history = train(model, EXAMPLES, steps=1, progress=False, before_step=before_step)
    count = sum(p.numel() for p in trained)
    assert history[0]["grad_norm"] == pytest.approx(3 * math.sqrt(count), rel=1e-4)
