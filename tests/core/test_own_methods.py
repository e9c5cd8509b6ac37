"""Methods that somebody else defines: nothing goes wrong without a word, whatever is forgotten.

A method is saved as what `load` reads again as the same method, or not at all; a definition that is not
whole is an error when the class is defined.
"""

from dataclasses import replace

import pytest
import torch
from helpers.models import batch, build, logits, randomise
from torch import nn

from pedagogic_peft import DoRA, LoRA, activate, attach, load, merge, save
from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import Delta
from pedagogic_peft.core.method import Method, Peft, field
from pedagogic_peft.core.targets import Targets
from pedagogic_peft.core.verbs import adaptations_of
from pedagogic_peft.methods.lora import LoRALinear


@pytest.fixture(autouse=True)
def kinds():
    """Forget the methods that a test has defined."""
    before = dict(Method.KINDS)
    yield
    Method.KINDS.clear()
    Method.KINDS.update(before)


def saved_and_loaded(method, folder):
    """Return the loaded method, and whether the loaded model computes what the saved one did."""
    model = attach(build("llama"), method)
    randomise(model)
    again = load(build("llama"), save(model, folder))
    same = torch.equal(logits(model, "llama"), logits(again, "llama"))
    return adaptations_of(again).methods["default"], same


def scale(factor):
    """Return a newly defined class, as a cell of a notebook that is run again defines one."""

    class ScaleDelta(nn.Module):  # a plain module, which has only forward(x, y)
        def __init__(self):
            super().__init__()
            self.g = nn.Parameter(torch.zeros(1))

        def forward(self, x, y):
            return y * (1 + factor * self.g)

    class Scale(Method):
        peft = Peft("SCALE")
        target_modules: Targets = field(None, validation.targets)

        def delta(self, path, module):
            return ScaleDelta()

    return Scale


class Twice(LoRALinear):
    def forward(self, x, y):
        return y + 2 * (super().forward(x, y) - y)


def test_the_newest_definition_counts(tmp_path):
    wrong, corrected = scale(100), scale(1)
    method, same = saved_and_loaded(corrected(), tmp_path)
    assert type(method) is corrected is not wrong and same


def test_an_adaptation_of_an_older_definition_is_not_saved_as_the_newer(tmp_path):
    model = attach(build("llama"), scale(100)())
    scale(1)
    with pytest.raises(
        ValueError, match="this Scale as the Scale that was defined later.* attach it again"
    ):
        save(model, tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_class_that_only_inherits_its_name_trains_but_is_not_saved(tmp_path):
    class TwiceLoRA(LoRA):
        OF_LINEAR = Twice

    model = attach(build("llama"), TwiceLoRA(r=4))
    assert any(isinstance(module, Twice) for module in model.modules())
    with pytest.raises(ValueError, match=r"load would read it as LoRA.*type='TWICELORA'"):
        save(model, tmp_path)
    assert not any(tmp_path.iterdir())
    assert type(saved_and_loaded(LoRA(r=4), tmp_path)[0]) is LoRA  # its place is not taken


@pytest.mark.parametrize("new", [{"type": "TWICE"}, {"flag": "twice"}], ids=["type", "flag"])
def test_a_class_with_a_name_of_its_own_is_loaded_as_what_it_is(new, tmp_path):
    class TwiceLoRA(LoRA):
        OF_LINEAR = Twice
        peft = replace(LoRA.peft, **new)

    method, same = saved_and_loaded(TwiceLoRA(r=4, rank_pattern={"q_proj": 2}), tmp_path)
    assert type(method) is TwiceLoRA and same and set(method.rank_pattern.values()) == {2}
    for other in (LoRA, DoRA):
        assert type(saved_and_loaded(other(r=4), tmp_path / other.__name__)[0]) is other


def test_no_row_of_a_batch_gets_the_parents_product_from_a_subclass():
    class TwiceLoRA(LoRA):
        OF_LINEAR = Twice

    model, ids = build("llama"), batch("llama")["input_ids"][:2]
    for name in "ab":
        attach(model, TwiceLoRA(r=4), name)
    randomise(model)
    mixed = activate(model, rows=["a", "b"])(ids).logits
    for i, name in enumerate("ab"):
        alone = activate(model, name)(ids[i : i + 1]).logits[0]
        torch.testing.assert_close(mixed[i], alone, rtol=1e-4, atol=1e-4)


def test_a_method_without_a_name_for_files():
    with pytest.raises(
        TypeError, match=r"Nameless has no name.*peft = Peft\('NAMELESS'\).*abstract"
    ):

        class Nameless(Method):
            def delta(self, path, module):
                return Delta()


def test_a_method_without_a_delta():
    with pytest.raises(TypeError, match=r"Empty has no delta: define delta\(self, path, module\)"):

        class Empty(Method):
            peft = Peft("EMPTY")

    assert ("EMPTY", "") not in Method.KINDS


def test_a_plain_field():
    with pytest.raises(TypeError, match=r"Plain\.k .*declare it with field\(default, check\)"):

        class Plain(Method):
            peft = Peft("PLAIN")
            k: int = 3

            def delta(self, path, module):
                return Delta()

    assert ("PLAIN", "") not in Method.KINDS


def test_the_librarys_names_are_taken():
    with pytest.raises(TypeError, match=r"Mine: .* the library's LoRA; choose another"):

        class Mine(LoRA):
            peft = Peft("LORA")

    assert Method.KINDS["LORA", ""] is LoRA


def test_a_class_that_others_are_derived_from(tmp_path):
    class Common(Method, abstract=True):
        target_modules: Targets = field(None, validation.targets)

    class Nothing(Common):
        peft = Peft("NOTHING")

        def delta(self, path, module):
            return Delta()

    method, same = saved_and_loaded(Nothing(), tmp_path)
    assert type(method) is Nothing and same


def test_a_plain_module_is_a_delta_that_can_not_be_merged():
    model = attach(build("llama"), scale(1)())
    with pytest.raises(ValueError, match="ScaleDelta is no change of a weight"):
        merge(model)
