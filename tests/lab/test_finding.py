"""Targets by real cgroups, beside other users' processes, and with pids that are used again."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from preemptd.procfs import parent
from preemptd.targets.cgroups import our_hierarchies
from preemptd.targets.finding import Wanted
from tests.finding import Finding, inside, line_of, running
from tests.waiting import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("needs_root")]

NOBODY = 65534
AS_NOBODY = ("setpriv", "--reuid", str(NOBODY), "--clear-groups")
IN_PID_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
HIDING = ("unshare", "--mount", "sh", "-c", 'mount -t proc -o hidepid=2 proc /proc && exec "$@"', "sh")
SLICE = f"preemptdtest{os.getpid()}.slice"
UNIT = f"preemptdtest{os.getpid()}.service"


@pytest.fixture
def unit() -> Iterator[Path]:
    """The control group of a unit, as systemd would make it; empty, and with one below it."""
    tops = [Path(top) for top in our_hierarchies() if os.access(f"{top}/cgroup.procs", os.W_OK)]
    if not tops:
        pytest.skip("no control groups may be made here")
    place = tops[0] / SLICE / UNIT
    (place / "payload").mkdir(parents=True)
    yield place
    for group in (place / "payload", place, place.parent):
        for pid in (group / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        wait_until(lambda group=group: not (group / "cgroup.procs").read_text())  # type: ignore[misc]
        group.rmdir()


def enter(group: Path, pid: int) -> None:
    (group / "cgroup.procs").write_text(str(pid))


def test_all_that_is_in_the_cgroup_belongs_to_the_unit_whoever_its_parents_are(unit: Path) -> None:
    with running(["sh", "-c", "read go; (sleep 1000 & echo $!); sleep 1000 & echo $!; read end"]) as main:
        assert main.stdin is not None
        enter(unit, main.pid)
        main.stdin.write("\n")
        main.stdin.flush()
        (orphan,) = line_of(main)
        (child,) = line_of(main)
        wait_until(lambda: parent(parent(orphan)) != main.pid)
        enter(unit / "payload", child)
        finding = Finding(Wanted(unit=UNIT), Wanted(unit=SLICE))

        assert finding.living() == {main.pid, orphan, child}
        assert finding.heads() == sorted([main.pid, orphan])
        assert finding.heads(1) == finding.heads()


def test_what_has_left_the_cgroup_is_not_the_units_any_more(unit: Path) -> None:
    with running(["sh", "-c", "sleep 1000 & echo $!; read end"]) as main:
        (child,) = line_of(main)
        enter(unit, main.pid)

        assert set(Finding(Wanted(unit=UNIT)).look()) == {main.pid}
        os.kill(child, signal.SIGKILL)


def test_a_unit_is_followed_when_it_is_started_again(unit: Path) -> None:
    finding = Finding(Wanted(unit=UNIT))
    finding.look()
    looks = []
    for _ in range(2):
        with running(["cat"]) as main:
            enter(unit, main.pid)
            looks.append(set(finding.look()) == {main.pid})
            finding.look()
        wait_until(lambda: not (unit / "cgroup.procs").read_text())
        finding.look()
    (unit / "payload").rmdir()
    unit.rmdir()
    finding.look()
    gone = finding.why()
    (unit / "payload").mkdir(parents=True)
    with running(["cat"]) as main:
        enter(unit, main.pid)
        looks.append(set(finding.look()) == {main.pid})

    assert looks == [True, True, True]
    assert gone == f"{UNIT} is not active"
    assert [state for _, state in finding.changes] == ["waiting", *["running", "waiting"] * 2, "running"]


def test_a_unit_that_is_started_again_between_two_looks_is_another_one(unit: Path) -> None:
    finding = Finding(Wanted(unit=UNIT))
    pids = []
    for _ in range(2):
        with running(["cat"]) as main:
            enter(unit, main.pid)
            finding.look()
            pids.append(main.pid)

    assert [state for _, state in finding.changes] == ["running", "running"]
    assert finding.pids == pids


def test_other_users_processes_are_matched_neither_by_us_nor_below_anybody_but_ours() -> None:
    mark = f"other-user-{os.getpid()}"
    waits = ["sh", "-c", "echo $$; read end", mark]
    with running([*AS_NOBODY, *waits]) as theirs, running(["sh", "-c", '"$@"; :', mark, *AS_NOBODY, *waits]) as ours:
        line_of(theirs)
        (below,) = line_of(ours)
        finding = Finding(Wanted(match=mark))

        assert set(finding.look()) == {ours.pid, below}


def test_a_pidfile_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with running(["cat"]) as process:
        path.write_text(str(process.pid))
        os.chown(path, NOBODY, NOBODY)
        finding = Finding(Wanted(pidfile=str(path)))

        assert finding.look() == {}
        assert finding.warnings == [f"target pidfile {path}: {path} belongs to another user (uid {NOBODY})"]


@pytest.mark.usefixtures("needs_netns")
def test_the_next_owner_of_a_pid_is_never_touched(tmp_path: Path) -> None:
    before, after = inside(*IN_PID_NAMESPACE, "reuse", str(tmp_path / "pid"))

    assert [look["found"] for look in before] == [True, True]
    assert [look["found"] for look in after] == [False, False, False]
    assert [look["status"]["state"] for look in after] == ["gone", "waiting", "waiting"]  # type: ignore[index]
    assert "it means an earlier one" in str(after[2]["status"])


@pytest.mark.usefixtures("needs_netns")
def test_not_even_when_it_was_started_in_the_same_tick_of_the_clock() -> None:
    ((look,),) = inside(*IN_PID_NAMESPACE, "same_tick", "")

    assert look["found"] is False
    assert look["status"]["state"] == "gone"  # type: ignore[index]


@pytest.mark.usefixtures("needs_netns")
def test_what_is_hidden_from_us_is_said_to_be(unit: Path) -> None:
    with running(["cat"]) as process:
        enter(unit, process.pid)
        ((by_unit, by_match, by_pid),) = inside(*HIDING, "hidden", UNIT)

    assert [look["found"] for look in (by_unit, by_match, by_pid)] == [False, False, False]
    assert "are hidden from us" in str(by_unit["status"])
    assert by_match["status"]["state"] == "waiting"  # type: ignore[index]
    assert by_pid["status"]["state"] == "gone"  # type: ignore[index]
