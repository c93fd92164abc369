"""What somebody asks of a job by hand, what comes of it, and what is said of it: side by side, on a node each."""

from collections.abc import Callable
from shlex import join

import pytest

from tests.lab.slurm.cluster import Cluster
from tests.lab.slurm.configuration import Options
from tests.lab.slurm.jobs import Job, trainer
from tests.lab.slurm.side_by_side import SideBySide, cases
from tests.lab.slurm.supervised import LONG, end, watching

pytestmark = [pytest.mark.xdist_group("slurm-asked"), pytest.mark.timeout(240)]
CRED_EXPIRE = 120
"""Seconds: SLURM's default, which --requeue-delay is to shorten."""
WISH = "#!/bin/bash\n#SBATCH --signal=B:USR1@60\n"
Told = SideBySide[str, tuple[Job, str]]
"""A job, and what `preemptd notify` said."""


def by_link(cluster: Cluster) -> tuple[Job, str]:
    return announced(cluster, "--requeue-on", "preempt")


def by_file(cluster: Cluster) -> tuple[Job, str]:
    return announced(cluster, "--requeue-on", "preempt", file=["--wait", "40"])


def for_good(cluster: Cluster) -> tuple[Job, str]:
    return announced(cluster, file=["--wait", "40", "--no-requeue"])


def announced(cluster: Cluster, *options: str, file: list[str] | None = None) -> tuple[Job, str]:
    directory = cluster.job_directory()
    env = {"PREEMPTD_SIGNAL_DIR": str(directory)}
    job = cluster.sbatch(watching(*options), "--exclusive", directory=directory, env=env)
    job.wait_for_note("ready", timeout=LONG)
    where = [] if file is None else ["--dir", str(directory), *file]
    ran = cluster.run(["preemptd", "notify", "--job", job.id, *where])
    job.wait_for_event("settled", timeout=LONG)
    return job, f"{ran.returncode} {ran.stdout}"


def array(cluster: Cluster) -> tuple[Job, str]:
    each = f"mkdir $SLURM_ARRAY_TASK_ID; cd $SLURM_ARRAY_TASK_ID; exec {join(watching())}"
    job = cluster.sbatch(each, "--array=1-2", "--exclusive")
    for index in (1, 2):
        job.task(index).wait_output("runs as pid", timeout=LONG)
    ran = cluster.run(["preemptd", "notify", "--job", job.id])
    for index in (1, 2):
        job.task(index).wait_output("requeued job", timeout=LONG)
    return job, f"{ran.returncode} {ran.stdout}"


def stopped(cluster: Cluster) -> tuple[Job, str]:
    job = cluster.sbatch(watching(training=trainer("--catch", "USR1", "--save-seconds", "20")), "--exclusive")
    job.wait_for_note("ready", timeout=LONG)
    cluster.scancel(job, "-b", "-s", "TERM")
    job.wait_over(LONG)
    return job, ""


def cancelled(cluster: Cluster) -> tuple[Job, str]:
    job = cluster.sbatch(watching(training=trainer("--catch", "USR1,TERM")), "--exclusive")
    job.wait_for_note("ready", timeout=LONG)
    cluster.scancel(job)
    job.wait_over(LONG)
    return job, ""


def delayed(cluster: Cluster) -> tuple[Job, str]:
    job = cluster.sbatch(watching("--requeue-delay", "1"), "--exclusive")
    job.wait_for_note("ready", timeout=LONG)
    cluster.scancel(job, "-b", "-s", "USR1")
    job.wait_for_note("ready", 2, LONG)
    return end(cluster, job), ""


def script(cluster: Cluster, before: str) -> tuple[Job, str]:
    """Run preemptd in a script that is not to be requeued: that is said at last."""
    text = f"{WISH}{before} {join(watching())}\nexit $?\n"
    job = cluster.sbatch(text, "--exclusive", "--no-requeue")
    job.wait_output("will not be requeued", timeout=LONG)
    return end(cluster, job), ""


STORIES: dict[str, Callable[[Cluster], tuple[Job, str]]] = {
    "by link": by_link,
    "by file": by_file,
    "for good": for_good,
    "array": array,
    "stopped": stopped,
    "cancelled": cancelled,
    "delayed": delayed,
}
SCRIPTS = {
    "trap '' USR1;": "ignores SIGUSR1: --signal=B:USR1 reaches nobody. Make `exec preemptd watch ...`",
    "": "will die of SIGUSR1, which its --signal asks for",
    "srun": "and `exec srun preemptd watch ...` its last line",
    "exec srun": "",
    "trap '' USR1; exec": "",
}


@pytest.fixture(scope="module")
def told(make_cluster: Callable[[Options], Cluster], request: pytest.FixtureRequest) -> Told:
    chosen = cases(request, str)
    cluster = make_cluster(Options(nodes=len(chosen) + 1, cpus=1, cred_expire=CRED_EXPIRE))
    return SideBySide(lambda case: STORIES[case](cluster) if case in STORIES else script(cluster, case), chosen)


@pytest.mark.parametrize("case", ["by link", "by file"])
def test_by_link_and_by_file_the_reason_is_one(told: Told, case: str) -> None:
    job, said = told[case]

    assert f"requeued job {job.id} (preempt, restart 1)" in job.output
    assert said.startswith("0 ")


@pytest.mark.parametrize("case", ["for good"])
def test_an_end_without_a_requeue_is_what_was_asked(told: Told, case: str) -> None:
    job, said = told[case]

    assert said.startswith("0 ")
    assert said.endswith(f"{job.id}: ended, and does not come back, as was asked\n")
    assert job.restarts == 0


@pytest.mark.parametrize("case", ["array"])
def test_every_task_of_an_array_is_told(told: Told, case: str) -> None:
    job, said = told[case]

    assert said.startswith("0 told the preemptd at ")
    assert said.endswith(f", for job {job.id}_1, {job.id}_2\n")


@pytest.mark.parametrize("case", ["stopped"])
def test_a_stop_is_called_one_from_the_notice_to_the_end(told: Told, case: str) -> None:
    job, _ = told[case]

    assert "NOTICE from slurm: somebody stops this job, it does not come back (SIGTERM)" in job.output
    assert "preemptd: exit 143: somebody has stopped this job; not requeued\n" in job.output
    assert "requested in" not in job.output
    assert (job.state, job.restarts) == ("FAILED", 0)


@pytest.mark.parametrize("case", ["cancelled"])
def test_it_is_said_that_a_cancelled_job_does_not_come_back(told: Told, case: str) -> None:
    job, _ = told[case]

    assert "somebody has stopped this job; not requeued: cancelled\n" in job.output


@pytest.mark.parametrize("case", ["delayed"])
def test_requeue_delay_shortens_the_clusters_own(told: Told, case: str) -> None:
    job, _ = told[case]  # is back before the two minutes are over

    assert "starts in 5 s" in job.output


@pytest.mark.parametrize("case", SCRIPTS)
def test_a_script_that_keeps_signals_from_preemptd_is_warned_of(told: Told, case: str) -> None:
    job, _ = told[case]

    assert SCRIPTS[case] in job.output
    assert ("the batch script's own process" in job.output) is bool(SCRIPTS[case])
