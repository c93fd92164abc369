"""The commands of docs/systemd.md, run in the order in which a reader would."""

import re

import pytest

from tests.conftest import ROOT
from tests.lab.systemd.booted import PREEMPTD, PYTHON, booted
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(120)
PAGE = ROOT / "docs" / "systemd.md"
UNITS = ("preemptd.service", "preemptd@alice.service", "preemptd-watch@alice.service")


def blocks() -> dict[str, str]:
    return dict(re.findall(r"<!-- played: (\w+) -->\n```sh\n(.*?)```", PAGE.read_text(), re.DOTALL))


def test_who_follows_the_page_has_all_three_units_at_work_and_a_machine_that_shuts_down(needs_systemd: None) -> None:  # noqa: ARG001 - its checks
    with booted() as machine:
        patient = "[Login]\nInhibitDelayMaxSec=100\n"  # more than is waited for below
        machine.write("/etc/systemd/logind.conf.d/lab.conf", patient)
        machine.run("ln", "-s", PREEMPTD, PYTHON, "/usr/local/bin")
        machine.run("install", "--owner=alice", "/srv/repo/docs/examples/train.py", "/srv/alice/train.py")
        for text in blocks().values():
            machine.run("bash", "-euc", text)
        shown = {unit: machine.show(unit, "ActiveState")["ActiveState"] for unit in UNITS}
        wait_until(lambda: "step" in machine.log("preemptd-watch@alice.service"), 40, "it trains", pause=0.2)
        wait_until(lambda: machine.run("systemd-inhibit", "--list").count("trainings save") == 3, 40, pause=0.2)
        machine.power_off()  # nobody holds it back longer than a save takes

    assert list(blocks()) == ["install", "configuration", "system", "watch"]
    assert shown == dict.fromkeys(UNITS, "active")
