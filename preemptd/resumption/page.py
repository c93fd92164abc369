"""Where a job's record is kept: a file and a lock, on a disk that may be another machine's as well."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from dataclasses import dataclass

from preemptd.resumption.record import Record, decode, encode

OURS = ".preemptd"
"""Our directory under ``--checkpoint-dir``: whoever copies the checkpoints copies it, too."""
MOST = 65536
"""Bytes of a record."""


@dataclass(frozen=True, slots=True)
class Place:
    """The directory of records."""

    directory: str
    checkpoints: str | None = None
    """``--checkpoint-dir``, which holds *directory*; None: it lies with the state of this machine."""

    @classmethod
    def of(cls, checkpoints: str | None, state: str) -> "Place":
        """Choose: the record moves with the checkpoints where we know them."""
        if checkpoints is None:
            return cls(os.path.join(state, "wandb"))
        return cls(os.path.join(os.path.abspath(checkpoints), OURS, "wandb"), os.path.abspath(checkpoints))

    @property
    def ready(self) -> bool:
        """Say whether we may write there.

        We neither make the user's directory nor are the first in it: scripts take one that is there and empty, or not
        empty, for a sign (transformers' examples refuse one that has files and no checkpoint). And without a
        checkpoint there is nothing to go on with.
        """
        if self.checkpoints is None:
            return True
        with contextlib.suppress(OSError), os.scandir(self.checkpoints) as entries:
            return any(entry.name != OURS for entry in entries)
        return False


class HeldError(Exception):
    """Another watch holds the job's lock; the text says which."""


class Page:
    """DIRECTORY/JOB.json, under the lock JOB.lock. Every call may hang as long as the disk does."""

    def __init__(self, directory: str, job: str) -> None:
        self.path = os.path.join(directory, f"{job}.json")
        self._job = job
        self._lock_path = os.path.join(directory, f"{job}.lock")
        self._lock: int | None = None

    @property
    def exists(self) -> bool:
        return os.path.lexists(self.path)

    def lock(self, patience: float) -> bool:
        """Hold the lock from here on; False: this disk has none. Raises HeldError after *patience* seconds, OSError."""
        if self._lock is not None:
            return True
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        try:
            _flock(lock, time.monotonic() + patience)
        except OSError as error:
            holder = os.pread(lock, 200, 0).decode(errors="replace").strip()
            os.close(lock)
            if error.errno in {errno.EAGAIN, errno.EACCES}:
                raise HeldError(holder or "another watch") from error
            return False
        self._lock = lock
        with contextlib.suppress(OSError):  # a full disk: only the message to the other one is poorer
            os.truncate(lock, 0)
            os.pwrite(lock, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return True

    def read(self) -> Record:
        """Read it; an empty record if there is none. Raises OSError, ValueError."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return Record()
        with os.fdopen(fd, "rb") as file:
            return decode(self._job, file.read(MOST))

    def write(self, record: Record) -> None:
        """Replace it by rename, and have it on the disk: it is for another machine. Raises OSError."""
        new = f"{self.path}.{socket.gethostname()}-{os.getpid()}.new"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(encode(self._job, record))
                file.flush()
                os.fsync(fd)
            os.rename(new, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class Memory:
    """In the place of a `Page`: for the starts of one preemptd, which nobody else continues."""

    path = "memory"

    def __init__(self) -> None:
        self._record: Record | None = None

    @property
    def exists(self) -> bool:
        return self._record is not None

    def lock(self, patience: float) -> bool:  # noqa: ARG002 - see Page
        return True

    def read(self) -> Record:
        return self._record or Record()

    def write(self, record: Record) -> None:
        self._record = record

    def remove(self) -> None:
        self._record = None

    def unlock(self) -> None:
        pass


def _flock(lock: int, end: float) -> None:
    """Lock until monotonic *end*: another machine's watch may be about to end. Raises OSError."""
    while (error := _try_flock(lock)) is not None:
        if error.errno not in {errno.EAGAIN, errno.EACCES} or time.monotonic() >= end:
            raise error
        time.sleep(0.02)


def _try_flock(lock: int) -> OSError | None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error
    return None
