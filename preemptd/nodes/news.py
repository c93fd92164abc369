"""What the agents on the nodes have said. Any thread may ask; each step's own thread brings lines."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from preemptd.journal import Journal
from preemptd.model import ProcessId
from preemptd.procfs import machine_life

FOR_THE_JOURNAL: Mapping[str, tuple[str, ...]] = {
    "told": ("pid", "start", "how", "event_id", "ms", "command", "dry_run"),
    "spared": ("pid", "why", "command"),
    "marked": ("run_id", "core_pid", "ok", "why", "ms"),
    "repaired": ("run_id", "ok", "how", "why", "code", "ms"),
    "escalated": ("step", "ms", "pids"),
    "warning": ("text",),
}
"""Agents' events that the journal gets, with ``node``, and the fields without which they are none."""
LOOK_EVERY = 0.02
"""Seconds between two looks of one who waits in the main thread, where no `Event` may be waited for."""


@dataclass(slots=True)
class Node:
    """One agent."""

    life: str
    """procfs.machine_life() there."""
    synced: int = 0
    ended: bool = False


class News:
    """Keeps it, and hands on to the journal what is for it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._nodes: dict[tuple[int, str], Node] = {}
        self._complaint = ""
        self.missed = False
        """There is no agent, and that was said."""
        self.life = machine_life()
        self.first: float | None = None
        """Monotonic time of the first word of an agent."""
        self.heard_at = float("-inf")
        """Monotonic time at which an agent last heard a signal: SLURM has sent it to all steps, or to this one."""
        self._told: dict[tuple[str, ProcessId], str] = {}

    # -- what is known -------------------------------------------------------------------------------------------

    @property
    def present(self) -> int:
        """How many nodes have an agent."""
        return len(self._nodes)

    @property
    def complaint(self) -> str:
        """The last thing that SLURM or Python had to say, for the end of a sentence."""
        return f" ({self._complaint})" if self._complaint else ""

    @property
    def told(self) -> Mapping[tuple[str, ProcessId], str]:
        """By machine life and process: how it was told."""
        with self._lock:
            return dict(self._told)

    @property
    def told_here(self) -> frozenset[ProcessId]:
        return frozenset(process for life, process in self.told if life == self.life)

    def forget_told(self) -> None:
        """Begin anew: what comes is another notice."""
        with self._lock:
            self._told.clear()

    def synced(self, number: int) -> bool:
        """Say whether everybody has answered to sync *number*."""
        with self._lock:
            return all(node.synced >= number for node in self._nodes.values())

    def ended(self) -> bool:
        """Say whether everybody has done all that was to be done."""
        with self._lock:
            return all(node.ended for node in self._nodes.values())

    @staticmethod
    def wait(look: Callable[[], bool], within: float) -> None:
        """Wait until *look* says yes, no longer than *within* seconds."""
        end = time.monotonic() + within
        while not look() and time.monotonic() < end:
            time.sleep(LOOK_EVERY)

    # -- what comes in -------------------------------------------------------------------------------------------

    def take(self, step: int, line: Mapping[str, object]) -> None:
        """Take a line from an agent of *step*, or one about all of them."""
        event, name = str(line.get("event")), str(line.get("node", ""))
        if event == "complaint" and line["text"]:
            self._complaint = str(line["text"])
        elif event == "gone":
            self._gone(step)
        elif event == "hello":
            self.first = self.first or time.monotonic()
            self.missed = False
            with self._lock:
                self._nodes[step, name] = Node(str(line.get("life")))
        elif (node := self._nodes.get((step, name))) is not None:
            self._hear(node, name, event, line)

    def _hear(self, node: Node, name: str, event: str, line: Mapping[str, object]) -> None:
        if event == "synced":
            number = line.get("number")
            node.synced = number if isinstance(number, int) else 0
        elif event == "ended":
            node.ended = True
        elif event == "heard":
            self.heard_at = time.monotonic()
        elif event in FOR_THE_JOURNAL and all(field in line for field in FOR_THE_JOURNAL[event]):
            if event == "told" and not line["dry_run"]:
                self._note_told(node, line)
            self._journal.write(event, node=name, **{field: line[field] for field in FOR_THE_JOURNAL[event]})

    def _note_told(self, node: Node, line: Mapping[str, object]) -> None:
        pid, start = line["pid"], line["start"]
        if isinstance(pid, int) and isinstance(start, int):
            with self._lock:
                self._told[node.life, ProcessId(pid, start)] = str(line["how"])

    def _gone(self, step: int) -> None:
        """Forget the agents of a step that has ended. Whoever never came is missed, and that is said once."""
        with self._lock:
            known = [key for key in self._nodes if key[0] == step]
            for key in known:
                del self._nodes[key]
        if not known and not self.missed:
            self.missed = True
            self._journal.warn(
                f"no step of our own can run beside the job's: trainers that srun starts are not told{self.complaint}"
            )
