"""Files that are on the disk, all of them, before they have their names; standard library only."""

import contextlib
import errno
import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO

from preemptd.integrations.manifest import Fingerprint

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

BUFFER = 2**20
WORTH_A_THREAD = 2**18
NO_DIRECTORY_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES}
"""What is said where a directory cannot be synced: by some file systems, and where one may go through but not look."""


def write(path: str, dump: Callable[[BinaryIO], object]) -> Fingerprint:
    """Make the file *path* of what *dump* writes; when it has that name, all of it is on the disk."""
    temporary = f"{path}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        sink = _Sink(fd)
        with io.BufferedWriter(sink, BUFFER) as file:
            dump(file)
        sink.check()
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)
    sync_directory(os.path.dirname(path))
    return sink.fingerprint()


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """Open a regular file. Raises OSError: it is none, or none that can be read."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)  # a FIFO does not hold us up
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        yield file


def fault_of(file: BinaryIO, expected: Fingerprint) -> str:
    """Say in what *file* is not the one that was written; empty: in nothing. Leaves it at its beginning."""
    size = os.fstat(file.fileno()).st_size
    if size != expected.size:
        return f"{size} bytes instead of {expected.size}"
    digest, buffer = hashlib.sha256(), memoryview(bytearray(BUFFER))
    while count := file.readinto(buffer):  # type: ignore[attr-defined]  # a real file, which BinaryIO is short of
        digest.update(buffer[:count])
    file.seek(0)
    return "" if digest.hexdigest() == expected.sha256 else "altered since it was written"


def make_directories(path: str) -> None:
    """Make *path* and what is missing above it, on the disk."""
    if not os.path.isdir(path):
        above = os.path.dirname(path)
        make_directories(above)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
        sync_directory(above)


def sync(path: str) -> None:
    """Have a file, or the names in a directory, on the disk: the machine may be switched off. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory(path: str) -> None:
    """As `sync`, where a directory can be synced."""
    try:
        sync(path)
    except OSError as error:
        if error.errno not in NO_DIRECTORY_SYNC:
            raise


class _Sink(io.RawIOBase):
    """Writes, and hashes meanwhile. After an error it swallows the rest: torch's C++ must not see an exception."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._digest = hashlib.sha256()
        self._hashing: ThreadPoolExecutor | None = ThreadPoolExecutor(1, "preemptd-hash")  # on a core of its own
        self._size = 0
        self._error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer", /) -> int:
        view = memoryview(data).cast("B")
        if self._error is None:
            hashed = self._hash(view)
            try:
                rest = view
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
            except OSError as error:
                self._error = error
            if hashed is not None:
                hashed.result()  # the memory is the caller's again when this returns
        self._size += len(view)
        return len(view)

    def close(self) -> None:
        if self._hashing is not None:
            self._hashing.shutdown()
        super().close()

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self._digest.hexdigest(), self._size)

    def _hash(self, view: memoryview) -> "Future[None] | None":
        if self._hashing is not None and len(view) >= WORTH_A_THREAD:
            try:
                return self._hashing.submit(self._digest.update, view)
            except RuntimeError:  # no thread to be had, or none any more: the interpreter ends
                self._hashing = None  # what it has taken on all the same it must never do
        self._digest.update(view)
        return None
