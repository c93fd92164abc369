"""{cluster sends its user signal or not} x {requeued with grace, cancelled with grace, no grace} x {who hears of it}.

Each job has its own node; all are preempted at the same time, and share SLURM's half minutes. The whole matrix is the
soak's; the suite runs a part that touches each row and column, and each way that only one combination takes.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.lab.slurm.cluster import Cluster
from tests.lab.slurm.configuration import Options
from tests.lab.slurm.jobs import Job
from tests.lab.slurm.side_by_side import SideBySide, cases
from tests.lab.slurm.supervised import (
    LONG,
    NO_CANARY,
    assert_saved_once_and_resumed,
    end,
    kinds,
    notices,
    preempt_until_requeued,
    settings,
    wait_for_canary,
    watching,
)

pytestmark = [pytest.mark.xdist_group("slurm-matrix"), pytest.mark.timeout(400)]
GRACE = 20


@dataclass(frozen=True)
class Case:
    usersig: bool
    partition: str
    hears: str
    """canary: with our step; poll: by asking alone; direct: by signals to the batch script alone."""

    def __str__(self) -> str:
        return f"{'usersig' if self.usersig else 'default'}-{self.partition}-{self.hears}"

    @property
    def sources(self) -> set[str]:
        """From what the first word of it may come; without a grace all signals are sent at the same time."""
        if self.partition == "low0":
            return {"SIGTERM", *(["canary step: SIGTERM"] if self.hears == "canary" else [])} | (
                {"SIGUSR1"} if self.usersig and self.hears == "direct" else set()
            )
        signal = "SIGUSR1" if self.usersig else "SIGTERM"  # the final one, at the end of the grace
        return {{"canary": "canary step: SIGTERM", "poll": "squeue", "direct": signal}[self.hears]}


CASES = [
    Case(usersig, partition, hears)
    for usersig in (False, True)
    for partition in ("low", "lowkill", "low0")
    for hears in ("canary", "poll", "direct")
]
QUICK = {
    Case(False, "low", "canary"),
    Case(False, "low", "direct"),
    Case(False, "lowkill", "canary"),
    Case(False, "lowkill", "direct"),
    Case(False, "low0", "canary"),
    Case(True, "low", "direct"),
    Case(True, "lowkill", "poll"),
    Case(True, "low0", "direct"),
}
every_case = pytest.mark.parametrize(
    "case", [pytest.param(case, id=str(case), marks=[] if case in QUICK else pytest.mark.soak) for case in CASES]
)


@pytest.fixture(scope="module")
def told(make_cluster: Callable[[Options], Cluster], request: pytest.FixtureRequest) -> SideBySide[Case, Job]:
    chosen = cases(request, Case)
    clusters = {
        usersig: make_cluster(Options(nodes=count, cpus=1, grace=GRACE, usersig=usersig))
        for usersig in (False, True)
        if (count := sum(case.usersig is usersig for case in chosen))
    }
    return SideBySide(functools.partial(story, clusters), chosen)


def story(clusters: dict[bool, Cluster], case: Case) -> Job:
    """Preempt a job that is supervised, until it runs for the second time; then cancel it."""
    cluster = clusters[case.usersig]
    interval = 5 if case.hears == "poll" else 3600
    options = [] if case.hears == "canary" else [settings(cluster, NO_CANARY.format(interval))]
    asked = ["--signal=B:USR1@60"] if case.hears == "direct" else []
    job = cluster.sbatch(watching(*options), "--exclusive", *asked, partition=case.partition)
    job.wait_for_note("ready", timeout=LONG)
    if case.hears == "canary":
        wait_for_canary(job)
    preempt_until_requeued(cluster, job)
    job.wait_for_note("ready", 2, LONG)
    return end(cluster, job)


@every_case
def test_the_training_is_told_once_and_resumes_at_the_step_that_it_saved(
    told: SideBySide[Case, Job], case: Case
) -> None:
    job = told[case]

    assert_saved_once_and_resumed(job)
    assert job.restarts == 1
    assert job.output.count("preemptd: watching slurm (SLURM job") == 2, "the output of the first run is lost"


@every_case
def test_the_notice_says_what_it_is_where_it_was_heard_and_how_long_it_lasts(
    told: SideBySide[Case, Job], case: Case
) -> None:
    job = told[case]

    assert kinds(job)[-1] == "preempt", job.describe()
    assert notices(job)[0]["source"] in case.sources, job.describe()
    assert float(str(notices(job)[-1]["grace"])) <= GRACE


@every_case
def test_the_job_that_came_back_can_be_cancelled(told: SideBySide[Case, Job], case: Case) -> None:
    job = told[case]

    assert (job.state, job.restarts) == ("CANCELLED", 1), job.describe()
    assert kinds(job, attempt=1)[-1] == "cancelled", job.describe()
