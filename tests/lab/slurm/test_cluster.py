"""The cluster itself: jobs run everywhere, it takes its faults, and nothing is left of it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.slurm.cluster import Cluster
from tests.lab.slurm.configuration import Options
from tests.lab.slurm.jobs import trainer
from tests.waiting import wait_until

ABANDONED = """
import sys
from tests.lab.slurm.cluster import Cluster
cluster = Cluster()
job = cluster.sbatch("sleep 1000 & echo asleep; wait")
job.wait_output("asleep")
print(cluster.directory, *cluster.outside_pids(), flush=True)
sys.stdin.read()
"""


def test_a_job_runs_on_every_node_as_an_ordinary_user(slurm: Cluster) -> None:
    job = slurm.sbatch("srun sh -c 'echo on $SLURMD_NODENAME as $(id -un)'", "--nodes=2")

    assert job.wait_over().state == "COMPLETED"
    assert sorted(job.output.splitlines()) == ["on n1 as preemptd-test", "on n2 as preemptd-test"]


def test_a_job_runs_preemptd_with_the_interpreter_of_the_tests(slurm: Cluster, preemptd_command: list[str]) -> None:
    job = slurm.sbatch([*preemptd_command, "--version"])
    by_name = slurm.sbatch(["preemptd", "--version"])

    assert (job.wait_over().exit_code, by_name.wait_over().exit_code) == (0, 0)
    assert job.output.startswith("preemptd ")
    assert by_name.output == job.output


def test_squeue_tells_when_a_grace_has_begun(slurm: Cluster) -> None:
    job = slurm.sbatch(trainer("--catch", "USR1,TERM"), "--exclusive")
    job.wait_for_note("ready")
    assert job.row.preempt_time is None

    slurm.preempt(job)

    job.until(lambda: job.row.preempt_time)
    assert job.state == "RUNNING"
    assert job.heard() == []  # the batch script is told nothing: the reason for much of the slurm provider


def test_with_usersig_a_grace_begins_with_the_signal_of_the_job(
    make_cluster: Callable[[Options], Cluster],
) -> None:
    cluster = make_cluster(Options(nodes=1, usersig=True))
    job = cluster.sbatch(trainer("--catch", "USR1,TERM"), "--exclusive", "--signal=B:USR1@60")
    job.wait_for_note("ready")

    cluster.preempt(job)

    job.wait_for_note("saved")
    assert job.heard() == ["USR1"]


def test_a_task_of_an_array_is_a_job_of_its_own(slurm: Cluster) -> None:
    array = slurm.sbatch("echo task $SLURM_ARRAY_TASK_ID", "--array=0-2")
    tasks = [array.task(index) for index in range(3)]

    assert [task.wait_over().state for task in tasks] == ["COMPLETED"] * 3
    assert [task.output for task in tasks] == ["task 0\n", "task 1\n", "task 2\n"]


def test_a_frozen_controller_answers_nobody_until_it_is_thawed(slurm: Cluster) -> None:
    job = slurm.sbatch(["sleep", "1000"])
    job.wait_for("RUNNING")

    slurm.freeze_controller()

    with pytest.raises(subprocess.TimeoutExpired):
        slurm.run(["squeue"], timeout=1)
    slurm.thaw_controller()
    assert job.id in slurm.run(["squeue", "-h", "-o", "%A"]).stdout.split()


def test_jobs_outlive_a_restart_of_the_controller(slurm: Cluster) -> None:
    job = slurm.sbatch(trainer("--steps", "30"))
    job.wait_for_note("ready")

    slurm.restart_controller()

    assert job.wait_over().state == "COMPLETED"
    assert job.steps() == [(0, step) for step in range(1, 31)]


def test_jobs_outlive_the_slurmd_of_their_node(slurm: Cluster) -> None:
    job = slurm.sbatch(trainer("--steps", "30"), "--nodelist=n1")
    job.wait_for_note("ready")

    slurm.kill_slurmd("n1")

    job.wait_for_note("exit")
    slurm.start_slurmd("n1")
    assert job.wait_over().state == "COMPLETED"


def test_a_drained_node_gets_no_jobs_until_it_is_resumed(slurm: Cluster) -> None:
    slurm.drain("n1", "bad fan")
    slurm.wait_nodes("drain", "n1")

    job = slurm.sbatch("true", "--nodelist=n1")

    job.until(lambda: "n1" in job.row.reason)
    slurm.resume()
    assert job.wait_over().state == "COMPLETED"


def test_a_test_may_signal_a_process_by_the_pid_that_the_job_sees(slurm: Cluster) -> None:
    job = slurm.sbatch(trainer("--catch", "USR1"))
    pid = int(str(job.wait_for_note("ready")[0]["pid"]))

    slurm.signal(pid, signal.SIGUSR1)

    assert job.wait_over().state == "COMPLETED"
    assert job.heard() == ["USR1"]


def test_directories_that_are_closed_to_others_can_be_opened_for_jobs(
    make_cluster: Callable[[Options], Cluster], tmp_path: Path
) -> None:
    deep = tmp_path / "closed" / "deep"
    deep.mkdir(parents=True)
    (deep / "file").write_text("read me")
    (deep / "link").symlink_to("file")
    for directory in (deep, deep.parent):
        directory.chmod(0o700)
    cluster = make_cluster(Options(nodes=1, readable=(str(deep),)))

    job = cluster.sbatch(["cat", str(deep / "link")])

    assert job.wait_over().exit_code == 0
    assert job.output == "read me"


def test_clusters_do_not_see_each_other(slurm: Cluster, make_cluster: Callable[[Options], Cluster]) -> None:
    other = make_cluster(Options(nodes=1))

    job = slurm.sbatch(["sleep", "1000"])

    job.wait_for("RUNNING")
    assert other.rows(fresh=True) == {}
    assert not any("sleep" in line for line in other.command_lines().values())


def test_nothing_is_left_when_the_tests_are_killed(needs_slurm: None) -> None:  # noqa: ARG001
    tests = subprocess.Popen(
        [sys.executable, "-c", ABANDONED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert tests.stdout is not None
    directory, *pids = tests.stdout.readline().split()
    assert len(pids) >= 6  # munged, slurmctld, two slurmd, slurmstepd, sleep

    tests.kill()

    tests.communicate()
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), what="the end of all processes")
    wait_until(lambda: not os.path.exists(directory), what="the end of the directory")
