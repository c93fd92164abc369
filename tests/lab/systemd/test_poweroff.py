"""A shutdown of the host, with trainings everywhere: one boot, one power-off, read afterwards."""

import re
from collections.abc import Iterator

import pytest

from tests.lab.systemd import shutdown_table
from tests.lab.systemd.booted import OUT, Machine, booted
from tests.lab.systemd.trainings import said

pytestmark = [pytest.mark.xdist_group("systemd-poweroff"), pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def gone(needs_systemd: None) -> Iterator[Machine]:  # noqa: ARG001 - its checks
    """Yield a machine that was powered off."""
    with booted() as machine:
        machine.install()
        shutdown_table.start(machine)
        machine.power_off()
        yield machine


def test_what_is_saved_is_what_the_documentation_says(gone: Machine) -> None:
    documented = re.search(shutdown_table.TABLE, shutdown_table.PAGE.read_text())

    assert documented is not None
    assert shutdown_table.table(gone) in documented[0]


def test_who_is_told_hears_it_from_logind_before_systemd_stops_anything(gone: Machine) -> None:
    notices = [line for line in gone.lines(f"{OUT}/state/journal.jsonl") if line["event"] == "notice"]

    assert [line["source"] for line in notices][:1] == ["logind: PrepareForShutdown"]


def test_a_training_that_comes_after_preemptd_in_its_unit_is_stopped_first(gone: Machine) -> None:
    (saved,) = said(gone, "mixed-told-long", "saved")
    (stopped,) = [line for line in gone.lines(f"{OUT}/state/journal.jsonl") if line["event"] == "stopped"]

    assert float(str(saved["mono"])) < float(str(stopped["mono"]))
