"""What a preemption on SLURM costs, with us and with what people use else; and what our questions cost slurmctld.

`python -m tests.bench.slurm`, or a part of `make bench` where SLURM is installed: real clusters, as root.
"""

import argparse
import datetime as dt
import os
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from preemptd_providers.slurm.row import FORMAT
from tests.bench.page import put
from tests.bench.slurm_peers import STEP, Way, own_ways, peers
from tests.bench.wrappers import percentile
from tests.lab.slurm.cluster import PROGRAMS, Cluster
from tests.lab.slurm.configuration import Options
from tests.lab.slurm.jobs import OVER, Job

MARK = "slurm"
LONG = 240.0
TRAINED = (20, 60)
"""Steps of an attempt after which it is preempted."""
POLLS = 500
POLL_INTERVAL, NODE_INTERVAL = 30.0, 300.0
"""Seconds between two questions of one job, by default: for its own row, and for its node."""


@dataclass(frozen=True)
class Setting:
    name: str
    usersig: bool
    partition: str


SETTINGS = (
    Setting("grace 20 s, SLURM's defaults", False, "low"),
    Setting("grace 20 s, preempt_send_user_signal", True, "low"),
    Setting("no grace, REQUEUE", False, "low0"),
)


@dataclass
class Cell:
    """One way in one setting, and what became of each preemption."""

    setting: Setting
    way: Way
    heard: list[float] = field(default_factory=list)
    """Milliseconds from slurmctld's decision to the handler in the training."""
    lost: list[int] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    """Steps that the attempt had trained when it ended."""
    back: int = 0
    wrong: str = ""

    def line(self) -> str:
        rounds = len(self.lost)
        if not rounds:
            return f"| {self.setting.name} | {self.way.name} | {self.wrong} | | | | | |"
        latency = f"{percentile(self.heard, 0.5):.0f} / {max(self.heard):.0f}" if self.heard else ""
        parts = [self.setting.name, self.way.name, f"{len(self.heard)} of {rounds}", latency]
        parts += [f"{self.back} of {rounds}", f"{sum(self.lost) / rounds:.1f}", f"{max(self.lost)}"]
        parts += [f"{100 * sum(self.lost) / sum(self.trained):.0f} %"]
        return f"| {' | '.join(parts)} |"


def is_possible() -> bool:
    return os.geteuid() == 0 and all(shutil.which(program) for program in PROGRAMS)


def figures(scratch: Path, *, quick: bool) -> str:
    rounds = 1 if quick else 6
    began = os.getloadavg()[0]
    cells = measure([*own_ways(), *peers(scratch)], rounds, scratch)
    head = (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, load {began:.1f} at the start; {rounds} preemptions a "
        f"line, of a training with steps of {STEP} s."
    )
    columns = ["cluster", "way", "training heard of it", "after, ms p50 / max", "job came back"]
    columns += ["steps lost, mean", "max", "of those trained"]
    table = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *(cell.line() for cell in cells)]
    return "\n".join([head, "", *table, "", *poll_table(50 if quick else POLLS)])


def measure(ways: Sequence[Way], rounds: int, scratch: Path) -> list[Cell]:
    """Play all ways in all settings at the same time, each on a node of its own: most of it is waiting."""
    cells = [Cell(setting, way) for setting in SETTINGS for way in ways]
    readable = (str(scratch),)
    with (
        Cluster(Options(nodes=2 * len(ways), cpus=1, readable=readable)) as default,
        Cluster(Options(nodes=len(ways), cpus=1, usersig=True, readable=readable)) as usersig,
    ):
        threads = [
            threading.Thread(target=play, args=(usersig if cell.setting.usersig else default, cell, rounds))
            for cell in cells
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return cells


def play(cluster: Cluster, cell: Cell, rounds: int) -> None:
    job: Job | None = None
    try:
        for _ in range(rounds):
            if job is None or job.state in OVER:
                job = cell.way.submit(cluster, cell.setting.partition)
            preempt(cluster, cell, job)
            print(cell.line(), file=sys.stderr)
    except AssertionError as error:
        cell.wrong = str(error).splitlines()[0]
        print(f"{cell.setting.name}, {cell.way.name}: {error}", file=sys.stderr)
    finally:
        if job is not None and job.state not in OVER:
            cluster.scancel(job)


def preempt(cluster: Cluster, cell: Cell, job: Job) -> None:
    """Preempt an attempt that trains, once; wait for the next one, or for the end of the job."""
    attempt, wanted = job.restarts, random.randint(*TRAINED)
    job.until(lambda: _notes(job, "ready", attempt), LONG, "trains")
    began = _number(_notes(job, "ready", attempt)[0], "step")
    job.until(lambda: _reached(job, attempt) - began >= wanted, LONG, "has trained for a while")
    log = cluster.directory / "log" / "slurmctld.log"
    size = log.stat().st_size
    preemptor = cluster.preempt(job)
    job.until(lambda: _decided(log, size, job), LONG, "slurmctld decides to preempt it")
    job.until(lambda: job.restarts > attempt or job.state in OVER, LONG, "has ended")
    cluster.release(preemptor)
    job.until(lambda: _notes(job, "ready", job.restarts) or job.state in OVER, LONG, "trains again, or is over")
    decided, reached = _decided(log, size, job), _reached(job, attempt)
    heard = [1000 * (at - decided) for note in job.notes("signal") if (at := float(str(note["mono"]))) > decided]
    after = _notes(job, "ready", job.restarts) if job.restarts > attempt else []
    saved = [_number(note, "step") for note in job.notes("saved")]
    cell.heard += heard[:1]
    cell.back += bool(after)
    cell.trained.append(reached - began)
    cell.lost.append(reached - (_number(after[0], "step") if after else max(saved, default=0)))


def _decided(log: Path, size: int, job: Job) -> float:
    """Return the monotonic time at which slurmctld has begun to preempt *job*, by its log behind *size*; 0: not yet."""
    new = log.read_bytes()[size:].decode(errors="replace")
    found = re.search(rf"^\[(\S+)\] (?:preempted|job_signal: \d+ of running) JobId={job.id} ", new, re.MULTILINE)
    if found is None:
        return 0.0
    return dt.datetime.fromisoformat(found[1]).timestamp() - time.time() + time.monotonic()


def _notes(job: Job, event: str, attempt: int) -> list[dict[str, object]]:
    return [note for note in job.notes(event) if note["attempt"] == attempt]


def _number(note: dict[str, object], key: str) -> int:
    return int(str(note[key]))


def _reached(job: Job, attempt: int) -> int:
    return max((step for number, step in job.steps() if number == attempt), default=0)


def poll_table(count: int) -> list[str]:
    """Ask as the provider does, and see what that costs slurmctld; what it costs when nobody asks is taken off."""
    with Cluster(Options(nodes=1)) as cluster:
        job = cluster.sbatch(["sleep", "infinity"])
        node = job.wait_for("RUNNING").nodes
        own = ["squeue", "-h", "-t", "all", "-j", job.id, "-O", FORMAT]
        rows = {"its own row (squeue)": own, "its node (scontrol)": ["scontrol", "show", "node", node, "-o"]}
        costs = {name: _milliseconds(cluster, question, count) for name, question in rows.items()}
    row, of_node = costs.values()
    share = 1000 * (row / POLL_INTERVAL + of_node / NODE_INTERVAL) / 1000
    return [
        "| question of a job | slurmctld, ms of processor time |",
        "|---|---|",
        *(f"| {name} | {cost:.2f} |" for name, cost in costs.items()),
        f"| 1,000 jobs that ask for both each 30 s and 300 s | {100 * share:.1f} % of a core |",
    ]


def _milliseconds(cluster: Cluster, question: Sequence[str], count: int) -> float:
    began, before = time.monotonic(), cluster.cpu_seconds("slurmctld")
    for _ in range(count):
        done = cluster.run(question)
        assert done.returncode == 0, done.stderr
    lasted, asked = time.monotonic() - began, cluster.cpu_seconds("slurmctld")
    time.sleep(lasted)
    idle = cluster.cpu_seconds("slurmctld") - asked
    return max(0.0, 1000 * (asked - before - idle) / count)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="put the figures into docs/benchmarks.md")
    parser.add_argument("--quick", action="store_true", help="one preemption a line: shows that it works")
    wishes = parser.parse_args()
    if not is_possible():
        sys.exit("this needs root, and SLURM: make lab")
    with tempfile.TemporaryDirectory(prefix="preemptd-bench-") as scratch:
        text = figures(Path(scratch), quick=wishes.quick)
    print(text)
    if wishes.write:
        put(MARK, text)


if __name__ == "__main__":
    main()
