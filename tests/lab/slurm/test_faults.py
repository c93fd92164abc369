"""What may go wrong around a supervised job: a controller that hangs, files that nobody may believe."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.slurm.cluster import UID, Cluster
from tests.lab.slurm.configuration import Options
from tests.lab.slurm.jobs import Job, trainer
from tests.lab.slurm.side_by_side import SideBySide, cases
from tests.lab.slurm.supervised import (
    LONG,
    assert_saved_once_and_resumed,
    end,
    kinds,
    notices,
    wait_for_canary,
    watching,
)

pytestmark = [pytest.mark.xdist_group("slurm-faults"), pytest.mark.timeout(400)]
BAD = ("stale", "foreign-owned", "symlinked")
SOMEBODY = 52001


def parent(job: Job, pid: int) -> int:
    """Return the pid, as tests see it, of the process that started the one that jobs know as *pid*."""
    status = Path(f"/proc/{job.cluster.outside(pid)}/status").read_text()
    return int(status.split("PPid:")[1].split()[0])


def bad_file(job: Job, directory: Path, how: str) -> Path:
    """Put there what must not be obeyed."""
    path = directory / f"{job.id}.preempt"
    if how == "symlinked":
        target = directory / "elsewhere"
        target.touch()
        os.chown(target, UID, UID)
        path.symlink_to(target)
        return path
    new = directory / "new"
    new.touch()
    os.chown(new, SOMEBODY if how == "foreign-owned" else UID, UID)
    if how == "stale":
        os.utime(new, (time.time() - 3600,) * 2)
    new.rename(path)
    return path


def first_bad_then_good(cluster: Cluster, case: str) -> Job:
    """Write a bad file, see that the training goes on, and write a good one."""
    directory = cluster.job_directory()
    job = cluster.sbatch(watching(), "--exclusive", env={"PREEMPTD_SIGNAL_DIR": str(directory)})
    job.wait_for_note("ready", timeout=LONG)
    bad = bad_file(job, directory, case)
    if case == "stale":
        before = len(job.steps())
        job.until(lambda: len(job.steps()) > before + 60, LONG, "60 more steps, which take three seconds")
    else:
        job.until(lambda: refused(job), LONG, "the file is refused")
    assert (notices(job), job.heard()) == ([], [])
    bad.unlink()
    cluster.run(["touch", str(directory / f"{job.id}.0.preempt")])
    job.wait_for_note("ready", 2, LONG)
    return end(cluster, job)


def refused(job: Job) -> list[str]:
    return [str(line["why"]) for line in job.lines("provider") if line["provider"] == "slurm:files" and line["why"]]


@pytest.fixture(scope="module")
def told(make_cluster: Callable[[Options], Cluster], request: pytest.FixtureRequest) -> SideBySide[str, Job]:
    chosen = cases(request, str)
    cluster = make_cluster(Options(nodes=max(1, len(chosen)), cpus=1))
    return SideBySide(lambda case: first_bad_then_good(cluster, case), chosen)


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_not_to_be_believed_is_not_and_a_fresh_one_is(told: SideBySide[str, Job], case: str) -> None:
    job = told[case]

    assert_saved_once_and_resumed(job)
    assert kinds(job)[-1] == "preempt"
    assert {line["provider"] for line in job.lines("notice")} == {"slurm"}, "`file` stands down"
    assert str(notices(job)[0]["source"]).endswith(f"/{job.id}.0.preempt")


@pytest.mark.parametrize("case", BAD)
def test_the_good_file_is_answered(told: SideBySide[str, Job], case: str) -> None:
    job = told[case]

    (directory,) = {os.path.dirname(str(line["source"])) for line in notices(job)}
    assert '"state": "requeued"' in (Path(directory) / f"{job.id}.0.ack").read_text()


@pytest.mark.parametrize(("case", "says"), [("foreign-owned", f"{SOMEBODY}"), ("symlinked", "symbolic link")])
def test_it_is_said_why_a_file_is_refused(told: SideBySide[str, Job], case: str, says: str) -> None:
    assert says in refused(told[case])[0]


def test_a_signal_is_told_while_slurmctld_hangs_and_the_jobs_are_requeued_when_it_works_again(
    make_cluster: Callable[[Options], Cluster],
) -> None:
    cluster = make_cluster(Options(nodes=1, cpus=4))
    jobs = [cluster.sbatch(watching(training=trainer("--save-seconds", "1"))) for _ in range(3)]
    supervisors = [parent(job, int(str(job.wait_for_note("ready", timeout=LONG)[0]["pid"]))) for job in jobs]

    cluster.freeze_controller()
    took = [told_after(job, supervisor) for job, supervisor in zip(jobs, supervisors, strict=True)]
    for job in jobs:
        job.wait_for_note("exit", timeout=LONG)
    thawed = time.monotonic()
    cluster.thaw_controller()
    for job in jobs:
        job.wait_for_note("ready", 2, LONG)

    assert min(took) < 0.1, took  # seconds; a machine that is busy with other things may be late with one of them
    assert max(took) < 1, took
    for job in jobs:
        assert float(str(job.notes("saved")[0]["mono"])) < thawed
        assert_saved_once_and_resumed(job)
        assert kinds(job)[-1] == "requested"
        assert job.restarts == 1


def told_after(job: Job, supervisor: int) -> float:
    """Send a signal to the supervisor, and return the seconds until the training had one."""
    sent = time.monotonic()
    os.kill(supervisor, signal.SIGUSR1)
    (heard,) = job.wait_for_note("signal", timeout=LONG)
    return float(str(heard["mono"])) - sent


def test_a_grace_that_begins_while_slurmctld_goes_away_is_known_when_it_comes_back_and_the_job_is_requeued(
    make_cluster: Callable[[Options], Cluster],
) -> None:
    cluster = make_cluster(Options(nodes=1, cpus=1, grace=60))
    job = cluster.sbatch(watching(training=trainer("--save-seconds", "0.2")))
    wait_for_canary(job)
    (ready,) = job.wait_for_note("ready", timeout=LONG)
    supervisor = parent(job, int(str(ready["pid"])))

    os.kill(supervisor, signal.SIGSTOP)  # it is to find nobody to ask when it reads what the canary has heard
    preemptor = cluster.preempt(job)
    job.until(lambda: job.row.preempt_time, LONG, "the grace")
    cluster.freeze_controller()
    os.kill(supervisor, signal.SIGCONT)
    job.wait_for_note("exit", timeout=LONG)
    job.wait_output("slurmctld does not answer", timeout=LONG)
    ended = time.monotonic()
    job.until(lambda: time.monotonic() - ended > 8, LONG, "longer than any other last word may take")
    cluster.thaw_controller()
    job.until(lambda: job.restarts == 1, LONG, "requeued")
    cluster.release(preemptor)
    job.wait_for_note("ready", 2, LONG)

    assert_saved_once_and_resumed(job)
    assert kinds(job)[-1] == "preempt"
    assert f"requeued job {job.id} (preempt, restart 1)" in str(job.lines("settled")[0]["why"])


def test_a_controller_that_is_restarted_while_a_job_saves_costs_nothing(
    make_cluster: Callable[[Options], Cluster],
) -> None:
    cluster = make_cluster(Options(nodes=1, cpus=1))
    job = cluster.sbatch(watching(training=trainer("--save-seconds", "3")))
    job.wait_for_note("ready", timeout=LONG)

    cluster.scancel(job, "-b", "-s", "USR1")
    job.wait_for_note("signal", timeout=LONG)
    cluster.stop_controller()
    job.wait_for_note("exit", timeout=LONG)
    cluster.start_controller()
    cluster.wait_controller()
    job.wait_for_note("ready", 2, LONG)

    assert_saved_once_and_resumed(job)
    assert job.restarts == 1
