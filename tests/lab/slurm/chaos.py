"""Something goes wrong every few seconds on a cluster full of supervised jobs: what happened, event by event.

A seed gives the same choices again; what they meet depends on the machine's own time.
"""

import heapq
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from shlex import join

from tests.lab.slurm.cluster import Cluster
from tests.lab.slurm.jobs import OVER, Job, Row, trainer
from tests.lab.slurm.supervised import LONG, settings, watching
from tests.waiting import wait_until

STEP = 0.2
"""Seconds."""
EVERY = 50
"""Steps from one checkpoint to the next, if nobody is told."""
PAUSE = (2.0, 6.0)
"""Seconds from one event to the next."""
SHARE = 0.5
"""Of the chaos, for which a job that nobody disturbs would train."""
NODES, CPUS = 8, 2
SLURMD_TIMEOUT = 10
"""Seconds after which SLURM gives a node up; 300 by default."""
CRED_EXPIRE = 15
"""A requeued job waits for so long and a second: with the poll of 5 s about the ratio of the defaults, 120 to 30."""
POLL = "[providers.slurm]\npoll_interval = 5\n"
STYLES: Sequence[tuple[Sequence[str], Sequence[str]]] = (
    ((), ("--catch", "USR1,TERM")),
    ((), ("--catch", "USR1", "--count", "TERM")),
    (("--shield-term",), ("--catch", "USR1")),
    (("--shield-term",), ("--link",)),
    ((), ("--catch", "USR1")),
)
"""Options of watch and of the training. The last one dies of SIGTERM: without a grace it has nothing but its timer."""
AWAY = (0, 0, 2, 3)
"""Seconds without a slurmctld: less than KillWait, in which a job that is ended has to be requeued, or it is over."""
DEAD_AT_ONCE = 3
"""slurmds, at the most."""


@dataclass(frozen=True)
class Plan:
    seed: int
    seconds: float
    jobs: int = 20

    @property
    def steps(self) -> int:
        return int(SHARE * self.seconds / STEP)


@dataclass(frozen=True)
class Event:
    at: float
    """Seconds since the beginning."""
    kind: str
    where: str
    jobs: tuple[str, ...] = ()
    """Those that ran there."""

    def __str__(self) -> str:
        whom = f", with jobs {' '.join(self.jobs)}" if self.jobs else ""
        return f"{self.at:7.1f} s  {self.kind}: {self.where}{whom}"


@dataclass(frozen=True)
class Story:
    """A run that is over."""

    plan: Plan
    jobs: list[Job]
    events: list[Event] = field(default_factory=list)
    seconds: float = 0.0
    controller_seconds: float = 0.0
    """Processor time of the slurmctlds that ran last."""


class Chaos:
    """One run; everything happens in the caller's thread."""

    def __init__(self, cluster: Cluster, plan: Plan) -> None:
        self._cluster = cluster
        self._plan = plan
        self._dice = random.Random(plan.seed)
        self._began = time.monotonic()
        self._events: list[Event] = []
        self._repairs: list[tuple[float, int, Callable[[], None]]] = []
        self._dead: set[str] = set()
        self._shortened: dict[str, int] = {}
        config = settings(cluster, POLL)
        self._jobs = [self._submit(config) for _ in range(plan.jobs)]

    def run(self) -> Story:
        wait_until(lambda: sum(bool(job.notes("ready")) for job in self._jobs) >= NODES, LONG, "jobs train", pause=0.1)
        events = self._deal()
        end = time.monotonic() + self._plan.seconds
        while (now := time.monotonic()) < end and not self._all_over():
            next(events)()
            self._live_until(now + self._dice.uniform(*PAUSE))
        while self._repairs:
            heapq.heappop(self._repairs)[2]()
        self._cluster.resume()
        self._live_until(time.monotonic() + 2 * self._plan.seconds + 2 * LONG, stop=self._all_over)
        seconds = time.monotonic() - self._began
        return Story(self._plan, self._jobs, self._events, seconds, self._cluster.cpu_seconds("slurmctld"))

    def _deal(self) -> Iterator[Callable[[], None]]:
        """Deal the events like cards, so that each kind comes again and again."""
        cards = [self._preempt] * 6 + [self._expire] * 3 + [self._restart_controller] * 2 + [self._kill_slurmd] * 2
        while True:
            self._dice.shuffle(cards)
            yield from cards

    def _submit(self, config: str) -> Job:
        """Submit a job as the documentation says; chance decides how its training hears, and how long it saves."""
        (ours, style), saving = self._dice.choice(STYLES), self._dice.choice(("0", "0.5", "2", "7"))
        training = trainer(*style, f"--steps={self._plan.steps}", f"--step-seconds={STEP}", f"--every={EVERY}")
        training += [f"--save-seconds={saving}", "--checkpoints=checkpoints"]
        watch = watching(config, "--checkpoint-dir=checkpoints", *ours, training=training)
        script = f"trap '' USR1 USR2 TERM\nmkdir -p checkpoints\nexec {join(watch)}\n"
        partition = self._dice.choice(("low", "low", "lowkill", "low0"))
        home = self._cluster.job_directory()
        # Clusters have their own pids, and share /tmp, where the path of the link has a pid in it.
        own = {"XDG_RUNTIME_DIR": str(home)}
        options = ["--requeue", "--signal=B:USR1@60"]
        return self._cluster.sbatch(script, *options, partition=partition, env=own, directory=home)

    # --- while nothing happens

    def _live_until(self, end: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Undo what is due, and do what an administrator would, until *end*."""
        while time.monotonic() < end and not stop():
            while self._repairs and self._repairs[0][0] <= time.monotonic():
                heapq.heappop(self._repairs)[2]()
            for row in self._rows():
                self._attend(row)
            time.sleep(0.25)

    def _attend(self, row: Row) -> None:
        # What SLURM refuses here has come too late: the job has ended in the meantime.
        if row.restarts > self._shortened.get(row.id, row.restarts) and row.state in {"PENDING", "RUNNING"}:
            del self._shortened[row.id]
            with suppress(AssertionError):
                self._cluster.scontrol("update", f"JobId={row.id}", "TimeLimit=60")  # it keeps the shorter one else
        if row.state == "PENDING" and "held" in row.reason.lower():
            self._note("released", f"job {row.id}, which SLURM held: {row.reason}")
            with suppress(AssertionError):
                self._cluster.scontrol("release", row.id)

    def _rows(self) -> list[Row]:
        rows = self._cluster.rows()
        return [rows[job.id] for job in self._jobs]

    def _all_over(self) -> bool:
        return all(row.state in OVER for row in self._rows())

    def _note(self, kind: str, where: str, jobs: tuple[str, ...] = ()) -> None:
        self._events.append(Event(time.monotonic() - self._began, kind, where, jobs))

    def _later(self, seconds: float, repair: Callable[[], None]) -> None:
        heapq.heappush(self._repairs, (time.monotonic() + seconds, len(self._events), repair))

    # --- what goes wrong

    def _preempt(self) -> None:
        """Take a node for a few seconds."""
        nodes = sorted({row.nodes for row in self._running()})
        if not nodes:
            return
        node = self._dice.choice(nodes)
        self._note("preemption", node, self._on(node))
        asked = [f"--nodelist={node}", "--exclusive"]
        preemptor = self._cluster.sbatch(["sleep", "infinity"], *asked, partition="high")
        self._later(self._dice.uniform(3, 12), lambda: self._cluster.scancel(preemptor))

    def _expire(self) -> None:
        """Let a job's time run out: in a second, or at a moment of which --signal tells it before."""
        running = self._running()
        if not running:
            return
        row, seconds = self._dice.choice(running), self._dice.choice((1, 45))
        with suppress(AssertionError):  # it has just ended
            self._cluster.scontrol("update", f"JobId={row.id}", f"EndTime=now+{seconds}")
            self._note("time limit", f"job {row.id} in {seconds} s", (row.id,))
            self._shortened[row.id] = row.restarts

    def _restart_controller(self) -> None:
        seconds = self._dice.choice(AWAY)
        self._note("slurmctld restart", f"away for {seconds} s")
        self._cluster.stop_controller()
        time.sleep(seconds)
        self._cluster.start_controller()
        self._cluster.wait_controller()

    def _kill_slurmd(self) -> None:
        """Kill a node's slurmd: for a moment, or until SLURM has given the node up and runs its jobs elsewhere."""
        nodes = [node for node in self._cluster.nodes if node not in self._dead]
        if len(self._dead) >= DEAD_AT_ONCE:
            return
        node, seconds = self._dice.choice(nodes), self._dice.choice((2, SLURMD_TIMEOUT + 30, SLURMD_TIMEOUT + 45))
        self._note("slurmd kill", f"{node} for {seconds} s", self._on(node))
        self._dead.add(node)
        self._cluster.kill_slurmd(node)
        self._later(seconds, lambda: self._start_slurmd(node))

    def _start_slurmd(self, node: str) -> None:
        self._dead.remove(node)
        self._cluster.start_slurmd(node)

    def _running(self) -> list[Row]:
        self._cluster.rows(fresh=True)
        return [row for row in self._rows() if row.state == "RUNNING" and row.nodes]

    def _on(self, node: str) -> tuple[str, ...]:
        return tuple(row.id for row in self._rows() if row.state == "RUNNING" and row.nodes == node)
