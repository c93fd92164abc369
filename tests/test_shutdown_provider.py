"""The shutdown provider as far as it can be seen without a systemd; the rest is in tests/lab/systemd."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType

import pytest

from preemptd.notices import Level, Notice
from preemptd.provider import Options, State, Surroundings
from preemptd.targets.reaping import Helpers, Shielded
from preemptd_providers._systemd import Systemctl, Unit, seconds, unit_of
from preemptd_providers.shutdown import HostShutdown, LogindWatch, ScheduledWatch


@pytest.fixture
def commands() -> Iterator[Shielded]:
    helpers = Helpers()
    yield Shielded(helpers)
    assert not helpers.pids, "a command was not released"


def systemctl(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a systemctl before the real one."""
    path = directory / "systemctl"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def judged(commands: Shielded) -> Notice | None:
    return HostShutdown(Options(), Surroundings({}, commands=commands)).on_signal(signal.SIGTERM).notice


def test_a_sigterm_while_the_host_stops_is_a_notice(
    commands: Shielded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemctl(tmp_path, monkeypatch, "[ $1 = is-system-running ] && echo stopping")
    notice = judged(commands)

    assert notice is not None
    assert (notice.level, notice.event_id) == (Level.ACT, "shutdown:host")


@pytest.mark.parametrize("script", ["echo running", "echo degraded; exit 1", "exit 1", "echo 'not stopping'"])
def test_any_other_sigterm_is_an_ordinary_one(
    commands: Shielded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    systemctl(tmp_path, monkeypatch, script)

    assert judged(commands) is None


def test_a_systemctl_that_hangs_makes_it_an_ordinary_one_within_a_second(
    commands: Shielded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemctl(tmp_path, monkeypatch, "exec sleep 60")
    began = time.monotonic()

    assert judged(commands) is None
    assert time.monotonic() - began < 20


def test_two_questions_wait_at_the_same_time(
    commands: Shielded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "{ [ $1 = show ] && echo is-system-running; } || echo show"
    answer = "[ $1 = show ] && echo TimeoutStopUSec=7s || echo stopping"
    systemctl(tmp_path, monkeypatch, f'cd "{tmp_path}"; >$1; until [ -e $({other}) ]; do sleep 0.01; done; {answer}')
    monkeypatch.setattr("preemptd_providers._systemd._own_cgroup", lambda: "0::/system.slice/train.service\n")

    assert Systemctl(commands, within=30).state_and_own_unit() == ("stopping", Unit(7.0, kills_all=True))


class Slow:
    """A logind that answers when the watch has been closed."""

    watch: LogindWatch
    closed = False

    def __init__(self) -> None:
        self.watch.close()

    def close(self) -> None:
        type(self).closed = True


def test_a_watch_that_is_closed_while_logind_is_slow_to_answer_holds_no_shutdown_back(
    commands: Shielded, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("preemptd_providers._logind")
    module.__dict__["Logind"] = Slow
    monkeypatch.setitem(sys.modules, module.__name__, module)
    Slow.watch = LogindWatch(Systemctl(commands), None)

    assert Slow.watch.observe().state is State.UNKNOWN
    assert Slow.closed


def test_without_a_systemctl_there_is_no_answer(commands: Shielded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    assert Systemctl(commands).state() == ""
    assert Systemctl(None).state() == ""


def test_without_jeepney_it_does_without_logind_and_says_so() -> None:
    code = """
import sys
sys.modules["jeepney"] = None
import preemptd_providers.shutdown
from preemptd.provider import Options, Surroundings
from preemptd_providers.shutdown import HostShutdown
provider = HostShutdown(Options(), Surroundings({}))
provider.prepare()
print(preemptd_providers.shutdown._unheard(), provider.describe(), [watch.name for watch in provider.watches()])
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert "jeepney is not installed: pip install 'preemptd[systemd]'" in said
    assert "['shutdown:scheduled']" in said


def test_other_signals_are_none_of_its_business(commands: Shielded) -> None:
    provider = HostShutdown(Options(), Surroundings({}, commands=commands))

    assert provider.signals() == {signal.SIGTERM}
    assert provider.on_signal(signal.SIGINT).state is State.CLEAR


@pytest.mark.parametrize(
    ("cgroups", "expected"),
    [
        ("0::/system.slice/train.service\n", ("train.service", False)),
        ("0::/system.slice/system-preemptd.slice/preemptd@alice.service\n", ("preemptd@alice.service", False)),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", ("session-3.scope", False)),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/tmux.scope\n", ("tmux.scope", True)),
        ("0::/user.slice/user-1000.slice/user@1000.service/init.scope\n", ("init.scope", True)),
        ("12:cpu:/a.service\n1:name=systemd:/system.slice/b.service\n0::/\n", ("b.service", False)),
        ("0::/\n", ("", False)),
        ("0::/kubepods/pod1/abc\n", ("", False)),
        ("", ("", False)),
    ],
)
def test_the_unit_is_read_out_of_the_control_group(cgroups: str, expected: tuple[str, bool]) -> None:
    assert unit_of(cgroups) == expected


@pytest.mark.parametrize(
    ("span", "expected"),
    [("1min 30s", 90.0), ("2min", 120.0), ("500ms", 0.5), ("1.5s", 1.5), ("infinity", None), ("", None), ("5", None)],
)
def test_systemds_time_spans_are_understood(span: str, expected: float | None) -> None:
    assert seconds(span) == expected


def test_what_is_not_known_of_the_unit_is_taken_for_systemds_default() -> None:
    assert Unit() == Unit(stop_timeout=None, kills_all=True)


class Plan:
    """What logind keeps of a planned shutdown."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.watch = ScheduledWatch(str(path), lead=120.0)

    def write(self, at: float) -> None:
        self.path.write_text(f"USEC={int(at * 1e6)}\nWARN_WALL=1\nMODE=poweroff\n")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(tmp_path / "scheduled")


def test_no_plan_is_no_notice(plan: Plan) -> None:
    assert plan.watch.observe().state is State.CLEAR


def test_a_plan_advises_until_the_lead_is_reached(plan: Plan) -> None:
    at = time.time() + 3600
    plan.write(at)
    notice = plan.watch.observe().notice

    assert notice is not None
    assert (notice.level, notice.act_within) == (Level.ADVISE, 120.0)
    assert notice.remaining == pytest.approx(3600, abs=20)
    assert notice.deadline is not None
    assert abs(notice.deadline - datetime.fromtimestamp(at, timezone.utc)).total_seconds() < 0.001
    assert json.dumps(notice.detail) == '"MODE=poweroff"'


def test_a_plan_that_is_called_off_is_gone(plan: Plan) -> None:
    plan.write(time.time() + 3600)
    plan.watch.observe()
    plan.path.unlink()

    assert plan.watch.observe().state is State.CLEAR


def test_a_plan_that_vanishes_when_its_time_has_come_is_carried_out(plan: Plan) -> None:
    plan.write(time.time() - 0.5)
    plan.watch.observe()
    plan.path.unlink()

    assert plan.watch.observe().state is State.NOTICE


@pytest.mark.parametrize("text", ["", "MODE=poweroff\n", "USEC=\n", "USEC=soon\n", "USEC=" + "9" * 40 + "\n"])
def test_a_plan_that_makes_no_sense_is_neither(plan: Plan, text: str) -> None:
    plan.path.write_text(text)

    assert plan.watch.observe().state is State.UNKNOWN
