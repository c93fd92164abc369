"""What SLURM's ways to end a job do to a training on their own; all cases wait side by side (README.md)."""

import functools
from collections.abc import Callable

import pytest

from tests.lab.slurm.cluster import Cluster
from tests.lab.slurm.configuration import Options
from tests.lab.slurm.jobs import Job, trainer
from tests.lab.slurm.side_by_side import SideBySide, cases

pytestmark = [pytest.mark.xdist_group("slurm-endings"), pytest.mark.timeout(120)]
REQUEUED = ["low", "low0"]
ENDED = {"lowkill": "PREEMPTED", "time limit": "TIMEOUT", "scancel": "CANCELLED"}


def story(cluster: Cluster, case: str) -> Job:
    partition = case if case.startswith("low") else "low"
    job = cluster.sbatch(trainer("--catch", "TERM", "--code", "3"), "--exclusive", partition=partition)
    job.wait_for_note("ready")
    if case == "time limit":
        cluster.expire(job)
    elif case == "scancel":
        cluster.scancel(job)
    else:
        preemptor = cluster.preempt(job)
        job.until(lambda: len(job.notes("exit")) == 1)
        cluster.release(preemptor)
    if case in REQUEUED:
        job.wait_for_note("ready", count=2)
    else:
        job.wait_over()
    return job


@pytest.fixture(scope="module")
def told(make_cluster: Callable[[Options], Cluster], request: pytest.FixtureRequest) -> SideBySide[str, Job]:
    chosen = cases(request, str)
    return SideBySide(functools.partial(story, make_cluster(Options(nodes=len(chosen), cpus=1, grace=1))), chosen)


@pytest.mark.parametrize("case", [*REQUEUED, *ENDED])
def test_a_training_hears_one_term_and_saves(told: SideBySide[str, Job], case: str) -> None:
    job = told[case]

    assert job.heard() == ["TERM"]
    (saved,) = job.notes("saved")
    assert saved["step"] == job.notes("exit")[0]["step"]


@pytest.mark.parametrize("case", REQUEUED)
def test_a_requeued_job_keeps_its_id_and_resumes_where_it_saved(told: SideBySide[str, Job], case: str) -> None:
    job = told[case]

    (saved,) = job.notes("saved")
    assert (job.restarts, job.notes("ready")[1]["step"]) == (1, saved["step"])


@pytest.mark.parametrize("case", ENDED)
def test_another_job_ends_for_good(told: SideBySide[str, Job], case: str) -> None:
    job = told[case]

    assert (job.state, job.restarts) == (ENDED[case], 0)
