"""Mends the W&B runs of told processes while the daemon goes on: each when its process has ended."""

import threading
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence

from preemptd.model import Process, ProcessId
from preemptd.notices import AFTER_REVOCATION
from preemptd.procfs import process_id
from preemptd.runs.marker import Marker
from preemptd.runs.mending import Mender, Policy, Repair
from preemptd.runs.roster import Entry, Roster

LOOK_EVERY = 0.25
LONGEST, SHORTEST = 10.0, 1.5
"""Seconds for one run: an official API call takes about one, and platforms are late."""
STOP_WITHIN = 4.0
"""Seconds that our end, or a new configuration, waits for what is being mended: nobody is told meanwhile."""
ENDS_WITHIN = 1.0
"""Seconds to give it up."""


class Aftercare:
    """A `parts.Marking` that reads the journal: who was told, who is done, what was taken back."""

    def __init__(self, marker: Marker, roster: Roster, code: int, report: Callable[[Repair], None]) -> None:
        """Make it.

        Args:
            marker: what marks.
            roster: the runs that it sees.
            code: what a run gets that reported 0 or nothing; not 0.
            report: called once for each run that was looked after.
        """
        self._marker = marker
        self._roster = roster
        self._code = code
        self._report = report
        self._changed = threading.Condition()  # for all below
        self._told: dict[ProcessId, float] = {}
        self._done: set[ProcessId] = set()
        self._open: set[str] = set()
        """Event ids of the notices that are open."""
        self._ours: dict[ProcessId, float] = {}
        """Owners that were told, or are below somebody who was: since when (monotonic)."""
        self._seen: set[ProcessId] = set()
        """Owners whose runs were looked after."""
        self._deadline = self._until = 0.0
        self._closing = False
        self._menders: set[Mender] = set()
        self._thread = threading.Thread(target=self._run, name="aftercare", daemon=True)

    def take_over(self, told: Iterable[ProcessId]) -> None:
        """Look after those whom an earlier daemon told of what is still announced."""
        now = time.monotonic()
        with self._changed:
            self._told.update((process, now) for process in told)
            self._ours.update(self._told)
            self._until = now + AFTER_REVOCATION

    # -- as what marks ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._marker.start()
        self._thread.start()

    def look(self, processes: Sequence[Process]) -> None:
        self._marker.look(processes)
        with self._changed:
            if not self._told:
                return
            living = {process.pid: process for process in processes if process.state not in "ZX"}
            for process in living.values():
                if (at := self._told_above(process, living)) is not None:
                    self._ours.setdefault(process.id, at)
            self._changed.notify()

    def mark(self, asked: int) -> None:
        self._marker.mark(asked)

    def finish(self, asked: int, code: int, spared: Container[int] = ()) -> None:
        self._marker.finish(asked, code, spared)

    def rest(self) -> None:
        self._marker.rest()

    def stop(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(SHORTEST)  # it looks once more: the last of the told may have ended just now
        with self._changed:
            menders = tuple(self._menders)
        _await(menders, STOP_WITHIN)
        for mender in menders:
            mender.stop()
        _await(menders, ENDS_WITHIN)
        self._marker.stop()

    # -- as a reader of the journal --------------------------------------------------------------------------------

    def write(self, line: Mapping[str, object]) -> None:
        with self._changed:
            event, mono = line["event"], line.get("mono")
            now = mono if isinstance(mono, float) else time.monotonic()
            if event == "told" and not line.get("dry_run"):
                process = ProcessId(int(str(line["pid"])), int(str(line["start"])))
                self._told.setdefault(process, now)
                self._ours.setdefault(process, now)
                self._changed.notify()
            elif event == "done":
                self._note_done(int(str(line["pid"])))
            elif event == "undone":
                self._done -= {process for process in self._done if process.pid == line["pid"]}
            elif event == "notice" and line.get("acted"):
                self._open.add(str(line["event_id"]))
                grace = line.get("grace")
                self._deadline = now + (grace if isinstance(grace, float | int) else 0.0)
                self._until = float("inf")
            elif event == "revoked":
                self._open.discard(str(line["event_id"]))
                if not self._open:
                    self._until = now + AFTER_REVOCATION

    def close(self) -> None:
        pass

    def _note_done(self, pid: int) -> None:
        """Remember who it was, and not the number alone: another process may get it in the weeks to come."""
        process = process_id(pid) or next((told for told in self._told if told.pid == pid), None)
        if process is not None:  # else nobody has told it, and its runs are none of ours
            self._done.add(process)

    # -- its own thread --------------------------------------------------------------------------------------------

    def _told_above(self, process: Process, living: Mapping[int, Process]) -> float | None:
        """Find out since when *process* or somebody above it knows; None: nobody was told."""
        seen: set[int] = set()
        above: Process | None = process
        while above is not None and above.pid not in seen:
            if above.id in self._told:
                return self._told[above.id]
            seen.add(above.pid)
            above = living.get(above.ppid)
        return None

    def _run(self) -> None:
        closing = False
        while not closing:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._ours) or self._closing)
                closing = self._closing
            for entry, owner, told_at in self._ended():
                self._mend(entry, owner, told_at)
            with self._changed:
                self._changed.wait_for(lambda: self._closing, LOOK_EVERY)

    def _ended(self) -> list[tuple[Entry, ProcessId, float]]:
        """List the runs whose told owners have ended since the last look, while the notice explains it."""
        # Each owner is asked for once: the roster may let go of it at any time.
        owned = [(entry, owner) for entry in self._roster.entries() if (owner := entry.owner) is not None]
        gone = {owner.process for _, owner in owned if not owner.lives()}
        with self._changed:
            explained = time.monotonic() < self._until
            new = gone & self._ours.keys() - self._seen
            self._seen |= new
            if not explained:
                self._told.clear()
                self._ours.clear()
                self._seen.clear()
                self._done = {process for process in self._done if process_id(process.pid) == process}
                return []
            found = ((entry, owner.process) for entry, owner in owned if owner.process in new)
            return [(entry, process, self._ours[process]) for entry, process in found]

    def _mend(self, entry: Entry, owner: ProcessId, told_at: float) -> None:
        left = self._deadline - time.monotonic()
        mender = Mender(self._roster, self._report)
        with self._changed:
            self._menders = {other for other in self._menders if other.is_at_work} | {mender}
            done = frozenset({owner.pid} if owner in self._done else ())
        mender.start(Policy(self._code, told_at, done), max(SHORTEST, min(LONGEST, left)), [entry])


def _await(menders: Sequence[Mender], within: float) -> None:
    end = time.monotonic() + within
    while any(mender.is_at_work for mender in menders) and time.monotonic() < end:
        time.sleep(LOOK_EVERY / 10)
