"""`preemptd-watch@.service`: what becomes of its training when it is stopped, preempted, or when preemptd crashes."""

import json

import pytest

from tests.lab.systemd.booted import OUT, PREEMPTD, PYTHON, Machine
from tests.lab.systemd.conftest import NOTICE
from tests.lab.systemd.trainings import LOADER, await_event, await_said, said, training
from tests.waiting import wait_until

pytestmark = [pytest.mark.xdist_group("systemd-watch"), pytest.mark.timeout(120)]


def start(machine: Machine, user: str, *how: str) -> str:
    """Start the unit of *user* with a loader; return the unit's name."""
    unit = f"preemptd-watch@{user}.service"
    command = " ".join((PYTHON, LOADER, f"{OUT}/{user}", *how))
    machine.write(f"/etc/preemptd/watch/{user}.env", f"COMMAND={command}\n")
    machine.systemctl("start", unit)
    await_said(machine, user, "ready")
    return unit


def pid_of(machine: Machine, unit: str) -> int:
    return int(machine.show(unit, "MainPID")["MainPID"])


def await_state(machine: Machine, unit: str, **wanted: str) -> None:
    wait_until(lambda: machine.show(unit, *wanted) == wanted, 40, f"{unit}: {wanted}", pause=0.1)


def test_the_training_outlives_a_crash_of_preemptd_and_a_stop_reaches_its_main_process_alone(machine: Machine) -> None:
    unit = start(machine, "alice", "0.3")
    first = pid_of(machine, unit)
    machine.systemctl("kill", "--kill-whom=main", "--signal=KILL", unit)
    wait_until(lambda: pid_of(machine, unit) not in {0, first}, 40, pause=0.1)
    await_event(machine, "preemptd-watch-alice", "started", 2)
    before_stop = list(said(machine, "alice", "ready")), list(said(machine, "alice", "signal"))
    machine.systemctl("stop", unit)
    (saved,) = await_said(machine, "alice", "saved")

    (ready,), signals = before_stop
    assert signals == []
    assert (saved["pid"], saved["told"]) == (ready["pid"], ["SIGTERM"])
    assert not said(machine, "alice", "lost")
    assert machine.show(unit, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}


def test_after_a_preemption_the_training_goes_on_as_the_next_attempt(machine: Machine) -> None:
    unit = start(machine, "bob", "0.1")
    await_event(machine, "preemptd-watch-bob", "provider", provider="file", state="watching")
    machine.run("touch", NOTICE)
    await_said(machine, "bob", "saved")
    machine.run("rm", NOTICE)
    _, second = await_said(machine, "bob", "ready", 2)
    await_state(machine, unit, ActiveState="active", NRestarts="1")
    machine.systemctl("stop", unit)

    told = [line["told"] for line in said(machine, "bob", "saved")]
    assert told == [["SIGUSR1"], ["SIGTERM"]]
    assert second["attempt"] == "1"
    assert "Scheduled restart job" in machine.log(unit)
    assert not said(machine, "bob", "lost")


def test_the_doctor_warns_of_units_whose_end_hits_all_of_their_processes(machine: Machine) -> None:
    for kill_mode in ("control-group", "mixed"):
        text = training(kill_mode, "alice", "0.1").replace("KillMode=mixed", f"KillMode={kill_mode}")
        machine.write(f"/etc/systemd/system/{kill_mode}.service", text)
    machine.systemctl("daemon-reload")
    found = {}
    for kill_mode in ("control-group", "mixed"):
        machine.systemctl("start", kill_mode)
        await_said(machine, kill_mode, "ready")
        pid = pid_of(machine, f"{kill_mode}.service")
        answer = json.loads(machine.run(PREEMPTD, "doctor", "--json", "--no-probe", str(pid), check=False))
        found[kill_mode] = [one["text"] for one in answer["findings"] if one["kind"] == "stop-hits-all"]
        machine.systemctl("stop", kill_mode)

    assert found["mixed"] == []
    assert "a shutdown of the host, would cost the save" in found["control-group"][0]


def test_a_unit_without_a_command_says_so_and_is_not_tried_again(machine: Machine) -> None:
    unit = "preemptd-watch@root.service"
    machine.write("/etc/preemptd/watch/root.env", "COMMAND=\n")
    machine.run("systemctl", "start", unit, check=False)
    await_state(machine, unit, ActiveState="failed", NRestarts="0", ExecMainStatus="2")

    assert "no command" in machine.log(unit)
