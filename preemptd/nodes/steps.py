"""The daemon's side: what its agents on the nodes of a SLURM job are told, and what they say."""

import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial

import preemptd
from preemptd.config import Settings
from preemptd.escalation import Escalation
from preemptd.journal import Journal
from preemptd.model import Process, ProcessId
from preemptd.nodes.news import News
from preemptd.nodes.step import END_WITHIN, Step
from preemptd.nodes.wire import encode, notice_lines, process_lines
from preemptd.provider import Commands

KEPT = ("signal", "signal_target", "reserve", "kill", "no_wandb", "dry_run", "preempted_exit_code", "exit_zero")
"""The settings that agents go by; times are those of the daemon's notices."""
OF_SRUN = frozenset({"SLURM_JOB_ID", "SLURM_CONF", "SLURM_HET_SIZE", "SLURM_WORKING_CLUSTER", "SLURM_RESTART_COUNT"})
"""What srun and the agents have to know. The others are options for the user's own steps, and would apply to ours."""
SLURMS = ("SLURM_", "SRUN_", "SLURMD_")
SYNC_WITHIN = 1.0
"""Seconds: a node that hangs must not cost the others theirs."""
HEARD_BEFORE = 30.0
"""Seconds between SLURM's signal to the steps and our notice of what it was for: the poll may be all that sees it."""
PRESENT_WITHIN = 60.0
"""Seconds after the first agent has come in which all of them should."""
START_AFTER = 1.0
"""Seconds from the start of the command to that of the agents, if no notice comes: most that fails fails at once."""
PROGRAM = "import sys; sys.path[:] = [*filter(None, sys.path), {root!r}]; from preemptd.cli import main; main()"
"""The working directory is not looked into, and last of all the place where we lie if we are not installed."""


def expected_nodes(environ: Mapping[str, str]) -> int:
    return sum(nodes for _, nodes in components(environ))


def components(environ: Mapping[str, str]) -> Sequence[tuple[str, int]]:
    """List (id, number of nodes) of the job, or of each component if it is heterogeneous."""
    count = environ.get("SLURM_HET_SIZE", "")
    if not (count.isdecimal() and 1 < int(count) < 1000):
        nodes = environ.get("SLURM_JOB_NUM_NODES") or environ.get("SLURM_NNODES", "")
        return [(environ["SLURM_JOB_ID"], _at_least_one(nodes))]
    groups = [f"HET_GROUP_{number}" for number in range(int(count))]
    return [
        (environ.get(f"SLURM_JOB_ID_{group}", ""), _at_least_one(environ.get(f"SLURM_JOB_NUM_NODES_{group}", "")))
        for group in groups
    ]


def srun_command(number: int | None, component: str, nodes: int, settings: Settings, path: str) -> list[str]:
    """Make the command of one step.

    It shares CPUs and memory with whatever runs there; it takes neither GPUs nor MPI ports. Without ``--unbuffered``
    SLURM passes on whole lines.
    """
    share = ["--overlap", "--quiet", f"--nodes={nodes}", "--ntasks-per-node=1", "--cpus-per-task=1", "--mem=0"]
    share += ["--gres=none", "--mpi=none", "--export=ALL", "--kill-on-bad-exit=0", "--wait=0", "--input=all"]
    share += [] if number is None else [f"--het-group={number}"]
    root = os.path.dirname(os.path.dirname(os.path.abspath(preemptd.__file__)))
    given = encode({"component": component, **settings.model_dump(include=set(KEPT))}).decode().strip()
    agent = [sys.executable, "-c", PROGRAM.format(root=root), "slurm-node", given]
    return [path, *share, *agent]


def _at_least_one(text: str) -> int:
    return max(1, int(text)) if text.isdecimal() and len(text) < 7 else 1


class JobSteps:
    """Owns the steps. Asked from the loop's thread; each step's own thread brings what its agents say."""

    def __init__(
        self, environ: Mapping[str, str], settings: Settings, commands: Commands, journal: Journal, *, eager: bool
    ) -> None:
        """Make it; *eager*: start without waiting for a process ``srun``.

        Raises:
            FileNotFoundError: there is no srun.
        """
        path = shutil.which("srun", path=environ.get("PATH"))
        if path is None:
            raise FileNotFoundError("srun")
        parts = components(environ)
        self._expected = expected_nodes(environ)
        self._eager = eager or self._expected > 1
        self._warn = journal.warn
        self._news = News(journal)
        self._started = False
        self._closed = False
        self._escalation: Escalation | None = None
        self._fenced = False
        self._linked: frozenset[ProcessId] = frozenset()
        self._syncs = 0
        self._said_absent = False
        kept = {name: text for name, text in environ.items() if name in OF_SRUN or not name.startswith(SLURMS)}
        self._steps = [
            Step(
                srun_command(number if len(parts) > 1 else None, component, nodes, settings, path),
                commands,
                kept,
                partial(self._order, greeting=True),
                partial(self._news.take, number),
            )
            for number, (component, nodes) in enumerate(parts)
        ]

    # -- before the notice ---------------------------------------------------------------------------------------

    def start(self) -> None:
        if self._eager:
            self._start()

    def _start(self) -> None:
        if not self._started and not self._closed:
            self._started = True
            for step in self._steps:
                step.start(START_AFTER if self._escalation is None else 0.0)

    def look(self, processes: Sequence[Process]) -> None:
        """Start when the command has started srun; say once if agents do not come."""
        if not self._started and any(process.comm == "srun" for process in processes):
            self._start()
        late = self._news.first is not None and time.monotonic() - self._news.first > PRESENT_WITHIN
        if late and not self._said_absent and 0 < self._news.present < self._expected:
            self._said_absent = True
            self._warn(
                f"no word from {self._expected - self._news.present} of {self._expected} nodes: their trainers are not"
                f" told{self._news.complaint}"
            )

    # -- what agents are told ------------------------------------------------------------------------------------

    def inform(self, escalation: Escalation | None, *, fenced: bool = False) -> None:
        """Hand over the open notices, as they are now; None: there is none, or none any more."""
        if escalation is not None and (self._escalation is None or self._escalation.number != escalation.number):
            self._news.forget_told()
        self._escalation, self._fenced = escalation, self._fenced or fenced
        self._send(self._order())
        if self._started and not self._closed:
            for step in self._steps:
                step.hurry()

    def share(self, linked: frozenset[ProcessId]) -> None:
        """Hand over who is told through our socket, and by nobody else."""
        if self._linked != linked:
            self._linked = linked
            self._send(self._order())

    def _order(self, *, greeting: bool = False) -> bytes:
        told = self._news.told if greeting else {}
        return encode(
            {
                "life": self._news.life,
                "notices": notice_lines(self._escalation, time.monotonic()),
                "fenced": self._fenced,
                "linked": process_lines(self._linked),
                "told": [[life, process.pid, process.start, how] for (life, process), how in told.items()],
            }
        )

    def _send(self, line: bytes) -> None:
        if self._started and not self._closed:
            for step in self._steps:
                step.send(line)

    # -- what agents have said -----------------------------------------------------------------------------------

    @property
    def present(self) -> int:
        return self._news.present

    @property
    def covers(self) -> bool:
        """Some agent is at work, or soon will be: who is not in our tree may be in its."""
        return self._started and not self._news.missed

    @property
    def reached(self) -> bool:
        """Somebody was told elsewhere, or was sent a signal by SLURM itself."""
        began = float("inf") if self._escalation is None else self._escalation.began
        return bool(self._news.told) or self._news.heard_at >= began - HEARD_BEFORE

    @property
    def told(self) -> frozenset[ProcessId]:
        """Who was told by agents, as far as pids there mean the same processes as here."""
        return self._news.told_here

    # -- the end -------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """With a notice open: wait until all that agents have said up to now has been heard; a second at the most."""
        if self._escalation is not None and self._started and self._news.present:
            self._syncs += 1
            self._send(encode({"sync": self._syncs}))
            self._news.wait(partial(self._news.synced, self._syncs), SYNC_WITHIN)

    def end(self, *, preempted: bool, code: int, budget: float) -> None:
        """Have the agents see to the W&B runs of their nodes, and go; `close` waits for that."""
        for step in self._steps:
            step.send_last(encode({"end": {"preempted": preempted, "code": code, "budget": budget}}))

    def close(self, budget: float = 0.0) -> None:
        """End the steps: a job that has one left hangs in COMPLETING. Waits *budget* seconds for what `end` asked."""
        if self._closed:
            return
        if self._started and self._news.present:
            self._news.wait(self._news.ended, budget)
        self._closed = True
        for step in self._steps:
            step.begin_close()
        until = time.monotonic() + 2 * END_WITHIN
        for step in self._steps:
            step.join(max(0.0, until - time.monotonic()))
