"""`exec preemptd watch` in the batch script of real jobs: noticed, told once, saved, requeued, resumed."""

from collections.abc import Callable

import pytest

from tests.lab.slurm.cluster import Cluster
from tests.lab.slurm.configuration import Options
from tests.lab.slurm.jobs import Job, trainer

POLL_ONLY = "[providers.slurm]\npoll_interval = 5\ncanary = false\n"
OPTIONS = ("--no-wandb", "--journal", "journal")


def watching(preemptd_command: list[str], *options: str, training: list[str] | None = None) -> list[str]:
    return [*preemptd_command, "watch", *OPTIONS, *options, "--", *(training or trainer())]


def assert_saved_requeued_and_resumed(job: Job) -> None:
    """Wait for the second run, and look at what the first one left."""
    job.wait_restarted(1)
    job.wait_for_note("ready", 2)
    (saved,) = [note for note in job.notes("saved") if note["attempt"] == 0]
    resumed = job.notes("ready")[1]

    assert job.heard().count("USR1") == 1
    assert resumed["step"] == saved["step"]
    assert job.restarts == 1


def notices(job: Job) -> list[tuple[object, object]]:
    return list(dict.fromkeys((line["event_id"], line["kind"]) for line in job.lines("notice")))


@pytest.mark.parametrize("partition", ["low", "lowkill"])
def test_the_canary_hears_a_preemption_of_which_the_batch_script_is_told_nothing(
    slurm: Cluster, preemptd_command: list[str], partition: str
) -> None:
    job = slurm.sbatch(watching(preemptd_command), partition=partition)
    job.wait_for_note("ready")

    preemptor = slurm.preempt(job)
    job.wait_for_event("notice")
    job.wait_for_note("exit")
    slurm.release(preemptor)

    assert_saved_requeued_and_resumed(job)
    assert "canary" in str(job.lines("notice")[0]["source"])
    assert (f"slurm:{job.id}:0", "preempt") in notices(job)


def test_without_a_grace_the_final_sigterm_is_the_notice_and_slurm_requeues(
    slurm: Cluster, preemptd_command: list[str]
) -> None:
    job = slurm.sbatch(watching(preemptd_command, training=trainer("--count", "TERM")), partition="low0")
    job.wait_for_note("ready")

    preemptor = slurm.preempt(job)
    job.wait_for_note("exit")
    slurm.release(preemptor)

    assert_saved_requeued_and_resumed(job)
    assert (f"slurm:{job.id}:0", "preempt") in notices(job)


def test_a_cluster_that_only_the_poll_can_watch(slurm: Cluster, preemptd_command: list[str]) -> None:
    command = " ".join(watching(preemptd_command, "--config", "settings.toml"))
    job = slurm.sbatch(f"printf '{POLL_ONLY}' > settings.toml\nexec {command}", partition="low")
    job.wait_for_note("ready")

    preemptor = slurm.preempt(job)
    job.wait_for_note("exit")
    slurm.release(preemptor)

    assert_saved_requeued_and_resumed(job)
    assert job.lines("notice")[0]["source"] == "squeue"


def test_a_direct_signal_is_heard_where_the_cluster_sends_one(
    make_cluster: Callable[[Options], Cluster], preemptd_command: list[str]
) -> None:
    cluster = make_cluster(Options(usersig=True))
    job = cluster.sbatch(watching(preemptd_command), "--signal=B:USR1@60", partition="low")
    job.wait_for_note("ready")

    preemptor = cluster.preempt(job)
    job.wait_for_note("exit")
    cluster.release(preemptor)

    assert_saved_requeued_and_resumed(job)
    assert job.lines("notice")[0]["source"] == "SIGUSR1"


def test_a_cancelled_job_stays_cancelled(slurm: Cluster, preemptd_command: list[str]) -> None:
    job = slurm.sbatch(watching(preemptd_command))
    job.wait_for_note("ready")

    slurm.scancel(job)
    row = job.wait_over()

    assert (row.state, row.restarts) == ("CANCELLED", 0)
    assert job.lines("notice")[-1]["kind"] == "cancelled"


def test_a_job_that_is_cancelled_in_its_grace_is_not_resurrected(slurm: Cluster, preemptd_command: list[str]) -> None:
    job = slurm.sbatch(watching(preemptd_command, training=trainer("--save-seconds", "60")))
    job.wait_for_note("ready")
    slurm.preempt(job)
    # In the first moments of a grace SLURM does not let a scancel be told from its end (docs/slurm.md, Limits).
    job.until(lambda: [line["kind"] for line in job.lines("notice")][-1:] == ["preempt"], what="the grace is known")

    slurm.scancel(job)
    row = job.wait_over()

    assert (row.state, row.restarts) == ("CANCELLED", 0)


def test_a_job_that_ends_normally_is_not_held_in_completing_by_the_canary(
    slurm: Cluster, preemptd_command: list[str]
) -> None:
    job = slurm.sbatch(watching(preemptd_command, training=trainer("--steps", "40")))

    row = job.wait_over()

    assert (row.state, row.exit_code) == ("COMPLETED", 0)
    assert job.lines("notice") == []


def test_a_drill_by_signal_is_a_request(slurm: Cluster, preemptd_command: list[str]) -> None:
    job = slurm.sbatch(watching(preemptd_command))
    job.wait_for_note("ready")

    slurm.scancel(job, "-b", "-s", "USR1")

    assert_saved_requeued_and_resumed(job)
    assert (f"slurm:{job.id}:0", "requested") in notices(job)
