"""What a page may say: verdicts that are computed, numbers that were printed, no refutation of another size.

CHAPTERS names the folder to judge; the default is the book's own chapters.
"""

import ast
import json
import os
import re
from functools import cache
from pathlib import Path

import pytest

CHAPTERS = Path(os.environ.get("CHAPTERS") or Path(__file__).parents[2] / "chapters").resolve()
NOTEBOOKS = [p for p in sorted(CHAPTERS.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]

WORDS = ("agrees", "disagrees", "undecided", "cannot be tested here")
TYPED = re.compile(r"\|\s*(agrees\??|verdicts?|holds\??|confirmed\??|true\?)\s*\|", re.IGNORECASE)
HAND_MADE = {"Verdict", "Difference", "AGREES", "DISAGREES", "UNDECIDED", "CANNOT_BE_TESTED"}
NUMBER = re.compile(r"(?<![\w.,–/-])(\d+(?:,\d{3})*(?:\.\d+)?)(?!\w|[.,]\d)")
SCORES = {"test", "val", "val_loss", "accuracy", "kept", "loss"}  # of a stored run
SCORERS = {"word_accuracy", "loss_per_token", "exact_match", "style_accuracy", "scores", "gain"}
JUDGED = {"paired", "interval", "verdict"}  # what has become a difference with its interval
PRINTED = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
FEWEST_SEEDS = (
    3  # of a number; which of two is better needs five, and `evidence.verdict` sees to it
)
COUNTED = 12  # whole numbers up to this are counts, exercises and pages
SCALES = (1, 100, 1e-2, 1e-3, 1e-6, 1e-9)  # per cent, and thousands, millions, billions


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: str(path.relative_to(CHAPTERS)))
def path(request) -> Path:
    return request.param


@pytest.fixture
def cells(path) -> list[dict]:
    return cells_of(path)


@cache
def cells_of(path: Path) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells]


def code_of(cells: list[dict]):
    """Yield (cell, its syntax tree); magics are left out."""
    for cell in cells:
        if cell["cell_type"] == "code":
            lines = [line for line in cell["source"].split("\n") if line.lstrip()[:1] not in "%!"]
            try:
                yield cell, ast.parse("\n".join(lines))
            except SyntaxError:
                continue  # the first cell, whose only statement in a block is a magic


def texts_of(cell: dict) -> str:
    """Return all text that a cell printed."""
    texts = []
    for output in cell.get("outputs", []):
        texts.append("".join(output.get("text", "")))
        data = output.get("data", {})
        texts += ["".join(data[mime]) for mime in data if mime.startswith("text/")]
    return "\n".join(texts)


def test_no_verdict_is_typed(cells):
    for cell in cells:
        text = cell["source"]
        if cell["cell_type"] == "markdown":
            found = TYPED.search(text)
            assert not found, f"{found.group()!r} in Markdown: a cell computes it by claims_table"
    for cell, tree in code_of(cells):
        if cell["metadata"].get("library"):
            continue  # shows the library's own code
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                typed = TYPED.search(node.value) or node.value.strip().lower() in WORDS
                assert not typed, f"{node.value[:70]!r} is typed: use evidence.claims_table"
            name = getattr(node, "id", getattr(node, "attr", None))
            assert name not in HAND_MADE, f"{name}: a verdict is made by verdict, holds or together"
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("holds", "verdict"):
                inside = [n for argument in node.args[:1] for n in ast.walk(argument)]
                measured = any(isinstance(n, ast.Name) for n in inside)
                assert measured, f"{ast.unparse(node)} depends on no measurement"


def test_no_difference_of_fewer_than_three_seeds_is_asked_for(cells):
    """Nor one whose least number of seeds is computed, for it follows whatever is there."""
    for cell, tree in code_of(cells):
        if cell["metadata"].get("library"):
            continue
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if name_of(call) == "paired":
                fewest = [k.value for k in call.keywords if k.arg == "fewest"] + call.args[3:4]
                assert all(
                    isinstance(f, ast.Constant) and f.value >= FEWEST_SEEDS for f in fewest
                ), f"{ast.unparse(call)}: fewest is a number, at least {FEWEST_SEEDS}"


def test_an_order_of_scores_is_not_judged_as_an_exact_thing(cells):
    """`holds` is for counts and equal tensors: which score is higher needs five seeds and an interval."""
    for _, tree in code_of(cells):
        scores = names_of_scores(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and name_of(node) == "holds":
                for order in (n for n in ast.walk(node) if isinstance(n, ast.Compare)):
                    ordered = any(
                        isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE) for op in order.ops
                    )
                    assert not (ordered and is_score(order, scores)), (
                        f"{ast.unparse(node)}: judge an order of scores by verdict(paired(...))"
                    )


def name_of(call: ast.Call) -> str | None:
    return getattr(call.func, "id", getattr(call.func, "attr", None))


def names_of_scores(tree: ast.AST) -> set[str]:
    """Return the names to which a cell gives scores of a training."""
    found: set[str] = set()
    assigned = [
        n for n in ast.walk(tree) if isinstance(n, ast.Assign | ast.AnnAssign | ast.AugAssign)
    ]
    for _ in assigned:  # as often as one may hang on another
        for node in assigned:
            if node.value is not None and is_score(node.value, found):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return found


def is_score(node: ast.AST, names: set[str]) -> bool:
    """Tell whether an expression holds a score that no interval stands behind."""
    if isinstance(node, ast.Call) and name_of(node) in JUDGED | SCORERS:
        return name_of(node) in SCORERS
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        if node.slice.value in SCORES:
            return True
    if isinstance(node, ast.Name):
        return node.id in names
    return any(is_score(child, names) for child in ast.iter_child_nodes(node))


def test_no_paper_is_refuted_under_other_conditions(cells):
    """A row with a citation disagrees only where the cell says why the paper's conditions are met."""
    for cell in cells:
        if cell["cell_type"] == "code" and not cell["metadata"].get("conditions"):
            for line in texts_of(cell).split("\n"):
                refuted = "{cite" in line and line.rstrip().endswith("| disagrees |")
                assert not refuted, (
                    f"{line[:90]!r}: another model, data or budget (elsewhere=True), or metadata "
                    '{"conditions": "why they are the paper\'s"}'
                )


def test_every_number_in_prose_was_printed_or_is_cited(path, cells):
    known = numbers_of(path)
    for cell in cells:
        if cell["cell_type"] != "markdown":
            continue
        for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[*-]|\d+\.) )", cell["source"]):
            if re.search(r"\{cite|\]\(http|^\*\*Time\*\*", paragraph):
                continue  # who says so is named, or it is the time to read the page
            if "?" in prose(paragraph):
                continue  # what a question gives is no claim
            if paragraph.lstrip().startswith("|") and "{cite" in cell["source"]:
                continue  # a table of figures whose source stands beside it
            here = known.union(*(numbers_of(page) for page in linked(path, paragraph)))
            for text in NUMBER.findall(prose(paragraph)):
                assert is_known(text, here), (
                    f"{text} in {paragraph.strip()[:110]!r}: no cell prints it, nothing is cited"
                )


def prose(text: str) -> str:
    """Return a paragraph without formulas, code and addresses, where a number is no claim."""
    for left_out in (r"\$\$.*?\$\$", r"\$[^$]*\$", r"`[^`]*`", r"https?://\S+", r"<[^>]*>"):
        text = re.sub(left_out, "", text, flags=re.DOTALL)
    return text


def linked(path: Path, paragraph: str) -> list[Path]:
    """Return the other notebooks that a paragraph names: their numbers are known too."""
    found = []
    for target in re.findall(r"\{doc\}`(?:[^`<]*<)?([^`>]+)>?`", paragraph):
        page = CHAPTERS.parent / target.strip("/") if target[0] == "/" else path.parent / target
        found.append(page.resolve().with_suffix(".ipynb"))
    return [page for page in found if page.is_file()]


@cache
def numbers_of(path: Path) -> frozenset[float]:
    """Return every number in a page's code and in what it printed."""
    text = "\n".join(
        cell["source"] + "\n" + texts_of(cell)
        for cell in cells_of(path)
        if cell["cell_type"] == "code"
    )
    found = {match.replace(",", "") for match in PRINTED.findall(text)}
    return frozenset(float(number) for number in found if len(number) < 20)


def is_known(text: str, known: frozenset[float]) -> bool:
    """Tell whether a printed number rounds to this one, as it is or in per cent, thousands, ..."""
    value = float(text.replace(",", ""))
    decimals = len(text.partition(".")[2])
    if (value <= COUNTED and not decimals) or re.fullmatch(r"(19|20)\d\d", text):
        return True
    reach = 0.5 * 10**-decimals * 1.001
    return any(abs(number * scale - value) <= reach for number in known for scale in SCALES)
