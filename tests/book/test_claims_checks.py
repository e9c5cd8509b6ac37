"""Each check of test_claims.py refuses what is planted, and passes what is measured."""

import json

import pytest
import test_claims as checks


def code(source, printed="", **metadata):
    outputs = [{"output_type": "stream", "name": "stdout", "text": printed}] if printed else []
    return {"cell_type": "code", "source": source, "outputs": outputs, "metadata": metadata}


def text(source):
    return {"cell_type": "markdown", "source": source, "metadata": {}}


TYPED = [
    text("| the claim | measured | agrees? |\n|---|---|---|\n| LoRA is good | 1 | yes |"),
    code('head = "| the claim | measured | agrees? |\\n"'),
    code('rows = [("LoRA is good", "1", "agrees")]'),
    code('word = "cannot be tested here"'),
    code("rows = [('LoRA is good', '1', Verdict(word))]"),
    code("rows = [('LoRA is good', '1', evidence.AGREES)]"),
    code("rows = [('LoRA is good', '1', holds(True))]"),
    code("rows = [('LoRA is good', '1', verdict(Difference(1, 1, 1, 5), 'greater'))]"),
]
COMPUTED = [
    code("rows = [('LoRA is good', '1', verdict(paired(lora, full), 'greater'))]"),
    code("rows = [('it is a no-op', '0', holds(before.equal(after)))]"),
    code("def verdict(x):\n    return 'agrees'", library="pedagogic_peft.course.evidence.verdict"),
    code("try:\n    import x\nexcept ModuleNotFoundError:\n    %pip install x"),
]
REFUTED = "| prompts reach it {cite}`lester2021prompt` | 12 % | disagrees |"


@pytest.mark.parametrize("cell", TYPED)
def test_a_typed_verdict_is_refused(cell):
    with pytest.raises(AssertionError):
        checks.test_no_verdict_is_typed([cell])


@pytest.mark.parametrize("cell", COMPUTED)
def test_a_computed_verdict_passes(cell):
    checks.test_no_verdict_is_typed([cell])


def test_a_paper_is_not_refuted_by_another_size():
    check = checks.test_no_paper_is_refuted_under_other_conditions
    with pytest.raises(AssertionError, match="elsewhere=True"):
        check([code("claims_table(rows)", REFUTED)])
    check([code("claims_table(rows)", REFUTED, conditions="the theorem has no conditions")])
    check([code("claims_table(rows)", REFUTED.replace("disagrees", "cannot be tested here"))])
    check([code("claims_table(rows)", REFUTED.replace("{cite}`lester2021prompt`", ""))])


@pytest.mark.parametrize("asked", ["fewest=2", "fewest=1", "fewest=n", "fewest=len(a)", "2, 1"])
def test_a_difference_of_one_or_two_seeds_is_refused(asked):
    check = checks.test_no_difference_of_fewer_than_three_seeds_is_asked_for
    with pytest.raises(AssertionError, match="at least 3"):
        check([code(f"found = evidence.paired(a, b, {asked})")])


@pytest.mark.parametrize("asked", ["a, b", "*both, 3", "a, b, comparisons=2, fewest=3"])
def test_a_difference_of_three_seeds_passes(asked):
    checks.test_no_difference_of_fewer_than_three_seeds_is_asked_for(
        [code(f"found = paired({asked})")]
    )


@pytest.mark.parametrize(
    "source",
    [
        "word = holds(runs[0]['test'] > runs[1]['test'])",
        "a, b = one['val'], other['val']\nword = holds(a >= b)",
        "a = tasks.word_accuracy(model, tokenizer, reviews)\nb = 100 * a\nword = evidence.holds(b > 80)",
        "word = holds(min(scores(records, 'style', 'LoRA').values()) > 0.5)",
    ],
)
def test_an_order_of_scores_is_no_exact_thing(source):
    with pytest.raises(AssertionError, match="verdict"):
        checks.test_an_order_of_scores_is_not_judged_as_an_exact_thing([code(source)])


@pytest.mark.parametrize(
    "source",
    [
        "word = holds(kept < whole / 100)",
        "back = tasks.word_accuracy(base, tokenizer, questions)\nword = holds(back == before)",
        "d = paired(a['test'], b['test'])\nword = holds(d.seeds > 4)",
    ],
)
def test_an_exact_thing_passes(source):
    checks.test_an_order_of_scores_is_not_judged_as_an_exact_thing([code(source)])


def judged(folder, *cells):
    path = folder / "page.ipynb"
    path.write_text(json.dumps({"cells": list(cells)}), encoding="utf-8")
    checks.cells_of.cache_clear()
    checks.numbers_of.cache_clear()
    checks.test_every_number_in_prose_was_printed_or_is_cited(path, checks.cells_of(path))


PRINTS = code("print(accuracy, n)", "0.8437 61440\n")


@pytest.mark.parametrize(
    "prose",
    [
        "It reaches 84 %, or 84.4 %.",
        "It trains 61,440 parameters, some 61 thousand.",
        "It has 3 seeds, in 2024.",
        "A method reaches 99.5 % {cite}`hu2022lora`.",
        "A base has 335 million parameters. How many tasks fit?",
        "With $r = 128$ and `x = 777` nothing is said.",
        "**Time** 35 minutes of reading.",
    ],
)
def test_a_number_that_was_printed_or_cited_passes(prose, tmp_path):
    judged(tmp_path, PRINTS, text(prose))


@pytest.mark.parametrize(
    "prose", ["It reaches 85 %.", "It has 61,400 parameters.", "It takes 37 steps."]
)
def test_a_number_out_of_the_air_is_refused(prose, tmp_path):
    with pytest.raises(AssertionError, match="no cell prints it"):
        judged(tmp_path, PRINTS, text(prose))
