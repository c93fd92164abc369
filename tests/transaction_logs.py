"""Writes the logs of runs for tests, by its own reading of the format."""

import struct
import zlib
from pathlib import Path

RUN, EXIT = 17, 18
PREEMPTING = b"\xba\x01\x00"
FINAL = b"\xa2\x01\x00"
MAGIC = b":W&B\xe1\xbe\x00"
BLOCK = 32768


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def delimited(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def run_record(entity: str, project: str, config: bytes = b"") -> bytes:
    inner = delimited(1, b"abc") + delimited(2, entity.encode()) + delimited(3, project.encode())
    return b"\x08\x01" + delimited(RUN, inner + delimited(4, config))


def exit_record(code: int) -> bytes:
    return delimited(EXIT, (b"\x08" + varint(code) if code else b"") + b"\x10\x05")


def history_record(size: int) -> bytes:
    return b"\x08\x02" + delimited(2, b"h" * size)


def write_log(path: Path, *records: bytes) -> None:
    data = bytearray(MAGIC)
    for record in records:
        rest, kind = record, 1
        while True:
            room = BLOCK - len(data) % BLOCK
            if room < 7:
                data += bytes(room)
                continue
            part, rest = rest[: room - 7], rest[room - 7 :]
            kind = {True: {1: 2, 2: 3, 3: 3}, False: {1: 1, 2: 4, 3: 4}}[bool(rest)][kind]
            data += struct.pack("<IHB", zlib.crc32(bytes([kind]) + part), len(part), kind) + part
            if not rest:
                break
    path.write_bytes(data)
