"""W&B runs of supervised jobs, with real wandb: marked and ended as preempted exactly where the job comes back."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pytest

from preemptd.runs.transaction_log import exit_code, has_preempting
from tests.lab.slurm.cluster import Cluster
from tests.lab.slurm.configuration import Options
from tests.lab.slurm.jobs import Job
from tests.lab.slurm.side_by_side import SideBySide, cases
from tests.lab.slurm.supervised import LONG, NO_CANARY, end, kinds, settings, wait_for_canary, watching
from tests.lab.wandb_backend import WandbBackend
from tests.lab.wandb_watching import strings
from tests.watching import ROOT

pytestmark = [pytest.mark.xdist_group("slurm-wandb"), pytest.mark.timeout(400)]
SHOWN = {"notice", "told", "marked", "repaired", "exited", "settled", "warning", "resumes"}
LOGS = "wandb/run-*/run-*.wandb"
SCRIPT = str(ROOT / "tests" / "standins" / "wandb_train.py")


@dataclass(frozen=True)
class Told:
    """A job whose story is told, and the W&B server that it talked to."""

    job: Job
    backend: WandbBackend

    @property
    def run(self) -> str:
        """The id of its only run."""
        assert len(self.backend.runs()) == 1, journal(self.job)
        (run,) = self.backend.runs()
        return run

    @property
    def ended(self) -> float:
        """Monotonic time at which the training of the first attempt ended, or was seen to be gone."""
        return float(str(self.job.lines("exited")[0]["mono"]))


def notes(job: Job, what: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in job.file("log").splitlines() if line.endswith("}")]
    return [line for line in lines if line["what"] == what]


def journal(job: Job) -> str:
    """Return what journal and logs have on the ends of runs, for messages."""
    lines = [f"{line}" for line in job.lines() if line["event"] in SHOWN]
    logs = [f"{log}: {has_preempting(str(log))}, {exit_code(str(log))}" for log in job.directory.glob(LOGS)]
    return "\n".join([*lines, *logs])


def submit(
    cluster: Cluster,
    backend: WandbBackend,
    *options: str,
    partition: str = "low",
    term: bool = True,
    asked: Sequence[str] = (),
) -> Job:
    """Start a training that saves on USR1 and ends; *term*: it outlives SIGTERM, as if it caught it.

    Args:
        cluster: where.
        backend: the W&B server.
        options: of preemptd.
        partition: how it may be preempted.
        term: see above.
        asked: more options of sbatch.
    """
    script = [sys.executable, SCRIPT, "--code", "143"]
    training = ["sh", "-c", 'trap "" TERM; exec "$@"', "sh", *script] if term else script
    env = {**backend.env(), "LOG": "log", "WANDB_DIR": "."}
    command = watching(*options, training=training, wandb=True)
    job = cluster.sbatch(command, "--exclusive", *asked, partition=partition, env=env)
    ready(job, 1)
    # Looks for runs are seconds apart; one that is younger, and dies at once with its wandb-core, nobody knows.
    job.until(lambda: known(job), LONG, "the run is known")
    return job


def known(job: Job) -> bool:
    """Say whether our record of the job has its run."""
    (run,) = strings(notes(job, "ready")[0]["runs"])
    return any(run in path.read_text() for path in (job.directory / ".state").rglob("*.json"))


def ready(job: Job, count: int) -> None:
    job.until(lambda: len(notes(job, "ready")) >= count, 2 * LONG, f"{count} times ready")


def preempted(cluster: Cluster, backend: WandbBackend, case: str) -> Job:
    """Preempt, and wait for the run to be taken up again."""
    *usersig, partition, how = case.split()
    interval = 5 if how == "poll" else 3600
    options = [] if how == "canary" else [settings(cluster, NO_CANARY.format(interval))]
    asked = ["--signal=B:USR1@60"] if usersig and how == "direct" else []
    job = submit(cluster, backend, *options, partition=partition, asked=asked)
    if how == "canary":
        wait_for_canary(job)
    preemptor = cluster.preempt(job)
    job.until(lambda: job.restarts == 1, LONG, "requeued")
    cluster.release(preemptor)
    ready(job, 2)
    return end(cluster, job)


def at_the_time_limit(cluster: Cluster, backend: WandbBackend, _case: str) -> Job:
    job = submit(cluster, backend)
    cluster.expire(job)
    job.until(lambda: job.restarts == 1, LONG, "requeued")
    ready(job, 2)
    return end(cluster, job)


def with_a_server_that_hangs(cluster: Cluster, backend: WandbBackend, _case: str) -> Job:
    """Have no request to W&B answered from the moment at which KillWait, 5 s, is all that is left."""
    job = submit(cluster, backend, partition="lowkill")
    backend.break_down("hang", "")
    cluster.expire(job)
    job.until(lambda: job.restarts == 1, LONG, "requeued")
    backend.mend()
    ready(job, 2)
    return end(cluster, job)


def cancelled(cluster: Cluster, backend: WandbBackend, _case: str) -> Job:
    job = submit(cluster, backend, term=False)
    return end(cluster, job)


def asked(cluster: Cluster, backend: WandbBackend, _case: str) -> Job:
    job = submit(cluster, backend)
    cluster.scancel(job, "-b", "-s", "USR1")
    ready(job, 2)
    return end(cluster, job)


MATRIX = [
    f"{usersig}{partition} {how}"
    for usersig in ("", "usersig ")
    for partition in ("low", "lowkill", "low0")
    for how in ("canary", "poll", "direct")
]
QUICK = {"low canary", "lowkill canary", "low0 canary", "lowkill direct", "usersig low poll"}
STORIES: Mapping[str, Callable[[Cluster, WandbBackend, str], Job]] = {
    **dict.fromkeys(MATRIX, preempted),
    "time limit": at_the_time_limit,
    "asked": asked,
    "hanging server": with_a_server_that_hangs,
    "cancelled": cancelled,
}
PREEMPTED = [
    pytest.param(case, marks=pytest.mark.soak if case in MATRIX and case not in QUICK else [])
    for case in STORIES
    if case not in {"cancelled", "hanging server"}
]


@pytest.fixture(scope="module")
def told(make_cluster: Callable[[Options], Cluster], request: pytest.FixtureRequest) -> Iterator[SideBySide[str, Told]]:
    chosen = cases(request, str)
    readable = (str(ROOT / "tests" / "standins"),)
    # A run's end takes seconds here, where a real machine takes one; only one story is about the shortest KillWait.
    usual = make_cluster(Options(nodes=max(1, len(chosen)), cpus=1, kill_wait=20, readable=readable))
    clusters = {"hanging server": make_cluster(Options(nodes=1, cpus=1, readable=readable))}
    if told_by_signal := [case for case in chosen if case.startswith("usersig")]:
        options = Options(nodes=len(told_by_signal), cpus=1, kill_wait=20, usersig=True, readable=readable)
        clusters.update(dict.fromkeys(told_by_signal, make_cluster(options)))
    backends = {case: WandbBackend() for case in chosen}
    for backend in backends.values():
        backend.__enter__()

    def story(case: str) -> Told:
        return Told(STORIES[case](clusters.get(case, usual), backends[case], case), backends[case])

    yield SideBySide(story, chosen)
    for backend in backends.values():
        backend.close()


@pytest.mark.parametrize("case", PREEMPTED)
def test_the_run_is_marked_ends_with_a_code_and_is_taken_up_again(told: SideBySide[str, Told], case: str) -> None:
    story = told[case]

    assert story.job.restarts == 1
    assert [note["pid"] for note in notes(story.job, "signal")].count(notes(story.job, "ready")[0]["pid"]) == 1
    assert story.backend.preempting(story.run), journal(story.job)
    assert notes(story.job, "ready")[0]["runs"] == notes(story.job, "ready")[1]["runs"] == [story.run]
    first_end = story.backend.exit_codes(story.run)[:1]
    assert first_end, journal(story.job)
    assert first_end != [0]


@pytest.mark.parametrize("case", ["hanging server"])
def test_a_repair_that_hangs_does_not_cost_the_requeue(told: SideBySide[str, Told], case: str) -> None:
    story = told[case]

    assert story.job.restarts == 1
    assert kinds(story.job)[-1] == "time-limit"
    assert notes(story.job, "ready")[0]["runs"] == notes(story.job, "ready")[1]["runs"]


@pytest.mark.parametrize("case", ["cancelled"])
def test_the_run_of_a_cancelled_job_is_not_marked(told: SideBySide[str, Told], case: str) -> None:
    story = told[case]

    assert story.job.state == "CANCELLED"
    assert story.backend.preempting(story.run) == []
    assert notes(story.job, "signal") == []


@pytest.mark.timeout(500)
def test_a_copy_whose_node_was_given_up_leaves_the_run_to_the_new_one(
    make_cluster: Callable[[Options], Cluster],
) -> None:
    options = Options(nodes=2, cpus=1, extra=("SlurmdTimeout=10",), readable=(str(ROOT / "tests" / "standins"),))
    cluster = make_cluster(options)
    with WandbBackend() as backend:
        job = submit(cluster, backend, settings(cluster, "[providers.slurm]\npoll_interval = 5\n"))
        (first,) = notes(job, "ready")
        cluster.kill_slurmd(job.row.nodes)
        ready(job, 2)
        job.until(lambda: "node-failure" in kinds(job), 2 * LONG, "the copy knows")
        job.until(lambda: first["pid"] not in cluster.command_lines(), LONG, "the copy is gone")
        job.wait_for_event("settled", timeout=LONG)

        # A new copy that starts before the old one has noticed gets no id: two may not write one run.
        refused = any("its W&B run is not resumed here" in str(line.get("text")) for line in job.lines())
        assert refused or notes(job, "ready")[1]["runs"] == first["runs"], job.file("journal")
        assert [backend.preempting(run) for run in backend.runs()] == [[]] * (1 + refused)
        assert [line for line in job.lines() if line["event"] in {"marked", "repaired", "told"}] == []
        assert job.restarts == 1
