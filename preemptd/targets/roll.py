"""The roll of an escalation: who was told, how, and what they said to it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from signal import Signals

from preemptd.model import Process, ProcessId

LINK = "link"


@dataclass(slots=True)
class Entry:
    """One told process."""

    at: float
    """Monotonic time of the first telling."""
    hows: set[str] = field(default_factory=set)
    """``link``, or names of signals without SIG."""
    said: set[str] = field(default_factory=set)
    """seen, saving, saved, done."""


class Roll:
    """Remembers each telling of one escalation by process, so that nobody hears it twice by the same way."""

    def __init__(self) -> None:
        self._entries: dict[ProcessId, Entry] = {}
        self._done: set[ProcessId] = set()
        """Who said ``done``, in whichever escalation or before the first one, and did not take it back."""

    def clear(self) -> None:
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, process: ProcessId) -> bool:
        return process in self._entries

    def tell(self, process: ProcessId, how: str, now: float) -> None:
        entry = self._entries.setdefault(process, Entry(now))
        entry.hows.add(how)
        entry.said.update({"done"} if process in self._done else ())

    def forget(self, process: ProcessId, how: str) -> None:
        """Take a telling back that has not reached *process*."""
        entry = self._entries.get(process)
        if entry is not None:
            entry.hows.discard(how)
            if not entry.hows:
                del self._entries[process]

    def heard(self, process: ProcessId, verb: str) -> bool:
        """Note what a told process said; False: it was not told."""
        if verb == "done":
            self._done.add(process)
        entry = self._entries.get(process)
        if verb == "undone":
            self._done.discard(process)
            if entry is not None:
                entry.said.discard("done")
        elif entry is not None:
            entry.said.add(verb)
        return entry is not None

    @property
    def ids(self) -> frozenset[ProcessId]:
        return frozenset(self._entries)

    @property
    def answered(self) -> frozenset[int]:
        """Pids of those who said anything: they see to their end themselves."""
        return frozenset(process.pid for process, entry in self._entries.items() if entry.said)

    @property
    def done(self) -> frozenset[int]:
        """Pids of those who said ``done``."""
        return frozenset(process.pid for process in self._done)

    @property
    def first_told(self) -> float | None:
        """Monotonic time of the first telling; None: nobody was told."""
        return min((entry.at for entry in self._entries.values()), default=None)

    @property
    def tellings(self) -> tuple[tuple[ProcessId, str], ...]:
        """Who was told, and each way in which they were."""
        return tuple((process, how) for process, entry in self._entries.items() for how in sorted(entry.hows))

    @property
    def finished(self) -> bool:
        """Some told process said that the whole job is done, be it before it was told: it may be on its way out."""
        return any("done" in entry.said for entry in self._entries.values())

    @property
    def saved(self) -> int:
        """How many told processes said that they have saved."""
        return sum("saved" in entry.said for entry in self._entries.values())

    @property
    def silent(self) -> frozenset[int]:
        """Pids of told processes that said neither that they have saved nor that all is done."""
        return frozenset(process.pid for process, entry in self._entries.items() if not {"saved", "done"} & entry.said)

    def alive(self, processes: Iterable[Process]) -> tuple[Process, ...]:
        """Pick the told ones out of a snapshot."""
        return tuple(process for process in processes if process.id in self._entries and process.state != "Z")

    def owes(self, processes: Iterable[Process]) -> bool:
        """Say whether some told process is still there, and has not said that it has saved."""
        return any(not {"saved", "done"} & self._entries[process.id].said for process in self.alive(processes))

    def unseen(self, now: float, within: float) -> frozenset[ProcessId]:
        """List who was told over the link alone *within* seconds ago or earlier and has not even seen it."""
        return frozenset(
            process
            for process, entry in self._entries.items()
            if entry.hows == {LINK} and not entry.said and now - entry.at >= within
        )

    def for_term(self, processes: Iterable[Process]) -> tuple[Process, ...]:
        """Pick those for the TERM step: told by another signal, still there, silent, and able to take SIGTERM."""
        return tuple(
            process
            for process in self.alive(processes)
            if not self._entries[process.id].said
            and "TERM" not in self._entries[process.id].hows
            and process.catches(Signals.SIGTERM)
        )
