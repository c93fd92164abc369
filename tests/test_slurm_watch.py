"""The whole `preemptd watch` in a SLURM job, with SLURM's commands played by stand-ins."""

import json
import os
import shlex
import signal
import tempfile
import time
from pathlib import Path
from signal import SIGTERM, SIGUSR1

import pytest

from tests.slurm_world import SlurmWorld, row
from tests.waiting import wait_until
from tests.watching import Watch, trainer

pytestmark = pytest.mark.slow

LONG = row(end=36_000)


@pytest.fixture
def world(tmp_path: Path) -> SlurmWorld:
    return SlurmWorld(tmp_path)


def watching(world: SlurmWorld, how: str, *options: str, **environ: str) -> Watch:
    env = {**world.environ(), **environ}
    env["PATH"] = f"{world.bin}{os.pathsep}{os.environ['PATH']}"
    return Watch(world.directory, trainer(how), "--no-wandb", *options, env=env)


def in_grace(world: SlurmWorld) -> None:
    world.say(row=row(end=20, preempted=-1))


def requeues(world: SlurmWorld) -> list[object]:
    return [call["arguments"] for call in world.calls("scontrol", "requeue")]


def kinds(watch: Watch) -> list[object]:
    return [line["kind"] for line in watch.lines("notice")]


def test_usr1_in_a_grace_tells_once_saves_and_requeues_as_the_last_act(world: SlurmWorld) -> None:
    with watching(world, "USR1") as watch:
        watch.await_said("ready")
        in_grace(world)
        watch.signal(SIGUSR1)
        status = watch.wait()

    assert status == 75
    assert [line["name"] for line in watch.said("signal")] == ["SIGUSR1"]
    assert len(watch.said("saved")) == 1
    assert requeues(world) == [["requeue", "12"]]
    assert kinds(watch)[-1] == "preempt"
    assert "requeued job 12 (preempt, restart 1)" in watch.err


def test_the_canary_alone_is_enough_and_is_gone_at_the_end(world: SlurmWorld) -> None:
    with watching(world, "USR1") as watch:
        watch.await_said("ready")
        wait_until(lambda: world.calls("srun"))
        step = int(str(world.calls("srun")[0]["pid"]))
        wait_until(lambda: catches(step, SIGTERM))
        in_grace(world)
        os.kill(step, SIGTERM)
        status = watch.wait()

    assert status == 75
    assert [line["name"] for line in watch.said("signal")] == ["SIGUSR1"]
    assert requeues(world) == [["requeue", "12"]]
    assert not Path(f"/proc/{step}").exists()


def test_a_second_run_of_a_command_in_one_attempt_of_the_job_is_no_second_attempt(tmp_path: Path) -> None:
    """A job's script may start the same command twice: signal files and checkpoints go by SLURM's count."""
    command = ["sh", "-c", 'echo "$PREEMPTD_ATTEMPT ${PREEMPTD_RESUMED-no}" >> found; exit 3']
    for restart in ({}, {}, {"SLURM_RESTART_COUNT": "1"}):
        world = SlurmWorld(Path(tempfile.mkdtemp(dir=tmp_path)))
        env = {**world.environ(), "PATH": f"{world.bin}{os.pathsep}{os.environ['PATH']}", **restart}
        with Watch(tmp_path, command, "--no-wandb", "--state-dir", str(tmp_path / "state"), env=env) as watch:
            assert watch.wait() == 3

    assert (tmp_path / "found").read_text().splitlines() == ["0 no", "0 no", "1 1"]


def catches(pid: int, signum: signal.Signals) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(line.split()[1] for line in lines if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signum - 1) & 1)


@pytest.mark.parametrize(("options", "says"), [((), "will not be taken back"), (("--when-pending", "exit"), "")])
def test_a_job_that_starts_in_a_grace_goes_back_at_once_and_its_command_is_not_started(
    world: SlurmWorld, options: tuple[str, ...], says: str
) -> None:
    in_grace(world)
    with watching(world, "USR1", *options) as watch:
        status = watch.wait()

    assert status == 75
    assert watch.said("ready") == []
    assert requeues(world) == [["requeue", "12"]]
    assert "not started: a notice is pending" in watch.err
    assert says in watch.err


def test_a_file_that_may_be_taken_away_holds_the_command_until_the_grace_begins(world: SlurmWorld) -> None:
    signals = world.directory / "signals"
    signals.mkdir()
    (signals / "12.0.preempt").touch()
    with watching(world, "USR1", PREEMPTD_SIGNAL_DIR=str(signals)) as watch:
        watch.await_line("warning")
        in_grace(world)
        (signals / "12.0.preempt").write_text(" ")  # a new file has the controller asked at once
        status = watch.wait()

    assert status == 75
    assert watch.said("ready") == []
    assert requeues(world) == [["requeue", "12"]]


def test_a_sigterm_to_steps_is_explained_by_a_controller_that_comes_back_later(world: SlurmWorld) -> None:
    with watching(world, "USR1") as watch:
        watch.await_said("ready")
        wait_until(lambda: world.calls("srun"))
        step = int(str(world.calls("srun")[0]["pid"]))
        wait_until(lambda: catches(step, SIGTERM))
        world.say(squeue={"status": 1, "stderr": "Unable to contact slurm controller (connect failure)\n"})
        os.kill(step, SIGTERM)
        watch.await_said("saved")
        saved = time.monotonic()
        wait_until(lambda: time.monotonic() - saved > 8, 20)  # longer than any other last word may take
        in_grace(world)
        world.say(squeue=None)
        status = watch.wait()

    assert status == 75
    assert kinds(watch)[-1] == "preempt"
    assert requeues(world) == [["requeue", "12"]]
    assert watch.err.count("slurmctld does not answer") == 1


def test_around_two_trainings_it_waits_for_both_before_the_job_is_requeued(world: SlurmWorld) -> None:
    env = {**world.environ(), "PATH": f"{world.bin}{os.pathsep}{os.environ['PATH']}"}
    both = f"{shlex.join(trainer('USR1'))} & {shlex.join(trainer('USR1', save=2))} & wait"
    with Watch(world.directory, ["sh", "-c", both], "--no-wandb", env=env) as watch:
        watch.await_said("ready", 2)
        in_grace(world)
        watch.signal(SIGUSR1)
        status = watch.wait()

    assert status == 75
    assert len(watch.said("saved")) == len(watch.said("signal")) == 2
    assert requeues(world) == [["requeue", "12"]]


def test_usr1_is_told_while_slurmctld_hangs(world: SlurmWorld) -> None:
    with watching(world, "USR1") as watch:
        watch.await_said("ready")
        world.say(hang=["squeue", "config", "job", "node"])
        began = time.monotonic()
        watch.signal(SIGUSR1)
        (told,) = watch.await_said("signal")

        assert float(str(told["mono"])) - began < 2
        watch.process.kill()
    assert requeues(world) == []


def test_scancel_is_neither_a_preemption_nor_undone(world: SlurmWorld) -> None:
    with watching(world, "both") as watch:
        watch.await_said("ready")
        world.say(row=row("COMPLETING", end=0))
        watch.signal(SIGTERM)
        status = watch.wait()

    assert status == 0  # the training's own
    assert requeues(world) == []
    assert kinds(watch)[-1] == "cancelled"


def test_a_training_that_saves_for_too_long_is_not_waited_for_until_slurm_kills_us_all(world: SlurmWorld) -> None:
    env = {**world.environ(), "PATH": f"{world.bin}{os.pathsep}{os.environ['PATH']}"}
    with Watch(world.directory, trainer("USR1", save=600), "--no-wandb", env=env) as watch:
        watch.await_said("ready")
        wait_until(lambda: world.calls("scontrol", "show"))  # for KillWait, 7 s
        world.say(row=row("COMPLETING", "TimeLimit", end=0))
        watch.signal(SIGTERM)
        status = watch.process.wait(30)  # its pipes are the training's as well

        assert watch.training()  # which SLURM would kill a moment later
        (exited,) = watch.lines("exited")
    assert status == 75
    assert requeues(world) == [["requeue", "12"]]
    assert kinds(watch)[-1] == "time-limit"
    assert exited["status"] is None
    assert watch.lines("settled")[0]["why"].startswith("preempted (it still ran)")  # type: ignore[attr-defined]


def test_a_job_that_ends_by_itself_is_left_alone(world: SlurmWorld) -> None:
    with watching(world, "USR1", STEPS="10") as watch:
        status = watch.wait()

    assert status == 0
    assert requeues(world) == []
    assert watch.lines("notice") == []


def test_a_copy_that_runs_elsewhere_already_kills_its_training(world: SlurmWorld) -> None:
    with watching(world, "none") as watch:
        watch.await_said("ready")
        world.say(row=row(restarts=1))
        watch.signal(SIGUSR1)  # has the controller asked at once
        status = watch.wait()

    assert status == 128 + 9
    assert requeues(world) == []
    assert kinds(watch)[-1] == "node-failure"


def test_a_copy_that_has_saved_before_it_is_known_to_be_left_over_is_not_brought_back(world: SlurmWorld) -> None:
    with watching(world, "USR1") as watch:
        watch.await_said("ready")
        world.say(row=row(restarts=1))
        watch.signal(SIGUSR1)
        status = watch.wait()

    assert status == 0  # the training's own
    assert requeues(world) == []


def test_a_signal_file_is_heard_answered_and_brings_the_job_back(world: SlurmWorld) -> None:
    signals = world.directory / "signals"
    signals.mkdir()
    with watching(world, "USR1", PREEMPTD_SIGNAL_DIR=str(signals)) as watch:
        watch.await_said("ready")
        (signals / "12.preempt").touch()
        status = watch.wait()

    assert status == 75
    assert requeues(world) == [["requeue", "12"]]
    assert json.loads((signals / "12.0.ack").read_text())["state"] == "requeued"
    assert set(kinds(watch)) == {"preempt"}
    assert "requeued job 12 (preempt, restart 1)" in str(watch.lines("settled")[0]["why"])


def test_a_job_that_cannot_be_requeued_keeps_its_status_and_says_what_to_add(world: SlurmWorld) -> None:
    world.say(requeue={"status": 1, "stderr": "Requested operation is presently disabled for job 12\n"})
    with watching(world, "USR1") as watch:
        watch.await_said("ready")
        in_grace(world)
        watch.signal(SIGUSR1)
        status = watch.wait()

    assert status == 75
    assert "add `#SBATCH --requeue` to its script" in watch.err
