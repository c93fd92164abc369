"""Jobs of a test cluster: their rows in squeue, their output, their journal."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tests.waiting import wait_until
from tests.watching import read_lines

if TYPE_CHECKING:
    from tests.lab.slurm.cluster import Cluster

TRAINER = str(Path(__file__).with_name("trainer.py"))
OVER = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "PREEMPTED",
    "NODE_FAIL",
    "BOOT_FAIL",
    "OUT_OF_MEMORY",
    "DEADLINE",
}
FIELDS = (
    "JobArrayID",
    "JobID",
    "State",
    "Reason",
    "RestartCnt",
    "PreemptTime",
    "StartTime",
    "EndTime",
    "NodeList",
    "exit_code",
    "Partition",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of squeue."""

    id: str
    number: str
    """JobID: what SLURM_JOB_ID is in the job; differs from *id* in arrays."""
    state: str
    reason: str
    restarts: int
    preempt_time: str | None
    """None: not being preempted."""
    start_time: str
    end_time: str
    nodes: str
    exit_code: int
    partition: str


def trainer(*options: str) -> list[str]:
    """Return the command of the training in trainer.py; it writes into the directory that it is started in."""
    return [sys.executable, TRAINER, *options]


def parse(text: str) -> dict[str, Row]:
    """Read `squeue -O FIELD:|,...`; rows are found by array id and by number."""
    rows: dict[str, Row] = {}
    for line in text.splitlines():
        array, number, state, reason, restarts, preempted, start, end, nodes, code, partition = line.split("|")[:11]
        taken = None if preempted == "N/A" else preempted
        row = Row(array, number, state, reason, int(restarts), taken, start, end, nodes, int(code), partition)
        rows.setdefault(number, row)
        rows[array] = row
    return rows


class Job:
    """One submitted job, or one task of an array."""

    def __init__(self, cluster: "Cluster", job_id: str, directory: Path, output: Path) -> None:
        self.cluster = cluster
        self.id = job_id
        self.directory = directory
        """Belongs to the jobs' user; the job starts in it."""
        self.journal = directory / "journal"
        """Where a test lets `preemptd watch --journal` write."""
        self._output = output

    def __repr__(self) -> str:
        return f"<Job {self.id} in {self.directory}>"

    @property
    def row(self) -> Row:
        """The row that squeue shows, at most a quarter of a second old."""
        return self.cluster.rows()[self.id]

    @property
    def state(self) -> str:
        return self.row.state

    @property
    def restarts(self) -> int:
        return self.row.restarts

    @property
    def output(self) -> str:
        return self._output.read_text() if self._output.exists() else ""

    def file(self, name: str) -> str:
        """Read a file of the job's directory; empty while there is none."""
        path = self.directory / name
        return path.read_text() if path.exists() else ""

    def until(self, look: Callable[[], object], timeout: float = 45.0, what: str = "") -> None:
        """Wait until *look* returns something true; on failure say all that is known of the job."""
        try:
            wait_until(look, timeout, what, pause=0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from None

    def wait_for(self, *states: str, timeout: float = 45.0) -> Row:
        """Wait until the job is in one of *states*."""
        self.until(lambda: self.state in states, timeout, f"state {' or '.join(states)}")
        return self.row

    def wait_over(self, timeout: float = 45.0) -> Row:
        """Wait until the job has ended for good."""
        return self.wait_for(*OVER, timeout=timeout)

    def wait_restarted(self, count: int = 1, timeout: float = 45.0) -> Row:
        """Wait until the job runs, or has run, after its *count*th requeue."""
        self.until(lambda: self.restarts >= count and self.state in {"RUNNING", *OVER}, timeout, f"restart {count}")
        return self.row

    def wait_output(self, text: str, count: int = 1, timeout: float = 45.0) -> str:
        """Wait until the job's output has *text* in it, *count* times."""
        self.until(lambda: self.output.count(text) >= count, timeout, f"{text!r} in the output")
        return self.output

    def lines(self, event: str | None = None, journal: Path | None = None) -> list[dict[str, object]]:
        """Read preemptd's journal (or another file of JSON lines), or the lines of one event."""
        return [line for line in read_lines(journal or self.journal) if event in {None, line.get("event")}]

    def wait_for_event(
        self, event: str, count: int = 1, timeout: float = 45.0, journal: Path | None = None
    ) -> list[dict[str, object]]:
        """Wait until the journal has *count* lines of *event*; return them."""
        look = functools.partial(self.lines, event, journal)
        self.until(lambda: len(look()) >= count, timeout, f"{count} times {event} in the journal")
        return look()

    def notes(self, event: str | None = None, rank: int = 0) -> list[dict[str, object]]:
        """Read what the training in trainer.py noted: ready, signal, asked, saved, exit."""
        return self.lines(event, self.directory / f"trainer-{rank}")

    def wait_for_note(
        self, event: str, count: int = 1, timeout: float = 45.0, rank: int = 0
    ) -> list[dict[str, object]]:
        """Wait until the training noted *event* *count* times; return these notes."""
        return self.wait_for_event(event, count, timeout, self.directory / f"trainer-{rank}")

    def heard(self, attempt: int = 0, rank: int = 0) -> list[str]:
        """List the signals that the training heard in one attempt, but for the SIGCONTs that come with all others."""
        told = [note for note in self.notes("signal", rank) if note["attempt"] == attempt]
        return [str(note["name"]) for note in told if note["name"] != "CONT"]

    def steps(self, rank: int = 0) -> list[tuple[int, int]]:
        """List (attempt, step) of every step that was trained."""
        return [(int(attempt), int(step)) for attempt, step in map(str.split, self.file(f"steps-{rank}").splitlines())]

    def task(self, index: int) -> "Job":
        """Return one task of the array that this is."""
        return Job(self.cluster, f"{self.id}_{index}", self.directory, self.directory / f"out-{index}")

    def describe(self) -> str:
        files: Mapping[str, str] = {
            "output": self.output[-3000:],
            "journal": self.file("journal")[-3000:],
            "trainer-0": self.file("trainer-0")[-1500:],
            "slurmctld": self.cluster.log_of(self.id),
        }
        row = self.cluster.rows(fresh=True).get(self.id)
        return "\n".join([f"{self}: {row}", *(f"--- {name}\n{text}" for name, text in files.items())])
