"""The book as source: all pages listed, addresses where we say, a README that runs."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SKIPPED = {".git", ".venv", ".colab", "_build", "__pycache__"}


def files_of(*suffixes: str) -> list[Path]:
    found = (Path(folder) / name for folder, _, names in walk() for name in names)
    return sorted(path for path in found if path.suffix in suffixes)


def walk():
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [f for f in folders if f not in SKIPPED and not f.endswith(".egg-info")]
        yield folder, folders, names


def entries_of_contents() -> set[str]:
    def of(node):
        if isinstance(node, dict):
            yield from (node[key] for key in ("root", "file") if key in node)
            for value in node.values():
                yield from of(value)
        elif isinstance(node, list):
            for value in node:
                yield from of(value)

    return set(of(yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))))


def test_every_page_is_in_the_contents():
    pages = [
        p for p in files_of(".ipynb", ".md") if p.relative_to(ROOT).parts[0] in ("chapters", "book")
    ]
    names = {str(page.relative_to(ROOT).with_suffix("")) for page in pages}
    assert names == entries_of_contents()


def load_tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "book" / "tools" / f"{name}.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def test_every_file_names_the_address_in_the_configuration():
    tool = load_tool("address")
    repository, site = tool.addresses()
    # Of any owner, by the book's first name or by its present one.
    names = "|".join({"pedagogic-peft", re.escape(repository.rpartition("/")[2])})
    ours = re.compile(rf"https?://(?:github\.com/[\w-]+|[\w-]+\.github\.io)/(?:{names})(?![\w-])")
    named = 0
    for path in tool.files():
        for found in ours.findall(path.read_text(encoding="utf-8")):
            named += 1
            assert found in (repository, site), f"{path.relative_to(ROOT)}: {found}"
    assert named > 5


def test_the_book_moves_to_another_address_by_one_command(tmp_path):
    tool = load_tool("address")
    repository, site = tool.addresses()
    (tmp_path / "chapters").mkdir()
    shutil.copy(ROOT / "_config.yml", tmp_path)
    page = tmp_path / "chapters" / "page.ipynb"
    page.write_text(f'{{"source": "git+{repository}@v1", "read": "{site}/book/index.html"}}')
    changed = tool.move(
        ("https://github.com/me/our-book", "https://me.github.io/our-book"), tmp_path
    )
    assert {path.name for path in changed} == {"_config.yml", "page.ipynb"}
    assert tool.addresses(tmp_path) == (
        "https://github.com/me/our-book",
        "https://me.github.io/our-book",
    )
    assert json.loads(page.read_text()) == {
        "source": "git+https://github.com/me/our-book@v1",
        "read": "https://me.github.io/our-book/book/index.html",
    }


def test_the_pages_can_install_from_pypi_by_name_and_from_git_again(tmp_path):
    tool = load_tool("address")
    repository, _ = tool.addresses()
    shutil.copy(ROOT / "_config.yml", tmp_path)
    for path in [*tool.files()]:
        if path.suffix in (".ipynb", ".md") and "pip install" in path.read_text(encoding="utf-8"):
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    before = {path: path.read_text() for path in tool.files(tmp_path)}
    page = tmp_path / "chapters" / "06_practice" / "scaling_out.ipynb"
    assert f"notebooks,hub,quantised] @ git+{repository}" in page.read_text()
    tool.install_from("pypi", tmp_path)
    assert r"%pip install -q \"pedagogic-peft[notebooks,hub,quantised]\"" in page.read_text()
    clones = f"git+{repository}"
    assert not [path for path in before if clones in path.read_text()]
    tool.install_from("git", tmp_path)
    assert {path: path.read_text() for path in before} == before


def test_a_placeholder_for_an_address_is_refused_with_the_command_that_helps(tmp_path):
    tool = load_tool("address")
    shutil.copy(ROOT / "_config.yml", tmp_path)
    # Not written out: `make address` would replace it here too.
    tool.move((f"{tool.PLACEHOLDER}book", "https://example.github.io/x"), tmp_path)
    with pytest.raises(SystemExit, match="make address REPOSITORY=https://github.com/OWNER/NAME"):
        tool.check(tmp_path)
    tool.move(("https://github.com/me/our-book", "https://me.github.io/our-book"), tmp_path)
    tool.check(tmp_path)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("publish", "release"):
        assert re.search(rf"^{target}: check-address", makefile, re.MULTILINE)


def test_every_file_of_the_package_would_be_in_the_wheel():
    """Of what setuptools takes: `make release` looks into the wheel itself."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = ["**/*.py", *project["tool"]["setuptools"]["package-data"]["pedagogic_peft"]]
    package = ROOT / "pedagogic_peft"
    taken = {path for pattern in patterns for path in package.glob(pattern)}
    listed = ["git", "ls-files", "pedagogic_peft"]
    known = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {name for name in known.split() if ROOT / name not in taken}


@pytest.mark.parametrize(
    "given",
    [
        ["REPOSITORY=https://github.com/a/b", "SITE_ADDRESS=https://a.github.io/b/"],
        ["INSTALL=pypi"],
        ["INSTALL=git"],
    ],
)
def test_make_hands_on_what_the_address_is(given):
    command = ["make", "-n", "-o", str(ROOT / ".venv" / ".installed"), "address", *given]
    quiet = {"PATH": os.environ["PATH"]}  # nothing of a make that runs this test
    shown = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    words = shown.stdout.split("book/tools/address.py", 1)[1].split()
    assert words == [each.partition("=")[2] for each in given]


def test_a_repositorys_address_is_written_without_its_ending():
    """Colab, and the links to files, want it so."""
    given = ["https://github.com/me/our-book.git", "https://me.github.io/our-book/"]
    assert load_tool("address").bare(given) == (given[0][:-4], given[1][:-1])


def test_no_file_names_a_folder_of_one_machine():
    machine = re.compile(r"/(?:root|tmp|work|Users)/\w|/home/\w")
    for path in files_of(".py", ".md", ".yml", ".toml", ".txt", ".cff", ".json", ".cfg"):
        if path.name not in ("test_notebooks.py", "test_gate_checks.py", "test_book.py"):
            found = machine.search(path.read_text(encoding="utf-8"))
            assert not found, f"{path.relative_to(ROOT)}: {found.group()}"


def test_constraints_pin_public_versions():
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line


def test_colab_gets_no_ipywidgets():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in project["dependencies"] + project["optional-dependencies"]["notebooks"]:
        assert "ipywidgets" not in requirement and "==" not in requirement, requirement


def test_importing_the_library_draws_in_no_notebook_tools():
    late = "matplotlib", "ipywidgets", "IPython", "transformers", "accelerate", "peft"
    code = f"import sys, pedagogic_peft; print([m for m in {late} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_readme_python_block_runs(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 1
    ran = subprocess.run(
        [sys.executable, "-c", blocks[0]], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "my-lora" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    "name", ["LICENSE", "LICENSE-TEXT", "CITATION.cff", "book/_static/page.png"]
)
def test_what_the_readme_shows_exists(name):
    assert name in (ROOT / "README.md").read_text(encoding="utf-8")
    assert (ROOT / name).stat().st_size < 300_000


def test_every_module_of_the_library_has_an_entry_in_the_reference():
    pages = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "book" / "api").glob("*.md"))
    directive = r"\.\. (?:automodule|currentmodule|autofunction|autoclass):: (pedagogic_peft[\w.]+)"
    named = set(re.findall(directive, pages))
    for wing in ("core", "methods", "files", "training"):
        for path in (ROOT / "pedagogic_peft" / wing).glob("[!_]*.py"):
            assert f"pedagogic_peft.{wing}.{path.stem}" in named, f"{path.name} has no entry"


def test_every_method_has_an_entry_and_a_row_in_the_reference():
    from pedagogic_peft.core.method import Method

    pages = {p.stem: p.read_text(encoding="utf-8") for p in (ROOT / "book" / "api").glob("*.md")}
    for kind in Method.KINDS.values():
        if kind.__module__.startswith("pedagogic_peft."):
            module, name = kind.__module__, kind.__name__
            assert re.search(
                rf"automodule:: {module}\n +:members: .*\b{name}\b", "".join(pages.values())
            )
            assert f"{module}.{name}`" in pages["index"], name


def test_what_the_landing_page_says_was_measured_is_printed_by_the_page_it_links():
    text = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    lines = re.search(r":::\{div\} results\n(.*?)\n:::", text, re.DOTALL).group(1).split("\n* ")
    assert len(lines) == 3
    for line in lines:
        said, link, measured = re.fullmatch(r"(.*?\()(\S+\.ipynb)(\).*)", line, re.DOTALL).groups()
        cells = json.loads((ROOT / "book" / link).read_text(encoding="utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        printed = "".join(
            "".join(output.get("text", output.get("data", {}).get("text/markdown", "")))
            for output in outputs
        )
        numbers = re.findall(r"[+-]?\d[\d,.]*\d|\b\d\b", re.sub(r"GPT-3|7B", "", said + measured))
        assert numbers and all(number in printed for number in numbers), (line, numbers)
