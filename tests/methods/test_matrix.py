"""Every method on every architecture: one table of promises, generated, so that no pair is missed.

The checks are those of `pedagogic_peft.testing`, which readers run on methods of their own. Where a method
has no meaning on an architecture, the promise is a clear error.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.methods import CASES

import pedagogic_peft
from pedagogic_peft import save
from pedagogic_peft.core.method import Method
from pedagogic_peft.testing import ARCHITECTURES, CHECKS, DoesNotApply
from pedagogic_peft.testing.models import WRITERS, build, logits
from pedagogic_peft.testing.report import NOT_APPLICABLE
from pedagogic_peft.testing.run import examine_refusal
from pedagogic_peft.testing.subject import NAME

PAIRS = [
    (method, architecture)
    for method, case in CASES.items()
    for architecture in ARCHITECTURES
    if architecture not in case.refused
]
REFUSED = [(method, name) for method, case in CASES.items() for name in case.refused]
OF_WRITERS = ("cache", "left padding")
ROWS = [
    pytest.param(method, architecture, check, id=f"{method}-{architecture}-{check}")
    for method, architecture in PAIRS
    for check in CHECKS
    if check not in OF_WRITERS or architecture in WRITERS
]


@pytest.mark.parametrize(("method", "architecture", "check"), ROWS)
def test_it_holds(method, architecture, check):
    subject = CASES[method].on(architecture)
    if check in CASES[method].without:
        with pytest.raises(DoesNotApply):
            CHECKS[check](subject)
    else:
        CHECKS[check](subject)


@pytest.mark.parametrize(("method", "architecture"), REFUSED)
def test_where_a_method_has_no_meaning_an_error_says_so(method, architecture):
    finding = examine_refusal(CASES[method].on(architecture))
    assert finding.verdict == NOT_APPLICABLE, finding
    assert re.search(CASES[method].refused[architecture], finding.seen)


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a not in WRITERS])
@pytest.mark.parametrize("check", OF_WRITERS)
def test_what_generates_no_text_is_not_asked_to(architecture, check):
    with pytest.raises(DoesNotApply, match="generates no text"):
        CHECKS[check](CASES["LoRA"].on(architecture))


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory):
    """Save every pair here and load it in one fresh process; return its logits."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for method, architecture in PAIRS:
        model = CASES[method].on(architecture).trained()
        save(model, folder / f"{method}-{architecture}", NAME)
        torch.save(logits(model, architecture), folder / f"{method}-{architecture}" / "logits")
    program = (
        "import sys, torch, pathlib; sys.path.insert(0, sys.argv[2])\n"
        "from helpers.methods import CASES\n"
        "from pedagogic_peft import load\n"
        "from pedagogic_peft.testing.models import logits\n"
        "for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    method, _, name = folder.name.rpartition('-')\n"
        "    model = load(CASES[method].on(name).bare(), folder)\n"
        "    torch.save(logits(model, name), folder / 'reloaded')\n"
    )
    here = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", program, str(folder), here], check=True)
    return folder


@pytest.mark.xdist_group("one fresh process")  # so that the fixture is made once
@pytest.mark.parametrize(("method", "architecture"), PAIRS, ids=[f"{m}-{a}" for m, a in PAIRS])
def test_a_fresh_process_loads_identical_logits(method, architecture, reloaded):
    folder = reloaded / f"{method}-{architecture}"
    expected, found = torch.load(folder / "logits"), torch.load(folder / "reloaded")
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(found, logits(build(architecture), architecture), atol=1e-3)


def test_every_public_method_is_in_the_matrix():
    exported = (getattr(pedagogic_peft, name) for name in pedagogic_peft.__all__)
    methods = {x for x in exported if isinstance(x, type) and issubclass(x, Method)}
    assert len(methods) >= 19
    assert not methods - {type(case.method) for case in CASES.values()}, "tests/helpers/methods.py"
