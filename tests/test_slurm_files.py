"""Signal files of a SLURM job, and the answers to them."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from preemptd.notices import Kind, Level, Meaning
from preemptd.provider import Conclusion, Notice, Outcome, State, Watch
from preemptd_providers.slurm.acks import Acks
from preemptd_providers.slurm.provider import Slurm, SlurmOptions
from tests.slurm_world import SlurmWorld, row

ENDED = Conclusion(Outcome(0), preempted=True)


@pytest.fixture
def world(tmp_path: Path) -> SlurmWorld:
    (tmp_path / "signals").mkdir()
    return SlurmWorld(tmp_path)


def job(world: SlurmWorld, **environ: str) -> tuple[Slurm, Watch, Watch]:
    """Make a provider whose files lie in signals/; return it with its watches for the job and for files."""
    options = SlurmOptions(canary=False, path=str(world.directory / "exact"))
    environ = {"PREEMPTD_SIGNAL_DIR": str(world.directory / "signals"), **environ}
    provider = Slurm(options, world.surroundings(world.environ(**environ)))
    watches = {watch.name: watch for watch in provider.watches()}
    return provider, watches["slurm:job"], watches["slurm:files"]


def ack(directory: Path, name: str = "12.0.ack") -> object:
    return json.loads((directory / name).read_text())["state"]


def notice(watch: Watch) -> Notice:
    observation = watch.observe()
    assert observation.notice is not None, observation
    return observation.notice


def test_a_file_is_told_at_once_decided_by_the_controller_and_answered(world: SlurmWorld) -> None:
    provider, of_job, files = job(world)
    before = files.observe().notice, of_job.observe().notice
    (world.directory / "signals" / "12.preempt").touch()

    first, soon = notice(files), files.interval
    seen = [notice(of_job).meaning for _ in range(2)]
    last = notice(files)

    assert before == (None, None)
    assert (first.meaning, first.event_id, soon) == (Meaning.UNDECIDED, "slurm:12:0", 0.25)
    assert seen == [Meaning.UNDECIDED, Meaning.PREEMPTED]  # the first look comes too soon after the file
    assert (last.kind, last.meaning, files.interval) == (Kind.PREEMPT, Meaning.PREEMPTED, 1.0)
    assert ack(world.directory / "signals") == "noticed"
    provider.close()


def test_a_file_in_the_grace_of_a_trap_is_a_preemption(world: SlurmWorld) -> None:
    provider, of_job, files = job(world)
    (world.directory / "signals" / "12.0.preempt").touch()
    files.observe()
    world.say(row=row(end=15, preempted=-1))

    assert notice(of_job).kind is Kind.PREEMPT
    assert notice(files).kind is Kind.PREEMPT
    provider.close()


@pytest.mark.parametrize(
    ("name", "text", "age", "heard"),
    [
        ("12.preempt", "", 0, True),
        ("12.preempt", "", 3600, False),
        ("12.preempt", '{"restart": 1}', 3600, True),
        ("12.preempt", '{"restart": 0}', 0, False),
        ("12.1.preempt", "", 3600, True),
        ("12.0.preempt", "", 0, False),
        ("node-n1.preempt", "", 0, True),
        ("node-n1.preempt", '{"restart": 1}', 3600, False),
        ("node-n2.preempt", "", 0, False),
        ("13.preempt", "", 0, False),
    ],
)
def test_only_files_for_this_attempt_are_heard(
    world: SlurmWorld, name: str, text: str, age: float, heard: bool
) -> None:
    path = world.directory / "signals" / name
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)
    world.say(row=row(restarts=1))
    environ = world.environ(PREEMPTD_SIGNAL_DIR=str(path.parent), SLURM_RESTART_COUNT="1")
    surroundings = replace(world.surroundings(environ), attempt=1)
    provider = Slurm(SlurmOptions(canary=False), surroundings)
    files = next(watch for watch in provider.watches() if watch.name == "slurm:files")

    assert (files.observe().notice is not None) is heard
    provider.close()


def test_the_files_of_the_job_that_squeue_has_named_are_ours_and_no_others(world: SlurmWorld) -> None:
    """Sbatch in a task of an array that was requeued twice: its variables have come along."""
    inherited = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1", "SLURM_RESTART_COUNT": "2"}
    provider, look, files = job(world, **inherited)
    look.observe()
    directory = world.directory / "signals"
    (directory / "7_1.preempt").touch()

    assert files.observe().state is State.CLEAR
    (directory / "12.0.preempt").touch()
    assert notice(files).event_id == "slurm:12:0"
    assert ack(directory) == "noticed"
    provider.close()


@pytest.mark.parametrize("kind", ["link", "foreign"])
def test_a_link_or_a_foreign_file_is_refused(world: SlurmWorld, kind: str) -> None:
    path = world.directory / "signals" / "12.preempt"
    if kind == "link":
        path.symlink_to("/etc/passwd")
    elif os.geteuid() == 0:
        path.touch()
        os.chown(path, 65534, 65534)
    else:
        pytest.skip("needs root: run the tests as root")
    provider, _, files = job(world)

    observation = files.observe()

    assert observation.notice is None
    assert "is refused" in str(observation.error)
    provider.close()


def test_a_cancelled_job_gets_advice_and_is_not_requeued(world: SlurmWorld) -> None:
    (world.directory / "signals" / "12.preempt").write_text('{"kind": "cancel"}')
    world.say(row=row(end=15, preempted=-1))
    provider, of_job, files = job(world)

    said = notice(files)
    of_job.observe()

    assert (said.kind, said.level, said.meaning) == (Kind.CANCELLED, Level.ADVISE, Meaning.STOPPED)
    assert provider.settle(ENDED, 10.0) == "not requeued: a signal file forbids it"
    provider.close()


def test_a_file_may_say_that_the_job_is_not_to_come_back(world: SlurmWorld) -> None:
    (world.directory / "signals" / "12.preempt").write_text('{"requeue": false}')
    provider, _, files = job(world)
    files.observe()
    provider.conclude(5.0)

    assert provider.settle(ENDED, 10.0) == "not requeued: a signal file forbids it"
    assert ack(world.directory / "signals") == "ended"
    assert world.calls("scontrol", "requeue") == []
    provider.close()


def test_the_answer_says_what_became_of_the_job(world: SlurmWorld) -> None:
    (world.directory / "signals" / "12.preempt").touch()
    provider, _, files = job(world)
    files.observe()
    provider.conclude(5.0)
    provider.settle(ENDED, 10.0)

    assert ack(world.directory / "signals") == "requeued"
    assert sorted(os.listdir(world.directory / "signals")) == ["12.0.ack", "12.preempt"]
    provider.close()


def test_the_answer_says_that_the_requeue_failed(world: SlurmWorld) -> None:
    (world.directory / "signals" / "12.preempt").touch()
    world.say(requeue={"status": 1, "stderr": "Requested operation is presently disabled for job 12\n"})
    provider, _, files = job(world)
    files.observe()
    provider.conclude(5.0)
    with pytest.raises(Exception, match="--requeue"):
        provider.settle(ENDED, 10.0)

    assert ack(world.directory / "signals") == "failed"
    provider.close()


def test_without_a_signal_directory_the_answer_lies_beside_the_file(world: SlurmWorld) -> None:
    (world.directory / "exact").touch()
    provider, _, files = job(world, PREEMPTD_SIGNAL_DIR="")
    files.observe()

    assert ack(world.directory) == "noticed"
    provider.close()


def test_an_answer_follows_no_link_and_is_readable_for_all(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / "12.0.ack").symlink_to(tmp_path / "elsewhere")

    Acks(lambda: "12.0.ack", str(tmp_path), pytest.fail).write("noticed")

    assert (tmp_path / "elsewhere").read_text() == "precious"
    assert ack(tmp_path) == "noticed"
    assert (tmp_path / "12.0.ack").stat().st_mode & 0o044


def test_an_answer_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    acks = Acks(lambda: "12.0.ack", str(tmp_path / "none"), said.append)
    acks.write("noticed")
    acks.write("requeued")

    (text,) = said
    assert "12.0.ack could not be written: No such file or directory" in text


def test_where_nobody_asked_by_a_file_nothing_is_answered(tmp_path: Path) -> None:
    acks = Acks(lambda: "12.0.ack", None, pytest.fail)
    acks.write("noticed")

    assert os.listdir(tmp_path) == []
