"""Keeps the id of a job's W&B run, and gives it to the job's next start."""

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from preemptd.events import Event, RunsFound
from preemptd.model import Run
from preemptd.procfs import environ as environ_of
from preemptd.resumption.offline import JOINS_SINCE, is_offline, version_of
from preemptd.resumption.page import HeldError, Memory, Page, Place
from preemptd.resumption.record import FRUITLESS, JobName, Record, updated, variables

ANSWER_WITHIN = 1.0
"""Seconds that the start, and the end, wait for the disk: a network file system may hang."""
LOCK_WITHIN = 0.5
"""Seconds that another watch has to let go of the job: one that is about to end."""
LOOK_EVERY = 0.5
"""Seconds between looks whether the first checkpoint is there."""


@dataclass(frozen=True, slots=True)
class _Nature:
    """What only the processes of a run tell: they may have ended when it can be written down."""

    sweep: bool
    lost_by_sync: str
    """Why an offline run is not resumed; empty: it is, or it is online."""


class Resumption(Protocol):
    """What goes on with a job's W&B run: `JobResumption`, or `NoResumption` where nothing is proven or wanted."""

    def look(self, *, adopted: bool) -> Mapping[str, str]:
        """Read what an earlier start has kept, before the command is forked; return the variables that it gets.

        Args:
            adopted: the command runs already, and what was kept may be of this very attempt.
        """
        ...

    def hear(self, event: Event) -> None:
        """Note the runs that were found. From any thread, after the command was forked; never blocks."""
        ...

    def settle(self, *, done: bool, failed: bool) -> None:
        """Hear how it ended: a job that is *done* is forgotten; *failed*: by itself, with no preemption."""
        ...

    def close(self) -> None: ...


class NoResumption:
    """Nothing is kept."""

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        self._given = given or {}

    def look(self, *, adopted: bool) -> Mapping[str, str]:  # noqa: ARG002 - a null object
        return self._given

    def hear(self, event: Event) -> None:
        pass

    def settle(self, *, done: bool, failed: bool) -> None:
        pass

    def close(self) -> None:
        pass


class JobResumption:
    """One job's. Its file is touched in threads only: no hanging disk keeps the command from its start."""

    def __init__(
        self,
        place: Place,
        name: JobName,
        environ: Mapping[str, str],
        complain: Callable[[str], None],
        memory: Memory | None = None,
    ) -> None:
        """Make it; with a *memory*, that is its file."""
        self._place = place
        self._name = name
        self._environ = environ
        self._complain = complain
        self._said: set[str] = set()
        self._page = memory or Page(place.directory, name.name)
        self._kept = Record()
        self._shared = False
        """Another command of this attempt has the same name: no id is for both."""
        self._adopted = self._gave_id = False
        self._looking = threading.Thread(target=self._look, name="resumption", daemon=True)
        self._changed = threading.Condition()
        self._keeping = threading.Thread(target=self._keep_all, name="resumption", daemon=True)
        self._runs: list[Run] = []
        self._natures: dict[Run, _Nature] = {}
        self._news = self._done = self._failed = self._closing = False

    def look(self, *, adopted: bool) -> Mapping[str, str]:
        self._adopted = adopted
        self._looking.start()
        self._looking.join(ANSWER_WITHIN)
        if self._looking.is_alive():  # only then is a thread left when the command is forked, and it is in the kernel
            self._say(f"{self._place.directory} does not answer", "the W&B run is not resumed")
            return variables(self._environ, Record())
        if not self._name.continues(self._kept):
            return variables(self._environ, Record())
        if self._kept.fruitless >= FRUITLESS:
            self._say(
                f"the last starts with W&B run {self._kept.run_id} failed before it went on", "beginning a new one"
            )
        given = variables(self._environ, self._kept)
        self._gave_id = not adopted and "WANDB_RUN_ID" in given
        return given

    def _look(self) -> None:
        try:
            if self._page.exists:
                self._lock()
                kept = self._page.read()
                self._shared = self._name.shares_attempt(kept)
                self._kept = kept
        except HeldError as holder:
            self._say(f"job {self._name.name} is watched by {holder} as well", "its W&B run is not resumed here")
        except OSError as error:
            self._say(f"{self._page.path} cannot be used ({error.strerror})", "the W&B run is not resumed")
        except ValueError as error:
            self._say(f"{self._page.path} is not to be understood ({error})", "the W&B run is not resumed")

    def _lock(self, patience: float = LOCK_WITHIN) -> None:
        if not self._page.lock(patience):
            self._say(f"{self._place.directory} has no locks", "see that one machine at a time runs this job")

    def _say(self, what: str, effect: str) -> None:
        if what not in self._said:
            self._said.add(what)
            self._complain(f"{what}: {effect}")

    def hear(self, event: Event) -> None:
        if not isinstance(event, RunsFound):
            return
        with self._changed:
            new = [run for run in event.runs if run not in self._runs]
            if new and not self._closing:
                self._runs += new
                self._news = True
                self._changed.notify()
                self._begin_keeping()

    def settle(self, *, done: bool, failed: bool) -> None:
        self._done, self._failed = done, failed

    def close(self) -> None:
        """Write what is left, within a second. The lock ends with the process."""
        with self._changed:
            self._closing = True
            self._changed.notify()
            self._begin_keeping()
        if self._keeping.ident is not None:
            self._keeping.join(ANSWER_WITHIN)

    def _begin_keeping(self) -> None:
        if self._keeping.ident is None:
            with suppress(RuntimeError):  # no thread to be had: whoever marks the runs must not suffer from that
                self._keeping.start()

    # From here on everything runs in the keeping thread.

    def _keep_all(self) -> None:
        waits, closing = False, False
        while not closing:
            with self._changed:
                self._changed.wait_for(lambda: self._news or self._closing, LOOK_EVERY if waits else None)
                runs, closing, self._news = tuple(self._runs), self._closing, False
            self._natures.update({run: _nature(run) for run in runs if run not in self._natures})
            if self._looking.ident is not None:
                self._looking.join()
            if not (closing and self._done and self._name.restart is None):
                waits = bool(runs) and not self._guarded(partial(self._keep, runs))
        if self._done:
            self._guarded(self._forget)
        elif self._failed and self._gave_id and not self._runs:
            self._guarded(self._count_fruitless)
        self._page.unlock()

    def _guarded(self, act: Callable[[], bool]) -> bool:
        try:
            return act()
        except HeldError as holder:
            self._say(f"job {self._name.name} is watched by {holder} as well", "our W&B run is not kept")
            return False
        except OSError as error:
            self._say(f"{self._page.path} cannot be written ({error.strerror})", "the W&B run will not be resumed")
            return True

    def _keep(self, runs: tuple[Run, ...]) -> bool:
        """Write down what is to be known; False: it is too early."""
        if not self._place.ready:
            return False
        try:
            self._lock(0.0 if self._said else LOCK_WITHIN)
        except HeldError:
            if self._name.restart is None:
                raise
            self._shared = True
        kept = self._read()
        sweep = any(self._natures[run].sweep for run in runs)
        record = updated(kept, runs, sweep=sweep, adopted=self._adopted)
        # Of this attempt's runs alone: after one that could not go on, the job has begun a new one.
        lost_by_sync = any(self._natures[run].lost_by_sync for run in runs)
        several = record.several or self._shared
        record = replace(record, restart=self._name.restart, several=several, lost_by_sync=lost_by_sync)
        if record != kept:
            self._page.write(record)
        self._explain(record, kept, runs)
        return True

    def _explain(self, record: Record, kept: Record, runs: tuple[Run, ...]) -> None:
        """Say why the next start is not going to resume, when that becomes known."""
        if record.sweep:
            return
        if record.lost_by_sync and not kept.lost_by_sync:
            why = next(filter(None, (self._natures[run].lost_by_sync for run in runs)))
            self._say(why, "an offline run is not resumed, `wandb sync` would overwrite it")
        if record.several and not kept.several:
            ids = ", ".join(dict.fromkeys(run.run_id for run in runs))
            self._say(
                f"this job begins W&B runs more than once ({ids})",
                "its next start resumes none; see docs/wandb.md, Resume, for what to do",
            )

    def _count_fruitless(self) -> bool:
        self._page.write(replace(self._kept, fruitless=self._kept.fruitless + 1))
        return True

    def _read(self) -> Record:
        """Read it anew: another command of this attempt may have added to it."""
        try:
            return self._page.read()
        except ValueError:  # `look` has named it, and it is replaced
            return Record()

    def _forget(self) -> bool:
        if self._page.exists:
            self._lock()
            if self._name.restart is None:
                self._page.remove()
            else:  # a second command of the same name in this attempt must not pass for the only one
                self._page.write(Record(restart=self._name.restart))
        return True


def _nature(run: Run) -> _Nature:
    sweep = "WANDB_SWEEP_ID" in environ_of(run.core_pid)
    if not is_offline(run):
        return _Nature(sweep, "")
    version = version_of(run)
    if version is None:
        return _Nature(sweep, f"which wandb writes run {run.run_id} could not be found out")
    return _Nature(sweep, "this wandb is older than 0.31" if version < JOINS_SINCE else "")
