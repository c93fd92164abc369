"""The rules of the house that no linter knows."""

import ast
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_LINES = 300
MOST_LINES_OF_TESTS = 500
"""A file of tests is a list of facts: nobody needs to keep all of it in mind at once."""
LONG_FILES: dict[str, str] = {}
"""Path to the reason why the file may be longer."""

MOST_LINES_OF_A_FUNCTION = 40
LONG_FUNCTIONS = {"preemptd/cli/watch.py:watch": "typer's way: a parameter for each option, and nothing else"}
"""path:name to the reason why the function may be longer."""

# Where somebody's machine keeps things; such a path in a message or a default works there and nowhere else.
OF_A_MACHINE = re.compile(r"(?<![\w.}>])/(?:home|root|work|opt|Users)\b")
INVENTED = ("/home/bash/",)
"""Paths that stand in tests for what users may have: here one whose name is a shell's."""


def files(*suffixes: str) -> Iterator[Path]:
    for top in ("preemptd", "providers", "tests", "docs", "systemd", ".ci"):
        for path in sorted((ROOT / top).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and (not suffixes or path.suffix in suffixes):
                yield path
    yield from (
        path for path in sorted(ROOT.iterdir()) if path.is_file() and path.suffix in (suffixes or {".md", ".toml"})
    )


def production() -> Iterator[Path]:
    return (path for path in files(".py") if path.relative_to(ROOT).parts[0] in {"preemptd", "providers"})


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def lines_allowed(name: str) -> int:
    return MOST_LINES_OF_TESTS if name.startswith("tests/") else MOST_LINES


def test_no_file_is_longer_than_one_can_read_in_a_sitting() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in files(".py")}
    long = {name: n for name, n in lengths.items() if n > lines_allowed(name)}

    assert {name: n for name, n in long.items() if name not in LONG_FILES} == {}
    assert LONG_FILES.keys() <= long.keys(), "an exception that is none any more"


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            yield f"{name_of(path)}:{node.name}", node.end_lineno - node.lineno + 1


def test_no_function_is_longer_than_a_screen() -> None:
    lengths = {name: n for path in production() for name, n in functions(path)}
    long = {name: n for name, n in lengths.items() if n > MOST_LINES_OF_A_FUNCTION}

    assert {name: n for name, n in long.items() if name not in LONG_FUNCTIONS} == {}
    assert LONG_FUNCTIONS.keys() <= long.keys(), "an exception that is none any more"


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in files()
        if path.name != "LICENSE"
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if OF_A_MACHINE.search(line) and not any(path in line for path in INVENTED)
    ]

    assert found == []


def test_the_providers_folder_is_not_imported_as_a_package() -> None:
    """It would give every class a second identity; ruff sees the import statement, this sees strings as well."""
    through_folder = re.compile(r"\bproviders\.preemptd_providers\b|^\s*(?:from|import) providers\b", re.MULTILINE)

    assert [
        name_of(path) for path in files(".py") if path != Path(__file__) and through_folder.search(path.read_text())
    ] == []


def test_the_changelog_tells_of_the_version_in_pyproject() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert version in headings or headings[:1] == ["Unreleased"]


def test_the_layers_hold() -> None:
    lint_imports = Path(sysconfig.get_path("scripts")) / "lint-imports"
    if not lint_imports.exists():
        pytest.skip("needs import-linter: make test installs it (GROUP=dev)")
    run = subprocess.run([str(lint_imports), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stdout + run.stderr


def test_importing_the_client_costs_the_trainer_nothing_but_the_standard_library() -> None:
    code = "import sys; import preemptd; print(*sorted({n.partition('.')[0] for n in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert not {"pydantic", "psutil", "requests", "typer", "wandb"} & set(run.stdout.split())
