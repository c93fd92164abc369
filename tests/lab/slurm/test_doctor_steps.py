"""What `preemptd doctor` and `preemptd status` say of ranks that srun has started: they hang below slurmstepd."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.lab.slurm.cluster import Cluster
from tests.lab.slurm.configuration import Options
from tests.lab.slurm.jobs import Job, trainer

pytestmark = [pytest.mark.xdist_group("slurm-doctor-steps"), pytest.mark.timeout(200)]
TRAINING = trainer("--catch", "USR1", "--steps", "100000")
WATCH = ["preemptd", "watch", "--journal", "journal", "--"]
IGNORES_TERM = ["bash", "-c", 'trap "" TERM; exec "$@"', "bash"]
TWO_NODES = "--nodes=2", "--ntasks-per-node=1"


@pytest.fixture(scope="module")
def cluster(make_cluster: Callable[[Options], Cluster]) -> Cluster:
    return make_cluster(Options(nodes=2))


def started(cluster: Cluster, command: Sequence[str], *options: str, ranks: int = 1) -> tuple[Job, int, list[int]]:
    """Start a job; return it, the pid of what its preemptd watches over, and those of its ranks."""
    job = cluster.sbatch(command, *options)
    pids = [int(str(job.wait_for_note("ready", rank=rank)[0]["pid"])) for rank in range(ranks)]
    return job, int(str(job.wait_for_event("started")[0]["pid"])), pids


def ask(cluster: Cluster, *arguments: object) -> dict[str, Any]:
    said = json.loads(cluster.run(["preemptd", *map(str, arguments), "--json"]).stdout)
    assert isinstance(said, dict)
    return said


def kinds(said: dict[str, Any]) -> set[str]:
    return {one["kind"] for one in said["findings"] if not one["kind"].startswith("slurm-")}


def losing(said: dict[str, Any]) -> set[str]:
    return {one["kind"] for one in said["findings"] if one["loses"]} - {"slurm-batch-signal"}


def wait_for_step(cluster: Cluster, job: Job) -> str:
    """Wait until our step is on both nodes; return the link of the job's preemptd."""
    link = str(job.wait_for_event("started")[0]["link"])
    job.until(lambda: ask(cluster, "status", "--link", link)["nodes"] == 2, 60, "our step on both nodes")
    return link


def test_ranks_of_srun_are_said_to_be_told_and_to_die_of_the_sigterm_that_comes_first(cluster: Cluster) -> None:
    job, srun, ranks = started(cluster, [*WATCH, "srun", *TRAINING], *TWO_NODES, ranks=2)
    link = wait_for_step(cluster, job)
    of_srun, of_rank = ask(cluster, "doctor", srun), ask(cluster, "doctor", ranks[0])
    status = cluster.run(["preemptd", "status", "--link", link]).stdout
    told = [one["pid"] for one in of_srun["job"]["processes"] if one["told_by"] == "USR1"]

    assert "  would tell: the ranks on 2 nodes, by preemptd's step there\n" in status
    assert kinds(of_srun) == kinds(of_rank) == {"ranks-on-nodes", "unseen-nodes", "dies-of-sigterm"}
    assert losing(of_srun) == losing(of_rank) == {"dies-of-sigterm"}
    assert len(told) == 1
    assert set(told) < set(ranks)


def test_a_rank_whose_preemptd_is_on_another_node_is_watched_by_the_step_beside_it(cluster: Cluster) -> None:
    job, _, ranks = started(cluster, [*WATCH, "srun", *IGNORES_TERM, *TRAINING], *TWO_NODES, ranks=2)
    Path(wait_for_step(cluster, job)).unlink()  # as on the other node, which has no socket
    said = ask(cluster, "doctor", ranks[1])

    assert kinds(said) == {"silent-preemptd"}
    assert said["text"].startswith("NOTHING would be lost, if the preemptd there is in order, ")


def test_of_ranks_that_ignore_that_sigterm_nothing_is_lost(cluster: Cluster) -> None:
    job, srun, _ = started(cluster, [*WATCH, "srun", *IGNORES_TERM, *TRAINING], *TWO_NODES, ranks=2)
    wait_for_step(cluster, job)
    said = ask(cluster, "doctor", srun)

    assert kinds(said) == {"ranks-on-nodes", "unseen-nodes"}
    assert said["verdict"] == "nothing-lost"
    assert "if it is the same on the other nodes, if what catches the signal in pid" in said["text"]


def test_a_preemptd_in_a_step_is_found_from_the_batch_script(cluster: Cluster) -> None:
    _, _, (rank,) = started(cluster, ["srun", *WATCH, *TRAINING])
    (srun, *_) = sorted(pid for pid, line in cluster.command_lines().items() if line.startswith("srun preemptd watch"))
    of_srun, of_rank = ask(cluster, "doctor", srun), ask(cluster, "doctor", rank)

    for said in (of_srun, of_rank):
        assert losing(said) == {"dies-of-sigterm"}
        (found,) = [one for one in said["findings"] if one["kind"] == "dies-of-sigterm"]
        assert (found["pid"], found["advice"].partition(" -- ")[0]) == (rank, "preemptd watch --shield-term")
