"""Other ways in which people start `preemptd watch` in real jobs, and other ends that jobs come to."""

from collections.abc import Callable

import pytest

from tests.lab.slurm.cluster import Cluster
from tests.lab.slurm.configuration import Options
from tests.lab.slurm.jobs import Job, trainer
from tests.lab.slurm.supervised import settings, wait_for_canary

OPTIONS = ("--no-wandb", "--journal", "journal")


def watching(preemptd_command: list[str], *training: str) -> list[str]:
    return [*preemptd_command, "watch", *OPTIONS, "--", *training]


def kinds(job: Job) -> list[object]:
    return [line["kind"] for line in job.lines("notice")]


def test_as_a_step_it_hears_of_the_grace_itself_and_repeats_no_signal(
    slurm: Cluster, preemptd_command: list[str]
) -> None:
    job = slurm.sbatch(["srun", *watching(preemptd_command, *trainer("--catch", "TERM"))])
    job.wait_for_note("ready")

    preemptor = slurm.preempt(job)
    job.wait_for_note("exit")
    slurm.release(preemptor)
    job.wait_restarted(1)
    job.wait_for_note("ready", 2)

    assert job.heard() == ["TERM"]
    assert kinds(job)[-1] == "preempt"


def test_around_srun_the_ranks_are_signalled_by_slurm_and_the_job_comes_back(
    slurm: Cluster, preemptd_command: list[str]
) -> None:
    job = slurm.sbatch(watching(preemptd_command, "srun", *trainer("--catch", "TERM")))
    job.wait_for_note("ready")

    preemptor = slurm.preempt(job)
    job.wait_for_note("exit")
    slurm.release(preemptor)
    job.wait_restarted(1)
    job.wait_for_note("ready", 2)

    assert job.heard() == ["TERM"]
    assert kinds(job)[-1] == "preempt"


def test_of_an_array_the_last_task_comes_back_alone_and_no_other_is_touched(
    make_cluster: Callable[[Options], Cluster], preemptd_command: list[str]
) -> None:
    slurm = make_cluster(Options(nodes=3, cpus=1))
    watch = [*preemptd_command, "watch", "--no-wandb", "--journal", "$TASK.journal", "--", *trainer("--dir", "$TASK")]
    script = f"TASK=task-$SLURM_ARRAY_TASK_ID\nmkdir -p $TASK\nexec {' '.join(watch)}"
    array = slurm.sbatch(script, "--array=0-2", "--exclusive")
    *others, last = (array.task(index) for index in range(3))
    for task in (*others, last):
        task.wait_for("RUNNING")
        array.wait_for_event("ready", journal=array.directory / f"task-{task.id[-1]}" / "trainer-0")

    preemptor = slurm.preempt(last)
    last.until(lambda: last.restarts == 1)
    slurm.release(preemptor)
    last.wait_restarted(1)

    assert last.row.number == array.id, "it has the id of the whole array"
    assert [(task.restarts, task.state) for task in others] == [(0, "RUNNING")] * 2
    settled = array.lines("settled", array.directory / "task-2.journal")
    assert f"requeued job {array.id}_2 (preempt, restart 1)" in str(settled[0]["why"])


def test_as_a_step_on_two_nodes_each_rank_has_its_own_and_the_first_one_requeues(
    slurm: Cluster, preemptd_command: list[str]
) -> None:
    watch = [*preemptd_command, "watch", "--no-wandb", "--journal", "$SLURM_PROCID.journal", "--"]
    ranks = f"sh -c 'exec {' '.join([*watch, *trainer('--catch', 'TERM')])}'"
    job = slurm.sbatch(f"trap '' TERM\nsrun --ntasks-per-node=1 {ranks}", "--nodes=2", "--exclusive")
    for rank in (0, 1):
        job.wait_for_note("ready", rank=rank)

    preemptor = slurm.preempt(job)
    for rank in (0, 1):
        job.wait_for_note("exit", rank=rank)
    slurm.release(preemptor)
    job.wait_restarted(1)

    for rank in (0, 1):
        (_, again) = job.wait_for_note("ready", 2, rank=rank)
        (saved,) = [note for note in job.notes("saved", rank) if note["attempt"] == 0]
        assert (job.heard(rank=rank), again["step"]) == (["TERM"], saved["step"])
    journals = [job.lines("settled", job.directory / f"{rank}.journal") for rank in (0, 1)]
    assert "requeued job" in str(journals[0][0]["why"])
    assert not any("requeue" in str(line["why"]) for line in journals[1][:1])
    assert job.restarts == 1


def test_a_job_that_may_not_be_requeued_says_so_at_its_start_and_at_its_end(
    slurm: Cluster, preemptd_command: list[str]
) -> None:
    job = slurm.sbatch(watching(preemptd_command, *trainer()), "--no-requeue")
    job.wait_for_note("ready")
    job.wait_output("will not be requeued: add `#SBATCH --requeue`")

    slurm.scancel(job, "-b", "-s", "USR1")
    row = job.wait_over()

    assert row.exit_code >> 8 == 75
    assert f"job {job.id} is not requeued: it was submitted with --no-requeue" in job.output


def test_a_foreign_requeue_is_not_repeated(slurm: Cluster, preemptd_command: list[str]) -> None:
    job = slurm.sbatch(watching(preemptd_command, *trainer("--count", "TERM")))
    job.wait_for_note("ready")

    slurm.scontrol("requeue", job.id)
    job.wait_restarted(1)
    job.wait_for_note("ready", 2)

    assert kinds(job)[-1] == "requeued"
    assert job.restarts == 1


def test_a_signal_is_told_though_slurmctld_is_frozen(slurm: Cluster, preemptd_command: list[str]) -> None:
    job = slurm.sbatch(watching(preemptd_command, *trainer("--when-told", "train-on")))
    job.wait_for_note("ready")
    (started,) = job.wait_for_event("started")
    watch = int(str(job.notes("ready")[0]["pid"]))
    slurm.freeze_controller()
    try:
        parent = next(line for line in slurm.run(["ps", "-o", "ppid=", "-p", str(watch)]).stdout.split())
        slurm.run(["kill", "-USR1", parent])
        (told,) = job.wait_for_note("signal")
    finally:
        slurm.thaw_controller()

    assert told["name"] == "USR1"
    assert float(str(told["mono"])) - float(str(job.lines("notice")[0]["mono"])) < 1
    assert started["pid"] == watch


def test_a_copy_on_a_node_that_slurm_gave_up_kills_its_training(
    make_cluster: Callable[[Options], Cluster], preemptd_command: list[str]
) -> None:
    cluster = make_cluster(Options(extra=("SlurmdTimeout=10",)))
    settings = "[providers.slurm]\\npoll_interval = 5\\n"
    command = " ".join(watching(preemptd_command, *trainer("--count", "TERM")))
    job = cluster.sbatch(f"printf '{settings}' > settings.toml\nexport PREEMPTD_CONFIG=settings.toml\nexec {command}")
    job.wait_for_note("ready")

    cluster.kill_slurmd(job.row.nodes)
    job.wait_restarted(1, timeout=120)
    lost = job.notes("ready")[0]["pid"]
    job.until(lambda: f"{lost} " not in cluster.run(["ps", "-eo", "pid=,comm="]).stdout, 60, "the zombie is gone")

    assert "node-failure" in kinds(job)
    assert job.restarts == 1


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_node_that_comes_back_finds_nothing_of_the_copy_and_runs_the_job_again(
    make_cluster: Callable[[Options], Cluster], preemptd_command: list[str]
) -> None:
    cluster = make_cluster(Options(nodes=1, extra=("SlurmdTimeout=10",)))
    config = settings(cluster, "[providers.slurm]\npoll_interval = 5\n")
    job = cluster.sbatch([*preemptd_command, "watch", *OPTIONS, config, "--", *trainer("--count", "TERM")])
    job.wait_for_note("ready")
    wait_for_canary(job)

    cluster.kill_slurmd("n1")
    job.until(lambda: job.restarts == 1, 150, "the node is given up")
    job.until(lambda: not stepds(cluster), 200, "the job's script and our step have gone from the node")
    cluster.scontrol("hold", job.id)  # slurmctld still owes the dead slurmd a kill of the job, of any attempt
    cluster.start_slurmd("n1")
    cluster.wait_nodes("idle", "n1")
    job.until(lambda: cluster.rpcs_owed() == 0, 100, "slurmctld has said all to the slurmd that came back")
    cluster.scontrol("release", job.id)
    job.wait_for_note("ready", 2, timeout=200)

    assert "Registered PENDING" not in cluster.log_of(job.id)


def stepds(cluster: Cluster) -> list[str]:
    return [line for line in cluster.command_lines().values() if line.startswith("slurmstepd")]


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_the_time_limit_is_survived_twice_in_a_row_without_any_signal_option(
    slurm: Cluster, preemptd_command: list[str]
) -> None:
    job = slurm.sbatch(watching(preemptd_command, *trainer()), minutes=1)

    job.wait_restarted(2, timeout=300)
    job.wait_for_note("ready", 3)

    saved = [note["step"] for note in job.notes("saved")]
    assert [note["step"] for note in job.notes("ready")] == [0, *saved]
    assert set(kinds(job)) == {"time-limit"}
