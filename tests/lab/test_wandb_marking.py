"""The real wandb of three versions, unmodified scripts, and the marker: what reaches the backend, and when."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from preemptd.events import Event, MarkingDone, RunMarked, RunsFound
from preemptd.procfs import Tree
from preemptd.runs import discovery, transaction_log
from preemptd.runs.core_socket import attach_frame, preempting_frame
from preemptd.runs.marker import Marker
from tests.lab.wandb_backend import WandbBackend
from tests.lab.wandb_watching import PATIENCE, every_version, patient, stop
from tests.waiting import wait_until

STANDINS = Path(__file__).parent.parent / "standins"
pytestmark = patient


class Training:
    """An unmodified training script, and a marker that watches it."""

    def __init__(self, command: list[str], env: Mapping[str, str], directory: Path) -> None:
        self.popen = subprocess.Popen(
            command,
            env={**os.environ, **env},
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.events: list[Event] = []
        self.marker = Marker(self.events.append)
        self.marker.start()
        self._tree = Tree(self.popen.pid, include_root=True)

    def line(self, start: str) -> list[str]:
        """Read the next line, which has to begin with *start*; return its other words."""
        assert self.popen.stdout is not None
        words = self.popen.stdout.readline().split()
        assert words[:1] == [start]
        return words[1:]

    def look(self) -> None:
        self.marker.look(self._tree.snapshot())

    def mark(self) -> float:
        """Look, mark, wait until the demand is done; return the milliseconds that marking took."""
        self.look()
        wait_until(lambda: any(isinstance(event, RunsFound) for event in self.events))
        asked = time.monotonic()
        self.marker.mark(1)
        wait_until(lambda: any(isinstance(event, MarkingDone) for event in self.events))
        assert self.refused() == []
        return 1000 * (max(event.mono for event in self.events if isinstance(event, RunMarked)) - asked)

    def tell(self) -> None:
        self.popen.send_signal(signal.SIGUSR1)

    def cores(self) -> list[int]:
        return [process.pid for process in discovery.cores(self._tree.snapshot())]

    def marked(self) -> list[str]:
        return sorted(event.run.run_id for event in self.events if isinstance(event, RunMarked) and not event.why)

    def refused(self) -> list[str]:
        return [event.why for event in self.events if isinstance(event, RunMarked) and event.why]

    def close(self) -> None:
        self.marker.stop()
        self.popen.kill()
        self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout):
            assert stream is not None
            stream.close()


Start = Callable[..., Training]


@pytest.fixture
def backend() -> Iterator[WandbBackend]:
    with WandbBackend() as backend:
        yield backend


@pytest.fixture
def start(wandb_pythons: Mapping[str, str], backend: WandbBackend, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(version: str, *options: str, python: tuple[str, ...] = (), **env: str) -> Training:
            command = [wandb_pythons[version], *python, str(STANDINS / "wandb_train.py"), *options]
            training = Training(command, {**backend.env(), **env}, tmp_path)
            stack.callback(training.close)
            return training

        yield start


@every_version
def test_hand_made_frames_are_those_of_the_installed_wandb(wandb_pythons: Mapping[str, str], version: str) -> None:
    command = [wandb_pythons[version], str(STANDINS / "wandb_frames.py")]
    made = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    kept = json.loads((STANDINS.parent / "data" / "wandb_frames.json").read_text())

    assert made == kept


@every_version
def test_a_frame_that_is_cut_off_anywhere_is_dropped_and_training_goes_on(
    start: Start, backend: WandbBackend, version: str
) -> None:
    """As it is when we are killed, or hang up, in the middle of one."""
    training = start(version)
    _, run_id = training.line("ready")
    training.look()
    wait_until(lambda: training.events)
    (core,) = training.cores()
    address = discovery.listening_address(core)
    assert address is not None
    frames = attach_frame(run_id, "attach") + preempting_frame(run_id)
    for end in range(len(frames)):
        with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as cut:
            cut.connect(address)
            cut.sendall(frames[:end])
    training.mark()
    training.tell()
    training.line("told")

    assert (training.popen.wait(timeout=PATIENCE), backend.exit_codes(run_id)) == (0, [143])
    assert len(backend.preempting(run_id)) == 1


@every_version
def test_an_unmodified_script_is_marked_once_before_the_signal_reaches_it(
    start: Start, backend: WandbBackend, version: str
) -> None:
    training = start(version)
    _, run_id = training.line("ready")
    assert backend.preempting(run_id) == []
    training.mark()
    marked_at = next(event.mono for event in training.events if isinstance(event, RunMarked))
    training.tell()
    (told_at,) = training.line("told")
    status = training.popen.wait(timeout=PATIENCE)

    assert marked_at < float(told_at)
    assert training.marked() == [run_id]
    assert (status, backend.exit_codes(run_id), len(backend.preempting(run_id))) == (0, [143], 1)
    assert backend.unknown() == []


@every_version
def test_a_trainer_that_holds_the_gil_is_marked_at_once(start: Start, backend: WandbBackend, version: str) -> None:
    training = start(version, "--hold-gil", "5")
    _, run_id = training.line("ready")
    training.mark()
    training.tell()
    (told_at,) = training.line("told")
    (delivered_at,) = backend.preempting(run_id)

    assert delivered_at < float(told_at) - 1


@every_version
def test_a_stopped_wandb_core_is_marked_once_when_it_goes_on_and_training_with_it(
    start: Start, backend: WandbBackend, version: str
) -> None:
    training = start(version)
    _, run_id = training.line("ready")
    training.look()
    wait_until(lambda: training.events)
    assert isinstance(training.events[0], RunsFound)
    core = training.events[0].runs[0].core_pid
    stop(core)
    training.marker.mark(1)
    with pytest.raises(AssertionError, match="not within"):
        wait_until(training.marked, timeout=1)
    os.kill(core, signal.SIGCONT)
    wait_until(training.marked)
    wait_until(lambda: backend.preempting(run_id))
    training.tell()
    training.line("told")

    assert training.popen.wait(timeout=PATIENCE) == 0
    assert (len(backend.preempting(run_id)), backend.exit_codes(run_id)) == (1, [143])


@every_version
def test_an_isolated_python_is_marked(start: Start, backend: WandbBackend, version: str) -> None:
    training = start(version, python=("-I",))
    _, run_id = training.line("ready")
    training.mark()
    wait_until(lambda: backend.preempting(run_id))

    assert training.marked() == [run_id]


@every_version
def test_two_runs_of_one_process_are_both_marked(start: Start, backend: WandbBackend, version: str) -> None:
    training = start(version, "--runs", "2")
    _, *run_ids = training.line("ready")
    training.mark()
    wait_until(lambda: all(backend.preempting(run_id) for run_id in run_ids))

    assert len(run_ids) == 2
    assert training.marked() == sorted(run_ids)


@every_version
def test_a_run_that_begins_after_the_notice_is_marked(start: Start, backend: WandbBackend, version: str) -> None:
    training = start(version, "--late")
    training.line("waiting")
    training.look()
    training.marker.mark(1)
    wait_until(lambda: training.events == [MarkingDone(1)])
    assert training.popen.stdin is not None
    training.popen.stdin.write("\n")
    training.popen.stdin.flush()

    def looked() -> list[str]:
        training.look()  # as the daemon does while an escalation is open
        return training.marked()

    wait_until(looked)
    _, run_id = training.line("ready")
    wait_until(lambda: backend.preempting(run_id))

    assert training.marked() == [run_id]
    assert training.refused() == []


@every_version
def test_offline_the_record_is_in_the_transaction_log(start: Start, version: str, tmp_path: Path) -> None:
    training = start(version, WANDB_MODE="offline")
    _, run_id = training.line("ready")
    training.mark()
    training.tell()
    training.line("told")
    training.popen.wait(timeout=PATIENCE)
    (path,) = tmp_path.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb")

    assert transaction_log.has_preempting(str(path))
    assert transaction_log.exit_code(str(path)) == 143


def test_offline_the_record_survives_sigkill_where_the_log_is_flushed_often(start: Start, tmp_path: Path) -> None:
    training = start("0.31.0", WANDB_MODE="offline", WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL="0.5")
    _, run_id = training.line("ready")
    (path,) = tmp_path.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb")
    training.mark()
    wait_until(lambda: transaction_log.has_preempting(str(path)))
    training.popen.kill()
    training.popen.wait()

    assert transaction_log.has_preempting(str(path))
    assert transaction_log.exit_code(str(path)) is None


@every_version
def test_a_run_without_a_transaction_log_is_marked(start: Start, backend: WandbBackend, version: str) -> None:
    training = start(version, WANDB_X_SKIP_TRANSACTION_LOG="true")
    _, run_id = training.line("ready")
    training.look()
    training.marker.mark(1)
    wait_until(lambda: any(isinstance(event, MarkingDone) for event in training.events))
    wait_until(lambda: backend.preempting(run_id))

    assert training.marked() == [run_id]


def test_marking_loads_no_wandb_into_this_process() -> None:
    code = "import sys, preemptd.runs.marker, preemptd.runs.transaction_log; sys.exit('wandb' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
