"""Each launcher with each way to listen, real programs: every rank saves, is told once, and nobody else is touched."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import launcher_table
from tests.lab.launchers import CELLS, LAUNCHERS, LISTENERS, QUICK, Launcher, Place, check, play

Find = Callable[[str], str]


def names(cells: tuple[tuple[Launcher, str], ...]) -> list[str]:
    return [f"{launcher.name}-{listener}" for launcher, listener in cells]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("launcher", "listener"), QUICK, ids=names(QUICK))
def test_every_rank_saves_is_told_once_and_nobody_else_is_touched(
    torch_python: str, lab_tool: Find, tmp_path: Path, launcher: Launcher, listener: str
) -> None:
    place = Place(tmp_path, torch_python, lab_tool)

    check(launcher, listener, play(launcher, listener, place))


@pytest.mark.soak
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("launcher", "listener"), CELLS, ids=names(CELLS))
def test_the_whole_matrix(torch_python: str, lab_tool: Find, tmp_path: Path, launcher: Launcher, listener: str) -> None:
    place = Place(tmp_path, torch_python, lab_tool)

    check(launcher, listener, play(launcher, listener, place))


def test_the_quick_part_touches_every_row_and_every_column() -> None:
    assert {launcher.name for launcher, _ in QUICK} == {launcher.name for launcher in LAUNCHERS}
    assert {listener for _, listener in QUICK} == set(LISTENERS)


def test_the_page_shows_the_whole_matrix_as_it_was_played() -> None:
    found = launcher_table.TABLE.search(launcher_table.PAGE.read_text())
    assert found is not None
    rows = [line.strip("| ").split(" | ") for line in found[2].splitlines() if line.startswith("|")][2:]

    assert [row[0] for row in rows] == [launcher_table.cell(launcher.name) for launcher in LAUNCHERS]
    for launcher, row in zip(LAUNCHERS, rows, strict=True):
        assert row[-3:] == [f"{launcher.ranks}/{launcher.ranks}"] * 3
    assert re.search(r"Played on \d{4}-\d\d-\d\d with .*torch \d", found[2])
