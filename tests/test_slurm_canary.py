"""The canary step, on an srun that starts the real program of it."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from preemptd.provider import Observation, State
from preemptd.targets.reaping import Shielded
from preemptd_providers.slurm.attempt import Attempt
from preemptd_providers.slurm.canary import CanaryWatch
from preemptd_providers.slurm.job import job_of
from preemptd_providers.slurm.pace import Pace
from tests.slurm_world import SlurmWorld
from tests.waiting import wait_until


class Canary:
    """A canary watch, looked through by a thread of its own as the daemon would."""

    def __init__(self, world: SlurmWorld, **environ: str) -> None:
        job = job_of(world.environ())
        assert job is not None
        self.world = world
        self.attempt = Attempt(job, 120.0, 0.0)
        self.watch = CanaryWatch(
            "n1",
            Shielded(world.helpers),
            world.environ(**environ),
            Pace(0.0),
            lambda signum: self.attempt.heard(signum, direct=False),
            self.attempt.open_notice,
        )
        self.seen: list[Observation] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._stopping:
            self.seen.append(self.watch.observe())

    def states(self) -> list[State]:
        return [observation.state for observation in self.seen]

    def ready(self, count: int = 1) -> int:
        """Wait until the step listens the *count*th time; return its pid."""
        wait_until(lambda: self.states().count(State.CLEAR) >= count, 30, "ready")
        return int(str(self.world.calls("srun")[-1]["pid"]))

    def close(self) -> None:
        self._stopping = True
        self.watch.close()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def world(tmp_path: Path) -> SlurmWorld:
    return SlurmWorld(tmp_path)


@pytest.fixture
def canary(world: SlurmWorld) -> Iterator[Canary]:
    canary = Canary(world, SLURM_CPU_BIND="quiet,mask_cpu:0x1")
    yield canary
    canary.close()


def test_it_takes_no_room_in_the_job_and_listens_on_our_own_node(canary: Canary) -> None:
    canary.ready()
    (call,) = canary.world.calls("srun")

    assert isinstance(call["arguments"], list)
    assert {"--overlap", "-N1", "-n1", "-c1", "--mem=0", "--input=all"} <= set(call["arguments"])
    assert call["arguments"][call["arguments"].index("-w") + 1] == "n1"
    assert call["environment"]["SLURM_CPU_BIND"] is None  # type: ignore[index]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_each_signal_that_it_hears_is_a_notice_at_once(canary: Canary, signum: signal.Signals) -> None:
    os.kill(canary.ready(), signum)

    wait_until(lambda: State.NOTICE in canary.states())
    notice = canary.seen[-1].notice
    assert notice is not None
    assert notice.source == f"canary step: {signum.name}"
    assert notice.already_sent == frozenset()


def test_it_lives_on_and_hears_the_next_one(canary: Canary) -> None:
    pid = canary.ready()
    for count, signum in enumerate([signal.SIGUSR1, signal.SIGCONT, signal.SIGTERM], 1):
        os.kill(pid, signum)
        if signum is not signal.SIGCONT:
            expected = min(count, 2)
            wait_until(lambda expected=expected: canary.states().count(State.NOTICE) == expected)  # type: ignore[misc]

    assert len(canary.world.calls("srun")) == 1


def test_closing_it_ends_the_step_by_the_end_of_its_input(world: SlurmWorld) -> None:
    canary = Canary(world)
    pid = canary.ready()

    canary.close()

    assert not Path(f"/proc/{pid}").exists()
    assert canary.seen[-1].state is State.UNKNOWN
    assert world.helpers.pids == frozenset()
    canary.watch.close()


def test_a_step_that_dies_is_said_and_started_again(canary: Canary) -> None:
    os.kill(canary.ready(), signal.SIGKILL)

    wait_until(lambda: State.UNKNOWN in canary.states())
    error = next(observation.error for observation in canary.seen if observation.error)
    assert "the canary step ended with status" in str(error)
    wait_until(lambda: len(canary.world.calls("srun")) == 2, 30)


def test_steps_that_start_and_die_are_one_outage_and_the_one_that_lives_ends_it(
    world: SlurmWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preemptd_providers.slurm.canary.STEADY", 3.0)
    canary = Canary(world)
    for count in (1, 2, 3):
        wait_until(lambda count=count: len(listening(world)) == count, 30)  # type: ignore[misc]
        os.kill(listening(world)[-1], signal.SIGKILL)
    wait_until(lambda: canary.states().count(State.CLEAR) == 2, 30, "back")

    changes = [
        state for state, before in zip(canary.states(), [None, *canary.states()], strict=False) if state != before
    ]
    assert changes == [State.CLEAR, State.UNKNOWN, State.CLEAR]
    canary.close()


def listening(world: SlurmWorld) -> list[int]:
    """List the pids of all steps that were started, once the last one of them has its handlers."""
    pids = [int(str(call["pid"])) for call in world.calls("srun")]
    return pids if pids and catches(pids[-1]) else []


def catches(pid: int) -> bool:
    """Say whether it has the last one of its handlers; so has one that has ended."""
    path = Path(f"/proc/{pid}/status")
    lines = path.read_text().splitlines() if path.exists() else ["SigCgt: ffffffff"]
    caught = next((line.split()[1] for line in lines if line.startswith("SigCgt")), "0")
    return bool(int(caught, 16) >> (signal.SIGUSR2 - 1) & 1)


def test_a_signal_to_a_step_that_was_started_again_is_heard_at_once(canary: Canary) -> None:
    os.kill(canary.ready(), signal.SIGKILL)
    wait_until(lambda: len(listening(canary.world)) == 2, 30)

    os.kill(listening(canary.world)[-1], signal.SIGTERM)

    wait_until(lambda: State.NOTICE in canary.states(), 10)
    assert canary.states().count(State.CLEAR) == 1


def test_a_step_that_outlives_its_srun_is_ended(world: SlurmWorld) -> None:
    world.say(srun_dies_alone=True)
    canary = Canary(world)
    srun = canary.ready()
    task = int(Path(f"/proc/{srun}/task/{srun}/children").read_text())

    os.kill(srun, signal.SIGKILL)

    wait_until(lambda: not Path(f"/proc/{task}/cmdline").exists() or not Path(f"/proc/{task}/cmdline").read_bytes(), 30)
    wait_until(lambda: len(world.calls("srun")) == 2, 30)
    canary.close()


def test_closing_it_ends_a_step_that_does_not_hear_of_the_end_of_its_input(world: SlurmWorld) -> None:
    world.say(srun_dies_alone=True)
    canary = Canary(world)
    srun = canary.ready()
    task = int(Path(f"/proc/{srun}/task/{srun}/children").read_text())

    canary.watch.close(0.5)

    assert not Path(f"/proc/{task}/cmdline").exists() or not Path(f"/proc/{task}/cmdline").read_bytes()
    canary.close()


def test_a_process_that_got_the_pid_of_the_step_is_left_alone(tmp_path: Path) -> None:
    world = SlurmWorld(tmp_path)
    world.say(srun={"stdout": f"ready {os.getpid()}\n"})
    canary = Canary(world)

    wait_until(lambda: State.UNKNOWN in canary.states())

    canary.close()


def test_a_step_that_is_started_again_takes_no_notice_back(canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preemptd_providers.slurm.canary.STEADY", 0.1)
    pid = canary.ready()
    os.kill(pid, signal.SIGUSR1)
    wait_until(lambda: State.NOTICE in canary.states())
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: canary.states()[-2:] == [State.UNKNOWN, State.NOTICE], 30, "ready again")

    assert State.CLEAR not in canary.states()[canary.states().index(State.NOTICE) :]


def test_an_srun_that_refuses_is_handed_on(tmp_path: Path) -> None:
    world = SlurmWorld(tmp_path)
    world.say(srun={"status": 1, "stderr": "srun: error: Unable to create step for job 12: Access/permission denied\n"})
    canary = Canary(world)

    wait_until(lambda: State.UNKNOWN in canary.states())
    error = next(observation.error for observation in canary.seen if observation.error)
    assert "Unable to create step for job 12: Access/permission denied" in str(error)
    canary.close()


def test_one_that_was_never_started_is_closed(world: SlurmWorld) -> None:
    watch = CanaryWatch(
        "n1", Shielded(world.helpers), world.environ(), Pace(0.0), lambda _: pytest.fail("heard"), lambda: None
    )
    watch.close()

    assert watch.observe().state is State.UNKNOWN
    assert world.calls("srun") == []
