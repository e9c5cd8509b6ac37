"""AdaLoRA: its formula, its penalty, and the budget that takes triplets away."""

import json
import math

import pytest
import torch
from helpers.deltas import deltas_of
from helpers.models import batch, build, gradients, logits, randomise
from helpers.peft import (
    LINEAR,
    NAMES,
    assert_gradients_equal,
    our_keys,
    peft_model,
    read,
    read_by_peft,
)
from helpers.texts import EXAMPLES
from safetensors.torch import load_file
from torch import nn

from pedagogic_peft import AdaLoRABudget, LoRA, attach, load, save, train
from pedagogic_peft.methods.adalora import AdaLoRA

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what is meant here


def test_adaloras_forward_is_the_formula():
    model = nn.Sequential(nn.Linear(7, 5)).eval()
    W, b = model[0].weight.clone(), model[0].bias.clone()
    attach(model, AdaLoRA(init_r=3, target_r=1, alpha=6, target_modules=["0"]))
    randomise(model)
    delta = model[0].deltas["default"]
    update = delta.lora_B @ torch.diag(delta.lora_E[:, 0]) @ delta.lora_A
    x = torch.randn(4, 7)
    torch.testing.assert_close(model(x), x @ (W + 2 * update).T + b, rtol=1e-4, atol=1e-4)


ADALORA = {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 3}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("orth_reg_weight", [0, 0.5])
def test_adaloras_logits_and_gradients_equal_pefts_with_its_penalty(name, orth_reg_weight):
    options = {**ADALORA, "target_modules": LINEAR[name], "orth_reg_weight": orth_reg_weight}
    theirs = peft_model(name, peft.AdaLoraConfig(**options, lora_alpha=8, total_step=20))
    ours = attach(build(name), AdaLoRA(**options, alpha=8))
    numbers = our_keys(theirs.named_parameters())
    wanted = {key for key, p in ours.named_parameters() if p.requires_grad}
    ours.load_state_dict({key: numbers[key] for key in wanted}, strict=False)
    torch.testing.assert_close(logits(ours, name), logits(theirs, name), rtol=1e-5, atol=1e-5)
    gradients(ours, name)
    AdaLoRABudget(ours, total_steps=20).add_penalty_gradient()
    theirs.zero_grad()
    theirs.base_model(**batch(name)).loss.backward()  # adds the penalty; theirs(...) does not
    expected = our_keys((k, p.grad) for k, p in theirs.named_parameters() if p.requires_grad)
    found = {key: p.grad for key, p in ours.named_parameters() if p.requires_grad}
    assert_gradients_equal(found, expected)


@pytest.mark.parametrize("pruned", [False, True])
def test_an_adalora_saved_by_peft_loads_with_equal_logits(pruned, tmp_path):
    config = peft.AdaLoraConfig(**ADALORA, target_modules=["q_proj", "v_proj"], total_step=6)
    theirs = peft_model("llama", config)
    for step in range(6 if pruned else 0):
        theirs(**batch("llama")).loss.backward()
        theirs.base_model.update_and_allocate(step)
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    ranks = [len(tensor) for key, tensor in tensors.items() if key.endswith("lora_E")]
    assert sum(ranks) == 4 * (2 if pruned else 4)
    ours = read(AdaLoRA, "llama", tmp_path)
    torch.testing.assert_close(logits(ours, "llama"), logits(theirs, "llama"), rtol=1e-5, atol=1e-5)
    save(ours, tmp_path)
    again = read_by_peft("llama", tmp_path)
    torch.testing.assert_close(logits(again, "llama"), logits(ours, "llama"), rtol=1e-5, atol=1e-5)


def test_the_penaltys_gradient_is_autograds():
    model = attach(build("gpt2"), AdaLoRA(init_r=4, target_r=2, orth_reg_weight=0.3))
    randomise(model)
    deltas = deltas_of(model)
    factors = [(d.lora_A, d.lora_B) for d in deltas]
    norms = [(Q @ Q.T - torch.eye(4)).norm() + (P.T @ P - torch.eye(4)).norm() for Q, P in factors]
    penalty = 0.3 * sum(norms) / (2 * len(deltas))
    flat = [factor for pair in factors for factor in pair]
    expected = torch.autograd.grad(penalty, flat)
    for factor in flat:
        factor.grad = torch.ones_like(factor)
    AdaLoRABudget(model, total_steps=9).add_penalty_gradient()
    for factor, gradient in zip(flat, expected, strict=True):
        torch.testing.assert_close(factor.grad, 1 + gradient)


def test_an_orthonormal_factor_has_no_penalty():
    model = attach(
        nn.Sequential(nn.Linear(5, 5)), AdaLoRA(init_r=5, target_r=1, target_modules=["0"])
    )
    delta = model[0].deltas["default"]
    for factor in (delta.lora_A, delta.lora_B):
        factor.data = torch.eye(5)
        factor.grad = torch.zeros(5, 5)
    AdaLoRABudget(model, total_steps=9).add_penalty_gradient()
    assert not delta.lora_A.grad.any() and not delta.lora_B.grad.any()


def test_the_budget_falls_with_the_cube_between_the_two_phases():
    method = AdaLoRA(init_r=12, target_r=8, tinit=10, tfinal=20)
    budget = AdaLoRABudget(attach(build("gpt2"), method), total_steps=100)  # two targets
    for t in range(1, 101):
        if t < 10:
            expected = 24
        elif t < 80:
            expected = int(16 + 8 * (1 - (t - 10) / (100 - 10 - 20)) ** 3)
        else:
            expected = 16
        assert budget.budget(t) == expected, t


def test_the_budget_is_pefts():
    config = peft.AdaLoraConfig(
        init_r=9, target_r=2, tinit=3, tfinal=5, total_step=40, target_modules=["c_attn"]
    )
    allocator = peft.get_peft_model(build("gpt2"), config).base_model.rankallocator
    method = AdaLoRA(init_r=9, target_r=2, tinit=3, tfinal=5)
    budget = AdaLoRABudget(attach(build("gpt2"), method), total_steps=40)
    assert all(budget.budget(t) == allocator.budget_schedule(t)[0] for t in range(41))


def test_the_kept_triplets_are_the_most_important_of_the_whole_model():
    method = AdaLoRA(init_r=4, target_r=2, beta1=0.8, beta2=0.6, orth_reg_weight=0)
    model = attach(build("gpt2"), method)
    randomise(model)
    budget = AdaLoRABudget(model, total_steps=3)
    smoothed = {}
    for step in (1, 2, 3):
        gradients(model, "gpt2")
        for p in (p for p in model.parameters() if p.requires_grad):
            now = (p * p.grad).abs().detach()
            mean, spread = smoothed.get(p, (torch.zeros_like(p), torch.zeros_like(p)))
            mean = 0.8 * mean + 0.2 * now
            smoothed[p] = mean, 0.6 * spread + 0.4 * (now - mean).abs()
        budget.before_step(step)
        if step < 3:
            randomise(model)
    s = {p: mean * spread for p, (mean, spread) in smoothed.items()}
    scores = [
        s[d.lora_E][:, 0] + s[d.lora_A].mean(dim=1) + s[d.lora_B].mean(dim=0)
        for d in deltas_of(model)
    ]
    best = sorted(torch.cat(scores).tolist(), reverse=True)[:4]
    budget.after_step(3)
    for delta, score in zip(deltas_of(model), scores, strict=True):
        expected = [value in best for value in score.tolist()]
        assert (delta.lora_E[:, 0] != 0).tolist() == expected


@pytest.mark.parametrize("tfinal, deltaT", [(0, 1), (4, 1), (5, 3)])
def test_training_ends_with_exactly_target_r_triplets_on_average(tfinal, deltaT):
    method = AdaLoRA(init_r=6, target_r=2, tinit=3, tfinal=tfinal, deltaT=deltaT)
    model = attach(build("llama"), method)  # four targets
    budget = AdaLoRABudget(model, total_steps=14)
    ranks = []

    def after_step(step):
        budget.after_step(step)
        ranks.append([int((delta.lora_E != 0).sum()) for delta in deltas_of(model)])

    train(
        model,
        EXAMPLES,
        steps=14,
        batch_size=4,
        lr=1e-2,
        before_step=budget.before_step,
        after_step=after_step,
        progress=False,
    )
    assert [sum(rank) for rank in ranks[:3]] == [24, 24, 24]
    for step, rank in enumerate(ranks, start=1):
        masked = step > 3 and (step % deltaT == 0 or step >= 14 - tfinal)
        assert sum(rank) == (budget.budget(step) if masked else 24), step
    assert sum(ranks[-1]) == 4 * 2
    assert all(rank == ranks[-1] for rank in ranks[14 - tfinal - 1 :])  # the choice is final
    assert sum(int(mask.sum()) for mask in budget.kept) == 8


def test_the_trainers_callback_does_the_same_as_the_loop(tmp_path):
    import transformers as hf

    model = attach(build("gpt2"), AdaLoRA(init_r=4, target_r=1, tinit=1, tfinal=2))
    budget = AdaLoRABudget(model, total_steps=6)
    arguments = hf.TrainingArguments(
        output_dir=tmp_path, max_steps=6, per_device_train_batch_size=4, report_to=[], use_cpu=True
    )
    trainer = hf.Trainer(model, arguments, train_dataset=EXAMPLES, callbacks=[budget.callback()])
    trainer.train()
    assert sum(int((delta.lora_E != 0).sum()) for delta in deltas_of(model)) == 2


def test_a_budget_without_its_measures_is_not_resumed(tmp_path):
    """A new one would choose by the one step it has seen, and zero what the training has kept."""
    import transformers as hf

    model = attach(build("gpt2"), AdaLoRA(init_r=4, target_r=1, tinit=1, tfinal=2))
    arguments = hf.TrainingArguments(
        tmp_path, max_steps=6, save_steps=3, report_to=[], use_cpu=True
    )

    def trainer():
        callbacks = [AdaLoRABudget(model, total_steps=6).callback()]
        return hf.Trainer(model, arguments, train_dataset=EXAMPLES, callbacks=callbacks)

    trainer().train()
    with pytest.raises(ValueError, match="step=4: expected 1"):
        trainer().train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    budget = AdaLoRABudget(model, total_steps=6)
    gradients(model, "gpt2")
    budget.before_step(1)
    with pytest.raises(ValueError, match="step=1: expected 2"):  # nor used again
        budget.before_step(1)


def test_a_budget_that_cannot_be_is_refused():
    model = attach(build("gpt2"), AdaLoRA(tinit=3, tfinal=4))
    with pytest.raises(ValueError, match="total_steps=7: expected more than tinit"):
        AdaLoRABudget(model, total_steps=7)
    with pytest.raises(RuntimeError, match="call before_step"):
        AdaLoRABudget(model, total_steps=8).after_step(4)
    with pytest.raises(ValueError, match="'default' is LoRA"):
        AdaLoRABudget(attach(build("gpt2"), LoRA()), total_steps=8)


def test_a_gradient_that_overflowed_does_not_spoil_the_sensitivities():
    model = attach(build("gpt2"), AdaLoRA(init_r=4, target_r=2, orth_reg_weight=0))
    randomise(model)
    budget = AdaLoRABudget(model, total_steps=2)
    gradients(model, "gpt2")
    deltas_of(model)[0].lora_A.grad[0, 0] = math.inf
    deltas_of(model)[0].lora_E.grad[0, 0] = math.nan
    budget.before_step(1)
    budget.before_step(2)
    assert all(mean.isfinite().all() for mean, _ in budget.sensitivity.values())


def test_a_checkpoint_of_adalora_without_init_r_has_pefts_default(tmp_path):
    torch.manual_seed(0)
    save(attach(build("gpt2"), AdaLoRA(init_r=12, target_r=4)), tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    del config["init_r"]
    file.write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="edited|changed|saved"):
        model = load(build("gpt2"), tmp_path)
    assert model._adaptations.methods["default"].init_r == 12


def test_the_total_of_adalora_in_a_checkpoint_is_the_least_peft_takes(tmp_path):
    save(attach(build("gpt2"), AdaLoRA(init_r=4, target_r=2, tinit=3, tfinal=5)), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["total_step"] == 9


def test_a_budget_is_of_the_adaptation_it_names():
    model = build("gpt2")
    for name, r in (("a", 4), ("b", 6)):
        attach(model, AdaLoRA(init_r=r, target_r=2), name)
    assert AdaLoRABudget(model, total_steps=5, name="a").method.init_r == 4
