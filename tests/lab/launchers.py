"""The launcher matrix: how trainings are started, how they listen, and what a notice must do to each of them."""

import os
import re
import shlex
import signal
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.metadata_server import FaultyEc2
from tests.waiting import wait_until
from tests.watching import Watch

STANDINS = Path(__file__).resolve().parent.parent / "standins"
TRAINER = str(STANDINS / "ddp_trainer.py")
CONDA = STANDINS / "ddp_conda.py"
GRACE = 30.0
LISTENERS = ("USR1", "TERM", "link")
PATIENCE = 60.0
"""Seconds for what takes two to ten: several matrices may share two cores."""
MARK = "PREEMPTD_TEST_MARK"


@dataclass(frozen=True)
class Place:
    """Where a job runs, and by what."""

    directory: Path
    python: str
    """An interpreter with torch; torchrun, accelerate and uv lie beside it."""
    find: Callable[[str], str]
    """Finds tini and dumb-init, or leaves the test out."""

    def tool(self, name: str) -> str:
        return os.path.join(os.path.dirname(self.python), name)

    def script(self, name: str, *lines: str) -> str:
        """Write an executable script; return its path."""
        path = self.directory / name
        path.write_text("\n".join(["#!/bin/bash", *lines, ""]))
        path.chmod(0o755)
        return str(path)

    def torchrun(self, *arguments: str, ranks: int = 2, options: Sequence[str] = ()) -> list[str]:
        rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
        return [self.tool("torchrun"), "--nproc-per-node", str(ranks), *(options or rendezvous), *arguments]


Build = Callable[[Place, list[str]], list[str]]
"""Makes a command of the trainer's script and its arguments."""


@dataclass(frozen=True)
class Launcher:
    """A row of the matrix."""

    name: str
    build: Build
    ranks: int = 1
    options: tuple[str, ...] = ()
    """For the trainer."""
    says: str = ""
    """What the launcher itself prints when the training has ended."""
    quick: tuple[str, ...] = ()
    """The listeners with which CI plays it; the soak plays it with each."""


def _python(place: Place, script: list[str]) -> list[str]:
    return [place.python, *script]


def _torchrun(place: Place, script: list[str]) -> list[str]:
    return place.torchrun(*script)


def _bash_script(place: Place, script: list[str]) -> list[str]:
    return [place.script("job.sh", shlex.join(_python(place, script)), "echo after $?")]


def _trap_and_wait(place: Place, script: list[str]) -> list[str]:
    traps = [f"trap 'kill -{name} $child' {name}" for name in ("USR1", "TERM")]
    return [place.script("trap.sh", *traps, f"{shlex.join(_python(place, script))} &", "child=$!", "wait $child")]


def _sh(place: Place, script: list[str]) -> list[str]:
    return ["sh", "-c", f"{shlex.join(_python(place, script))}; true"]


def _tee(place: Place, script: list[str]) -> list[str]:
    return ["bash", "-c", f"{shlex.join(_python(place, script))} | tee training.log"]


def _conda_run(place: Place, script: list[str]) -> list[str]:
    conda = place.directory / "conda"
    conda.write_text(CONDA.read_text())
    return [place.python, str(conda), "run", "-n", "train", *_python(place, script)]


def _uv_run(place: Place, script: list[str]) -> list[str]:
    options = ["--no-project", "--offline", "--cache-dir", str(place.directory / "uv"), "--python", place.python]
    return [place.tool("uv"), "run", *options, "python", *script]


def _accelerate(place: Place, script: list[str]) -> list[str]:
    options = ["--cpu", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no"]
    return [place.tool("accelerate"), "launch", *options, "--dynamo_backend", "no", *script]


def _tini(place: Place, script: list[str]) -> list[str]:
    return [place.find("tini"), "--", *_python(place, script)]


def _dumb_init(place: Place, script: list[str]) -> list[str]:
    return [place.find("dumb-init"), "--", *_python(place, script)]


def _bash_torchrun(place: Place, script: list[str]) -> list[str]:
    return ["bash", "-c", f"{shlex.join(_torchrun(place, script))}; echo after $?"]


FORK = ("--loader", "fork")
SPAWN = ("--loader", "spawn")
LAUNCHERS = (
    Launcher("python", _python, quick=LISTENERS),
    Launcher("python, DataLoader workers by fork", _python, options=FORK, quick=("TERM", "link")),
    Launcher("python, DataLoader workers by spawn", _python, options=SPAWN, quick=("USR1",)),
    Launcher("bash script without exec", _bash_script, says="after 0", quick=("USR1",)),
    Launcher("bash script with trap and wait", _trap_and_wait, quick=("USR1",)),
    Launcher("sh -c 'python train.py; true'", _sh, quick=("TERM",)),
    Launcher("python | tee", _tee, quick=("link",)),
    Launcher("conda run (its shape)", _conda_run, quick=("USR1",)),
    Launcher("uv run", _uv_run, quick=("TERM",)),
    Launcher("accelerate launch", _accelerate, quick=("USR1",)),
    Launcher("torchrun", _torchrun, 2, quick=LISTENERS),
    Launcher("torchrun, ranks that do not agree", _torchrun, 2, ("--alone",), quick=("TERM",)),
    Launcher("torchrun, DataLoader workers by fork", _torchrun, 2, FORK, quick=("TERM", "link")),
    Launcher("torchrun, DataLoader workers by spawn", _torchrun, 2, SPAWN, quick=("USR1",)),
    Launcher(
        "bash -c 'torchrun ...; echo', DataLoader workers by fork", _bash_torchrun, 2, FORK, "after 0", quick=("TERM",)
    ),
    Launcher("torch.multiprocessing.spawn", _python, 2, ("--spawn", "2"), quick=("USR1", "link")),
    Launcher("tini", _tini, quick=("TERM",)),
    Launcher("dumb-init, DataLoader workers by fork", _dumb_init, options=FORK, quick=("USR1", "TERM")),
)
CELLS = tuple((launcher, listener) for launcher in LAUNCHERS for listener in LISTENERS)
QUICK = tuple((launcher, listener) for launcher, listener in CELLS if listener in launcher.quick)


class Job(Watch):
    """A training under the real `preemptd watch`; nothing of it outlives the test."""

    def __init__(
        self, place: Place, ec2: FaultyEc2, command: Sequence[str], *options: str, env: Mapping[str, str] | None = None
    ) -> None:
        self.mark = f"{MARK}={uuid.uuid4()}"
        self.env = {
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": ec2.url,
            "AWS_EC2_METADATA_DISABLED": "false",
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "LOG": str(place.directory / "job.log"),
            "CHECKPOINTS": str(place.directory),
            MARK: self.mark.partition("=")[2],
            **(env or {}),
        }
        super().__init__(place.directory, command, *options, env=self.env)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        super().__exit__(kind, error, trace)

    def processes(self) -> dict[int, str]:
        """Map the pid of each living process that has our mark in its environment to its command line."""
        found = {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):  # it has ended
                environ = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
                if self.mark.encode() in environ:
                    found[int(name)] = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def pids(self, event: str) -> Counter[int]:
        """Count a journal's or a log's lines of one sort by process."""
        lines = self.lines(event) or self.said(event)
        return Counter(int(str(line["pid"])) for line in lines)

    def acknowledgements(self, verb: str) -> Counter[int]:
        """Count what each process has said to preemptd."""
        return Counter(int(str(line["pid"])) for line in self.lines(verb))

    def mono(self, line: Mapping[str, object]) -> float:
        return float(str(line["mono"]))


@dataclass(frozen=True)
class Found:
    """What a notice did to a job."""

    job: Job
    status: int
    lost: Mapping[int, str]
    """Processes that did not live to the last save."""
    left: Mapping[int, str]
    """Processes that outlived `preemptd watch` by seconds."""

    @property
    def saved(self) -> int:
        return len({line["rank"] for line in self.job.said("saved")})

    @property
    def told_after(self) -> list[float]:
        """List the milliseconds from the notice to each telling."""
        return [float(str(line["ms"])) for line in self.job.lines("told")]

    @property
    def spared(self) -> Counter[str]:
        """Count those who were left alone, by the reason."""
        whys = {int(str(line["pid"])): str(line["why"]) for line in self.job.lines("spared")}
        return Counter(re.sub(r" of pid \d+", "", why) for why in whys.values() if "told" not in why)


def play(launcher: Launcher, listener: str, place: Place) -> Found:
    """Start the training, let the notice come when all ranks are ready, wait for the end of it all."""
    command = launcher.build(place, [TRAINER, listener, *launcher.options])
    gate = place.directory / "gate"
    with FaultyEc2(grace=GRACE) as ec2, Job(place, ec2, command, env={"SAVE_WHEN": str(gate)}) as job:
        job.await_said("ready", launcher.ranks, PATIENCE)
        before = job.processes()
        ec2.announcement.announce()
        job.await_line("told", launcher.ranks)
        job.await_said("saving", launcher.ranks)
        during = job.processes()
        gate.touch()
        status = job.wait(PATIENCE)
        lost = {pid: command for pid, command in before.items() if pid not in during}
        return Found(job, status, lost, left_over(job))


def left_over(job: Job) -> Mapping[int, str]:
    """Give helpers that see the end of their parents by a pipe a moment; return who is there after it."""
    try:
        wait_until(lambda: not job.processes(), 5.0)
    except AssertionError:
        return job.processes()
    return {}


def check(launcher: Launcher, listener: str, found: Found) -> None:
    """Fail unless the promise is kept."""
    job = found.job
    ranks = job.pids("ready").keys()
    once = dict.fromkeys(ranks, 1)
    context = (job.out, job.err, job.said(), job.lines())

    assert len(ranks) == launcher.ranks, context
    assert job.pids("saved") == once, context
    assert job.pids("exit") == once, context
    assert job.pids("told") == once, context
    assert {line["how"] for line in job.lines("told")} == {listener}, context
    assert job.pids("heard" if listener == "link" else "signal") == once, context
    assert {str(line["name"]) for line in job.said("signal")} == ({f"SIG{listener}"} - {"SIGlink"}), context
    for acknowledged in ("seen", "saving", "saved"):
        assert job.acknowledgements(acknowledged) == (once if listener == "link" else {}), context
    assert not job.lines("escalated"), context
    # No launcher, shell or helper was hit: all were there to the last, and their status is that of an undisturbed end.
    assert not found.lost, found.lost
    assert [line["status"] for line in job.lines("exited")] == [0], context
    assert launcher.says in job.out, context
    assert not found.left, found.left
    assert job.mono(job.lines("exited")[0]) > max(map(job.mono, job.said("exit"))), context
    assert found.status == 75, context
    if launcher.ranks > 1 and "--alone" not in launcher.options:
        assert len({line["step"] for line in job.said("saved")}) == 1, context
