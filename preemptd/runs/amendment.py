"""Writes the end of a run into the transaction log of a run that was offline, so that ``wandb sync`` tells the server.

The log must have no writer any more. What sync makes of it was tried with wandb 0.19.11, 0.22.3 and 0.31.0: the older
two send the code of the last exit record, and only if a ``final`` record follows it (their wandb-core never writes
one); 0.31.0 sends that of the first.
"""

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import closing
from typing import BinaryIO

from preemptd.runs import transaction_log as log
from preemptd.runs.wire import field, fields, varint_field

_RUNTIME, _EXIT_CODE = 2, 1  # RunExitRecord


class AmendError(Exception):
    """Why the log was left as it is."""


def amend(path: str, code: int, uid: int) -> None:
    """Make the log at *path* end with a preempting record, one exit record with *code*, and a final one.

    A record that was cut short at the end goes: nobody can read it, and sync of 0.19 and 0.22 stops there.

    Args:
        path: the log, which lies where the user likes.
        code: exit code.
        uid: whose file it must be. We may be root, and the directory is another user's.

    Raises:
        AmendError: it was left as it is.
        OSError: as it says.
    """
    with closing(os.fdopen(_open(path, uid), "r+b")) as file:
        try:
            cut, kept, number = _last_records(file)
        except ValueError as error:
            raise AmendError(f"its transaction log is damaged: {error}") from error
        marked = log.summary_of(file).preempting
        runtime = _runtime(kept)
        kept = [data for data in kept if log.kind_of(data)[0] not in (log.EXIT, log.FINAL)]
        ends = [] if marked else [field(log.PREEMPTING, b"")]
        exited = varint_field(_EXIT_CODE, code) + (varint_field(_RUNTIME, runtime) if runtime else b"")
        ends += [field(log.EXIT, exited), field(log.FINAL, b"")]
        added = [*kept, *(varint_field(1, number + n) + end for n, end in enumerate(ends, start=1))]
        data = b"".join(_chunks(added, cut))
        os.pwrite(file.fileno(), data, cut)
        os.ftruncate(file.fileno(), cut + len(data))
        os.fsync(file.fileno())


def _open(path: str, uid: int) -> int:
    """Open what is surely a file of *uid* alone: a link to somebody else's is refused."""
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != uid or status.st_nlink != 1:
        os.close(fd)
        raise AmendError("its transaction log is no plain file of its owner alone")
    return fd


def _last_records(file: BinaryIO) -> tuple[int, list[bytes], int]:
    """Find where to cut, the records from there on, and the last running number.

    Raises:
        AmendError: there is no run in it.
        ValueError: it is no transaction log.
    """
    if not log.summary_of(file).has_run:
        raise AmendError("its transaction log does not hold the run: all was lost in wandb-core's buffer")
    cut, number, is_exit = 0, 0, False
    kept: list[bytes] = []
    for message in log.messages(file, log.tail_of(file)):
        number = max(number, log.number_of(message.data))
        if not kept:
            is_exit = log.kind_of(message.data)[0] == log.EXIT
            cut = message.begin if is_exit else message.end
        if kept or is_exit:
            kept.append(message.data)
    return cut, kept, number


def _runtime(kept: list[bytes]) -> int:
    """Read the seconds that the run took, from its exit record; 0: unknown."""
    for data in kept:
        kind, value = log.kind_of(data)
        if kind == log.EXIT and isinstance(value, bytes):
            runtime = dict(fields(value)).get(_RUNTIME, 0)
            return runtime if isinstance(runtime, int) else 0
    return 0


def _chunks(messages: list[bytes], at: int) -> Iterator[bytes]:
    """Lay *messages* out in chunks from offset *at* on."""
    for message in messages:
        rest, kind = message, log.FULL
        while True:
            room = log.BLOCK - at % log.BLOCK
            if room < log.CHUNK.size:  # too small even for a header: padded with zeros
                yield bytes(room)
                at += room
                continue
            data, rest = rest[: room - log.CHUNK.size], rest[room - log.CHUNK.size :]
            begun = kind is not log.FULL
            kind = (log.MIDDLE if begun else log.FIRST) if rest else (log.LAST if begun else log.FULL)
            yield struct.pack("<IHB", zlib.crc32(data, zlib.crc32(bytes([kind]))), len(data), kind) + data
            at += log.CHUNK.size + len(data)
            if not rest:
                break
