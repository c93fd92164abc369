"""The past notices on disk, for `preemptd history`: kept without being asked for, and bounded."""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator

from preemptd.journal import Line
from preemptd.observe.history import Entry, Story
from preemptd.procfs import machine_life, process_id

NAME = "history.jsonl"
OLD = ".1"
"""Added to the name of the file before."""
LONGEST = 2**20
"""Bytes, after which a new file is begun: with the one before it there are never more than twice as many."""


class HistoryFile:
    """A sink. Nothing is made or written before the first notice.

    An entry is written when the notice comes, when somebody was told, when all have saved, and at its end: what is on
    the disk then outlives us, and a machine that is taken away.
    """

    def __init__(self, path: str, complain: Callable[[str], None]) -> None:
        self._path = path
        self._complain = complain
        self._story: Story | None = None
        self._complained = False
        self._unwritten: dict[object, Entry] = {}
        """By id: the last word on each."""

    def write(self, line: Line) -> None:
        if line["event"] == "progress":
            return
        if self._story is None:
            self._story = Story(myself())
        self._keep(self._story.take(line))

    def when_idle(self) -> None:
        """Write what there is: where hundreds are told together, each makes an entry that the next one replaces."""
        entries, self._unwritten = self._unwritten, {}
        for entry in entries.values():
            self._store(entry)

    def close(self) -> None:
        if self._story is not None:
            self._keep(self._story.close())
        self.when_idle()

    def _keep(self, entry: Entry | None) -> None:
        if entry is not None:
            self._unwritten[entry["id"]] = entry

    def _store(self, entry: Entry) -> None:
        try:
            append(self._path, entry)
        except OSError as error:
            if not self._complained:  # the next one is tried again: there may be room by then
                self._complained = True
                self._complain(f"history {self._path} cannot be written ({error.strerror}): no notice is kept there")


def myself() -> Entry:
    """Name this process so that it can be told from a later one with the same pid."""
    own = process_id(os.getpid())
    return {"pid": os.getpid(), "start": own.start if own else 0, "life": machine_life()}


def lives(by: object) -> bool:
    """Say whether the preemptd that `myself` named still runs."""
    if not isinstance(by, dict) or by.get("life") != machine_life() or not isinstance(by.get("pid"), int):
        return False
    found = process_id(by["pid"])
    return found is not None and found.start == by.get("start")


def append(path: str, entry: Entry) -> None:
    """Append to the file at *path*; several processes may do so at once.

    Raises:
        OSError: it cannot be written.
    """
    data = json.dumps(entry, default=str).encode() + b"\n"
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with _locked(path) as fd:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":  # somebody was killed, or the disk was full, within a line
            data = b"\n" + data
        if os.write(fd, data) < len(data):
            os.ftruncate(fd, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fdatasync(fd)  # the machine may be gone before the kernel writes by itself


@contextlib.contextmanager
def _locked(path: str) -> Iterator[int]:
    """Open the file and lock it; one that is full is put aside first."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _is_at(path, fd):
                if os.fstat(fd).st_size < LONGEST:
                    yield fd
                    return
                os.replace(path, path + OLD)
        finally:
            os.close(fd)


def _is_at(path: str, fd: int) -> bool:
    """Say whether nobody has put the file aside while we waited for its lock."""
    try:
        there, here = os.stat(path), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def read(path: str) -> list[Entry]:
    """Read the entries of the file at *path* and of the one before it; lines that are none are left out.

    Raises:
        OSError: it is there and cannot be read.
    """
    found: list[Entry] = []
    for name in (path + OLD, path):
        with contextlib.suppress(FileNotFoundError), open(name, "rb") as file:
            found += [entry for entry in lines_of(file) if "id" in entry and "t" in entry]
    return found


def lines_of(file: Iterator[bytes]) -> Iterator[Entry]:
    """Read JSON objects, one a line; what is something else is left out."""
    for line in file:
        with contextlib.suppress(ValueError, RecursionError):
            parsed = json.loads(line)
            if isinstance(parsed, dict):
                yield parsed
