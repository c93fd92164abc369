"""Reads the transaction log that wandb-core keeps of a run, ``run-ID.wandb``, without importing wandb.

Seven bytes ``:W&B``, 0xBEE1, version 0; then a leveldb log: blocks of 32 KiB (the first one counts the seven) of
chunks {u32 crc32 of type and data, u16 length, u8 type}. A record is a protobuf Record; the field numbers below are the
same in wandb 0.17.9 to 0.31.0. wandb-core writes whole blocks, or (0.31) every few seconds: the end may be missing.
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

from preemptd.runs.core_socket import fields

_MAGIC = b":W&B\xe1\xbe\x00"
_BLOCK = 32768
_CHUNK = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_EXIT, _PREEMPTING = 18, 23  # Record
_EXIT_CODE = 1  # RunExitRecord


def has_preempting(path: str) -> bool:
    """Say whether a preempting record is on disk. Raises OSError, and ValueError when *path* is no transaction log."""
    return any(_PREEMPTING in record for record in _records(path))


def exit_code(path: str) -> int | None:
    """Return the first exit code on record (wandb-core ignores later ones); None: none is on disk. Raises as above."""
    for record in _records(path):
        exited = record.get(_EXIT)
        if isinstance(exited, bytes):
            code = dict(fields(exited)).get(_EXIT_CODE, 0)
            return _signed(code) if isinstance(code, int) else None
    return None


def _records(path: str) -> Iterator[dict[int, int | bytes]]:
    with open(path, "rb") as file:
        for message in _messages(file):
            with suppress(ValueError):  # its checksum is right: a record of a later wandb, not ours to judge
                yield dict(fields(message))


def _messages(file: BinaryIO) -> Iterator[bytes]:
    """Join chunks to messages. A torn chunk ends its block, as leveldb's own reader has it."""
    magic = file.read(len(_MAGIC))
    if not _MAGIC.startswith(magic):
        raise ValueError("not a W&B transaction log")
    block = magic + file.read(_BLOCK - len(magic))
    message: bytes | None = None
    at = len(_MAGIC)
    while block:
        for kind, data in _chunks(block, at):
            if kind in (_FULL, _FIRST):
                message = data
            elif message is not None:
                message += data
            if kind in (_FULL, _LAST) and message is not None:
                yield message
                message = None
        block, at = file.read(_BLOCK), 0


def _chunks(block: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + _CHUNK.size <= len(block):
        checksum, size, kind = _CHUNK.unpack_from(block, at)
        at += _CHUNK.size
        data = block[at : at + size]
        at += size
        if len(data) < size or kind not in (_FULL, _FIRST, _MIDDLE, _LAST):
            return
        if zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
            return
        yield kind, data


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
