"""The wings of the package and who may import whom: core <- methods <- files <- training <- course.

An import inside a function is an import. Outside stand the two that use everything, the package's own
``__init__`` and ``testing``.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "pedagogic_peft"
WINGS = ("core", "methods", "files", "training", "course")
OUTSIDE = ("__init__", "testing")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / PACKAGE).rglob("*.py")
}


def imports_of(module: str) -> set[str]:
    """Return the modules of the package that a module imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            name = node.module or ""
            found |= {
                f"{name}.{a.name}" if f"{name}.{a.name}" in MODULES else name for a in node.names
            }
    return {name for name in found if name.split(".")[0] == PACKAGE}


def wing_of(module: str) -> str:
    """Return the wing, or what stands outside, that a module belongs to."""
    return [*module.split("."), "__init__"][1]


IMPORTS = {module: imports_of(module) for module in MODULES}


def test_every_module_is_in_a_wing():
    assert {wing_of(module) for module in MODULES} <= {*WINGS, *OUTSIDE}


@pytest.mark.parametrize("wing", WINGS)
def test_no_arrow_points_up(wing):
    allowed = WINGS[: WINGS.index(wing) + 1]
    up = {
        (module, name)
        for module, names in IMPORTS.items()
        for name in names
        if wing_of(module) == wing and wing_of(name) not in allowed
    }
    # The courseware is for readers, and imports what they do.
    assert not {(m, n) for m, n in up if not (wing == "course" and n == PACKAGE)}


def test_only_the_package_itself_uses_the_courseware():
    users = {m for m, names in IMPORTS.items() if any(wing_of(name) == "course" for name in names)}
    assert {wing_of(module) for module in users} <= {"course", "__init__"}


def test_there_is_no_circle():
    left = {
        module: set(names) & MODULES.keys() - {PACKAGE, module} for module, names in IMPORTS.items()
    }
    while free := {module for module, names in left.items() if not names}:
        left = {module: names - free for module, names in left.items() if module not in free}
    assert not left


@pytest.mark.parametrize("wing", WINGS)
def test_a_folder_says_what_lives_there_and_who_may_import_it(wing):
    doc = (
        ast.get_docstring(ast.parse(MODULES[f"{PACKAGE}.{wing}"].read_text(encoding="utf-8"))) or ""
    )
    assert 2 <= len(doc.splitlines()) <= 4 and "use" in doc.lower()
