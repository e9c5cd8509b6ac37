"""What `make sweep` does, on a model or two: it tells right, refused and wrong apart."""

import pytest

import pedagogic_peft as pp
from pedagogic_peft.methods.lora import LoRALinear
from pedagogic_peft.testing import EXACT
from sweep import small
from sweep.methods import CASES
from sweep.promises import Base, judge


class Shifting(LoRALinear):
    """No LoRA: it changes what comes out from the start, and cannot be merged rightly."""

    def forward(self, x, y):
        """Return y + 1."""
        return super().forward(x, y) + 1


class ShiftingLoRA(pp.LoRA):
    """A LoRA that is wrong."""

    OF_LINEAR = Shifting


@pytest.fixture(scope="module")
def llama():
    return Base(small.build("llama", "writes"), "writes")


def test_what_is_right_is_right(llama):
    method, start = CASES["LoRA all-linear"]
    assert judge(llama, method(llama.model), start) == ("right", [])
    assert llama.keeps == {"left padding", "left padding, generate", "generate without a cache"}


def test_what_is_refused_says_why(llama):
    verdict, what = judge(llama, CASES["BitFit"][0](llama.model), EXACT)
    assert verdict == "refused" and "no bias" in what[0]


def test_what_is_wrong_is_found(llama):
    verdict, what = judge(llama, ShiftingLoRA(r=2, target_modules=["q_proj"]), EXACT)
    assert verdict == "wrong"
    assert any(w.startswith("start is") for w in what) and any("merged" in w for w in what)


def test_models_are_small_and_have_one_layer_of_each_type():
    kinds = small.kinds("writes")
    assert len(kinds) > 100
    assert small.configuration("gemma2").layer_types == ["sliding_attention", "full_attention"]
