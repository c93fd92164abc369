"""How supervised jobs come to their ends, and whether they come back: time limits, wishes, kinds of jobs.

Each case is a story of its own on a node of its own; all are told at the same time.
"""

import functools
import time
from collections.abc import Callable, Mapping
from shlex import join

import pytest

from tests.lab.slurm.cluster import Cluster
from tests.lab.slurm.configuration import Options
from tests.lab.slurm.jobs import OVER, Job, trainer
from tests.lab.slurm.side_by_side import SideBySide, cases
from tests.lab.slurm.supervised import (
    LONG,
    assert_saved_once_and_resumed,
    end,
    kinds,
    notices,
    preempt_until_requeued,
    watching,
)

pytestmark = [pytest.mark.xdist_group("slurm-ends"), pytest.mark.timeout(400)]
LIMITS = ("a limit with --signal=B:USR1", "a limit without --signal")
KILLED = ("killed at the limit", "killed after the grace")
DELAY = 20


def drill(cluster: Cluster, job: Job, attempt: int, signal: str = "USR1") -> None:
    """Ask the job's supervisor for its attempt's end, as a user does."""
    job.wait_for_note("ready", attempt + 1, LONG)
    cluster.scancel(job, "-b", "-s", signal)


def time_limit(cluster: Cluster, case: str) -> Job:
    """Let the time run out twice."""
    asked = ["--signal=B:USR1@30"] if case == LIMITS[0] else []
    job = cluster.sbatch(watching(), "--exclusive", *asked, minutes=1 if asked else None)
    for attempt in (0, 1):
        job.wait_for_note("ready", attempt + 1, LONG)
        if not asked:
            cluster.expire(job)
        job.until(lambda attempt=attempt: job.restarts > attempt, LONG, "requeued")  # type: ignore[misc]
    job.wait_for_note("ready", 3, LONG)
    return end(cluster, job)


def cancelled_in_the_grace(cluster: Cluster, _case: str) -> Job:
    """Cancel a job that saves, because of its preemption, for longer than there is time."""
    job = cluster.sbatch(watching(training=trainer("--save-seconds", "60")), "--exclusive")
    job.wait_for_note("ready", timeout=LONG)
    preemptor = cluster.preempt(job)
    job.until(lambda: "preempt" in kinds(job), LONG, "known to be a preemption")
    job.wait_for_note("signal", timeout=LONG)
    cluster.scancel(job)
    job.wait_for_event("settled", timeout=LONG)
    cluster.release(preemptor)
    return for_good(job)


def cancelled(cluster: Cluster, _case: str) -> Job:
    job = cluster.sbatch(watching(training=trainer("--catch", "USR1,TERM")), "--exclusive")
    job.wait_for_note("ready", timeout=LONG)
    cluster.scancel(job)
    return for_good(job)


def for_good(job: Job) -> Job:
    """Wait until the job is over, and for another quarter of a minute, in which it could come back."""
    job.wait_over(LONG)
    over = time.monotonic()
    job.until(lambda: time.monotonic() - over > 15, LONG)
    return job


def saving_for_too_long(cluster: Cluster, case: str) -> Job:
    """Have a job killed while it still saves, when SLURM does not mean to bring it back."""
    training = trainer("--catch", "USR1", "--count", "TERM", "--every", "20", "--save-seconds", "0")
    hanging = ["sh", "-c", f"trap '' TERM USR1; {join(training)}; sleep 1000"]
    job = cluster.sbatch(watching(training=hanging), "--exclusive", partition="lowkill")
    job.wait_for_note("saved", timeout=LONG)
    if case == KILLED[0]:
        cluster.expire(job)
    else:
        cluster.preempt(job)
    job.until(lambda: job.restarts == 1 or job.state in OVER, LONG, "requeued, or over")
    return end(cluster, job)


def unwanted(options: tuple[str, ...], drilled: bool, cluster: Cluster, _case: str) -> Job:
    """End a job in a way in which its user does not want it to come back."""
    job = cluster.sbatch(watching(*options), "--exclusive", partition="lowkill")
    job.wait_for_note("ready", timeout=LONG)
    if drilled:
        drill(cluster, job, 0)
    else:
        cluster.preempt(job)
    job.wait_over(LONG)
    return job


def wanted(cluster: Cluster, _case: str) -> Job:
    job = cluster.sbatch(watching("--requeue-on", "preempt"), "--exclusive", partition="lowkill")
    job.wait_for_note("ready", timeout=LONG)
    preempt_until_requeued(cluster, job)
    job.wait_for_note("ready", 2, LONG)
    return end(cluster, job)


def twice_with_one_requeue(cluster: Cluster, _case: str) -> Job:
    job = cluster.sbatch(watching("--max-requeues", "1"), "--exclusive")
    drill(cluster, job, 0, "USR2")
    drill(cluster, job, 1)
    job.wait_over(LONG)
    return job


def delayed(cluster: Cluster, _case: str) -> Job:
    job = cluster.sbatch(watching("--requeue-delay", str(DELAY)), "--exclusive")
    drill(cluster, job, 0)
    job.wait_for_note("ready", 2, LONG)
    return end(cluster, job)


def without_progress(cluster: Cluster, _case: str) -> Job:
    """Save what is no checkpoint in the directory of checkpoints."""
    directory = cluster.job_directory()
    job = cluster.sbatch(watching("--checkpoint-dir", str(directory)), "--exclusive")
    for attempt in range(3):
        drill(cluster, job, attempt)
    job.wait_over(LONG)
    return job


def with_progress(cluster: Cluster, _case: str) -> Job:
    directory = cluster.job_directory()
    command = watching("--checkpoint-dir", str(directory), training=trainer("--dir", str(directory)))
    job = cluster.sbatch(command, "--exclusive", directory=directory)
    for attempt in range(3):
        drill(cluster, job, attempt)
    job.wait_for_note("ready", 4, LONG)
    return end(cluster, job)


def heterogeneous(cluster: Cluster, _case: str) -> Job:
    """Drill a job of two components, of which only the first may be requeued."""
    script = (
        f"#!/bin/sh\n#SBATCH -n1 --exclusive\n#SBATCH hetjob\n#SBATCH -n1 --exclusive\nexec {' '.join(watching())}\n"
    )
    job = cluster.sbatch(script)
    drill(cluster, job, 0)
    job.wait_for_note("ready", 2, LONG)
    return end(cluster, job)


STORIES: Mapping[str, Callable[[Cluster, str], Job]] = {
    **dict.fromkeys(LIMITS, time_limit),
    **dict.fromkeys(KILLED, saving_for_too_long),
    "scancel": cancelled,
    "scancel in the grace": cancelled_in_the_grace,
    "--requeue-on preempt, asked": functools.partial(unwanted, ("--requeue-on", "preempt"), True),
    "--requeue-on timelimit,request, preempted": functools.partial(
        unwanted, ("--requeue-on", "timelimit,request"), False
    ),
    "--requeue-on none": functools.partial(unwanted, ("--requeue-on", "none"), True),
    "--requeue-on preempt, preempted": wanted,
    "--max-requeues": twice_with_one_requeue,
    "--requeue-delay": delayed,
    "no progress": without_progress,
    "progress": with_progress,
    "heterogeneous": heterogeneous,
}
MORE_NODES = {"heterogeneous": 2}
Told = SideBySide[str, Job]


@pytest.fixture(scope="module")
def told(make_cluster: Callable[[Options], Cluster], request: pytest.FixtureRequest) -> Told:
    chosen = cases(request, str)
    cluster = make_cluster(Options(nodes=sum(MORE_NODES.get(case, 1) for case in chosen), cpus=1))
    return SideBySide(lambda case: STORIES[case](cluster, case), chosen)


@pytest.mark.parametrize("case", LIMITS)
def test_the_time_limit_is_survived_twice_in_a_row(told: Told, case: str) -> None:
    job = told[case]

    assert (kinds(job, 0)[-1], kinds(job, 1)[-1]) == ("time-limit", "time-limit"), job.describe()
    assert_saved_once_and_resumed(job, 0)
    assert_saved_once_and_resumed(job, 1)
    assert job.restarts == 2


@pytest.mark.parametrize("case", KILLED)
def test_a_training_that_does_not_end_in_time_costs_no_requeue(told: Told, case: str) -> None:
    assert told[case].restarts == 1, told[case].describe()


@pytest.mark.parametrize("case", ["scancel", "scancel in the grace"])
def test_a_job_that_is_cancelled_saves_or_not_and_is_not_resurrected(told: Told, case: str) -> None:
    job = told[case]
    row = job.cluster.rows(fresh=True)[job.id]

    assert (row.state, row.restarts) == ("CANCELLED", 0), job.describe()
    assert kinds(job)[-1] == "cancelled"
    assert "not requeued: cancelled" in str(job.lines("settled")[0]["why"])


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("--requeue-on preempt, asked", "requested"),
        ("--requeue-on timelimit,request, preempted", "preempt"),
        ("--requeue-on none", "requested"),
    ],
)
def test_what_requeue_on_leaves_out_ends_the_job_with_our_status(told: Told, case: str, kind: str) -> None:
    job = told[case]

    assert job.heard() == ["USR1"], job.describe()
    assert kinds(job)[-1] == kind
    assert f"not requeued: {kind} is not in --requeue-on" in job.output
    assert (job.restarts, job.row.exit_code >> 8) == (0, 75), job.describe()


@pytest.mark.parametrize("case", ["--requeue-on preempt, preempted", "--requeue-delay", "heterogeneous"])
def test_the_job_comes_back(told: Told, case: str) -> None:
    job = told[case]

    assert_saved_once_and_resumed(job)
    assert job.restarts == 1


@pytest.mark.parametrize("case", ["--requeue-delay"])
def test_requeue_delay_moves_the_next_start(told: Told, case: str) -> None:
    job = told[case]

    (settled, *_), (_, again) = job.lines("settled"), job.lines("started")
    assert f"starts in {DELAY} s" in str(settled["why"])
    assert float(str(again["t"])) - float(str(settled["t"])) > DELAY - 2  # SLURM's times are whole seconds


@pytest.mark.parametrize("case", ["--max-requeues"])
def test_after_so_many_requeues_the_job_ends(told: Told, case: str) -> None:
    job = told[case]

    assert_saved_once_and_resumed(job, 0)
    assert job.heard(attempt=1) == ["USR1"]
    assert notices(job)[0]["source"] == "SIGUSR2"
    assert "not requeued: this was restart 1, and --max-requeues is 1" in job.output
    assert (job.restarts, job.row.exit_code >> 8) == (1, 75), job.describe()


@pytest.mark.parametrize("case", ["no progress"])
def test_attempts_that_save_nothing_new_come_to_an_end(told: Told, case: str) -> None:
    job = told[case]

    assert "not requeued: several attempts in a row have saved nothing new" in job.output
    assert (job.restarts, job.row.exit_code >> 8) == (2, 1), job.describe()


@pytest.mark.parametrize("case", ["progress"])
def test_attempts_that_save_go_on_for_ever(told: Told, case: str) -> None:
    job = told[case]

    assert job.restarts == 3
    assert len(job.notes("saved")) == 3
