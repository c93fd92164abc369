"""What must outlive the daemon: which training runs for a job, and who was told what."""

import contextlib
import errno
import fcntl
import json
import os
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol

from preemptd.errors import ConfigError
from preemptd.events import LedgerWritten
from preemptd.model import ProcessId


class TakenError(ConfigError):
    """Somebody else holds the page."""

    def __init__(self, job: str, pid: str) -> None:
        super().__init__(f"job {job} is already watched by pid {pid}: end that one, or give another --job-id")
        self.pid = pid


@dataclass(frozen=True, slots=True)
class Told:
    """One telling: remembered so that nobody hears of the same event twice."""

    event_id: str
    process: ProcessId
    how: str


@dataclass(frozen=True, slots=True)
class Record:
    """One job's page in the ledger."""

    life: str = ""
    """procfs.machine_life() in which *training* ran: pids mean nothing in another one."""
    training: ProcessId | None = None
    group: int = 0
    attempt: int = 0
    """How often the job was started before this time."""
    futile: int = 0
    """Preempted attempts in a row that saved nothing."""
    began: float = 0.0
    """time.time() of the start of this attempt."""
    told: tuple[Told, ...] = field(default=())

    def adding(self, event_ids: Collection[str], told: Iterable[tuple[ProcessId, str]]) -> "Record":
        """Note tellings (who, how) under each of these events: the one that is left when another is revoked counts."""
        new = (Told(event_id, process, how) for process, how in told for event_id in event_ids)
        return replace(self, told=tuple(dict.fromkeys((*self.told, *new))))

    def forgetting(self, event_id: str) -> "Record":
        """After a CLEAR the same event is news again."""
        return replace(self, told=tuple(told for told in self.told if told.event_id != event_id))


def _encode(record: Record) -> bytes:
    return json.dumps(asdict(record)).encode()


def _decode(text: bytes) -> Record:
    raw = json.loads(text)
    training = raw.pop("training")
    told = tuple(Told(t["event_id"], ProcessId(**t["process"]), t["how"]) for t in raw.pop("told"))
    return Record(**raw, training=ProcessId(**training) if training else None, told=told)


class Ledger(Protocol):
    """Where the record is kept; `NoLedger` where nobody asked for one."""

    record: Record
    """The page as it is now; at first what an earlier daemon left."""

    def start(self) -> None:
        """Start the writing thread, after the command was forked."""
        ...

    def write_now(self, record: Record) -> None:
        """Write in this thread, before the command runs: no training may run unrecorded."""
        ...

    def write(self, record: Record) -> int:
        """Make *record* the page and return its number; `LedgerWritten` says when it is out. Never blocks."""
        ...

    def close(self) -> None: ...


class NoLedger:
    """Without ``--job-id`` there is nothing that a later daemon could recognise: everything is written at once."""

    def __init__(self, put: Callable[[LedgerWritten], None]) -> None:
        self._put = put
        self.record = Record()

    def start(self) -> None:
        pass

    def write_now(self, record: Record) -> None:
        self.record = record

    def write(self, record: Record) -> int:
        self.record = record
        self._put(LedgerWritten(0))
        return 0

    def close(self) -> None:
        pass


class JobLedger:
    """STATE/JOB.json, written by a thread of its own (a disk may hang), under a lock held for the daemon's life."""

    def __init__(
        self,
        directory: str,
        job: str,
        put: Callable[[LedgerWritten], None],
        complain: Callable[[str], None],
        without: str = "--job-id has no effect",
    ) -> None:
        """*without*: what follows from a *directory* that cannot be used, for people."""
        self._path = os.path.join(directory, f"{job}.json")
        self._put = put
        self._complain = complain
        self._without = without
        self._changed = threading.Condition()
        self._pending: tuple[int, Record] | None = None
        self._number = 0
        self._broken = self._complained = self._closing = False
        self._lock = self._take_lock(directory, job)
        self.record = self._read()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    def _take_lock(self, directory: str, job: str) -> int | None:
        """Lock the job against a second watch; a directory that cannot be written is said once and done without."""
        path = os.path.join(directory, f"{job}.lock")
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._broken = True
            self._complain(f"state directory {directory} cannot be used ({error.strerror}): {self._without}")
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.read(lock, 32).decode(errors="replace").strip()
            os.close(lock)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                self._broken = True
                self._complain(f"{path} cannot be locked ({error.strerror}): a second watch of this job goes unnoticed")
                return None
            raise TakenError(job, pid) from error
        with contextlib.suppress(OSError):  # a full disk: only the message to a second watch is poorer
            os.truncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        return lock

    def _read(self) -> Record:
        """Read the record; an absent or unreadable one is an empty one."""
        try:
            with open(self._path, "rb") as file:
                return _decode(file.read())
        except FileNotFoundError:
            return Record()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if not self._broken:
                self._complain(f"ledger {self._path} cannot be read ({error}): starting a new one")
            return Record()

    def start(self) -> None:
        self._thread.start()

    def write(self, record: Record) -> int:
        self.record = record
        with self._changed:
            self._number += 1
            self._pending = (self._number, record)
            self._changed.notify()
            return self._number

    def write_now(self, record: Record) -> None:
        self.record = record
        self._store(record)

    def close(self) -> None:
        """Write out what is left, within a second. The lock ends with the process."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(1.0)
        if self._lock is not None:
            os.close(self._lock)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending is not None or self._closing)
                if self._pending is None:
                    return
                number, record = self._pending
                self._pending = None
            self._store(record)
            self._put(LedgerWritten(number))

    def _store(self, record: Record) -> None:
        """Replace the file by rename. No fsync: it must survive our death, the machine's ends its meaning."""
        if self._broken:
            return
        new = f"{self._path}.new"
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(_encode(record))
            os.rename(new, self._path)
        except OSError as error:  # the next record is tried again: there may be room by then
            if not self._complained:
                self._complained = True
                self._complain(f"ledger {self._path} cannot be written ({error.strerror}): a restart may tell twice")
