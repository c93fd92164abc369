import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from signal import SIGUSR1

import pytest

from preemptd import procfs
from preemptd.model import Process, ProcessId
from preemptd.procfs import Sent, Tree, environ, machine_life, process_id, send
from tests.waiting import wait_until

STANDINS = Path(__file__).parent / "standins"
NOBODY = 65534
SURVIVES_AND_WE_KNOW = ["python", "asyncio", "faulthandler", "c_handler", "fork_child", "sigwait_in_thread"]
DIES_AND_WE_KNOW = ["none", "restored", "exec_child", "spawning", "bystander"]
IGNORES = ["ignored", "inherited_ignore"]
# While its main thread is inside sigwait(), the kernel shows the signal as not blocked: it may be missed, not killed.
WAITS_UNSEEN = ["sigwait"]


class StandIn:
    """A stand-in that said ready; *pids* are the numbers that it said with it."""

    def __init__(self, popen: "subprocess.Popen[str]") -> None:
        self.popen = popen
        self.pids: list[int] = []

    @property
    def pid(self) -> int:
        return self.popen.pid

    def read(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline()

    def wait_ready(self) -> None:
        words = self.read().split()
        assert words[:1] == ["ready"]
        self.pids = [int(word) for word in words[1:]]

    def ask(self, line: str) -> str:
        """Say *line* and return the answer; empty if it is dead."""
        assert self.popen.stdin is not None
        try:
            os.write(self.popen.stdin.fileno(), f"{line}\n".encode())
        except BrokenPipeError:
            return ""
        return self.read().strip()


@contextmanager
def standin(name: str, *arguments: str, **options: object) -> Iterator[StandIn]:
    command = [sys.executable, str(STANDINS / f"proc_{name}.py"), *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **{**pipes, **options}) as popen:  # type: ignore[call-overload]  # text=True is in there
        try:
            found = StandIn(popen)
            found.wait_ready()
            yield found
        finally:
            popen.kill()


handling: Callable[..., AbstractContextManager[StandIn]] = partial(standin, "handles")
family: Callable[..., AbstractContextManager[StandIn]] = partial(standin, "family")


def looked_at(pid: int) -> Process:
    return next(process for process in Tree(pid, include_root=True).snapshot() if process.pid == pid)


def identify(pid: int) -> ProcessId:
    found = process_id(pid)
    assert found is not None
    return found


def pids_of(tree: Tree) -> set[int]:
    return {process.pid for process in tree.snapshot()}


# -- what the masks say --------------------------------------------------------------------------------------------


def _if_foretold(seen: Process, way: str) -> Process | None:
    return seen if seen.catches(SIGUSR1) == (way in SURVIVES_AND_WE_KNOW) else None


@pytest.mark.parametrize("way", SURVIVES_AND_WE_KNOW + DIES_AND_WE_KNOW + IGNORES + WAITS_UNSEEN)
def test_the_masks_foretell_what_sigusr1_does(way: str) -> None:
    with handling(way) as process:
        pid = process.pids[0]
        # A thread that says it waits may be on its way into sigwait() yet: the next look sees it there.
        seen = wait_until(lambda: _if_foretold(looked_at(pid), way))
        assert seen is not None

        os.kill(pid, SIGUSR1)
        survives = process.ask("are you there?") == "alive"

        assert bool(seen.ignored >> (SIGUSR1 - 1) & 1) == (way in IGNORES)
        assert survives == (way not in DIES_AND_WE_KNOW)
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("way", SURVIVES_AND_WE_KNOW)
def test_a_process_that_handles_the_signal_gets_it(way: str) -> None:
    with handling(way) as process:
        pid = process.pids[0]

        wait_until(lambda: send(identify(pid), SIGUSR1) is Sent.SENT)  # a thread may be on its way into sigwait()
        assert process.ask("are you there?") == "alive"
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("way", [*DIES_AND_WE_KNOW, *IGNORES, *WAITS_UNSEEN, "all_blocked"])
def test_a_process_that_does_not_handle_the_signal_is_left_alone(way: str) -> None:
    with handling(way) as process:
        sent = {send(identify(process.pid), SIGUSR1) for _ in range(200)}

        assert sent == {Sent.NOT_CAUGHT}
        assert process.ask("are you there?") == "alive"


def test_asked_to_send_all_the_same_it_ends_the_process() -> None:
    with handling("none") as process:
        assert send(identify(process.pid), SIGUSR1, only_if_caught=False) is Sent.SENT
        assert process.popen.wait() == -SIGUSR1


def test_a_handler_that_is_put_away_is_noticed_before_the_signal_is_sent() -> None:
    with handling("python") as process:
        seen = looked_at(process.pid)
        process.ask("restore")

        assert seen.catches(SIGUSR1)
        assert send(seen.id, SIGUSR1) is Sent.NOT_CAUGHT
        assert process.ask("are you there?") == "alive"


# -- the right process ---------------------------------------------------------------------------------------------


def test_a_process_that_has_ended_is_gone() -> None:
    with handling("python") as process:
        known = identify(process.pid)
        process.popen.kill()
        process.popen.wait()

        assert send(known, SIGUSR1) is Sent.GONE
        assert process_id(known.pid) is None


@pytest.mark.parametrize("only_if_caught", [True, False])
def test_a_zombie_is_gone(only_if_caught: bool) -> None:
    with family("zombie") as parent:
        zombie = next(p for p in Tree(parent.pid, include_root=False).snapshot() if p.pid == parent.pids[0])

        assert zombie.state == "Z"
        assert zombie.caught == zombie.blocked == 0
        assert process_id(zombie.pid) is None
        assert send(zombie.id, SIGUSR1, only_if_caught) is Sent.GONE


@pytest.mark.parametrize("only_if_caught", [True, False])
def test_a_later_process_with_the_same_pid_gets_nothing(only_if_caught: bool) -> None:
    with handling("none") as process:
        known = identify(process.pid)
        earlier = ProcessId(known.pid, known.start - 1)

        assert send(earlier, signal.SIGKILL, only_if_caught) is Sent.GONE
        assert process.ask("are you there?") == "alive"


def send_from_elsewhere(
    process: ProcessId, signum: int, who: str, uid: int = 0, failing: str = "-"
) -> tuple[str, str, str]:
    """Return which calls failed, what send() said, and the machine life, each in a process of its own."""
    arguments = map(str, (uid, failing, process.pid, process.start, int(signum), who))
    command = [sys.executable, str(STANDINS / "proc_sends.py"), *arguments]
    failed, sent, life = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return failed, sent, life


@pytest.mark.usefixtures("needs_root")
def test_another_users_process_is_denied_and_the_machine_life_needs_no_privilege() -> None:
    with handling("python") as process:
        _, sent, life = send_from_elsewhere(identify(process.pid), SIGUSR1, "all", uid=NOBODY)

        assert sent == "DENIED"
        assert life == machine_life()


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM])
@pytest.mark.parametrize("call", ["pidfd_open", "pidfd_send_signal"])
class TestWithoutPidfd:
    """Kernels before 5.3 say ENOSYS; old container runtimes' seccomp profiles say EPERM."""

    def test_the_signal_arrives_all_the_same(self, call: str, error: int) -> None:
        with handling("python") as process:
            failed, sent, _ = send_from_elsewhere(
                identify(process.pid), SIGUSR1, "caught", failing=f"{call}={int(error)}"
            )

            assert failed == f"{call}:{errno.errorcode[error]}"
            assert sent == "SENT"
            assert process.ask("are you there?") == "alive"

    def test_the_checks_hold_all_the_same(self, call: str, error: int) -> None:
        with handling("none") as process:
            known = identify(process.pid)
            failing = f"{call}={int(error)}"

            assert send_from_elsewhere(known, SIGUSR1, "caught", failing=failing)[1] == "NOT_CAUGHT"
            earlier = ProcessId(known.pid, known.start - 1)
            assert send_from_elsewhere(earlier, signal.SIGKILL, "all", failing=failing)[1] == "GONE"
            assert process.ask("are you there?") == "alive"
            assert send_from_elsewhere(known, SIGUSR1, "all", failing=failing)[1] == "SENT"
            assert process.popen.wait() == -SIGUSR1


def test_no_descriptor_is_left_open() -> None:
    with handling("python") as process:
        known = identify(process.pid)
        tree = Tree(os.getpid(), include_root=True)
        tree.snapshot()
        before = len(os.listdir("/proc/self/fd"))

        for _ in range(10):
            send(known, SIGUSR1)
            send(ProcessId(known.pid, 1), SIGUSR1)
            tree.snapshot()

        assert len(os.listdir("/proc/self/fd")) == before


# -- the tree ------------------------------------------------------------------------------------------------------


def test_the_root_is_in_the_snapshot_only_if_asked_for() -> None:
    with family("thread") as parent:
        assert pids_of(Tree(parent.pid, include_root=True)) == {parent.pid, *parent.pids}
        assert pids_of(Tree(parent.pid, include_root=False)) == set(parent.pids)


def test_a_child_of_a_thread_is_found() -> None:
    with family("thread") as parent:
        child = next(iter(Tree(parent.pid, include_root=False).snapshot()))

        assert child.pid == parent.pids[0]
        assert child.ppid == parent.pid


def test_a_daemon_that_forked_twice_is_found_below_the_subreaper() -> None:
    with family("orphans") as parent:
        processes = Tree(parent.pid, include_root=False).snapshot()

        assert {process.pid for process in processes} == set(parent.pids)
        assert all(process.pgid == process.pid for process in processes)


def test_no_orphan_is_lost_for_good_in_a_storm_of_them() -> None:
    with family("storm") as parent:
        tree = Tree(parent.pid, include_root=False)
        assert parent.popen.stdout is not None
        while not select.select([parent.popen.stdout], [], [], 0)[0]:  # it makes orphans all this time
            tree.snapshot()
        parent.wait_ready()
        expected = set(parent.pids)

        assert len(expected) == 100
        assert pids_of(tree) == expected


def test_the_scan_of_all_processes_finds_what_the_walk_finds() -> None:
    """The walk needs CONFIG_PROC_CHILDREN, which some kernels lack."""
    with family("orphans") as parent, family("nested", "one", "two", "three") as other:
        for root, count in ((parent.pid, 4), (other.pid, 4)):
            walked = wait_until(lambda root=root, count=count: _if_all(procfs._walk(root), count))  # type: ignore[misc]
            scanned = procfs._scan(root, None)

            assert {stat.pid for stat in walked} == {stat.pid for stat in scanned}


def _if_all(stats: list[procfs.Stat], count: int) -> list[procfs.Stat]:
    return stats if len(stats) == count else []


def test_the_members_of_a_group_are_found_when_its_leader_has_ended() -> None:
    with family("group") as outside:
        leader, member, far = outside.pids

        assert process_id(leader) is None
        assert pids_of(Tree(leader, include_root=True, group=leader)) == {member, far}
        assert pids_of(Tree(leader, include_root=True)) == set()


@pytest.mark.parametrize("name", [") Z 1 (", "a b\n)", "\xff\xfe", ")" * 15, ""])
def test_no_name_of_a_process_confuses_the_reader(name: str) -> None:
    with family("nested", name, "child") as parent:
        found = wait_until(lambda: _if_named(parent.pid, "child"))

        middle = next(process for process in found if process.pid == parent.pids[0])
        assert middle.ppid == parent.pid
        assert middle.state in "SR"
        assert middle.comm == name.encode("latin-1").decode(errors="replace")


def _if_named(root: int, comm: str) -> tuple[Process, ...]:
    found = Tree(root, include_root=False).snapshot()
    return found if any(process.comm == comm for process in found) else ()


def test_a_snapshot_of_a_process_that_is_gone_is_empty() -> None:
    with handling("none") as process:
        process.popen.kill()
        process.popen.wait()

        assert Tree(process.pid, include_root=True).snapshot() == ()


# -- what is read once ---------------------------------------------------------------------------------------------


def test_a_python_that_execs_another_script_is_seen_as_that() -> None:
    """Pid, start time, name and exe stay the same: what was read before the exec must not be kept."""
    with handling("none") as process:
        tree = Tree(process.pid, include_root=True)
        (before,) = tree.snapshot()
        process.ask("exec")
        (after,) = tree.snapshot({before.id})

        assert (before.id, before.exe) == (after.id, after.exe)
        assert before.cmdline[-1] == "none"
        assert after.cmdline[-3:] == ("the", "second", "program")


def test_the_masks_of_the_unread_stay_as_they_were() -> None:
    with handling("none") as process:
        tree = Tree(process.pid, include_root=True)
        (first,) = tree.snapshot(unread={identify(process.pid)})
        process.ask("handle")
        (unread,) = tree.snapshot(unread={first.id})
        (read,) = tree.snapshot()

        assert not first.catches(SIGUSR1)
        assert not unread.catches(SIGUSR1)
        assert read.catches(SIGUSR1)


def test_what_is_known_of_a_process_is_forgotten_with_it() -> None:
    with family("thread") as parent:
        tree = Tree(parent.pid, include_root=False)
        tree.snapshot()
        os.kill(parent.pids[0], signal.SIGKILL)
        wait_until(lambda: all(process.state == "Z" for process in tree.snapshot()))
        parent.popen.kill()
        parent.popen.wait()

        assert tree.snapshot() == ()
        assert not tree._details._known


# -- the machine, and environments ---------------------------------------------------------------------------------


def test_the_machine_life_stays_the_same() -> None:
    assert machine_life() == machine_life()
    assert machine_life().split(":")[0] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert "-" not in machine_life().split(":")[1:]


@pytest.mark.usefixtures("needs_root")
def test_two_containers_one_after_the_other_have_lives_of_their_own() -> None:
    """The second one may get the same namespace inode: only the start time of its first process tells."""
    say = [sys.executable, "-c", "from preemptd.procfs import machine_life; print(machine_life())"]
    lives = {machine_life()}
    for _ in range(2):
        command = ["unshare", "--pid", "--fork", "--mount-proc", *say]
        lives.add(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())

    assert len(lives) == 3


def test_the_environment_is_the_one_it_was_started_with() -> None:
    wanted = {"WORLD_SIZE": "2", "ODD": "a=b\nc", "EMPTY": ""}
    with handling("none", env=wanted) as process:
        found = environ(process.pid)

        assert {name: found[name] for name in wanted} == wanted


def test_the_environment_of_nobody_is_empty() -> None:
    with handling("none") as process:
        process.popen.kill()
        process.popen.wait()

        assert environ(process.pid) == {}


def test_a_thousand_snapshots_of_a_small_tree_are_cheap() -> None:
    with family("orphans") as parent:
        tree = Tree(parent.pid, include_root=False)
        tree.snapshot()
        began = time.process_time()
        for _ in range(1000):
            tree.snapshot()

        # measured: 0.2 ms each
        assert time.process_time() - began < 3
