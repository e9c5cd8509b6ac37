"""Pages and assignments' solutions on an emulated GPU: no cell mixes devices.

Trainings are cut to two steps, so numbers and what is asserted of them mean nothing here, and a page's own
`assert` may fail. So may a trainer of another library, which moves model and batches by itself and asks for a
real GPU, and what needs its results. Any other error is one. All of them take ten minutes: EVERY_PAGE=1 runs
all, the tests of the library a few. `make gpu` runs every page in full, on a GPU or with EMULATED=1.
"""

import importlib
import json
import os
import pkgutil
import sys
import traceback
import types
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from elsewhere.__main__ import pages, solution
from helpers.fake_gpu import FakeGPU

import pedagogic_peft
from pedagogic_peft.course import experiments
from pedagogic_peft.course.experiments import again

ROOT = Path(__file__).parents[2]
STEPS = 2
TRAINER, REAL = "transformers/trainer.py", "not compiled with CUDA"
FEW = ("06_practice/shipping", "assignments/soft_prompts")


@pytest.fixture
def short(monkeypatch, tmp_path):
    """Train two steps wherever `train` is called, and write into a folder of this test's own."""
    learn = pedagogic_peft.train
    for module in pkgutil.iter_modules(experiments.__path__, f"{experiments.__name__}."):
        importlib.import_module(module.name)  # before the change below, or they would keep it

    def train(*args, steps=None, epochs=None, **options):
        watched = "after_step" in options  # the page shows what became of it at certain steps
        wanted = steps or STEPS
        history = learn(*args, steps=wanted if watched else min(wanted, STEPS), **options)
        history.extend(list(history[-1:]) * (wanted - len(history)))  # as long as the page may read
        return history

    for name, module in list(sys.modules.items()):
        if name.startswith("pedagogic_peft") and getattr(module, "train", None) is learn:
            monkeypatch.setattr(module, "train", train)
    monkeypatch.delenv(again.GATE, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "repository").symlink_to(ROOT)
    monkeypatch.setattr(plt, "show", plt.close)


def code_of(path: Path) -> list[str]:
    notebook = solution(path) if path.parent.name == "assignments" else json.loads(path.read_text())
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


@pytest.mark.parametrize(
    "path", pages([] if os.environ.get("EVERY_PAGE") else FEW), ids=lambda path: path.stem
)
def test_no_cell_mixes_devices(path, short, monkeypatch):
    main, failed, beyond = types.ModuleType("__main__"), [], False
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setitem(sys.modules, "otter", types.SimpleNamespace(Notebook=lambda *_: None))
    with FakeGPU():
        for number, source in enumerate(code_of(path)):
            plain = source.replace("%pip", "pass  #").replace("!git", "pass  #")
            try:
                exec(compile(plain, f"cell {number}", "exec"), vars(main))
            except Exception as error:
                frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
                if isinstance(error, AssertionError) and frames[-1] == f"cell {number}":
                    continue  # of a number that two steps do not reach
                if REAL in str(error) or any(name.endswith(TRAINER) for name in frames):
                    beyond = True
                    continue
                if beyond and isinstance(error, NameError | LookupError | AttributeError):
                    continue
                failed.append(f"cell {number}: {type(error).__name__}: {error}")
    assert not failed, "\n".join(failed)
