"""Starts of one job, one after the other and at the same time, with the record between them."""

import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from preemptd.events import MarkingDone, RunsFound
from preemptd.model import Run
from preemptd.resumption.keeper import JobResumption
from preemptd.resumption.page import Page, Place
from preemptd.resumption.record import JobName, Record
from tests.test_resumption import ALLOW, DAMAGED, KEPT, OTHER, RUN
from tests.waiting import wait_until


class Keeping:
    """Starts of one job, with what they complain of."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.complaints: list[str] = []
        self.made: list[JobResumption] = []

    def start(self, job: JobName | None = None, environ: Mapping[str, str] | None = None) -> JobResumption:
        made = JobResumption(self.place, job or JobName("job"), environ or {}, self.complaints.append)
        self.made.append(made)
        return made

    def attempt(
        self, *runs: Run, job: JobName | None = None, done: bool = False, failed: bool = False
    ) -> Mapping[str, str]:
        """Run one start from beginning to end; return what its command got."""
        resumption = self.start(job)
        given = resumption.look(adopted=False)
        for count in range(len(runs)):
            resumption.hear(RunsFound(runs[: count + 1]))
        resumption.settle(done=done, failed=failed)
        resumption.close()
        return given

    @property
    def file(self) -> Path:
        return Path(self.place.directory) / "job.json"

    def record(self) -> Record:
        return Page(self.place.directory, "job").read()


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[Keeping]:
    keeping = Keeping(Place(str(tmp_path / "wandb")))
    yield keeping
    for resumption in keeping.made:
        resumption.close()


def test_the_next_start_of_the_job_gets_the_id_until_it_is_done(keeping: Keeping) -> None:
    given = [keeping.attempt(RUN), keeping.attempt(RUN), keeping.attempt(RUN, done=True), keeping.attempt()]

    assert given == [{}, ALLOW, ALLOW, {}]
    assert keeping.complaints == []
    assert not keeping.file.exists()


def test_a_start_that_ends_before_its_run_begins_loses_nothing(keeping: Keeping) -> None:
    given = [keeping.attempt(RUN), keeping.attempt(), keeping.attempt(RUN)]

    assert given == [{}, ALLOW, ALLOW]


def test_an_id_with_which_two_starts_failed_before_they_had_a_run_is_given_up(keeping: Keeping) -> None:
    keeping.attempt(RUN, failed=True)
    given = [keeping.attempt(failed=True), keeping.attempt(failed=True), keeping.attempt(OTHER), keeping.attempt()]

    assert given == [ALLOW, ALLOW, {}, {**ALLOW, "WANDB_RUN_ID": OTHER.run_id}]
    assert keeping.complaints == ["the last starts with W&B run abc12345 failed before it went on: beginning a new one"]


def test_a_run_that_went_on_is_not_given_up_for_failing_later(keeping: Keeping) -> None:
    given = [keeping.attempt(RUN, failed=True) for _ in range(5)]

    assert given == [{}, ALLOW, ALLOW, ALLOW, ALLOW]


def test_a_start_that_was_preempted_early_or_never_had_the_id_counts_for_nothing(keeping: Keeping) -> None:
    keeping.attempt(RUN)
    for _ in range(3):
        keeping.attempt()

    assert keeping.attempt() == ALLOW
    assert keeping.record() == KEPT


def offline(directory: Path, core_pid: int = 2**22 + 1) -> Run:
    """An offline run that lies in *directory*; there is no such process, unless one is named."""
    return Run("abc12345", core_pid, 199, str(directory / "wandb" / "offline-run-20261120_120000-abc12345"))


@contextmanager
def core_of(directory: Path, version: str, **env: str) -> Iterator[int]:
    """A process whose program lies where that of *version* would."""
    (directory / f"wandb-{version}.dist-info").mkdir()
    program = directory / "wandb" / "bin" / "wandb-core"
    program.parent.mkdir(parents=True)
    shutil.copy(shutil.which("sleep") or "", program)
    with subprocess.Popen([program, "600"], env=env) as core:
        yield core.pid
        core.kill()


@pytest.mark.parametrize(("version", "given"), [("0.31.0", ALLOW), ("0.22.3", {})])
def test_an_offline_run_is_known_by_its_process_though_the_first_checkpoint_comes_when_that_has_ended(
    tmp_path: Path, version: str, given: Mapping[str, str]
) -> None:
    checkpoints = tmp_path / "checkpoints"
    keeping = Keeping(Place.of(str(checkpoints), ""))
    resumption = keeping.start()
    resumption.look(adopted=False)
    with core_of(tmp_path, version) as core:
        resumption.hear(RunsFound((offline(tmp_path, core),)))
        wait_until(lambda: bool(resumption._natures))
    checkpoints.mkdir()
    (checkpoints / "step-1").touch()
    resumption.close()

    assert keeping.attempt() == given
    assert [text.partition(":")[0] for text in keeping.complaints] == (
        [] if given else ["this wandb is older than 0.31"]
    )


def test_a_run_is_of_a_sweep_though_its_process_has_ended_when_the_first_checkpoint_comes(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    keeping = Keeping(Place.of(str(checkpoints), ""))
    resumption = keeping.start()
    resumption.look(adopted=False)
    with core_of(tmp_path, "0.31.0", WANDB_SWEEP_ID="s") as core:
        resumption.hear(RunsFound((replace(RUN, core_pid=core),)))
        wait_until(lambda: bool(resumption._natures))
    checkpoints.mkdir()
    (checkpoints / "step-1").touch()
    resumption.close()

    assert keeping.attempt() == {"WANDB_RESUME": "allow"}


@pytest.mark.parametrize(
    ("logged", "given", "said"),
    [
        ('{"msg":"stream: starting","core version":"0.31.0"}', ALLOW, ""),
        ('{"msg":"stream: starting","core version":"0.22.3"}', {}, "this wandb is older than 0.31"),
        ("", {}, "which wandb writes run abc12345 could not be found out"),
    ],
)
def test_an_offline_run_whose_process_is_gone_is_known_by_its_log(
    keeping: Keeping, tmp_path: Path, logged: str, given: Mapping[str, str], said: str
) -> None:
    run = offline(tmp_path)
    logs = Path(run.directory) / "logs"
    logs.mkdir(parents=True)
    (logs / "debug-internal.log").write_text(logged)
    keeping.attempt(run)

    assert keeping.attempt() == given
    assert [text.partition(":")[0] for text in keeping.complaints] == [said] * bool(said)


def test_a_run_of_a_newer_wandb_goes_on_after_one_that_could_not(keeping: Keeping, tmp_path: Path) -> None:
    keeping.attempt(offline(tmp_path))
    given = [keeping.attempt(OTHER), keeping.attempt(OTHER)]

    assert given == [{}, {**ALLOW, "WANDB_RUN_ID": OTHER.run_id}]


def test_the_id_is_written_when_the_run_is_found_not_at_the_end(keeping: Keeping) -> None:
    resumption = keeping.start()
    resumption.look(adopted=False)
    resumption.hear(MarkingDone(1))
    resumption.hear(RunsFound(()))
    resumption.hear(RunsFound((RUN,)))
    wait_until(keeping.file.exists)

    assert keeping.record() == KEPT


def test_two_runs_in_one_attempt_are_said_once_and_no_id_is_given_from_then_on(keeping: Keeping) -> None:
    given = [keeping.attempt(RUN, OTHER), keeping.attempt(RUN), keeping.attempt(RUN, OTHER)]

    assert given == [{}, {}, {}]
    assert [text.partition(":")[0] for text in keeping.complaints] == [
        "this job begins W&B runs more than once (abc12345, def67890)"
    ]


def test_when_the_job_is_done_two_runs_are_forgotten_as_well(keeping: Keeping) -> None:
    keeping.attempt(RUN, OTHER)
    keeping.attempt(RUN, OTHER, done=True)
    keeping.attempt(RUN)

    assert keeping.attempt(RUN) == ALLOW


def test_after_a_restart_by_slurm_the_run_goes_on_and_after_a_mere_second_start_it_does_not(keeping: Keeping) -> None:
    first, second, third = (JobName("job", restart) for restart in range(3))
    given = [keeping.attempt(RUN, job=first), keeping.attempt(RUN, job=second), keeping.attempt(RUN, job=third)]

    assert given == [{}, ALLOW, ALLOW]


def test_commands_of_one_slurm_job_that_look_the_same_never_share_a_run(keeping: Keeping) -> None:
    first, again = JobName("job", 0), JobName("job", 1)
    keeping.attempt(RUN, job=first, done=True)
    keeping.attempt(OTHER, job=first)

    assert keeping.attempt(RUN, job=again) == {}


def test_commands_of_one_slurm_job_that_run_at_the_same_time_never_share_a_run(keeping: Keeping) -> None:
    one, two = keeping.start(JobName("job", 0)), keeping.start(JobName("job", 0))
    for resumption, run in ((one, RUN), (two, OTHER)):
        resumption.look(adopted=False)
        resumption.hear(RunsFound((run,)))
        wait_until(lambda run=run: keeping.file.exists() and keeping.record().run_id == run.run_id)  # type: ignore[misc]
    one.close()
    two.close()

    assert keeping.record().several
    assert keeping.attempt(RUN, job=JobName("job", 1)) == {}


def test_a_second_machine_gets_no_id_while_the_first_one_is_at_work(keeping: Keeping) -> None:
    keeping.attempt(RUN)
    first, second = keeping.start(), keeping.start()
    given = [first.look(adopted=False), second.look(adopted=False)]
    second.hear(RunsFound((OTHER,)))
    second.close()

    assert given == [ALLOW, {}]
    assert keeping.record() == KEPT
    assert [text for text in keeping.complaints if "is watched by pid" in text] == keeping.complaints
    assert len(keeping.complaints) == 1


def test_what_a_second_machine_began_is_kept_when_the_first_one_has_gone(keeping: Keeping) -> None:
    first, second = keeping.start(), keeping.start()
    first.look(adopted=False)
    first.hear(RunsFound((RUN,)))
    wait_until(keeping.file.exists)
    second.look(adopted=False)
    second.hear(RunsFound((OTHER,)))
    first.close()
    wait_until(lambda: keeping.record().run_id == OTHER.run_id)

    assert not keeping.record().several


def test_a_training_that_is_taken_over_is_the_same_attempt(keeping: Keeping) -> None:
    keeping.attempt(RUN)
    again = keeping.start()
    again.look(adopted=True)
    again.hear(RunsFound((RUN,)))
    again.hear(RunsFound((OTHER,)))
    again.close()

    assert keeping.record().several


def test_the_id_waits_for_the_first_checkpoint(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    keeping = Keeping(Place.of(str(checkpoints), "/nowhere"))
    resumption = keeping.start()
    resumption.look(adopted=False)
    resumption.hear(RunsFound((RUN,)))
    exists = checkpoints.exists()
    checkpoints.mkdir()
    (checkpoints / "step-1").touch()
    wait_until(keeping.file.exists)
    resumption.close()

    assert not exists
    assert keeping.record() == KEPT


def test_a_checkpoint_that_came_at_the_very_end_is_in_time(tmp_path: Path) -> None:
    keeping = Keeping(Place.of(str(tmp_path), "/nowhere"))
    resumption = keeping.start()
    resumption.look(adopted=False)
    resumption.hear(RunsFound((RUN,)))
    (tmp_path / "step-1").touch()
    resumption.close()

    assert keeping.record() == KEPT


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_record_is_said_once_ignored_and_replaced(keeping: Keeping, text: bytes) -> None:
    keeping.file.parent.mkdir()
    keeping.file.write_bytes(text)
    given = [keeping.attempt(RUN), keeping.attempt(RUN)]

    assert given == [{}, ALLOW]
    assert len(keeping.complaints) == 1
    assert keeping.complaints[0].startswith(f"{keeping.file} is not to be understood (")


def no_directory(directory: Path) -> None:
    directory.rmdir()
    directory.touch()


def no_lock(directory: Path) -> None:
    (directory / "job.lock").mkdir()
    (directory / "job.json").touch()


def a_directory(directory: Path) -> None:
    (directory / "job.json").mkdir()


def a_pipe(directory: Path) -> None:
    os.mkfifo(directory / "job.json")


def a_loop(directory: Path) -> None:
    (directory / "job.json").symlink_to(directory / "job.json")


@pytest.mark.parametrize("spoil", [no_directory, no_lock, a_directory, a_pipe, a_loop])
def test_what_cannot_be_a_record_is_said_and_does_no_harm(keeping: Keeping, spoil: Callable[[Path], object]) -> None:
    keeping.file.parent.mkdir()
    spoil(keeping.file.parent)

    assert keeping.attempt(RUN) == {}
    assert len(keeping.complaints) <= 2


def test_a_disk_that_hangs_delays_the_start_and_the_end_by_a_second_at_most(
    keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = threading.Event()

    def exists(_: str) -> bool:
        return hanging.wait(60)

    monkeypatch.setattr(os.path, "lexists", exists)
    resumption = keeping.start(environ={"WANDB_SWEEP_ID": "s"})
    given = resumption.look(adopted=False)
    resumption.hear(RunsFound((RUN,)))
    resumption.close()
    hanging.set()

    assert given == {"WANDB_RESUME": "allow"}
    assert keeping.complaints == [f"{keeping.place.directory} does not answer: the W&B run is not resumed"]


def test_a_disk_without_locks_is_named_and_the_run_goes_on(keeping: Keeping, monkeypatch: pytest.MonkeyPatch) -> None:
    keeping.attempt(RUN)

    def flock(_fd: int, _operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)

    assert keeping.attempt(RUN) == ALLOW
    assert keeping.complaints == [
        f"{keeping.place.directory} has no locks: see that one machine at a time runs this job"
    ]


def test_a_kill_loses_neither_the_record_nor_the_next_start(keeping: Keeping) -> None:
    code = (
        "import sys, time\n"
        "from preemptd.resumption.keeper import JobResumption\n"
        "from preemptd.resumption.page import Place\n"
        "from preemptd.resumption.record import JobName\n"
        "from preemptd.events import RunsFound\n"
        "from preemptd.model import Run\n"
        "kept = JobResumption(Place(sys.argv[1]), JobName('job'), {}, print)\n"
        "kept.look(adopted=False)\n"
        "kept.hear(RunsFound((Run('abc12345', 1, 1, ''),)))\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, keeping.place.directory]) as process:
        wait_until(keeping.file.exists)
        process.kill()

    assert keeping.attempt(RUN) == ALLOW
    assert keeping.complaints == []


def test_where_no_thread_is_to_be_had_nothing_is_kept_and_nobody_suffers(
    keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumption = keeping.start()
    resumption.look(adopted=False)

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        resumption.hear(RunsFound((RUN,)))
        resumption.close()

    assert not keeping.file.exists()


def test_closing_a_start_that_kept_nothing_lets_go_of_the_job(keeping: Keeping) -> None:
    keeping.attempt(RUN)
    first = keeping.start()
    first.look(adopted=False)
    first.close()

    assert keeping.attempt() == ALLOW
    assert keeping.complaints == []
