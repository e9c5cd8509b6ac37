"""Sphinx extension: code that only imports, draws or fills a table is folded, under a name that says so.

What stays open is the reader's path: formulas as code, classes, training, results. A cell is judged by its
statements, so a new page needs nothing; a cell that should be folded for another reason says so itself (tag
``hide-input`` and ``mystnb: code_prompt_show``). In the notebook nothing changes.
"""

import ast
import json
import re

NAMES = {
    "setup": "the imports and the set-up",
    "figure": "the code of this figure",
    "script": "the script of the figure that moves",
    "table": "how this table is computed",
    "code": "the code",
}
DRAWS = {"plt", "ax", "axes", "fig"}
MAGIC = re.compile(r"^(\s*)[%!].*$", re.MULTILINE)


def kind_of(source: str) -> str | None:
    """What a cell does besides the page's subject: a key of NAMES, or None where it is the subject."""
    body = ast.parse(MAGIC.sub(r"\1pass", source)).body
    if any(is_script(node) for node in body):
        return "script"
    if "claims_table" in {name for node in body for name in called(node)}:
        return "table"
    for kind, test in (("setup", sets_up), ("figure", draws)):
        lines = [node.end_lineno - node.lineno + 1 for node in body if test(node)]
        if 2 * sum(lines) > sum(node.end_lineno - node.lineno + 1 for node in body):
            return kind
    return "figure" if body and all(sets_up(node) or draws(node) for node in body) else None


def sets_up(node: ast.stmt) -> bool:
    """An import, also one that is tried, or the call of something whose name says that it prepares."""
    if isinstance(node, ast.Try):
        return sets_up(node.body[0])
    return isinstance(node, ast.Import | ast.ImportFrom) or "use_style" in called(node)


def draws(node: ast.stmt) -> bool:
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return bool(names & DRAWS) or any(
        name.endswith(("explorable", "drawing", "alive")) for name in called(node)
    )


def is_script(node: ast.stmt) -> bool:
    """JavaScript or TeX in a string of several lines."""
    texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
    return isinstance(node, ast.Assign | ast.AugAssign) and any(
        isinstance(text, str) and text.count("\n") > 2 and re.search(r"\bconst |\\begin\{", text)
        for text in texts
    )


def called(node: ast.AST) -> list[str]:
    """The names of the functions that are called anywhere in a statement."""
    calls = [part.func for part in ast.walk(node) if isinstance(part, ast.Call)]
    return [getattr(call, "id", getattr(call, "attr", "")) for call in calls]


def fold(cells: list[dict]) -> list[dict]:
    """Mark the cells to fold; set-up, or a script, becomes one fold with that before it."""
    kept: list[dict] = []
    for cell in cells:
        kind = kind_to_fold(cell)
        before = kept[-1] if kept else {}
        if kind in ("setup", "script") and before.get("kind") == kind and not before["outputs"]:
            joined = "".join(before["source"]) + "\n\n" + "".join(cell["source"])
            kept[-1] = cell = {**cell, "source": joined}
        else:
            kept.append(cell)
        if kind:
            cell["kind"] = kind
            mark(cell["metadata"], NAMES[kind])
    return [{key: value for key, value in cell.items() if key != "kind"} for cell in kept]


def kind_to_fold(cell: dict) -> str | None:
    tags = cell["metadata"].get("tags", [])
    if cell["cell_type"] != "code" or "solution" in tags or "library" in cell["metadata"]:
        return "code" if "hide-input" in tags and "solution" not in tags else None
    return kind_of("".join(cell["source"])) or ("code" if "hide-input" in tags else None)


def mark(metadata: dict, name: str) -> None:
    metadata["tags"] = [
        *metadata.get("tags", []),
        *({"hide-input"} - set(metadata.get("tags", []))),
    ]
    words = {"code_prompt_show": f"Show {name}", "code_prompt_hide": f"Hide {name}"}
    metadata["mystnb"] = metadata.get("mystnb", {}) | words


def fold_page(app, page: str, source: list[str]) -> None:
    if page.startswith("chapters/"):
        notebook = json.loads(source[0])
        notebook["cells"] = fold(notebook["cells"])
        source[0] = json.dumps(notebook)


def setup(app) -> dict:
    app.connect("source-read", fold_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
