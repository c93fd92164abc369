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
from tests.lab.slurm.supervised import LONG, assert_saved_once_and_resumed, end, kinds, notices, watching

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
    assert kinds(job)[-1] == "requested"
    assert str(notices(job)[0]["source"]).endswith(f"/{job.id}.0.preempt")


@pytest.mark.parametrize("case", BAD)
def test_the_good_file_is_answered(told: SideBySide[str, Job], case: str) -> None:
    job = told[case]

    (directory,) = {os.path.dirname(str(line["source"])) for line in notices(job)}
    assert '"state": "requeued"' in (Path(directory) / f"{job.id}.0.ack").read_text()


@pytest.mark.parametrize(("case", "says"), [("foreign-owned", f"{SOMEBODY}"), ("symlinked", "symbolic link")])
def test_it_is_said_why_a_file_is_refused(told: SideBySide[str, Job], case: str, says: str) -> None:
    assert says in refused(told[case])[0]


def test_a_signal_is_told_while_slurmctld_hangs_and_the_job_is_requeued_when_it_works_again(
    make_cluster: Callable[[Options], Cluster],
) -> None:
    cluster = make_cluster(Options(nodes=1, cpus=1))
    job = cluster.sbatch(watching(training=trainer("--save-seconds", "1")))
    (ready,) = job.wait_for_note("ready", timeout=LONG)
    supervisor = parent(job, int(str(ready["pid"])))

    cluster.freeze_controller()
    os.kill(supervisor, signal.SIGUSR1)
    job.wait_for_note("exit", timeout=LONG)
    thawed = time.monotonic()
    cluster.thaw_controller()
    job.wait_for_note("ready", 2, LONG)

    (told,) = job.lines("told")
    assert float(str(notices(job)[0]["ms"])) < 1000  # ten times what is promised
    assert float(str(told["ms"])) < 1000
    assert float(str(job.notes("saved")[0]["mono"])) < thawed
    assert_saved_once_and_resumed(job)
    assert kinds(job)[-1] == "requested"
    assert job.restarts == 1


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
