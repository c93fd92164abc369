import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from preemptd.events import Event, TargetExited
from preemptd.model import Outcome, ProcessId
from preemptd.procfs import process_id
from preemptd.targets.attached import Attached
from tests.waiting import wait_until

STANDINS = Path(__file__).parent / "standins"
NO_PIDFD = [sys.executable, str(STANDINS / "child_seccomp.py")]
EXIT_CODE_KNOWN = tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (6, 15)


class Training:
    """A process that does what its stdin says; who started it can be left, so that it is nobody's child here."""

    def __init__(self, command: str) -> None:
        self.process = subprocess.Popen(
            ["bash", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"
        found = process_id(self.process.pid)
        assert found
        self.id = found

    def close(self) -> None:
        with self.process:
            self.process.kill()


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def events() -> list[Event]:
    return []


def train(stack: contextlib.ExitStack, command: str) -> Training:
    training = Training(command)
    stack.callback(training.close)
    return training


def attach(stack: contextlib.ExitStack, process: ProcessId, events: list[Event]) -> Attached:
    attached = Attached(process, process.pid, events.append)
    stack.callback(attached.finish)
    attached.start()
    return attached


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


@pytest.mark.skipif(not EXIT_CODE_KNOWN, reason="Linux tells the exit code of others since 6.15")
@pytest.mark.parametrize(
    ("end", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("ulimit -c 0; kill -SEGV $$", 139)]
)
def test_the_exit_status_of_a_process_that_is_not_waited_for_here_is_known(
    stack: contextlib.ExitStack, events: list[Event], end: str, status: int
) -> None:
    training = train(stack, f"echo ready; read line; {end}")
    attach(stack, training.id, events)

    training.process.communicate("end\n", timeout=20)
    wait_until(lambda: events)

    assert events == [TargetExited(training.id, Outcome(status))]


def test_a_process_that_nobody_reaps_has_ended_with_a_status_that_nobody_knows(
    stack: contextlib.ExitStack, events: list[Event]
) -> None:
    training = train(stack, "echo ready; read line; exit 7")
    attach(stack, training.id, events)

    assert training.process.stdin
    training.process.stdin.write("end\n")
    training.process.stdin.flush()
    wait_until(lambda: events)

    assert events == [TargetExited(training.id, Outcome(1, known=False))]


def test_a_process_that_has_gone_already_has_ended(stack: contextlib.ExitStack, events: list[Event]) -> None:
    training = train(stack, "echo ready; read line")
    training.process.communicate("end\n", timeout=20)

    attach(stack, training.id, events)
    wait_until(lambda: events)

    assert events == [TargetExited(training.id, Outcome(1, known=False))]


def test_another_process_with_the_same_pid_is_neither_watched_nor_signalled(
    stack: contextlib.ExitStack, events: list[Event]
) -> None:
    training = train(stack, "echo ready; read line; exit 7")
    former = ProcessId(training.id.pid, training.id.start - 1)

    attached = attach(stack, former, events)
    wait_until(lambda: events)
    attached.forward(signal.SIGKILL)
    training.process.communicate("end\n", timeout=20)

    assert training.process.returncode == 7
    assert events == [TargetExited(former, Outcome(1, known=False))]


def test_a_signal_is_passed_on_and_a_stopped_process_is_continued_to_see_it(
    stack: contextlib.ExitStack, events: list[Event]
) -> None:
    training = train(stack, 'trap "exit 5" TERM; echo ready; while :; do read -t 0.1 line; done')
    attached = attach(stack, training.id, events)
    os.kill(training.id.pid, signal.SIGSTOP)

    attached.forward(signal.SIGTERM)

    assert training.process.wait(20) == 5


def test_the_stopped_workers_of_its_group_are_continued_with_it(
    stack: contextlib.ExitStack, events: list[Event]
) -> None:
    training = train(stack, "trap : TERM; sleep 60 & echo ready; echo $!; while :; do wait; done")
    assert training.process.stdout
    worker = int(training.process.stdout.readline())
    attached = attach(stack, training.id, events)
    os.killpg(training.id.pid, signal.SIGSTOP)
    wait_until(lambda: state(worker) == "T")

    attached.forward(signal.SIGTERM)

    wait_until(lambda: state(worker) != "T")
    os.kill(worker, signal.SIGKILL)


def test_ctrl_z_does_not_stop_a_training_that_another_shell_started(
    stack: contextlib.ExitStack, events: list[Event]
) -> None:
    training = train(stack, "echo ready; read line; exit 7")
    attached = attach(stack, training.id, events)

    attached.forward(signal.SIGTSTP)
    training.process.communicate("end\n", timeout=20)

    assert training.process.returncode == 7


def test_watching_ends_when_we_leave_and_the_process_lives_on(stack: contextlib.ExitStack, events: list[Event]) -> None:
    training = train(stack, "echo ready; read line; exit 7")
    before = set(os.listdir("/proc/self/fd"))
    attached = Attached(training.id, training.id.pid, events.append)
    attached.start()

    attached.finish()

    assert not [thread for thread in threading.enumerate() if thread.name.startswith("attached-")]
    assert set(os.listdir("/proc/self/fd")) == before
    assert training.process.poll() is None
    assert not events


@pytest.mark.parametrize("signum", ["SIGTERM", "SIGKILL"])
def test_without_pidfd_the_end_is_seen_and_signals_are_passed_on(stack: contextlib.ExitStack, signum: str) -> None:
    training = train(stack, "echo ready; exec sleep 60")
    watcher = subprocess.Popen(
        [*NO_PIDFD, sys.executable, str(STANDINS / "child_attached.py"), *map(str, [*ids(training), training.id.pid])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    stack.enter_context(watcher)
    stack.callback(watcher.kill)
    assert watcher.stdout
    assert select.select([watcher.stdout], [], [], 20)[0]
    assert watcher.stdout.readline() == "ready\n"

    out, _ = watcher.communicate(f"{signum}\n", timeout=20)

    assert out == f"{training.id.pid} 1 False\n"
    assert training.process.wait(20) == -signal.Signals[signum]


def ids(training: Training) -> tuple[int, int]:
    return training.id.pid, training.id.start


def test_a_command_is_supervised_without_pidfd() -> None:
    done = subprocess.run(
        [*NO_PIDFD, sys.executable, str(STANDINS / "child_watch.py"), "sh", "-c", "kill -TERM $PPID; exec sleep 60"],
        timeout=20,
        check=False,
    )

    assert done.returncode == 143
