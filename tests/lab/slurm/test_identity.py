"""Whose job it is: jobs that were submitted inside other jobs, and supervisors without SLURM's count.

Each case is a story of its own; all are told at the same time.
"""

import functools
from collections.abc import Callable
from shlex import join

import pytest

from tests.lab.slurm.cluster import Cluster
from tests.lab.slurm.configuration import Options
from tests.lab.slurm.jobs import Job, trainer
from tests.lab.slurm.side_by_side import SideBySide, cases
from tests.lab.slurm.supervised import LONG, kinds, watching

pytestmark = [pytest.mark.xdist_group("slurm-identity"), pytest.mark.timeout(400)]
TRAINING = trainer("--catch", "USR1", "--save-seconds", "1")
SUBMIT = """
mkdir inner && cd inner && printf '#!/bin/sh\\nexec %s\\n' {watching!r} > script &&
sbatch --exclusive -p lowkill -o out script > id
"""
LONELY = '[ "$SLURM_ARRAY_TASK_ID$SLURM_RESTART_COUNT" = 1 ] || exec sleep 300'
"""Of an array only the second task submits, and only once."""
SUBMITTERS = {
    "a task of an array": ("--array=0-1",),
    "a heterogeneous job": ("-n1", ":", "-n1"),
    "a step of srun": (),
}


def submitted(cluster: Cluster, case: str) -> tuple[Job, Job]:
    """Submit a job that submits another one; return both."""
    submit = SUBMIT.format(watching=join(watching(training=TRAINING)))
    if case == "a task of an array":
        submit = f"{LONELY}\n{submit}"
    elif case == "a step of srun":
        submit = f"srun -n1 sh -c {join([submit])}"
    outer = cluster.sbatch(f"{submit}\nsleep 300", *SUBMITTERS[case], partition="lowkill")
    name = outer.directory / "inner" / "id"
    outer.until(lambda: outer.file("inner/id").strip(), LONG, "a job submitted")
    return outer, Job(cluster, name.read_text().split()[-1], name.parent, name.parent / "out")


def drilled(cluster: Cluster, case: str) -> tuple[Job, Job]:
    outer, inner = submitted(cluster, case)
    inner.wait_for_note("ready", timeout=LONG)
    cluster.scancel(inner, "-b", "-s", "USR1")
    inner.until(lambda: inner.restarts == 1, LONG, "requeued")
    return outer, inner


def outlived(cluster: Cluster, _case: str) -> tuple[Job, Job]:
    """Requeue the task in which a job was submitted; the job's supervisor has time for several looks."""
    outer, inner = submitted(cluster, "a task of an array")
    inner.wait_for_note("ready", timeout=LONG)
    cluster.scontrol("requeue", f"{outer.id}_1")
    outer.until(lambda: cluster.rows()[f"{outer.id}_1"].restarts == 1, LONG, "requeued")
    cluster.scancel(inner, "-b", "-s", "USR1")  # it asks at once, and again
    inner.wait_for_event("settled", timeout=LONG)
    return outer, inner


def uncounted(cluster: Cluster, _case: str) -> tuple[Job, Job]:
    """Have the second run of a job supervised without SLURM_RESTART_COUNT, as over ssh; then drill it."""
    first = '[ "${SLURM_RESTART_COUNT:-0}" != 0 ] || exec sleep 300'
    job = cluster.sbatch(f"{first}\nexec env -u SLURM_RESTART_COUNT {join(watching(training=TRAINING))}", "--exclusive")
    job.wait_for("RUNNING")
    cluster.scontrol("requeue", job.id)
    job.wait_for_note("ready", timeout=LONG)
    cluster.scancel(job, "-b", "-s", "USR1")
    job.until(lambda: job.restarts == 2, LONG, "requeued")
    return job, job


def story(cluster: Cluster, case: str) -> tuple[Job, Job]:
    told = {"outlived": outlived, "uncounted": uncounted}.get(case, drilled)(cluster, case)
    for job in dict.fromkeys(told):
        cluster.scancel(job)
    return told


@pytest.fixture(scope="module")
def told(
    make_cluster: Callable[[Options], Cluster], request: pytest.FixtureRequest
) -> SideBySide[str, tuple[Job, Job]]:
    chosen = cases(request, str)
    cluster = make_cluster(Options(nodes=3 * len(chosen), cpus=2))
    return SideBySide(functools.partial(story, cluster), chosen)


@pytest.mark.parametrize("case", SUBMITTERS)
def test_a_job_that_was_submitted_inside_another_requeues_itself_alone(
    told: SideBySide[str, tuple[Job, Job]], case: str
) -> None:
    outer, inner = told[case]

    assert inner.heard() == ["USR1"]
    assert f"requeued job {inner.id} (requested, restart 1)" in inner.output
    assert {line["event_id"] for line in inner.lines("notice")} == {f"slurm:{inner.id}:0"}
    rows = outer.cluster.rows(fresh=True)
    assert {row.restarts for name, row in rows.items() if name.partition("_")[0] == outer.id} == {0}


@pytest.mark.parametrize("case", ["outlived"])
def test_a_requeue_of_the_submitter_concerns_nobody_else(told: SideBySide[str, tuple[Job, Job]], case: str) -> None:
    _, inner = told[case]

    assert kinds(inner) == ["requested"]
    assert inner.heard() == ["USR1"]


@pytest.mark.parametrize("case", ["uncounted"])
def test_without_a_count_in_the_environment_a_later_run_is_no_copy_to_be_killed(
    told: SideBySide[str, tuple[Job, Job]], case: str
) -> None:
    job, _ = told[case]

    assert {line["kind"] for line in job.lines("notice")} == {"requested"}
    assert f"requeued job {job.id} (requested, restart 2)" in job.output
