import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from preemptd.model import ProcessId
from preemptd.procfs import parent
from preemptd.targets.finding import Finder, Wanted
from tests.finding import Finding, identify, inside, line_of, running
from tests.waiting import wait_until
from tests.watching import PREEMPTD, QUIET, ROOT

# `read` waits in the shell itself, until the test ends and closes the pipe.
WAITS = 'echo "$$"; read end'
TREE = 'sh -c "sleep 1000 & echo \\$\\$ \\$!; wait" & wait'
"""A shell, a shell below it, and a sleep below that; it says the pids of the latter two."""


@contextmanager
def waiting(mark: str = "") -> Iterator["subprocess.Popen[str]"]:
    """A process of ours that waits; *mark* is in its command line."""
    with running(["sh", "-c", WAITS, mark]) as process:
        line_of(process)
        yield process


@contextmanager
def tree(mark: str = "") -> Iterator[tuple[int, int, int]]:
    with running(["sh", "-c", TREE, mark]) as top:
        middle, low = line_of(top)
        try:
            yield top.pid, middle, low
        finally:
            for pid in (middle, low):
                kill(pid)


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()


@pytest.fixture
def mark(request: pytest.FixtureRequest) -> str:
    """A word that no other command line has."""
    return f"{request.node.name}-{os.getpid()}-{time.monotonic_ns()}"


def pidfile(path: Path, text: object) -> Wanted:
    path.write_text(f"{text}\n")
    return Wanted(pidfile=str(path))


def settled(path: Path) -> None:
    """Make it a file that was written long ago."""
    os.utime(path, (time.time() - 3600, time.time() - 3600))


# -- by pid --------------------------------------------------------------------------------------------------------


def test_a_pid_brings_all_that_is_below_it() -> None:
    with tree() as pids:
        finding = Finding(Wanted(pid=pids[0]))

        assert set(finding.look()) == set(pids)
        assert (finding.state(), finding.heads()) == ("running", [pids[0]])


def test_a_process_that_is_in_several_targets_comes_once(mark: str) -> None:
    with tree(mark) as pids:
        finding = Finding(Wanted(pid=pids[0]), Wanted(pid=pids[1]), Wanted(match=mark))
        finding.linked.add(identify(pids[2]))

        assert set(finding.look()) == set(pids)
        assert [finding.heads(place) for place in range(4)] == [[pids[0]], [pids[1]], [pids[0]], [pids[2]]]


def test_what_a_process_has_started_is_still_part_of_the_target_when_it_has_ended() -> None:
    with tree() as pids:
        finding = Finding(Wanted(pid=pids[0]))
        finding.look()
        os.kill(pids[0], signal.SIGKILL)
        wait_until(lambda: pids[0] not in finding.living())

        assert finding.living() == set(pids[1:])
        assert (finding.state(), finding.heads()) == ("running", [pids[1]])


def test_who_hangs_elsewhere_but_is_in_the_process_group_that_the_target_leads_belongs_to_it() -> None:
    script = "echo $$; read go; (sleep 1000 & echo $!); read end"
    with running(["setsid", "sh", "-c", script]) as leader:
        assert leader.stdin is not None
        line_of(leader)
        finding = Finding(Wanted(pid=leader.pid))
        finding.look()
        leader.stdin.write("\n")
        leader.stdin.flush()
        (orphan,) = line_of(leader)
        wait_until(lambda: parent(parent(orphan)) != leader.pid)
        before = finding.living()
        end(leader)

        assert before == {leader.pid, orphan}
        assert finding.living() == {orphan}
        kill(orphan)


def test_a_pid_that_has_gone_is_gone_for_ever_and_it_is_said_once() -> None:
    with waiting() as process:
        finding = Finding(Wanted("training", pid=process.pid))
        finding.look()
        end(process)
        for _ in range(3):
            finding.look()

        assert finding.changes == [("training", "running"), ("training", "gone")]
        assert finding.pids == [process.pid, process.pid]
        assert finding.heads() == []
        assert finding.warnings == []


def test_a_pid_that_was_never_there_is_said_once() -> None:
    with waiting() as process:
        pid = process.pid
        end(process)
    finding = Finding(Wanted(pid=pid))
    for _ in range(3):
        assert finding.look() == {}

    assert finding.changes == [(f"pid {pid}", "gone")]
    assert finding.why() == f"there was no process {pid}: a pid is looked up once, at the start"
    assert finding.warnings == []


def test_we_ourselves_are_no_target() -> None:
    finding = Finding(Wanted(pid=os.getpid()), Wanted(pid=os.getppid()))

    assert os.getpid() not in finding.look()
    assert finding.state() == "gone"


def test_our_own_commands_and_what_is_below_them_are_no_target(mark: str) -> None:
    with tree(mark) as pids, waiting(mark) as other:
        finding = Finding(Wanted(match=mark))
        finding.ours.add(pids[0])

        assert set(finding.look()) == {other.pid}


def test_zombies_are_shown_as_what_they_are() -> None:
    with waiting() as process:
        finding = Finding(Wanted(pid=process.pid))
        finding.look()
        process.kill()

        assert wait_until(lambda: finding.look()[process.pid].state == "Z")
        assert (finding.state(), finding.heads()) == ("gone", [])


def test_a_process_does_not_pass_for_gone_while_no_descriptor_is_left_to_look_at_it() -> None:
    (during,), (after,) = inside("exhausted", "")

    assert (during["found"], during["held"]) == (True, True)
    assert (after["found"], after["held"]) == (False, False)


def test_a_kernel_without_pidfd_does_with_the_start_time(tmp_path: Path) -> None:
    without = [sys.executable, str(ROOT / "tests" / "standins" / "child_seccomp.py")]
    before, after = inside(*without, "ended", str(tmp_path / "pid"))

    assert [look["found"] for look in before] == [True, True]
    assert [look["found"] for look in after] == [False, False]
    assert [look["status"]["state"] for look in after] == ["gone", "waiting"]  # type: ignore[index]


# -- by pidfile ----------------------------------------------------------------------------------------------------


def test_a_pidfile_brings_the_process_that_it_names_and_the_next_one_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with waiting() as first, waiting() as second:
        finding = Finding(pidfile(path, first.pid))
        before = set(finding.look())
        end(first)
        finding.look()
        between = finding.state()
        path.write_text(str(second.pid))

        assert before == {first.pid}
        assert between == "waiting"
        assert set(finding.look()) == {second.pid}
        assert [state for _, state in finding.changes] == ["running", "waiting", "running"]


def test_a_pidfile_that_is_older_than_the_process_with_that_number_means_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with waiting() as process:
        wanted = pidfile(path, process.pid)
        settled(path)
        finding = Finding(wanted)

        assert finding.look() == {}
        assert finding.state() == "waiting"
        assert finding.why() == f"{path} is older than the process {process.pid} that it names: it means an earlier one"

        path.write_text(str(process.pid))

        assert set(finding.look()) == {process.pid}


def test_a_pidfile_that_comes_later_is_found(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    finding = Finding(Wanted(pidfile=str(path)))
    finding.look()
    missing = finding.why()
    path.touch()
    finding.look()
    empty = finding.why()
    with waiting() as process:
        path.write_text(str(process.pid))

        assert (missing, empty) == (f"{path}: No such file or directory", f"{path} is empty")
        assert set(finding.look()) == {process.pid}
        assert finding.warnings == []


def test_a_process_that_removes_its_pidfile_is_followed_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with waiting() as process:
        finding = Finding(pidfile(path, process.pid))
        finding.look()
        path.unlink()

        assert set(finding.look()) == {process.pid}
        end(process)
        assert finding.look() == {}
        assert finding.state() == "waiting"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path, pid: path.write_text(f"{pid} {pid}"), "does not hold a process number"),
        (lambda path, _: path.write_bytes(b"\0\xff"), "does not hold a process number"),
        (lambda path, _: path.write_bytes("¹²³".encode()), "does not hold a process number"),
        (lambda path, pid: path.write_text(f"-{pid}"), "does not hold a process number"),
        (lambda path, _: path.write_text("1"), "names process 1, which is no target"),
        (lambda path, _: path.write_text("9" * 40), f"names process {'9' * 40}, which is no target"),
        (lambda path, _: path.write_text("2147483648"), "names process 2147483648, which is no target"),
        (lambda path, pid: path.write_text(f"{pid}".rjust(100)), "is longer than 64 bytes"),
        (lambda path, _: path.mkdir(), "is no regular file"),
        (lambda path, _: os.mkfifo(path), "is no regular file"),
        (lambda path, _: path.symlink_to("/dev/zero"), "is a symbolic link"),
        (lambda path, pid: (path.write_text(str(pid)), path.chmod(0o666)), "may be written by everybody"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_pidfile_is_refused_and_that_is_said_once(tmp_path: Path, make, why: str) -> None:  # type: ignore[no-untyped-def]  # a lambda
    path = tmp_path / "pid"
    with waiting() as process:
        make(path, process.pid)
        finding = Finding(Wanted("job", pidfile=str(path)))
        for _ in range(3):
            assert finding.look() == {}

        assert finding.warnings == [f"target job: {path} {why}"]
        assert (finding.state(), finding.why()) == ("waiting", f"{path} {why}")


def test_a_pidfile_does_not_name_us(tmp_path: Path) -> None:
    finding = Finding(pidfile(tmp_path / "pid", os.getpid()))

    assert finding.look() == {}
    assert finding.why() == f"{tmp_path / 'pid'} names process {os.getpid()}, which is no target"


# -- by what it runs -----------------------------------------------------------------------------------------------


def test_the_topmost_matches_head_the_target_and_what_is_below_belongs_to_it(mark: str) -> None:
    script = f'sh -c "sleep 1000 & echo \\$\\$ \\$!; wait" {mark} & wait'
    with running(["sh", "-c", script, mark]) as top, waiting(mark) as other:
        middle, low = line_of(top)
        finding = Finding(Wanted(match=f"sh -c .*{mark}"))

        assert set(finding.look()) == {top.pid, middle, low, other.pid}
        assert finding.heads() == sorted([top.pid, other.pid])
        kill(low)


def test_a_match_that_starts_later_or_again_is_found(mark: str) -> None:
    finding = Finding(Wanted("job", match=mark))
    finding.look()
    with waiting(mark) as first:
        one = set(finding.look())
    finding.look()
    with waiting(mark) as second:
        two = set(finding.look())

    assert (one, two) == ({first.pid}, {second.pid})
    assert finding.changes == [(("job"), state) for state in ("waiting", "running", "waiting", "running")]
    assert finding.pids == [None, first.pid, first.pid, second.pid]


def test_a_process_is_matched_by_what_it_runs_now(mark: str) -> None:
    with running(["sh", "-c", 'echo "$$"; read end; exec sh -c "echo \\$\\$; read end" "$0-later"', mark]) as process:
        assert process.stdin is not None
        line_of(process)
        finding = Finding(Wanted(match=f"{mark}-later"))
        before = finding.look()
        process.stdin.write("\n")
        process.stdin.flush()
        line_of(process)

        assert before == {}
        assert set(finding.look()) == {process.pid}


def test_neither_those_above_us_nor_commands_of_ours_are_matched() -> None:
    finding = Finding(Wanted(match="."))

    finding.look()
    heads = finding.heads()

    assert isinstance(heads, list)
    assert not {os.getpid(), os.getppid()} & set(heads)


# -- by W&B runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def core(tmp_path: Path) -> str:
    """A program that passes for a wandb-core."""
    path = tmp_path / "wandb-core"
    path.symlink_to("/bin/sh")
    return str(path)


def test_who_has_a_wandb_core_is_found_with_all_that_is_below(core: str) -> None:
    with running(["sh", "-c", '"$0" -c "echo \\$\\$; read end" x --pid $$', core]) as owner:
        (child,) = line_of(owner)
        finding = Finding(Wanted(runs=True))
        found = finding.look()
        kill(child)
        owner.wait()

        assert {owner.pid, child} <= set(found)
        assert owner.pid not in finding.look()


def test_a_wandb_core_whose_owner_has_ended_makes_no_target_of_who_adopted_it(core: str) -> None:
    script = 'sh -c \'"$0" -c "echo \\$\\$; read end" x --pid $$ <&3 & :\' "$0" 3<&0; read end'
    with running(["sh", "-c", script, core]) as top:
        (child,) = line_of(top)
        finding = Finding(Wanted(runs=True))
        wait_until(lambda: parent(parent(child)) != top.pid)

        assert child not in finding.look()
        kill(child)


def test_the_service_of_wandb_0_17_shows_its_owner_in_its_title(tmp_path: Path) -> None:
    program = tmp_path / "wandb-service(2"
    program.symlink_to("/bin/sh")
    script = '(exec -a "wandb-service(2-$$-tcp-localhost-1)" "$0" -c "echo \\$\\$; read end")'
    with running(["bash", "-c", f"{script}; :", str(program)]) as owner:
        (child,) = line_of(owner)

        assert {owner.pid, child} <= set(Finding(Wanted(runs=True)).look())
        kill(child)


# -- by the link, and beside other preemptds -----------------------------------------------------------------------


def test_who_registers_over_the_link_is_a_target_of_its_own() -> None:
    finding = Finding()
    with tree() as pids:
        finding.linked = {identify(pids[1])}
        during = set(finding.look())
        named = finding.finder.status()
        finding.linked = set()
        finding.look()

    assert during == set(pids[1:])
    assert named == [{"name": f"link {pids[1]}", "how": "link", "state": "running", "why": "", "pids": [pids[1]]}]
    assert finding.changes == [(f"link {pids[1]}", "running"), (f"link {pids[1]}", "gone")]
    assert finding.finder.status() == []


def test_what_another_preemptd_watches_is_left_to_it(mark: str, tmp_path: Path) -> None:
    script = 'exec 3<&0; "$@" <&3 & echo $!; wait'
    watch = [*PREEMPTD, "watch", "--no-wandb", "--link", str(tmp_path / "link"), "--", "sh", "-c", WAITS, mark]
    with running(["sh", "-c", script, mark, *watch], env={**os.environ, **QUIET}) as top:
        (watcher,) = line_of(top)
        (trainer,) = line_of(top)
        finding = Finding(Wanted(pid=top.pid), Wanted(pid=trainer), Wanted(match=mark))
        found = set(finding.look())
        whys = [finding.why(place) for place in range(3)]
        finding.linked = {identify(trainer)}

        assert found == {top.pid}
        assert whys == ["", f"another preemptd tells it: pid {watcher}", ""]
        assert set(finding.look()) == {top.pid, trainer}
        kill(trainer)
        kill(watcher)


# -- the whole -----------------------------------------------------------------------------------------------------


def test_two_targets_that_say_the_same_are_one() -> None:
    with waiting() as process:
        finding = Finding(Wanted(pid=process.pid), Wanted(pid=process.pid))
        finding.look()

        assert len(finding.finder.status()) == 1


def test_nothing_is_said_to_be_looked_for_before_it_was() -> None:
    finding = Finding(Wanted("job", match="x"))

    assert finding.finder.status() == [
        {"name": "job", "how": "match", "state": "waiting", "why": "not looked for yet", "pids": []}
    ]


def test_descriptors_are_let_go_with_the_processes_that_they_hold_or_in_the_end(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with waiting() as process, waiting() as other:
            finding = Finding(Wanted(pid=process.pid), pidfile(tmp_path / "pid", other.pid))
            finding.look()
            end(process)
            finding.look()
        finding.finder.close()

    assert len(os.listdir("/proc/self/fd")) == before


def test_closing_it_does_not_disturb_a_look_that_is_under_way() -> None:
    with waiting() as process:
        finding = Finding()

        def close() -> set[ProcessId]:
            threading.Thread(target=finding.finder.close).start()
            return set()

        finding.finder = Finder([Wanted(pid=process.pid)], close, tuple, finding.warnings.append, lambda *_: None)

        assert set(finding.look()) == {process.pid}
        wait_until(lambda: finding.look() == {})
