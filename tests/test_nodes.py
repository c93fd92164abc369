"""Trainers that srun has started are told on every node, once each: `watch` with an srun that only plays SLURM."""

import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from preemptd.procfs import process_id
from tests.fake_slurm import slurmd
from tests.waiting import wait_until
from tests.watching import Watch, trainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


class Job(Watch):
    """`preemptd watch` in what it takes for the batch script of a SLURM job."""

    def __init__(
        self,
        directory: Path,
        command: Sequence[str],
        *options: str,
        nodes: int = 2,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.slurm = directory / "slurm"
        self.id = str(random.randint(10**6, 10**9))  # other tests have jobs, too, and all nodes are this machine
        slurm = {
            "PATH": f"{directory / 'bin'}:{os.environ['PATH']}",
            "FAKE_SLURM": str(self.slurm),
            "SLURM_JOB_ID": self.id,
            "SLURM_JOB_NUM_NODES": str(nodes),
            "SLURM_NNODES": str(nodes),
            "SLURMD_NODENAME": "f0",
            "PREEMPTD_SIGNAL_DIR": str(directory),
        }
        super().__init__(directory, command, "--provider", "file", *options, env={**slurm, **(env or {})})
        self.directory = directory

    @property
    def signal_file(self) -> Path:
        return self.directory / f"{self.id}.preempt"

    def notify(self) -> None:
        self.signal_file.touch()

    def agent(self, step: int, node: str, timeout: float = 30.0) -> int:
        """Wait for our agent on *node*, which runs as *step*; return its pid."""
        path = self.slurm / f"step-{step}-{node}-0"
        wait_until(path.exists, timeout, f"agent on {node}")
        return int(path.read_text())

    def steps(self) -> list[str]:
        return sorted(path.name for path in self.slurm.glob("step-*"))

    def heard(self) -> dict[int, list[str]]:
        """Return by trainer what it heard."""
        found: dict[int, list[str]] = {}
        for line in self.said("signal"):
            found.setdefault(int(str(line["pid"])), []).append(str(line["name"]).removeprefix("SIG"))
        return found

    def warnings(self) -> list[str]:
        return [str(line["text"]) for line in self.lines("warning")]


MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(tmp_path: Path) -> Iterator[MakeJob]:
    with slurmd(tmp_path), ExitStack() as stack:
        yield lambda *given, **more: stack.enter_context(Job(tmp_path, *given, **more))


def tasks(how: str, nodes: int = 2, each: int = 2, save: float = 0.2) -> list[str]:
    return ["srun", f"--nodes={nodes}", f"--ntasks-per-node={each}", *trainer(how, save)]


def is_gone(pid: int) -> bool:
    return process_id(pid) is None


def test_each_rank_on_each_node_is_told_once(make_job: MakeJob) -> None:
    job = make_job(tasks("both"))
    job.await_said("ready", 4)

    job.notify()

    assert job.wait() == 75
    assert sorted(job.heard().values()) == [["USR1"]] * 4
    assert sorted(str(line["node"]) for line in job.lines("told")) == ["f0", "f0", "f1", "f1"]
    assert len({line["pid"] for line in job.lines("told")}) == 4
    assert job.warnings() == []


def test_ranks_of_srun_on_the_only_node_are_told(make_job: MakeJob) -> None:
    job = make_job(tasks("USR1", nodes=1), nodes=1)
    job.await_said("ready", 2)

    job.notify()

    assert job.wait() == 75
    assert sorted(job.heard().values()) == [["USR1"]] * 2


def test_an_srun_in_a_script_is_found_by_looking(make_job: MakeJob) -> None:
    job = make_job(["sh", "-c", '"$0" "$@"; exit $?', *tasks("USR1", nodes=1, each=1)], nodes=1)
    job.await_said("ready")
    job.agent(1, "f0")

    job.notify()

    assert job.wait() == 75
    assert list(job.heard().values()) == [["USR1"]]


def test_without_srun_one_node_gets_no_step(make_job: MakeJob) -> None:
    job = make_job(trainer("USR1"), nodes=1)
    job.await_said("ready")

    job.notify()

    assert job.wait() == 75
    assert job.steps() == []


@pytest.mark.parametrize(
    ("options", "env"),
    [((), {"SLURM_STEP_ID": "0"}), (("--signal-target", "main"), {})],
    ids=["srun preemptd watch", "only the command is to be told"],
)
def test_no_step_is_started_where_none_is_wanted(
    make_job: MakeJob, options: tuple[str, ...], env: dict[str, str]
) -> None:
    job = make_job(trainer("USR1"), *options, env=env)
    job.await_said("ready")

    job.notify()

    assert job.wait() == 75
    assert job.steps() == []


def test_who_is_in_our_tree_is_told_by_us_and_the_others_by_their_agents(make_job: MakeJob) -> None:
    here, there = " ".join(trainer("USR1")), " ".join(tasks("USR1", nodes=2, each=1))
    job = make_job(["sh", "-c", f"{there} & {here}; wait"])
    job.await_said("ready", 3)

    job.notify()

    assert job.wait() == 75
    assert sorted(job.heard().values()) == [["USR1"]] * 3
    assert sorted(str(line.get("node")) for line in job.lines("told")) == ["None", "f0", "f1"]


def test_a_rank_that_listens_on_the_link_is_told_there_and_not_by_its_agent(make_job: MakeJob) -> None:
    job = make_job(tasks("link", each=1))
    job.await_said("ready", 2)
    job.agent(1, "f1")

    job.notify()

    assert job.wait() == 75
    assert [line["how"] for line in job.lines("told")] == ["link", "link"]
    assert len(job.said("asked")) == 2


def test_an_agent_that_dies_comes_back_and_tells_nobody_twice(make_job: MakeJob) -> None:
    job = make_job(tasks("USR1", save=6.0), "--grace", "60")
    job.await_said("ready", 4)
    job.notify()
    job.await_line("told", 4)

    for node in ("f0", "f1"):
        os.kill(job.agent(1, node), signal.SIGKILL)

    job.agent(2, "f1")
    assert job.wait(60) == 75
    assert sorted(job.heard().values()) == [["USR1"]] * 4


def test_a_rank_that_gets_its_handler_late_is_told_then(make_job: MakeJob) -> None:
    job = make_job(tasks("late", each=1), env={"LATE": "3"})
    job.await_said("importing", 2)

    job.notify()

    assert job.wait() == 75
    assert sorted(job.heard().values()) == [["USR1"]] * 2


def test_a_node_that_hangs_delays_neither_the_others_nor_the_end(make_job: MakeJob) -> None:
    job = make_job(tasks("USR1"), "--grace", "20")
    ready = job.await_said("ready", 4)
    stopped = job.agent(1, "f1")
    wait_until(lambda: _listens(stopped))
    os.kill(stopped, signal.SIGSTOP)

    job.notify()

    told = {line["pid"] for line in job.await_line("told", 2)}
    assert {line["node"] for line in job.lines("told")} == {"f0"}
    for line in ready:
        if line["pid"] not in told:
            os.kill(int(str(line["pid"])), signal.SIGKILL)
    assert job.wait(60) == 75


def test_a_job_that_ends_by_itself_leaves_no_step(make_job: MakeJob) -> None:
    job = make_job(tasks("USR1"), env={"STEPS": "150"})
    agents = [job.agent(1, node) for node in ("f0", "f1")]

    assert job.wait() == 0
    assert [pid for pid in agents if not is_gone(pid)] == []
    assert job.warnings() == []


def test_if_steps_may_not_overlap_that_is_said_once_and_the_job_goes_on(make_job: MakeJob) -> None:
    job = make_job(tasks("USR1", each=1), env={"FAKE_SRUN_FAILS": "1", "STEPS": "350"})

    assert job.wait(60) == 0
    assert len(job.warnings()) == 1
    assert "srun: unrecognized option '--overlap'" in job.warnings()[0]


def test_if_there_is_no_srun_that_is_said(make_job: MakeJob) -> None:
    job = make_job(trainer("USR1"), env={"PATH": "/nonexistent"})
    job.await_said("ready")
    job.notify()

    assert job.wait() == 75
    assert job.warnings() == ["there is no srun here: trainers in steps, and on other nodes, are not told"]


@pytest.mark.parametrize(
    "other",
    [{"SLURM_JOB_ID": "78"}, {"SLURM_RESTART_COUNT": "1"}, {"PREEMPTD_OWN_COMMAND": "1"}, {"SLURMD_NODENAME": "f9"}],
    ids=["another job", "another attempt", "a command of a preemptd", "another node"],
)
def test_what_is_not_of_this_job_is_not_told(make_job: MakeJob, other: dict[str, str]) -> None:
    """The stand-in says by its environment what it is; srun itself is started as if for this job."""
    foreign = ["env", *(f"{name}={text}" for name, text in other.items()), *trainer("USR1")]
    script = f"srun {' '.join(foreign)} & {' '.join(tasks('USR1', nodes=1, each=1))}; kill %1"
    job = make_job(["bash", "-c", script], nodes=1)
    ready = job.await_said("ready", 2)

    job.notify()

    (told,) = job.await_line("told")
    job.await_said("exit")
    assert set(job.heard()) == {told["pid"]}
    for line in ready:
        if line["pid"] != told["pid"]:
            os.kill(int(str(line["pid"])), signal.SIGKILL)
    assert job.wait() == 75


def test_a_preemptd_in_a_step_tells_its_rank_itself(make_job: MakeJob) -> None:
    inner = [*Watch.command("watch"), "--provider", "file", "--", *trainer("USR1")]
    job = make_job(["srun", "--nodes=2", "--ntasks-per-node=1", *inner])
    job.await_said("ready", 2)
    job.agent(1, "f1")

    job.notify()

    assert job.wait() == 75
    assert sorted(job.heard().values()) == [["USR1"]] * 2
    assert job.lines("told") == []


def test_a_notice_that_is_taken_back_is_taken_back_everywhere(make_job: MakeJob) -> None:
    job = make_job(tasks("late", each=1), env={"LATE": "6"})
    job.await_said("importing", 2)
    job.agent(1, "f1")
    job.notify()
    job.await_line("notice")

    job.signal_file.unlink()

    job.await_line("revoked")
    job.await_said("ready", 2)
    assert job.lines("told") == []
    for line in job.said("ready"):
        os.kill(int(str(line["pid"])), signal.SIGKILL)


def test_with_dry_run_agents_say_whom_they_would_tell(make_job: MakeJob) -> None:
    job = make_job(tasks("USR1", each=1), "--dry-run", env={"STEPS": "300"})
    job.await_said("ready", 2)

    job.notify()

    told = job.await_line("told", 2)
    assert job.wait() == 0
    assert [line["dry_run"] for line in told] == [True, True]
    assert job.heard() == {}


def _listens(pid: int) -> bool:
    """Whether an agent has its handlers, and so is about to say that it is there."""
    text = Path(f"/proc/{pid}/status").read_text()
    caught = int(next(line for line in text.splitlines() if line.startswith("SigCgt")).split()[1], 16)
    return bool(caught >> (signal.SIGUSR1 - 1) & 1)
