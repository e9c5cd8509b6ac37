"""One version: `pedagogic_peft.__version__`. The package and what cites it say the same."""

import ast
import re
import tomllib
from pathlib import Path

import yaml

import pedagogic_peft

ROOT = Path(__file__).parents[2]
VERSION = pedagogic_peft.__version__


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_package_takes_its_version_from_the_library():
    project = tomllib.loads(text_of("pyproject.toml"))
    assert "version" not in project["project"] and "version" in project["project"]["dynamic"]
    attribute = project["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert attribute == "pedagogic_peft.__version__"


def test_the_version_is_a_literal_that_a_build_reads_without_importing():
    """Setuptools would otherwise import the library, and with it torch, to build it."""
    values = [
        ast.literal_eval(node.value)
        for node in ast.parse(text_of("pedagogic_peft/__init__.py")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    assert values == [VERSION]
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)


def test_the_citation_names_this_version():
    assert yaml.safe_load(text_of("CITATION.cff"))["version"] == VERSION


def test_the_newest_release_of_the_changelog_is_this_version():
    headings = re.findall(r"^## \[([^]]+)\]", text_of("CHANGELOG.md"), re.MULTILINE)
    assert headings[:2] == ["Unreleased", VERSION]
