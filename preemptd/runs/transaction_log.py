"""Reads the transaction log that wandb-core keeps of a run, ``run-ID.wandb``, without importing wandb.

Seven bytes ``:W&B``, 0xBEE1, version 0; then a leveldb log: blocks of 32 KiB (the first one counts the seven) of
chunks {u32 crc32 of type and data, u16 length, u8 type}. A record is a protobuf Record; the field numbers below are the
same in wandb 0.17.9 to 0.31.0. wandb-core writes whole blocks, or (0.31) every few seconds: the end may be missing.
"""

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from preemptd.runs.wire import fields

MAGIC = b":W&B\xe1\xbe\x00"
BLOCK = 32768
CHUNK = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
RUN, EXIT, FINAL, PREEMPTING = 17, 18, 20, 23
"""Field numbers of Record that say of what kind it is."""
_EXIT, _PREEMPTING = EXIT, PREEMPTING
_NUMBER, _CONTROL, _UUID, _INFO = 1, 16, 19, 200
_ASIDE = frozenset({_NUMBER, _CONTROL, _UUID, _INFO})
"""Fields of every Record: those that do not say of what kind it is."""
_EXIT_CODE = 1  # RunExitRecord
_ENTITY, _PROJECT = 2, 3  # RunRecord
HEAD = 4 * 2**20
"""Bytes at the beginning in which the run's own record lies: its config is in it."""
TAIL = 8 * 2**20
"""Bytes at the end in which the records of the last minutes lie. A log may have gigabytes."""


class Message(NamedTuple):
    """One record and where it lies in the file."""

    begin: int
    end: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Summary:
    """What a log says of how its run goes, and how it ended."""

    entity: str = ""
    """Empty: it was not named, so it is the default one of whoever is logged in."""
    project: str = ""
    exit_code: int | None = None
    """The first one (wandb-core ignores later ones); None: none is on disk."""
    preempting: bool = False
    """Before the exit, after which wandb-core takes it and does nothing. Looked for in the last `TAIL` bytes."""
    final: bool = False
    """It has the record without which ``wandb sync`` of 0.19 and 0.22 does not send the exit code."""
    has_run: bool = False


def has_preempting(path: str) -> bool:
    """Say whether a preempting record is on disk. Raises OSError, and ValueError when *path* is no transaction log."""
    return any(_PREEMPTING in record for record in _records(path))


def exit_code(path: str) -> int | None:
    """Return the first exit code on record (wandb-core ignores later ones); None: none is on disk. Raises as above."""
    for record in _records(path):
        exited = record.get(_EXIT)
        if isinstance(exited, bytes):
            return code_of(exited)
    return None


def summarize(path: str) -> Summary:
    """Read the beginning and the end. Raises OSError, and ValueError when *path* is no transaction log."""
    with open(path, "rb", opener=open_plain) as file:
        return summary_of(file)


def summary_of(file: BinaryIO) -> Summary:
    entity = project = ""
    has_run = preempting = exited = final = False
    code: int | None = None
    for message in _until(messages(file), HEAD):
        kind, value = kind_of(message.data)
        if kind == RUN and isinstance(value, bytes):
            record = dict(fields(value))
            entity, project, has_run = _text(record.get(_ENTITY)), _text(record.get(_PROJECT)), True
            break
    for message in messages(file, tail_of(file)):
        kind, value = kind_of(message.data)
        if kind == EXIT and isinstance(value, bytes) and code is None:
            code = code_of(value)
        exited = exited or kind == EXIT
        preempting = preempting or (kind == PREEMPTING and not exited)
        final = final or kind == FINAL
    return Summary(entity, project, code, preempting, final, has_run)


def tail_of(file: BinaryIO) -> int:
    """Return where the last blocks begin; 0 when the file is not longer than them."""
    size = os.fstat(file.fileno()).st_size
    return 0 if size <= TAIL else (size - TAIL) // BLOCK * BLOCK


def kind_of(message: bytes) -> tuple[int, int | bytes]:
    """Find the field that says what a record is: its number and value; 0 for a record that nobody can read."""
    with suppress(ValueError):  # its checksum is right: a record of a later wandb, not ours to judge
        for number, value in fields(message):
            if number not in _ASIDE:
                return number, value
    return 0, b""


def code_of(exited: bytes) -> int | None:
    """Read the code of an exit record; None: it cannot be read."""
    code = dict(fields(exited)).get(_EXIT_CODE, 0)
    return _signed(code) if isinstance(code, int) else None


def number_of(message: bytes) -> int:
    """Read the running number of a record; 0 if it has none."""
    with suppress(ValueError):
        for number, value in fields(message):
            if number == _NUMBER and isinstance(value, int):
                return value
    return 0


def messages(file: BinaryIO, start: int = 0) -> Iterator[Message]:
    """Join chunks to messages, from *start* on, which is the beginning of a block. Raises OSError and ValueError.

    A torn chunk ends its block, as leveldb's own reader has it.
    """
    file.seek(0)
    magic = file.read(len(MAGIC))
    if not MAGIC.startswith(magic):
        raise ValueError("not a W&B transaction log")
    at = start or len(magic)
    file.seek(at)
    block = file.read(BLOCK - at % BLOCK)
    parts: list[bytes] = []
    begin = at
    while block:
        for offset, kind, data in _chunks(block):
            if kind in (FULL, FIRST):
                parts, begin = [], at + offset
            elif not parts:
                continue
            parts.append(data)
            if kind in (FULL, LAST):
                yield Message(begin, at + offset + CHUNK.size + len(data), b"".join(parts))
                parts = []
        at += len(block)
        block = file.read(BLOCK)


def _records(path: str) -> Iterator[dict[int, int | bytes]]:
    with open(path, "rb") as file:
        for message in messages(file):
            with suppress(ValueError):  # its checksum is right: a record of a later wandb, not ours to judge
                yield dict(fields(message.data))


def _until(found: Iterator[Message], limit: int) -> Iterator[Message]:
    for message in found:
        if message.begin > limit:
            return
        yield message


def _chunks(block: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + CHUNK.size <= len(block):
        checksum, size, kind = CHUNK.unpack_from(block, at)
        data = block[at + CHUNK.size : at + CHUNK.size + size]
        if len(data) < size or kind not in (FULL, FIRST, MIDDLE, LAST):
            return
        if zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
            return
        yield at, kind, data
        at += CHUNK.size + size


def open_plain(path: str, flags: int) -> int:
    """Open a plain file and nothing else: the path is the user's, and a FIFO or a device would hold us up."""
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ValueError("not a plain file")
    return fd


def _text(value: int | bytes | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else ""


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
