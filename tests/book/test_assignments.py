"""The assignments' tests, tested: right answers get all points, wrong ones lose those they should.

Here the solutions run in this process, without the parts that train, so it is quick. `tests/grading` builds
and grades as course staff do.
"""

import ast
import copy
import json
import os
import shlex
import subprocess
import sys
import tomllib
import types
import zipfile
from functools import cache
from pathlib import Path

import nbformat
import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "assignments"))

import build  # noqa: E402
import grade  # noqa: E402
import wire  # noqa: E402

MASTERS = build.masters()
WRONG = {
    f"{path.stem}-{name}": (path.stem, patch)
    for path in sorted((ROOT / "tests" / "wrong_answers").glob("*.toml"))
    for name, patch in tomllib.loads(path.read_text(encoding="utf-8")).items()
}


@pytest.fixture(scope="session")
def packages(tmp_path_factory) -> dict[str, grade.Package]:
    where = tmp_path_factory.mktemp("assignments")
    for master in MASTERS:
        build.build(master, where, run_tests=False)
    return {m.stem: grade.read_package(where / m.stem) for m in MASTERS} | {"where": where}


@cache
def solution(name: str) -> tuple[tuple[str, bool], ...]:
    """The master's code, cell by cell, without tests; and whether the cell is part of an experiment."""
    cells = nbformat.read(ROOT / "assignments" / f"{name}.ipynb", as_version=4).cells
    code = [c for c in cells if c.cell_type == "code" and "# BEGIN TEST CONFIG" not in c.source]
    return tuple((c.source, "experiment" in c.metadata.get("tags", [])) for c in code[1:])


def names_of(cells, experiments=False) -> dict:
    """Execute a solution; return what it defines."""
    import otter

    otter.Notebook = lambda: None
    module = sys.modules["submission"] = types.ModuleType("submission")  # pickle looks there
    for source, experiment in cells:
        if experiments or not experiment:
            exec(compile(source, "<submission>", "exec"), module.__dict__)
    return module.__dict__


def run(cells, package, experiments=False):
    """Execute a solution; return {question: points} and all hints."""
    names = names_of(cells, experiments)

    def look(what, *given):  # through the wire, as when grading
        try:
            value = types.FunctionType(what.__code__, names)(*given)
        except Exception as error:
            raise grade.StudentError(f"{type(error).__name__}: {error}") from None
        return wire.unpack(wire.pack(value))

    asked = [q for q in package.questions if experiments or not q["name"].startswith("try_")]
    some = grade.Package(package.name, package.title, asked, [], package.tests)
    results = list(grade.run_tests(some, look))
    return {name: points for name, points, _ in results}, [
        h for *_, hints in results for h in hints
    ]


def full(package, experiments=False):
    return {
        q["name"]: q["points"]
        for q in package.questions
        if not q["manual"] and (experiments or not q["name"].startswith("try_"))
    }


@pytest.mark.parametrize("name", [m.stem for m in MASTERS])
def test_the_reference_solution_gets_all_points(name, packages):
    points, hints = run(solution(name), packages[name])
    assert points == full(packages[name]), hints


def patched(name, patch):
    cells = [list(cell) for cell in solution(name)]
    for change in [patch, *patch.get("and", [])]:
        hits = [cell for cell in cells if change["old"] in cell[0]]
        assert len(hits) == 1, f"{change['old']!r} is in {len(hits)} cells"
        hits[0][0] = hits[0][0].replace(change["old"], change["new"])
    return cells


@pytest.mark.parametrize("case", [case for case, (_, p) in WRONG.items() if "experiment" not in p])
def test_a_wrong_answer_loses_its_points_with_its_hint(case, packages):
    name, patch = WRONG[case]
    points, hints = run(patched(name, patch), packages[name])
    lost = {q: p - points[q] for q, p in full(packages[name]).items() if p != points[q]}
    assert lost == patch["loses"], hints
    assert any(patch["hint"] in hint for hint in hints), hints


def test_a_start_other_than_the_paper_s_is_right_too(packages):
    """A zero and B random computes what the map computes, and learns: no point is lost."""
    old = "torch.randn(r, linear.in_features) / math.sqrt(linear.in_features)"
    other = {
        "old": "self.B = nn.Parameter(torch.zeros(",
        "new": "self.B = nn.Parameter(torch.randn(",
    }
    patch = {"old": old, "new": "torch.zeros(r, linear.in_features)", "and": [other]}
    points, hints = run(patched("lora", patch), packages["lora"])
    assert points == full(packages["lora"]), hints


@pytest.mark.parametrize("name", [m.stem for m in MASTERS])
def test_there_are_enough_wrong_answers(name):
    assert sum(assignment == name for assignment, _ in WRONG.values()) >= 6


@pytest.mark.parametrize("name", [m.stem for m in MASTERS])
def test_the_student_version_holds_no_solution_and_no_hidden_test(name, packages):
    folder = packages["where"] / name / "student"
    given = "\n".join(
        p.read_text(encoding="utf-8") for p in folder.rglob("*") if p.suffix in (".ipynb", ".py")
    )
    shown = "\n".join(
        "".join(c["source"]) for c in json.loads((folder / f"{name}.ipynb").read_text())["cells"]
    )
    lines = solution_lines(name)
    assert len(lines) >= 10
    for line in lines:
        assert line not in shown, f"{name}: the student version has {line!r}"
    for source, hidden in cases_of(name):
        function = ast.parse(source).body[-1]
        assert (f"def {function.name}(" in given) != hidden, f"{name}: {function.name}"


def solution_lines(name: str) -> list[str]:
    """The lines between BEGIN SOLUTION and END SOLUTION, and the answers to written questions."""
    inside, found = False, []
    for cell in nbformat.read(ROOT / "assignments" / f"{name}.ipynb", as_version=4).cells:
        if cell.cell_type == "raw":
            inside = cell.source.startswith("# BEGIN SOLUTION")
        elif inside and cell.cell_type == "markdown":
            found += cell.source.splitlines()
        lines = cell.source.splitlines() if cell.cell_type == "code" else []
        between = False
        for line in lines:
            if "# BEGIN SOLUTION" in line or "# END SOLUTION" in line:
                between = "BEGIN" in line
            elif between or line.rstrip().endswith("# SOLUTION"):
                found.append(line.split("#")[0].strip())
    return [line for line in found if len(line) >= 15]


def cases_of(name: str) -> list[tuple[str, bool]]:
    cells = nbformat.read(ROOT / "assignments" / f"{name}.ipynb", as_version=4).cells
    tests = [c.source for c in cells if c.cell_type == "code" and "# BEGIN TEST CONFIG" in c.source]
    return [(source, "hidden: true" in source) for source in tests]


@pytest.mark.parametrize("name", [m.stem for m in MASTERS])
def test_every_written_question_has_a_rubric_that_adds_up(name, packages):
    cells = nbformat.read(ROOT / "assignments" / f"{name}.ipynb", as_version=4).cells
    written = [q for q in packages[name].questions if q["manual"]]
    assert written
    for question in written:
        [text] = [c.source for c in cells if f"<!-- {question['name']} -->" in c.source]
        rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
        assert sum(int(row) for row in rows if row.isdigit()) == question["points"]


# --- one truth: the pages' exercises, and the library -----------------------------------------------


def definitions(cells) -> dict[str, str]:
    """Top-level functions and classes of some cells, as bare statements (no comments, no docstrings)."""
    from test_notebooks import definition

    found = {}
    for source in cells:
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[node.name] = definition(ast.unparse(node), node.name)
    return found


# These use what the pages teach, and repeat none of their exercises.
APPLIED = {"extend", "project"}


def test_what_a_page_solves_too_has_the_same_solution():
    """An exercise that is on a page and in an assignment is a function of one name, alike in both."""
    pages = {}
    for path in sorted((ROOT / "chapters").rglob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        exercises = [c for c in cells if "solution" in c.metadata.get("tags", [])]
        pages |= definitions(c.source for c in exercises if c.cell_type == "code")
    for master in MASTERS:
        ours = definitions(source for source, _ in solution(master.stem))
        shared = pages.keys() & ours.keys()
        assert shared or master.stem in APPLIED, f"no exercise of a page is in {master.stem}"
        for name in shared:
            assert pages[name] == ours[name], f"{name} differs between its page and its assignment"


def test_lora_computes_what_the_library_computes():
    from pedagogic_peft.methods.lora import LoRALinear

    torch.manual_seed(0)
    ours, linear, x = names_of(solution("lora")), torch.nn.Linear(6, 5), torch.randn(3, 6)
    mine, theirs = ours["LoRALinear"](linear, 2, 8), LoRALinear(6, 5, 2, 8)
    torch.nn.init.normal_(theirs.lora_B.weight)
    mine.A.data, mine.B.data = theirs.lora_A.weight.data, theirs.lora_B.weight.data
    assert torch.allclose(mine(x), theirs(x, linear(x)), atol=1e-5)
    merged = ours["merge_lora"](mine)
    theirs.merge_into(linear)  # in place
    assert torch.allclose(merged.weight, linear.weight, atol=1e-5)


def test_adapters_compute_what_the_library_computes():
    from pedagogic_peft import BottleneckAdapter, attach, count_parameters
    from pedagogic_peft.core.sites import sites

    torch.manual_seed(0)
    ours = names_of(solution("adapters"))
    base, ids = ours["base"], torch.arange(3, 20)[None]
    mine = ours["add_adapters"](copy.deepcopy(base), 4)
    theirs = attach(copy.deepcopy(base), BottleneckAdapter(bottleneck_size=4))
    for layer, (_, site) in zip(mine.model.layers, sites(theirs), strict=True):
        delta = site.deltas["default"]
        torch.nn.init.normal_(delta.adapter_up.weight)
        layer.mlp[1].down.load_state_dict(delta.adapter_down.state_dict())
        layer.mlp[1].up.load_state_dict(delta.adapter_up.state_dict())
    with torch.no_grad():
        assert torch.allclose(mine(ids).logits, theirs(ids).logits, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(mine(ids).logits, base(ids).logits, atol=0.1)
    d, layers = base.config.hidden_size, len(base.model.layers)
    houlsby = BottleneckAdapter(bottleneck_size=4, placement="houlsby")
    counted = count_parameters(attach(copy.deepcopy(base), houlsby)).trainable
    norms = 4 * d * layers  # two norms in each block, with weight and bias
    assert ours["adapter_parameters"](d, 4, layers) == counted + norms


def test_a_soft_prompt_computes_what_the_library_computes():
    from pedagogic_peft import PromptTuning, attach

    torch.manual_seed(0)
    ours = names_of(solution("soft_prompts"))
    base, ids = ours["base"], torch.randint(3, 90, (2, 7))
    mask = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])
    mine = ours["SoftPrompt"](base.get_input_embeddings(), 3)
    theirs = attach(copy.deepcopy(base), PromptTuning(3))
    [P] = [p for p in theirs.parameters() if p.requires_grad]
    P.data.copy_(mine.P)
    with torch.no_grad():
        logits = ours["prompted_logits"](base, mine, ids, mask)[mask.bool()]
        expected = theirs(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    assert torch.allclose(logits, expected, rtol=1e-3, atol=1e-3)


def test_a_prefix_computes_what_the_library_computes():
    from pedagogic_peft import PrefixTuning, attach
    from pedagogic_peft.core.attention import attention
    from pedagogic_peft.core.sites import sites

    torch.manual_seed(0)
    ours = names_of(solution("soft_prompts"))
    model = attach(copy.deepcopy(ours["base"]), PrefixTuning(3, shift_positions=False))
    place = next(iter(sites(model)))[1]
    P = place.deltas["default"].prefix.data.normal_()  # (n, 2, heads, size)
    P_K, P_V = P.permute(1, 2, 0, 3)
    heads, size = P.shape[2:]
    Q, K, V = torch.randn(3, 2, heads, 5, size)
    text = torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    mask = ours["prefix_mask"](text, 3)
    mine = ours["prefix_attention"](Q, K, V, P_K, P_V, mask)
    module = model.model.layers[0].self_attn
    repeated = module.num_key_value_groups  # queries to each head of keys
    with torch.no_grad():
        Qs = Q.repeat_interleave(repeated, dim=1)
        theirs, _ = attention(module, Qs, K, V, mask[..., 3:], dropout=0.0, scaling=size**-0.5)
    theirs = theirs.transpose(1, 2)[:, ::repeated]
    assert torch.allclose(mine, theirs, atol=1e-4)


def test_labels_and_batches_are_the_library_s():
    from pedagogic_peft.course.pocket import tasks
    from pedagogic_peft.training.train import pad_collate

    ours = names_of(solution("new_task"))
    rows = [{"input_ids": [5, 6], "labels": [-100, 6]}, {"input_ids": [7], "labels": [7]}]
    mine, theirs = ours["collate"](rows, 3), pad_collate(3)(rows)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    pairs = ours["notes"](20, seed=5)
    mine = [ours["encode_pair"](pair.prompt, pair.answer) for pair in pairs]
    assert mine == tasks.encode(ours["tokenizer"], pairs)


def test_the_guide_tells_the_points(packages):
    guide = (ROOT / "book" / "teach.md").read_text(encoding="utf-8")
    for master in MASTERS:
        package = packages[master.stem]
        points = sum(q["points"] for q in package.questions if not q["manual"])
        to_read = sum(q["points"] for q in package.questions if q["manual"])
        number, title = package.title.removeprefix("Assignment ").split(": ")
        row = next(line for line in guide.splitlines() if line.startswith(f"| {number}. {title} "))
        assert f"| {points:g}, and {to_read:g} to read |" in row


@pytest.mark.parametrize("jobs, passed", [([], []), (["JOBS=4"], ["--jobs", "4"])])
def test_make_grade_says_what_the_grader_understands(jobs, passed, tmp_path):
    """The tests' own default for JOBS is none of the grader's."""
    command = ["make", "-n", "-o", str(ROOT / ".venv" / ".installed"), "grade"]
    given = [f"SUBMISSIONS={tmp_path}", *jobs]
    quiet = {"PATH": os.environ["PATH"]}  # nothing of a make that runs this test
    shown = subprocess.run([*command, *given], cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    words = shlex.split(shown.stdout.split("assignments/grade.py", 1)[1].replace("\\\n", " "))
    assert words[0] == str(tmp_path) and words[3:] == passed


# --- what keeps a submission from deceiving the grader --------------------------------------------


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 0.5, float("inf"), "text", [1, [2.0, None]], {"a": {"tensor": [1]}, "b": []}],
)
def test_plain_values_pass_the_wire(value):
    assert wire.unpack(wire.pack(value)) == value


def test_tensors_pass_the_wire():
    x = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(wire.unpack(wire.pack({"x": [x]}))["x"][0], x)


def test_nothing_else_passes_the_wire():
    with pytest.raises(TypeError, match="got object"):
        wire.pack([object()])
    for message in (b"", b"\x05" + 7 * b"\0" + b"pickle", wire.pack(1)[:-1], b"\xff" * 40):
        with pytest.raises(ValueError, match="no value"):
            wire.unpack(message)


def test_a_text_in_the_table_is_no_formula():
    assert grade.one_line("=cmd()\n\x00and more") == "cmd() and more"


@pytest.mark.parametrize(
    "content, said",
    [
        ("My dog ate it.", "no JSON (Expecting value: line 1 column 1"),
        ("%PDF-\xff".encode("latin-1"), "no text in UTF-8"),
        ("[1]", "JSON of another form"),
        ("{}", "JSON of another form (KeyError: 'cells')"),
        ('{"cells": [{"source": 3}]}', "JSON of another form"),
        ('{"worksheets": []}', "before 2015; open it in Jupyter and save it"),
        ("[" * 100_000, "JSON of another form (RecursionError"),
    ],
)
def test_what_is_no_notebook_is_said_to_be_none(content, said):
    with pytest.raises(ValueError) as refused:
        grade.read_notebook(content if isinstance(content, bytes) else content.encode())
    assert said in str(refused.value)


NOTEBOOK = b'{"cells": [{"cell_type": "code", "source": ["x = ", "1"]}]}'


def packed(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_a_notebook_is_read_from_a_file_or_from_a_zip_file(tmp_path):
    plain = tmp_path / "x.ipynb"
    plain.write_bytes(b"\xef\xbb\xbf" + NOTEBOOK)  # a byte order mark, as some editors write
    left = {"lora.ipynb": NOTEBOOK, "tests/a.py": b"", "__MACOSX/._lora.ipynb": b"\0"}
    for path in (plain, packed(tmp_path / "x.zip", left)):
        [cell] = grade.read_notebook(grade.content_of(path))["cells"]
        assert cell["source"] == "x = 1"


def test_what_is_not_read_is_told(tmp_path, monkeypatch):
    (tmp_path / "empty").touch()
    (tmp_path / "torn.zip").write_bytes(b"PK\x03\x04 and no more")
    packed(tmp_path / "two.zip", {"a.ipynb": NOTEBOOK, "b.ipynb": NOTEBOOK})
    packed(tmp_path / "none.zip", {"a.py": b""})
    packed(tmp_path / "bomb.zip", {"a.ipynb": b"0" * 2**21})
    (tmp_path / "large").write_bytes(b"0" * 2**21)
    (tmp_path / "link").symlink_to(tmp_path / "two.zip")
    monkeypatch.setattr(grade, "LARGEST", 2**20)
    told = {
        "empty": "an empty file",
        "torn.zip": "a zip file that cannot be read",
        "two.zip": "a zip file with 2 notebooks, expected one",
        "none.zip": "a zip file with 0 notebooks",
        "bomb.zip": "larger than 1 MB",
        "large": "larger than 1 MB",
        "link": "a link to another file",
    }
    for name, said in told.items():
        with pytest.raises(ValueError, match=said):
            grade.content_of(tmp_path / name)


def test_no_submission_hides_another(tmp_path):
    for name in ("a", "a.ipynb", "b.ipynb", ".DS_Store", "__MACOSX/b.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert list(grade.find_submissions(tmp_path)) == ["a", "a.ipynb", "b", "gone"]


def test_each_submission_has_a_page_of_its_own():
    names = ["ann/lora", "ann_lora", "Ben", "ben", "plain", "小" * 80, "\udcff"]
    pages = grade.page_names(names)
    assert len({page.casefold() for page in pages.values()}) == len(names)
    assert pages["plain"] == "plain" and max(len(page.encode()) for page in pages.values()) < 250


@pytest.mark.parametrize(
    "metadata, language",
    [
        ({}, "python"),
        ({"kernelspec": {"name": "ir", "language": "R"}}, "r"),
        ({"kernelspec": {"name": "python3"}, "language_info": {"name": "python"}}, "python"),
        ({"kernelspec": 3, "language_info": {"name": "julia"}}, "julia"),
        (None, "python"),
    ],
)
def test_the_language_of_a_notebook_is_read(metadata, language):
    assert grade.language_of({"metadata": metadata}) == language


def test_the_library_used_for_what_was_to_be_written_is_told():
    cells = [{"cell_type": "code", "source": "from pedagogic_peft import LoRA, train"}]
    assert grade.reserved_names(cells, ["pedagogic_peft.LoRA", "peft"]) == ["pedagogic_peft.LoRA"]


ONE_TEST = """
from otter.test_files import test_case

OK_FORMAT = False
name = "q"
points = 1


@test_case(points=1, hidden=False)
def test_q(look):
    look()
"""


@pytest.mark.parametrize(
    "error, hint",
    [
        (AssertionError("'q' and 'v'"), "'q' and 'v'"),
        (
            grade.StudentError("AttributeError: 'Tiny' object has no attribute 'A'"),
            "your code raised AttributeError: 'Tiny' object has no attribute 'A'",
        ),
        (
            AttributeError("'bool' object has no attribute 'shape'"),
            "the answer could not be judged (AttributeError): 'bool' object has no attribute 'shape'",
        ),
        (
            grade.StudentError("TypeError: 'NoneType' object is not callable"),
            "your code gave no value here: is something still to be written, or is a `return` missing? "
            "(TypeError: 'NoneType' object is not callable)",
        ),
        (grade.Stopped("stopped: it ran longer than 9 s"), "stopped: it ran longer than 9 s"),
    ],
)
def test_a_hint_is_whole(error, hint):
    def look():
        raise error

    # otter cuts quotes off both ends of a message
    question = {"name": "q", "points": 1, "manual": False}
    package = grade.Package("a", "A", [question], [], {"q": ONE_TEST})
    assert list(grade.run_tests(package, look)) == [("q", 0, [hint])]
