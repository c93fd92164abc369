"""The protobuf wire format, as far as it is needed: no schema, no package."""

from collections.abc import Iterator


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Split a protobuf message into its top-level fields: number, and an int (varint) or bytes. Raises ValueError."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        kind = key & 7
        if kind == 0:
            number, at = _read_varint(message, at)
            yield key >> 3, number
            continue
        if kind == 2:
            size, at = _read_varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > len(message):
            raise ValueError("a field is cut short")
        yield key >> 3, message[at : at + size]
        at += size


def field(number: int, content: bytes) -> bytes:
    """Make a field that holds a message, a string or bytes."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def varint_field(number: int, value: int) -> bytes:
    """Make a field that holds a number."""
    return _varint(number << 3) + _varint(value)


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1  # int32 and int64 are two's complement, sign-extended
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    raise ValueError("a number is cut short")
