"""The units, on a systemd that is PID 1: they start, hang, crash, reload, and tell."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.systemd.booted import OUT, PREEMPTD, PYTHON, Machine
from tests.lab.systemd.conftest import NOTICE
from tests.lab.systemd.trainings import await_event, await_said, said, start_training
from tests.waiting import wait_until

pytestmark = [pytest.mark.xdist_group("systemd-units"), pytest.mark.timeout(120)]

SCORES = {"preemptd.service": 1.6, "preemptd@alice.service": 2.0}
"""What `systemd-analyze security` may say at the most: 0 is a closed box, 9.6 a unit without any of it."""
FILE_ONLY = 'provider = ["file"]\n'


@contextmanager
def running(machine: Machine, unit: str, configuration: str, drop_in: str = "") -> Iterator[int]:
    """Start the daemon of *unit*; yield its pid; stop it."""
    name = re.sub(r"preemptd@?", "", unit.removesuffix(".service")) or "preemptd"
    machine.write(f"/etc/preemptd/{name}.toml", configuration)
    machine.write(f"/etc/systemd/system/{unit}.d/lab.conf", drop_in)
    machine.systemctl("daemon-reload")
    machine.systemctl("start", unit)
    try:
        yield int(machine.show(unit, "MainPID")["MainPID"])
    finally:
        machine.run("rm", "-f", NOTICE)
        machine.systemctl("stop", unit)


def target(unit: str) -> str:
    return f'{FILE_ONLY}[[target]]\nunit = "{unit}.service"\n'


def test_systemd_finds_nothing_wrong_with_the_units(machine: Machine) -> None:
    units = ["preemptd.service", "preemptd@alice.service", "preemptd-watch@alice.service"]
    paths = [f"/etc/systemd/system/{unit}" for unit in units]

    assert machine.run("systemd-analyze", "verify", *paths) == ""


@pytest.mark.parametrize("unit", SCORES)
def test_the_score_of_its_sandbox_is_bounded(machine: Machine, unit: str) -> None:
    answer = machine.run("systemd-analyze", "security", "--no-pager", unit)
    score = re.search(r"exposure level for \S+: ([\d.]+)", answer)

    assert score is not None, answer
    assert float(score[1]) <= SCORES[unit]


@pytest.mark.parametrize("unit", ["preemptd.service", "preemptd@alice.service"])
def test_it_starts_and_is_ready_when_its_loop_turns(machine: Machine, unit: str) -> None:
    with running(machine, unit, FILE_ONLY):
        shown = machine.show(unit, "ActiveState", "StatusText", "WatchdogUSec")

    assert shown == {"ActiveState": "active", "StatusText": "looking after 0 targets", "WatchdogUSec": "30s"}
    assert machine.show(unit, "Result", "ExecMainStatus") == {"Result": "success", "ExecMainStatus": "0"}


def test_root_may_ask_and_warn_the_daemon_of_a_user_which_cannot_see_roots_processes(machine: Machine) -> None:
    link = "/run/preemptd-bob/link.sock"
    with running(machine, "preemptd@bob.service", FILE_ONLY) as pid:
        answer = machine.run(PREEMPTD, "status", "--link", link)
        found = machine.run(PREEMPTD, "status")
        machine.run(PREEMPTD, "notify", "--link", link, "--deadline", "20", "--reason", "by root")
        notice = await_event(machine, "preemptd-bob", "notice", provider="notify")

    assert answer.startswith(f"pid {pid}, link {link}\n")
    assert f"link {link}\n" in found
    assert notice["acted"] is True


@pytest.mark.parametrize("unit", ["preemptd.service", "preemptd@bob.service"])
def test_one_that_hangs_is_ended_and_started_anew(machine: Machine, unit: str) -> None:
    with running(machine, unit, FILE_ONLY, "[Service]\nWatchdogSec=2s\nRestartSec=100ms\n") as pid:
        machine.systemctl("kill", "--signal=STOP", unit)
        wait_until(lambda: machine.show(unit, "NRestarts")["NRestarts"] == "1", 30, pause=0.1)
        wait_until(lambda: machine.show(unit, "ActiveState")["ActiveState"] == "active", 30, pause=0.1)

        assert int(machine.show(unit, "MainPID")["MainPID"]) not in {0, pid}
        assert "Watchdog timeout" in machine.log(unit)


@pytest.mark.parametrize(("unit", "name"), [("preemptd.service", "preemptd"), ("preemptd@alice.service", "alice")])
def test_a_reload_takes_a_good_configuration_and_refuses_a_bad_one(machine: Machine, unit: str, name: str) -> None:
    with running(machine, unit, FILE_ONLY) as pid:
        machine.write(f"/etc/preemptd/{name}.toml", FILE_ONLY + "gracious = 5\n")
        machine.systemctl("reload", unit)
        wait_until(lambda: "refused" in machine.show(unit, "StatusText")["StatusText"], 30, pause=0.1)
        machine.write(f"/etc/preemptd/{name}.toml", FILE_ONLY + '[[target]]\nmatch = "no such process"\n')
        machine.systemctl("reload", unit)
        wait_until(lambda: "looking after" in machine.show(unit, "StatusText")["StatusText"], 30, pause=0.1)
        shown = machine.show(unit, "MainPID", "ActiveState", "NRestarts")

    assert shown == {"MainPID": str(pid), "ActiveState": "active", "NRestarts": "0"}
    assert "the new configuration is refused" in machine.log(unit)
    assert "gracious" in machine.log(unit)


def test_a_configuration_that_is_bad_from_the_start_is_said_once_and_not_tried_again(machine: Machine) -> None:
    unit = "preemptd@bad.service"
    machine.write("/etc/systemd/system/preemptd@bad.service.d/lab.conf", "[Service]\nUser=bob\n")
    machine.write("/etc/preemptd/bad.toml", "gracious = 5\n")
    machine.systemctl("daemon-reload")
    machine.run("systemctl", "start", unit, check=False)

    shown = machine.show(unit, "ActiveState", "NRestarts", "ExecMainStatus")
    assert shown == {"ActiveState": "failed", "NRestarts": "0", "ExecMainStatus": "2"}
    assert machine.log(unit).count("gracious") == 1


def test_with_the_one_privilege_another_users_training_is_told_and_its_workers_are_not(machine: Machine) -> None:
    start_training(machine, "others", "bob", "0.1")
    with running(machine, "preemptd.service", target("others")):
        await_event(machine, "preemptd", "target", name="unit others.service")
        machine.run("touch", NOTICE)
        (saved,) = await_said(machine, "others", "saved")

    assert saved["told"] == ["SIGUSR1"]
    assert not said(machine, "others", "lost")
    assert "looking after 1 target; W&B runs are neither marked nor mended (--no-wandb)" in machine.log("preemptd")


def test_a_daemon_that_was_killed_or_restarted_while_a_notice_was_open_tells_nobody_again(machine: Machine) -> None:
    unit = "preemptd@alice.service"
    start_training(machine, "patient", "alice", "0.1", "stays")
    driver = machine.command(PYTHON, "/srv/repo/tests/lab/metadata_driver.py", "serve", "gce", "169.254.169.254")
    configuration = target("patient").replace("file", "gce")
    with running(machine, unit, configuration, "[Service]\nRestartSec=100ms\n") as pid:
        with subprocess.Popen(driver, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as server:
            await_said(machine, "patient", "signal")
            machine.systemctl("kill", "--signal=KILL", unit)
            notice = await_event(machine, "preemptd-alice", "notice", 2, acted=True)
            second = await_event(machine, "preemptd-alice", "serving", 2)
            await_told(machine, "alice", 1)
            machine.systemctl("restart", unit)
            await_told(machine, "alice", 1)
            signals = [line["name"] for line in said(machine, "patient", "signal")]
            assert server.stdin is not None
            server.stdin.close()
        machine.systemctl("stop", "patient")

    assert second["pid"] != pid
    assert notice["provider"] == "gce"
    assert signals == ["SIGUSR1"]


def test_a_planned_shutdown_is_advice_until_it_is_called_off(machine: Machine) -> None:
    journal = "preemptd-alice"
    with running(machine, "preemptd@alice.service", 'provider = ["shutdown"]\n'):
        machine.run("shutdown", "-h", "+60")
        advice = await_event(machine, journal, "advice", event_id="shutdown:scheduled")
        machine.run("shutdown", "-c")
        await_event(machine, journal, "revoked", event_id="shutdown:scheduled")

    assert 3000 < float(str(advice["remaining"])) <= 3600


def test_the_daemon_of_a_user_marks_and_mends_that_users_runs_from_within_its_sandbox(machine: Machine) -> None:
    script = "/srv/repo/tests/lab/systemd/wandb_run.py"
    unit = ("--unit=run", "--uid=alice", "-p", "KillMode=mixed", "-p", "Environment=HOME=/srv/alice")
    configuration = f"{FILE_ONLY}[[target]]\nruns = true\n"
    with running(machine, "preemptd@alice.service", configuration):
        machine.run("systemd-run", "--quiet", *unit, PYTHON, script, f"{OUT}/run")
        (ready,) = await_said(machine, "run", "ready")
        await_event(machine, "preemptd-alice", "target", name="runs", pid=ready["pid"])
        machine.run("touch", NOTICE)
        marked = await_event(machine, "preemptd-alice", "marked")
        repaired = await_event(machine, "preemptd-alice", "repaired")

    assert (marked["run_id"], marked["ok"]) == (ready["run_id"], True)
    assert (repaired["run_id"], repaired["ok"]) == (ready["run_id"], True)


def await_told(machine: Machine, user: str, count: int) -> None:
    """Wait until the daemon of *user* knows of *count* told processes, be it from the one before it."""
    ask = ("runuser", "-u", user, "--", PREEMPTD, "status", "--json", "--link", f"/run/preemptd-{user}/link.sock")

    def told() -> bool:
        answer = machine.run(*ask, check=False)
        return answer.startswith("{") and json.loads(answer).get("told") == count

    wait_until(told, 30, pause=0.1)


def test_its_sandbox_lets_it_write_and_connect_only_where_the_unit_says(machine: Machine) -> None:
    text = machine.read("/etc/systemd/system/preemptd.service")
    command = f"ExecStart={PYTHON} /srv/repo/tests/lab/systemd/probe.py {OUT}/probe"
    probe = re.sub(r"^ExecStart=.*$", command, text, flags=re.MULTILINE).replace("Type=notify", "Type=oneshot")
    writable = f"ReadWritePaths={OUT}\nRestart=no\nRuntimeDirectory=\nStateDirectory=\n"
    machine.write("/etc/systemd/system/probe.service", probe.replace("[Install]", writable + "[Install]"))
    machine.systemctl("daemon-reload")
    machine.run("systemd-run", "--quiet", "--unit=bobs", "--uid=bob", "sleep", "60")
    machine.systemctl("start", "probe")
    (found,) = machine.lines(f"{OUT}/probe")

    assert found == {
        "write /etc/x": "EROFS",
        "write /srv/alice/x": "EROFS",
        "list homes": "EACCES",
        "connect 127.0.0.1": "reached",
        "connect 169.254.169.254": "reached",
        "connect 10.9.9.9": "timeout",
        "capabilities": "0000000000000020",
        "signal to bob": "allowed",
        "packet socket": "EAFNOSUPPORT",
        "unshare": "EPERM",
    }
