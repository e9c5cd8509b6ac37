"""check_method: each mistake is found by the check that is meant to find it, and put into words."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pedagogic_peft import IA3, BitFit, LoRA, PromptTuning, attach
from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import Delta
from pedagogic_peft.core.method import Method, Peft, field
from pedagogic_peft.core.targets import Targets, is_conv1d, sizes
from pedagogic_peft.testing import CHECKS, FREE, NEAR, MethodFails, check_method
from pedagogic_peft.testing.models import BUILDERS
from pedagogic_peft.testing.report import FAILS, HOLDS, NOT_APPLICABLE
from pedagogic_peft.testing.subject import NAME, differences, snapshot


class Plain(Delta):
    """y + s B A x, with nothing wrong; each class below breaks one thing."""

    def __init__(self, d_in, d_out):
        super().__init__()
        self.A = nn.Parameter(torch.randn(3, d_in) / d_in**0.5)
        self.B = nn.Parameter(torch.zeros(d_out, 3))
        self.scaling = 0.5

    def change(self, x):
        return self.scaling * F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype))

    def forward(self, x, y):
        return y + self.change(x)

    @torch.no_grad()
    def merge_into(self, base):
        change = self.scaling * (self.B @ self.A)
        base.weight += change.T if is_conv1d(base) else change


class StartsElsewhere(Plain):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        nn.init.normal_(self.B)


class NeverMoves(Plain):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        nn.init.zeros_(self.A)


class CutsOff(Plain):
    def change(self, x):
        A, B = self.A.to(x.dtype).detach(), self.B.to(x.dtype)
        return self.scaling * F.linear(F.linear(x, A), B)


class WritesIntoTheBase(Plain):
    def init_from_base(self, base):
        base.weight.data += 0.01


class MergesWithoutScaling(Plain):
    @torch.no_grad()
    def merge_into(self, base):
        base.weight += (self.B @ self.A).T if is_conv1d(base) else self.B @ self.A


class MixesPositions(Plain):
    def change(self, x):
        change = super().change(x)
        return change - change.mean(dim=-2, keepdim=True)


class MixesRows(Plain):
    def change(self, x):
        return super().change(x - x.mean(dim=0, keepdim=True))


class ForgetsATensor(Plain):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.stretch = torch.rand(1)  # no buffer: in no checkpoint

    def change(self, x):
        return self.stretch.to(x.dtype) * super().change(x)


class KeepsTheLastInput(Plain):
    last = None

    def change(self, x):
        before, self.last = self.last, x
        return super().change(x if before is None or before.shape != x.shape else before)


class RaisesPrecision(Plain):
    def forward(self, x, y):
        return y.float() + self.change(x).float()


class OpensTheBase(Plain):
    def init_from_base(self, base):
        self.kept = (base,)

    def change(self, x):
        self.kept[0].requires_grad_(True)
        return super().change(x)


class TrainsTheBase(OpensTheBase):
    def change(self, x):
        return super().change(x) + 0 * self.kept[0].bias.sum()


class Overflows(Plain):
    def change(self, x):
        return super().change(x) + (self.A.sum() - self.A.sum().detach()).abs().sqrt()


class Unfinished(Plain):
    def forward(self, x, y):
        return y + self.missing_part(x)


class Tried(Method):
    peft = Peft("TRIED")
    kind: str = field("Plain", lambda name, value: value)
    target_modules: Targets = field(None, validation.targets)

    def delta(self, path, module):
        return globals()[self.kind](*sizes(module))


def found(kind, models=("gpt2",), **options):
    return check_method(Tried(kind), models=models, **options)


def test_a_sound_method_passes_everything():
    report = found("Plain", models=["gpt2", "bert"], compiled=True)
    assert report.ok and not report.failed
    verdicts = {(f.check, f.architecture): f.verdict for f in report.findings}
    assert set(verdicts) == {(c, a) for c in CHECKS for a in ("gpt2", "bert")}
    unlike = {key for key, verdict in verdicts.items() if verdict != HOLDS}
    assert unlike == {("cache", "bert"), ("left padding", "bert")}
    assert "32 hold, 2 do not apply, 0 fail" in str(report) and repr(report) == str(report)
    report.raise_if_failed()


MISTAKES = {  # the checks that find it
    "StartsElsewhere": {"start"},
    "NeverMoves": {"gradients", "Trainer", "bfloat16 base"},
    "CutsOff": {"gradients", "autocast", "bfloat16 base"},
    "WritesIntoTheBase": {
        "start",
        "only its own train",
        "detach",
        "copies",
        "save and load",
        "merge",
    },
    "MergesWithoutScaling": {"merge"},
    "MixesPositions": {"rows apart", "cache", "left padding", "merge"},
    "MixesRows": {"rows apart", "rows of two", "left padding", "merge"},
    "ForgetsATensor": {"save and load", "merge"},
    "RaisesPrecision": {"bfloat16 base"},
    "KeepsTheLastInput": {"cache", "checkpointing", "Trainer"},
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_each_mistake_is_found_where_it_is_meant_to_be(kind):
    report = found(kind, checks=[name for name in CHECKS if name != "compile"])
    assert {f.check for f in report.failed} == MISTAKES[kind], str(report)
    assert all(f.expected and f.seen and f.look for f in report.failed)
    assert not report.ok


def test_a_failure_says_in_words_what_was_expected_and_seen():
    [finding] = found("MergesWithoutScaling", checks=["merge"]).failed
    words = str(finding)
    assert "merge, gpt2: FAILS" in words and "scaling" in words
    assert "expected  merge changes nothing but rounding" in words and "differ by up to" in words
    with pytest.raises(MethodFails, match="merge: FAILS on gpt2"):
        found("MergesWithoutScaling", checks=["merge"], raise_if_failed=True)


@pytest.mark.parametrize(
    ("kind", "check", "seen", "look"),
    [
        ("OpensTheBase", "only its own train", "could be trained", "does to requires_grad"),
        ("TrainsTheBase", "only its own train", "got a gradient", "refers to modules of the base"),
        (
            "NeverMoves",
            "bfloat16 base",
            "every gradient is zero",
            "leave the parameters as they are",
        ),
        ("Overflows", "autocast", "is missing or not finite", "leave the parameters as they are"),
    ],
)
def test_each_failure_says_where_to_look(kind, check, seen, look):
    [finding] = found(kind, checks=[check]).failed
    assert seen in finding.seen and look in finding.look


def test_an_exception_of_the_method_is_a_line_of_the_report():
    report = found("Unfinished", checks=["start", "cache"])
    assert [f.verdict for f in report.findings] == [HOLDS, FAILS, FAILS]
    assert "has no attribute 'missing_part'" in report.failed[0].seen
    assert (
        report.failed[0].look.startswith("forward, line")
        and "missing_part" in report.failed[0].look
    )


def test_where_attach_fails_the_rest_is_left_out():
    report = check_method(PromptTuning(3), start=FREE, models=["vit"])
    assert [f.check for f in report.failed] == ["attaches"]
    assert "embedding of tokens" in str(report) and "refuses=['vit']" in report.failed[0].look
    assert all(f.verdict == NOT_APPLICABLE for f in report.findings[1:])


def test_a_refusal_that_is_stated_is_no_failure_and_one_that_does_not_come_is():
    report = check_method(BitFit(), models=["gpt2"], refuses=["llama"], checks=["start"])
    assert report.ok and "refused, as stated" in str(report)
    report = check_method(LoRA(r=2), models=["gpt2"], refuses=["llama"], checks=["start"])
    assert [(f.check, f.seen) for f in report.failed] == [("attaches", "attach did not refuse")]
    assert not check_method(BitFit(), models=[], refuses=["llama"]).ok  # nothing was checked


def test_a_class_will_do_and_one_that_cannot_be_made_is_a_failure():
    assert check_method(IA3, models=["llama"], checks=["start"]).ok

    class Needs(Method):
        peft = Peft("NEEDS")
        size: int = field(0, validation.count)

        def delta(self, path, module):
            return Plain(*sizes(module))

    [finding] = check_method(Needs).failed
    assert finding.check == "hyper-parameters" and "size=0" in finding.seen


def test_the_start_is_what_is_promised():
    names = dict(models=["gpt2"], checks=["start"])
    assert not check_method(PromptTuning(3), **names).ok
    assert not check_method(PromptTuning(3), start=NEAR, **names).ok
    assert check_method(PromptTuning(3), start=FREE, **names).ok


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(models=["gpt3"]), r"models=\['gpt3'\].*gpt2, bert"),
        (dict(models="gpt2"), "models='gpt2': expected a list"),
        (dict(checks=["begin"]), r"checks=\['begin'\].*start"),
        (dict(start="zero"), "start='zero'.*exact"),
    ],
)
def test_a_wrong_question_is_one_clear_error(options, words):
    with pytest.raises(ValueError, match=words):
        check_method(LoRA(), **options)


def test_what_is_no_method_is_a_type_error():
    with pytest.raises(TypeError, match="expected a method's hyper-parameters"):
        check_method(nn.Linear(2, 2))


def test_the_callers_random_numbers_and_warnings_are_left_alone(recwarn):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    check_method(LoRA(r=2), models=["bert"], checks=["Trainer"])
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]
    assert not list(recwarn)


def test_what_the_method_needs_there_is_prepared():
    report = check_method(
        Tried(),
        models=["llama"],
        checks=["only its own train", "detach", "save and load"],
        start=FREE,
        prepare=lambda model: attach(model, LoRA(r=2), "other"),
    )
    assert report.ok and NAME != "other", report


def test_the_model_that_sees_images_has_several_patches():
    assert BUILDERS["vit"](1).vit.embeddings.position_embeddings.shape == (1, 1 + 4, 32)


def test_it_needs_no_pytest():
    code = "import sys, pedagogic_peft.testing; print('pytest' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_a_parameter_that_was_exchanged_for_an_equal_one_is_a_difference():
    model = nn.Linear(3, 3)
    before = snapshot(model)
    assert differences(before, snapshot(model)) == []
    model.weight = nn.Parameter(model.weight.detach().clone())
    assert differences(before, snapshot(model)) == ["requires_grad"]
