"""The W&B runs of the target, with what will be needed of them when they have ended."""

import os
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from preemptd.model import Run
from preemptd.runs.owner import Owner, capture
from preemptd.runs.run_settings import RunSettings

KEPT = 90.0
"""Seconds for which a run that has closed is remembered; a revoked notice explains an end for a minute."""


@dataclass(slots=True)
class Entry:
    """One run."""

    run: Run
    owner: Owner | None = None
    """None: it ended before it could be looked at, or may not be looked at."""
    foreign: bool = False
    """It belongs to another user, and we may not look at it."""
    closed: float | None = None
    """time.monotonic() when its transaction log was seen closed; None: it was open when last seen."""
    marked: bool = False
    """wandb-core has taken its preempting record."""
    ended: int | None = None
    """The exit code that we have sent, and that is at the server; None: we have not."""
    settings: RunSettings = field(default_factory=RunSettings)
    """As its wandb-core has answered."""

    @property
    def directory(self) -> str:
        """Where its files are for us: wandb-core may have lived in another mount namespace."""
        held = self.owner.directory if self.owner else None
        return f"/proc/self/fd/{held}" if held is not None else self.run.directory

    @property
    def log(self) -> str:
        return f"{self.directory}/run-{self.run.run_id}.wandb"


class Roster:
    """Shown the open runs by the marker's thread, read by anyone. Holds environments, so API keys: show no repr."""

    def __init__(self, kept: float = KEPT) -> None:
        self._kept = kept
        self._lock = threading.Lock()
        self._entries: dict[Run, Entry] = {}
        self._early: dict[Run, Entry] = {}
        """What is known of runs that were marked before they were shown."""
        self._looking = 0

    @property
    def looking(self) -> bool:
        """Owners of new runs are being looked at: who is told now may be gone before that is done."""
        return self._looking > 0

    def see(self, open_runs: Collection[Run], keep_closed: bool, looked: Callable[[], None]) -> None:
        """Take what is open now; *looked* is called, in another thread, when the owners of new runs are known.

        With *keep_closed*, while a notice is open, nothing is forgotten.
        """
        now = time.monotonic()
        with self._lock:
            for run, entry in list(self._entries.items()):
                if run in open_runs:
                    entry.closed = None
                elif entry.closed is None:
                    entry.closed = now
                elif not keep_closed and now - entry.closed > self._kept:
                    _let_go(self._entries.pop(run))
            new = [self._early.pop(run, Entry(run)) for run in open_runs if run not in self._entries]
            if not keep_closed:
                self._early.clear()
            self._entries.update((entry.run, entry) for entry in new)
            self._looking += bool(new)
        if new:  # in a thread: reading /proc/PID/cmdline may hang behind a busy process
            looking = threading.Thread(target=self._look_at, args=(new, looked), name="wandb-owners", daemon=True)
            try:
                looking.start()
            except RuntimeError:  # no more threads here: they are new once more when they are seen again
                with self._lock:
                    self._early.update((entry.run, self._entries.pop(entry.run)) for entry in new)
                    self._looking -= 1

    def marked(self, run: Run, settings: RunSettings | None) -> None:
        """Note that wandb-core has the preempting record of *run*, and what it answered to the attach before that."""
        with self._lock:
            entry = self._entry(run)
            entry.marked = True
            entry.settings = settings or entry.settings

    def ended(self, run: Run, code: int) -> None:
        """Note that wandb-core has carried out an exit record of ours."""
        with self._lock:
            self._entry(run).ended = code

    def _entry(self, run: Run) -> Entry:
        return self._entries[run] if run in self._entries else self._early.setdefault(run, Entry(run))

    def _look_at(self, entries: Collection[Entry], looked: Callable[[], None]) -> None:
        try:
            self._capture(entries)
        finally:
            with self._lock:
                self._looking -= 1
            looked()

    def _capture(self, entries: Collection[Entry]) -> None:
        for entry in entries:
            try:
                owner = capture(entry.run)
            except PermissionError:
                entry.foreign = True
                continue
            with self._lock:
                entry.owner = owner
                if self._entries.get(entry.run) is not entry:
                    _let_go(entry)

    def close(self) -> None:
        """Let go of what is held open."""
        with self._lock:
            for entry in self._entries.values():
                _let_go(entry)
            self._entries.clear()

    def entries(self) -> tuple[Entry, ...]:
        with self._lock:
            return tuple(self._entries.values())


def _let_go(entry: Entry) -> None:
    owner, entry.owner = entry.owner, None
    if owner is not None and owner.directory is not None:
        os.close(owner.directory)
