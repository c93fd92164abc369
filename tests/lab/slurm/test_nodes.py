"""Ranks that srun has started, on one node and on several, on a real cluster: told once each, and they come back."""

import functools
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.slurm.cluster import Cluster
from tests.lab.slurm.configuration import Options
from tests.lab.slurm.jobs import Job, trainer
from tests.lab.slurm.side_by_side import SideBySide, cases
from tests.lab.slurm.supervised import LONG, end, kinds, preempt_until_requeued, watching
from tests.lab.wandb_backend import WandbBackend
from tests.standins import wandb_train

pytestmark = [pytest.mark.xdist_group("slurm-nodes"), pytest.mark.timeout(400)]
SAVES_ON_USR1 = trainer("--catch", "USR1", "--count", "TERM", "--code", "3")
SHIELD = "trap '' USR1 USR2 TERM\n"


@dataclass(frozen=True)
class Case:
    """How many nodes the job has, and how SLURM announces the preemption."""

    nodes: int
    usersig: bool
    partition: str = "low"

    def __str__(self) -> str:
        return f"{self.nodes}-{self.partition}-{'usersig' if self.usersig else 'default'}"

    @property
    def ranks(self) -> range:
        return range(2 * self.nodes)


CASES = [
    Case(1, usersig=False),
    Case(2, usersig=False),
    Case(2, usersig=True),
    Case(2, usersig=False, partition="low0"),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def around_srun(nodes: int, training: list[str] = SAVES_ON_USR1, *, wandb: bool = False) -> str:
    srun = ["srun", f"--nodes={nodes}", "--ntasks-per-node=2", *training]
    return f"{SHIELD}exec {shlex.join(watching(training=srun, wandb=wandb))}\n"


def submit(cluster: Cluster, nodes: int, script: str = "", **more: object) -> Job:
    usersig = ["--signal=B:USR1@60"] if cluster.options.usersig else []
    text = script or around_srun(nodes)
    return cluster.sbatch(text, f"--nodes={nodes}", "--exclusive", *usersig, **more)  # type: ignore[arg-type]


def wait_for_agents(job: Job, count: int) -> list[int]:
    """Wait until our agents on the job's nodes listen; return their pids, as the cluster sees them."""
    job.until(lambda: len(agents(job)) == count, LONG, "agents")
    return agents(job)


def agents(job: Job) -> list[int]:
    mark = f'slurm-node {{"component":"{job.row.number}"'
    found = [pid for pid, line in job.cluster.command_lines().items() if mark in line and "srun" not in line.split()[0]]
    return [pid for pid in found if _catches(job.cluster.outside(pid), signal.SIGUSR2)]


def _catches(pid: int, signum: signal.Signals) -> bool:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next(line.split()[1] for line in text.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signum - 1) & 1)


def ranks_ready(job: Job, ranks: range, attempt: int = 0) -> None:
    for rank in ranks:
        job.wait_for_note("ready", attempt + 1, LONG, rank)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def story(clusters: dict[bool, Cluster], case: Case) -> Job:
    cluster = clusters[case.usersig]
    job = submit(cluster, case.nodes, partition=case.partition)
    ranks_ready(job, case.ranks)
    wait_for_agents(job, case.nodes)
    preempt_until_requeued(cluster, job)
    ranks_ready(job, case.ranks, attempt=1)
    return end(cluster, job)


@pytest.fixture(scope="module")
def told(make_cluster: Callable[[Options], Cluster], request: pytest.FixtureRequest) -> SideBySide[Case, Job]:
    chosen = cases(request, Case)
    needed = {usersig: sum(case.nodes for case in chosen if case.usersig is usersig) for usersig in (False, True)}
    clusters = {
        usersig: make_cluster(Options(nodes=nodes, cpus=2, usersig=usersig))
        for usersig, nodes in needed.items()
        if nodes
    }
    return SideBySide(functools.partial(story, clusters), chosen)


@every_case
def test_each_rank_is_told_once(told: SideBySide[Case, Job], case: Case) -> None:
    job = told[case]

    assert [job.heard(rank=rank).count("USR1") for rank in case.ranks] == [1] * len(case.ranks), job.describe()
    by_us = [line for line in job.lines("told") if line["how"] == "USR1"]
    assert sorted(str(line["node"]) for line in by_us) == sorted(
        str(job.notes("ready", rank)[0]["node"]) for rank in case.ranks
    )


@every_case
def test_each_rank_goes_on_where_it_saved(told: SideBySide[Case, Job], case: Case) -> None:
    job = told[case]

    for rank in case.ranks:
        first, second = job.notes("ready", rank)[:2]
        (saved,) = [note for note in job.notes("saved", rank) if note["attempt"] == 0]
        assert second["step"] == saved["step"], job.describe()
        assert first["attempt"] == 0


@every_case
def test_the_job_is_requeued_once(told: SideBySide[Case, Job], case: Case) -> None:
    job = told[case]

    assert job.restarts == 1, job.describe()
    assert kinds(job)[-1] == "preempt"
    assert job.lines("settled")[0]["status"] == 75


def test_a_job_that_ends_by_itself_is_not_held_up_by_its_agents(slurm: Cluster) -> None:
    script = around_srun(2, trainer("--steps", "80", "--step-seconds", "0.05"))
    job = submit(slurm, 2, script)
    wait_for_agents(job, 2)

    job.wait_for_note("exit", rank=0)
    job.wait_for_event("settled")
    settled = time.monotonic()
    job.wait_over()

    assert time.monotonic() - settled < 10, job.describe()
    assert job.state == "COMPLETED"
    assert job.lines("warning") == []


def test_ranks_are_told_while_the_controller_hangs(slurm: Cluster) -> None:
    job = submit(slurm, 2)
    ranks_ready(job, range(4))
    wait_for_agents(job, 2)
    (watch,) = [
        pid for pid, line in slurm.command_lines().items() if "preemptd watch" in line and line.split()[0] != "srun"
    ]

    slurm.freeze_controller()
    slurm.signal(watch, signal.SIGUSR1)

    for rank in range(4):
        job.wait_for_note("exit", rank=rank)
    assert [job.heard(rank=rank) for rank in range(4)] == [["USR1"]] * 4


def test_a_node_whose_agent_hangs_does_not_keep_the_others_from_being_told(slurm: Cluster) -> None:
    job = submit(slurm, 2)
    ranks_ready(job, range(4))
    pids = {slurm.outside(pid): _node(slurm.outside(pid)) for pid in wait_for_agents(job, 2)}
    (other,) = [pid for pid, node in pids.items() if node == "n2"]

    with stopped(other):
        slurm.scancel(job, "-b", "-s", "USR1")
        here = [rank for rank in range(4) if job.notes("ready", rank)[0]["node"] == "n1"]
        for rank in here:
            job.wait_for_note("exit", rank=rank)

        assert [job.heard(rank=rank) for rank in range(4) if rank not in here] == [[], []]


def test_a_node_whose_slurmd_hangs_is_told_all_the_same(slurm: Cluster) -> None:
    job = submit(slurm, 2)
    ranks_ready(job, range(4))
    wait_for_agents(job, 2)
    (slurmd,) = [pid for pid, line in slurm.command_lines().items() if "slurmd -D -N n2" in line]

    with stopped(slurm.outside(slurmd)):
        slurm.scancel(job, "-b", "-s", "USR1")
        for rank in range(4):
            job.wait_for_note("exit", rank=rank)
        job.wait_for_event("settled")

    assert [job.heard(rank=rank) for rank in range(4)] == [["USR1"]] * 4


def test_ranks_are_found_where_proc_hides_slurmstepd(make_cluster: Callable[[Options], Cluster]) -> None:
    cluster = make_cluster(Options(nodes=2, cpus=2))
    cluster.run(["mount", "-o", "remount,hidepid=2", "/proc"], root=True).check_returncode()
    job = submit(cluster, 2)
    ranks_ready(job, range(4))
    wait_for_agents(job, 2)

    cluster.scancel(job, "-b", "-s", "USR1")

    for rank in range(4):
        job.wait_for_note("exit", rank=rank)
    assert [job.heard(rank=rank) for rank in range(4)] == [["USR1"]] * 4


def _node(pid: int) -> str:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.partition("=")[::2] for pair in pairs)["SLURMD_NODENAME"]


def test_both_components_of_a_heterogeneous_job_are_told(slurm: Cluster) -> None:
    srun = ["srun", "--het-group=0,1", "--ntasks=1", *SAVES_ON_USR1]
    script = "#!/bin/sh\n#SBATCH --nodes=1 --exclusive\n#SBATCH hetjob\n#SBATCH --nodes=1 --exclusive\n"
    job = slurm.sbatch(f"{script}{SHIELD}exec {shlex.join(watching(training=srun))}\n")
    ranks_ready(job, range(2))
    job.until(lambda: sum("slurm-node" in line for line in slurm.command_lines().values()) >= 4, LONG, "agents")

    slurm.scancel(job, "-b", "-s", "USR1")

    for rank in range(2):
        job.wait_for_note("exit", rank=rank)
    assert [job.heard(rank=rank).count("USR1") for rank in range(2)] == [1, 1], job.describe()
    assert sorted(str(line["node"]) for line in job.wait_for_event("told", 2)) == ["n1", "n2"]


def test_a_wandb_run_on_another_node_is_marked_and_does_not_end_as_finished(
    make_cluster: Callable[[Options], Cluster], job_python: str
) -> None:
    cluster = make_cluster(Options(nodes=2, cpus=2, usersig=True))
    training = [job_python, str(wandb_train.__file__), "--code", "0", "--save", "1"]
    rank = ["sh", "-c", 'export RANK=$((1 - SLURM_PROCID)); exec "$0" "$@"', *training]
    srun = ["srun", "--nodes=2", "--ntasks-per-node=1", *rank]
    with WandbBackend() as backend:
        directory = cluster.job_directory()
        job = submit(
            cluster,
            2,
            f"{SHIELD}exec {shlex.join(watching(training=srun, wandb=True))}\n",
            env={**backend.env(), "LOG": str(directory / "log")},
            directory=directory,
        )
        log = directory / "log"
        job.until(lambda: len(job.lines(journal=log)) >= 2 and job.file("log").count('"ready"') == 2, LONG, "ready")
        wait_for_agents(job, 2)
        preempt_until_requeued(cluster, job)
        end(cluster, job)
        (run_id,) = backend.runs()[:1]

        (marked,) = [line for line in job.lines("marked") if line["run_id"] == run_id][:1]
        assert (marked["ok"], marked["node"]) == (True, "n2"), job.describe()
        assert backend.preempting(run_id)
        assert [code for code in backend.exit_codes(run_id) if code != 0], job.describe()
