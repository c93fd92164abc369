"""The ways in which batch scripts start `preemptd watch`, and moments at which it is just being started or ends."""

import time
from collections.abc import Callable, Mapping
from shlex import join

import pytest

from tests.lab.slurm.cluster import Cluster
from tests.lab.slurm.configuration import Options
from tests.lab.slurm.jobs import Job, trainer
from tests.lab.slurm.side_by_side import SideBySide, cases
from tests.lab.slurm.supervised import (
    LONG,
    PREEMPTD,
    assert_saved_once_and_resumed,
    end,
    kinds,
    notices,
    preempt_until_requeued,
    resumed,
    saved,
    settings,
    wait_for_canary,
    watching,
)
from tests.lab.wandb_watching import strings

pytestmark = [pytest.mark.xdist_group("slurm-starting"), pytest.mark.timeout(400)]
BASH = "#!/bin/bash\n"
POLLING = "[providers.slurm]\npoll_interval = 5\n"
LATE = "trap '' USR1 TERM\ntouch up\nwhile [ ! -e go ]; do sleep 0.05; done\n"
NO_TERM_HANDLER = trainer("--catch", "USR1", "--every", "5")


def preempted(script: str | list[str], *options: str, partition: str = "low") -> Callable[[Cluster], Job]:
    """Tell of a job that is preempted, and cancelled when it runs for the second time."""

    def story(cluster: Cluster) -> Job:
        job = cluster.sbatch(script, "--exclusive", *options, partition=partition)
        job.wait_for_note("ready", timeout=LONG)
        if not options and partition != "low0":
            wait_for_canary(job)
        elif "--every" in script:
            job.wait_for_note("saved", timeout=LONG)
        preempt_until_requeued(cluster, job)
        job.until(lambda: resumed(job), LONG, "ready again")
        return end(cluster, job)

    return story


def polling(shell: str, *options: str) -> Callable[[Cluster], Job]:
    def story(cluster: Cluster) -> Job:
        script = shell.format(join(watching(settings(cluster, POLLING))))
        return preempted(script, *options)(cluster)

    return story


def before_we_are_up(partition: str, *options: str) -> Callable[[Cluster], Job]:
    """Preempt a job while its batch script still prepares, under `trap ''`."""

    def story(cluster: Cluster) -> Job:
        script = f"{LATE}exec {join(watching(*options))}"
        job = cluster.sbatch(script, "--exclusive", "--signal=B:USR1@60", partition=partition)
        job.until((job.directory / "up").exists, LONG)
        job.wait_for("RUNNING")
        preemptor = cluster.preempt(job)
        job.until(lambda: job.row.preempt_time, LONG, "being preempted")
        (job.directory / "go").touch()
        job.until(lambda: job.restarts == 1, LONG, "requeued")
        cluster.release(preemptor)
        job.until(lambda: resumed(job), LONG, "ready again")
        return end(cluster, job)

    return story


def leaving(command: list[str], undo: list[str]) -> Callable[[Cluster], Job]:
    """Start a job on a node of which *command* says something before preemptd looks at it; let it finish."""

    def story(cluster: Cluster) -> Job:
        job = cluster.sbatch(f"{LATE}exec {join(watching(training=trainer('--steps', '60')))}", "--exclusive")
        job.until((job.directory / "up").exists, LONG)
        node = job.row.nodes
        cluster.scontrol(*(word.format(node) for word in command))
        (job.directory / "go").touch()
        job.wait_for_event("advice", timeout=LONG)
        cluster.scontrol(*(word.format(node) for word in undo))
        job.wait_over(LONG)
        return job

    return story


def without_slurms_programs(cluster: Cluster) -> Job:
    """Run preemptd where there is nothing of SLURM but its signals, as in a container."""
    job = cluster.sbatch(f"{LATE}exec env PATH=/nowhere {join(watching())}", "--exclusive")
    job.until((job.directory / "up").exists, LONG)
    (job.directory / "go").touch()
    job.wait_for_note("ready", timeout=LONG)
    cluster.scancel(job, "-b", "-s", "USR1")
    job.wait_over(LONG)
    return job


def drilled_before_we_are_up(cluster: Cluster) -> Job:
    """Send a signal that nobody can hear yet, and another one later."""
    job = cluster.sbatch(f"{LATE}exec {join(watching())}", "--exclusive")
    job.until((job.directory / "up").exists, LONG)
    cluster.scancel(job, "-b", "-s", "USR1")
    (job.directory / "go").touch()
    job.wait_for_note("ready", timeout=LONG)
    cluster.scancel(job, "-b", "-s", "USR1")
    job.wait_for_note("ready", 2, LONG)
    return end(cluster, job)


def trap_that_notifies(cluster: Cluster) -> Job:
    """Ask a shell for the end, which passes it on by the command that is made for it."""
    script = f"{BASH}trap '{join(PREEMPTD)} notify' USR1\n{join(watching())} &\nwait $!\nwait $!"
    own = cluster.job_directory()  # clusters share /tmp, where sockets are named by pids, but no pids
    job = cluster.sbatch(script, "--exclusive", directory=own, env={"XDG_RUNTIME_DIR": str(own)})
    job.wait_for_note("ready", timeout=LONG)
    cluster.scancel(job, "-b", "-s", "USR1")
    job.wait_for_note("ready", 2, LONG)
    return end(cluster, job)


NODE = ["update", "NodeName={}"]
STEP_SIGNAL = "--signal=USR1@60"
BATCH_SIGNAL = "--signal=B:USR1@60"
DEFAULT: Mapping[str, Callable[[Cluster], Job]] = {
    "bash without exec": preempted(f"{BASH}{join(watching())}"),
    "bash with trap '', without exec": preempted(f"{BASH}trap '' USR1 TERM\n{join(watching())}"),
    "bash with trap '' and exec": preempted(f"{BASH}trap '' USR1 USR2 TERM\nexec {join(watching())}"),
    "trap that notifies": trap_that_notifies,
    "drilled before we are up": drilled_before_we_are_up,
    "no TERM handler": preempted(watching(training=NO_TERM_HANDLER), partition="low0"),
    "no TERM handler, --shield-term": preempted(watching("--shield-term", training=NO_TERM_HANDLER), partition="low0"),
    "drained": leaving([*NODE, "State=DRAIN", "Reason=bad fan"], [*NODE, "State=RESUME"]),
    "to be rebooted": leaving(["reboot", "{}"], ["cancel_reboot", "{}"]),
    "without SLURM's programs": without_slurms_programs,
}
USERSIG: Mapping[str, Callable[[Cluster], Job]] = {
    "bash with trap '', without exec, user signal": polling(f"{BASH}trap '' USR1 TERM\n{{}}", BATCH_SIGNAL),
    "srun preemptd watch, user signal to steps": polling("exec srun {}", STEP_SIGNAL),
    "before we are up, requeued": before_we_are_up("low"),
    "before we are up, cancelled by preemption": before_we_are_up("lowkill"),
    "before we are up, --when-pending exit": before_we_are_up("lowkill", "--when-pending", "exit"),
    "before we are up, --when-pending start": before_we_are_up("lowkill", "--when-pending", "start"),
}
Told = SideBySide[str, Job]


@pytest.fixture(scope="module")
def told(make_cluster: Callable[[Options], Cluster], request: pytest.FixtureRequest) -> Told:
    chosen = cases(request, str)
    clusters = {
        usersig: make_cluster(Options(nodes=count, cpus=1, usersig=usersig, extra=("RebootProgram=/bin/true",)))
        for usersig, stories in ((False, DEFAULT), (True, USERSIG))
        if (count := sum(case in stories for case in chosen))
    }
    return SideBySide(lambda case: {**DEFAULT, **USERSIG}[case](clusters[case in USERSIG]), chosen)


@pytest.mark.parametrize("case", ["bash without exec", "bash with trap '', without exec", "bash with trap '' and exec"])
def test_with_and_without_exec_a_preemption_on_a_default_cluster_is_heard(told: Told, case: str) -> None:
    job = told[case]

    assert_saved_once_and_resumed(job)
    assert (job.restarts, kinds(job)[-1]) == (1, "preempt"), job.describe()
    assert "canary" in str(notices(job)[0]["source"])


@pytest.mark.parametrize(
    "case", ["bash with trap '', without exec, user signal", "srun preemptd watch, user signal to steps"]
)
def test_where_the_user_signal_does_not_reach_us_alone_the_training_still_hears_one(told: Told, case: str) -> None:
    job = told[case]

    assert_saved_once_and_resumed(job)
    assert (job.restarts, kinds(job)[-1]) == (1, "preempt"), job.describe()


@pytest.mark.parametrize("case", ["bash with trap '' and exec", "bash with trap '', without exec"])
def test_what_the_script_ignores_the_training_does_not(told: Told, case: str) -> None:
    (first, *_) = told[case].notes("ready")

    assert {"SIGUSR1", "SIGUSR2", "SIGTERM"}.isdisjoint(strings(first["ignored"]))


@pytest.mark.parametrize("case", ["trap that notifies", "drilled before we are up"])
def test_a_request_brings_the_job_back(told: Told, case: str) -> None:
    job = told[case]

    assert_saved_once_and_resumed(job)
    assert job.restarts == 1
    assert ("requested" in kinds(job)) == (case == "drilled before we are up")


EARLY = [case for case in USERSIG if case.startswith("before we are up")]


@pytest.mark.parametrize("case", EARLY)
def test_a_preemption_that_comes_before_we_are_up_loses_no_job(told: Told, case: str) -> None:
    job = told[case]

    assert (job.restarts, resumed(job)) == (1, saved(job) or [0]), job.describe()
    assert job.heard() in ([], ["USR1"], ["USR1", "TERM"])


@pytest.mark.parametrize("case", [case for case in EARLY if not case.endswith("start")])
def test_a_job_that_starts_in_its_grace_goes_back_at_once(told: Told, case: str) -> None:
    job = told[case]
    (settled, *_) = job.lines("settled")

    late = [note for note in job.notes("ready") if note["attempt"] == 0]  # SLURM had not answered in time: it was told
    assert late or "not started: a notice is pending" in job.output, job.describe()
    assert f"requeued job {job.id} (preempt, restart 1)" in str(settled["why"]), job.describe()
    (notice, *_) = notices(job)
    assert float(str(settled["mono"])) - float(str(notice["mono"])) < float(str(notice["grace"])), "not at its end"


@pytest.mark.parametrize(
    ("case", "says"), [("drained", "is being drained: bad fan"), ("to be rebooted", "is to be re")]
)
def test_a_node_that_is_to_leave_is_advice_and_the_job_goes_on_to_its_end(told: Told, case: str, says: str) -> None:
    job = told[case]
    (advice, *_) = job.lines("advice")

    assert says in str(advice["source"]), job.describe()
    assert (job.state, job.heard(), job.lines("notice")) == ("COMPLETED", [], []), job.describe()


@pytest.mark.parametrize("case", ["without SLURM's programs"])
def test_without_slurms_programs_signals_are_heard_and_it_is_said_once_that_nothing_is_requeued(
    told: Told, case: str
) -> None:
    job = told[case]

    assert job.heard() == ["USR1"], job.describe()
    assert len(saved(job)) == 1
    assert kinds(job) == ["requested"]
    assert job.output.count("no squeue and scontrol on the PATH") == 1
    assert (job.restarts, job.row.exit_code >> 8) == (0, 75), job.describe()


@pytest.mark.parametrize("case", ["no TERM handler"])
def test_without_a_handler_the_platforms_own_sigterm_ends_the_training_at_its_last_checkpoint(
    told: Told, case: str
) -> None:
    job = told[case]

    assert job.heard() in ([], ["USR1"]), job.describe()  # the step hears of it a moment before the rest of the job
    assert resumed(job) == saved(job)[-1:]
    assert job.restarts == 1


@pytest.mark.parametrize("case", ["no TERM handler, --shield-term"])
def test_shield_term_lets_it_live_and_be_told(told: Told, case: str) -> None:
    job = told[case]

    assert job.heard() == ["USR1"], job.describe()
    assert [note["why"] for note in job.notes("saved") if note["attempt"] == 0][-1] == "told"
    assert resumed(job) == saved(job)[-1:]
    assert "SIGTERM" in strings(job.notes("ready")[0]["ignored"])


def test_a_job_that_ends_normally_leaves_completing_within_a_second(
    make_cluster: Callable[[Options], Cluster],
) -> None:
    cluster = make_cluster(Options(nodes=1, cpus=4, kill_wait=60))  # a step that is left would hold it for so long
    jobs = [cluster.sbatch(watching(training=trainer("--steps", "100"))) for _ in range(3)]
    for job in jobs:
        wait_for_canary(job)

    seen = [dict.fromkeys(("first", "last"), 0.0) for _ in jobs]
    jobs[0].until(lambda: looked_at(cluster, jobs, seen), LONG, "all over")

    assert [(job.row.state, job.row.exit_code) for job in jobs] == [("COMPLETED", 0)] * 3
    assert [job.lines("notice") for job in jobs] == [[]] * 3
    took = [times["last"] - times["first"] for times in seen]
    assert min(took) < 1, took  # on a busy machine slurmctld may take longer than that with one of them
    assert max(took) < 20, took


def looked_at(cluster: Cluster, jobs: list[Job], seen: list[dict[str, float]]) -> bool:
    """Note when each job was seen COMPLETING, first and last; True: none of them is any more, and all are over."""
    rows, now = cluster.rows(fresh=True), time.monotonic()
    for job, times in zip(jobs, seen, strict=True):
        if rows[job.id].state == "COMPLETING":
            times["first"], times["last"] = times["first"] or now, now
    return all(rows[job.id].state == "COMPLETED" for job in jobs)
