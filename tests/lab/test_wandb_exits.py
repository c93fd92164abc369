"""The exit matrix: however a told script ends, the server ends with its run marked and a code that is not 0.

Each way to end, with three versions of wandb, five ways to hear of the notice, and both policies for exit 0. The suite
plays every way once, and so every version, style and pair of both; `make soak` plays the whole.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.conftest import WandbPythons
from tests.lab import ending_table
from tests.lab.wandb_ending import CODE, WAYS
from tests.lab.wandb_exits import POLICIES, STYLES, Exit, play
from tests.lab.wandb_watching import VERSIONS, patient

pytestmark = patient
ROWS = tuple(WAYS)


def _chosen(row: int) -> Exit:
    """Choose the cell that the suite plays of a row: 3 and 5 have no common divisor, so 15 rows play each pair."""
    policy = POLICIES[row % 4 == 1]
    return Exit(ROWS[row], VERSIONS[row % len(VERSIONS)], STYLES[row % len(STYLES)], policy)


def _matrix() -> pytest.MarkDecorator:
    chosen = {_chosen(row) for row in range(len(ROWS))}
    cells = [
        Exit(way, version, style, policy)
        for way in ROWS
        for version in VERSIONS
        for style in STYLES
        for policy in POLICIES
    ]
    marks = [() if cell in chosen else pytest.mark.soak for cell in cells]
    params = [pytest.param(cell, marks=mark, id=cell.name) for cell, mark in zip(cells, marks, strict=True)]
    return pytest.mark.parametrize("cell", params)


@_matrix()
def test_the_server_hears_of_a_preemption_unless_exit_0_is_said_to_mean_done(
    tmp_path: Path, wandb_pythons: WandbPythons, cell: Exit, record_property: Callable[[str, object], None]
) -> None:
    played = play(cell, wandb_pythons[cell.version], tmp_path)
    record_property(ending_table.PROPERTY, json.dumps({**asdict(cell), **asdict(played)}))

    if cell.counts_as_done:
        assert (played.status, played.codes, played.repairs) == (0, cell.reported, []), played.text
    else:
        # A client may have been in time to report it from inside, in the place of 0.
        inside = cell.style == "client" and cell.reported == [0] and played.codes == [CODE]
        repaired = not any(cell.reported) and not inside
        codes = [CODE] if inside else [*cell.reported, CODE] if repaired else cell.reported
        ((how, done),) = played.repairs
        assert (played.status, played.codes) == (75, codes), played.text
        assert done, played.text
        assert how in (("api", "http") if repaired else ("nothing",))  # by requests on a machine that is too slow
    assert played.marked_first
    assert (played.rate, played.unknown) == (0.1, [])
    assert played.rows == 3 or WAYS[cell.way] is None  # what a killed wandb-core had not sent is lost


def test_the_page_shows_every_way_and_none_that_failed() -> None:
    found = ending_table.TABLE.search(ending_table.PAGE.read_text())
    assert found is not None
    rows = [line.strip("| ").split(" | ") for line in found[2].splitlines() if line.startswith("| ")][2:]

    assert [row[0] for row in rows] == [ending_table.IN_WORDS[way] for way in WAYS]
    assert "FAILED" not in found[2]
