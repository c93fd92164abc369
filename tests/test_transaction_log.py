import struct
import zlib
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preemptd.runs import transaction_log

MAGIC = b":W&B\xe1\xbe\x00"
BLOCK = 32768
HISTORY = b"\x08\x01\x12\x03abc"
PREEMPTING = b"\x08\x02\xba\x01\x00\xc2\x0c\x04\x0a\x02id"


def exited(code: int) -> bytes:
    content = b"\x08" + varint(code & (1 << 64) - 1) if code else b""
    return b"\x08\x03\x92\x01" + varint(len(content)) + content


def varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def written(records: Iterable[bytes]) -> bytes:
    """Write *records* as wandb-core does."""
    log = bytearray(MAGIC)
    for record in records:
        left, first = record, True
        while left or first:
            room = BLOCK - len(log) % BLOCK
            if room < 7:
                log += bytes(room)
                room = BLOCK
            data, left = left[: room - 7], left[room - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[first, not left]
            log += struct.pack("<IHB", zlib.crc32(data, zlib.crc32(bytes([kind]))), len(data), kind) + data
            first = False
    return bytes(log)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run-id.wandb"


def test_a_marked_run_that_has_not_ended(path: Path) -> None:
    path.write_bytes(written([HISTORY, PREEMPTING, HISTORY]))

    assert transaction_log.has_preempting(str(path))
    assert transaction_log.exit_code(str(path)) is None


@pytest.mark.parametrize("code", [0, 1, 143, -15])
def test_the_exit_code_on_record_is_read(path: Path, code: int) -> None:
    path.write_bytes(written([HISTORY, exited(code)]))

    assert not transaction_log.has_preempting(str(path))
    assert transaction_log.exit_code(str(path)) == code


def test_the_first_exit_record_counts(path: Path) -> None:
    path.write_bytes(written([exited(143), exited(0)]))

    assert transaction_log.exit_code(str(path)) == 143


def test_a_record_over_several_blocks_is_put_together(path: Path) -> None:
    long = b"\x12" + varint(3 * BLOCK) + bytes(3 * BLOCK)
    path.write_bytes(written([long, HISTORY, PREEMPTING, long, exited(7)]))

    assert transaction_log.has_preempting(str(path))
    assert transaction_log.exit_code(str(path)) == 7


@pytest.mark.parametrize("fill", range(BLOCK - 7 - 7 - 16, BLOCK - 7 - 7 + 2))
def test_a_record_that_ends_near_the_end_of_a_block_is_read_and_so_is_the_next(path: Path, fill: int) -> None:
    first = b"\x12" + varint(fill - 4) + bytes(fill - 4)
    path.write_bytes(written([first, PREEMPTING]))

    assert len(first) == fill
    assert transaction_log.has_preempting(str(path))


def test_nothing_flushed_yet_is_neither_a_mark_nor_an_exit(path: Path) -> None:
    path.write_bytes(b"")
    empty = transaction_log.has_preempting(str(path))
    path.write_bytes(MAGIC)

    assert not empty
    assert not transaction_log.has_preempting(str(path))
    assert transaction_log.exit_code(str(path)) is None


@pytest.mark.parametrize("content", [b"PK\x03\x04 an archive", b":W&B\xe1\xbe\x01 another version"])
def test_another_file_is_a_value_error(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    with pytest.raises(ValueError, match="not a W&B transaction log"):
        transaction_log.has_preempting(str(path))


def test_a_damaged_block_hides_its_rest_and_not_the_next(path: Path) -> None:
    long = b"\x12" + varint(BLOCK) + bytes(BLOCK)
    log = bytearray(written([HISTORY, long, PREEMPTING]))
    log[len(MAGIC) + 9] ^= 1
    path.write_bytes(log)

    assert transaction_log.has_preempting(str(path))


@given(cut=st.integers(0, 100))
def test_a_log_that_is_cut_anywhere_says_what_is_whole_in_it(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    records = [HISTORY, PREEMPTING, exited(143)]
    ends = [len(MAGIC) + end for end in accumulate(7 + len(record) for record in records)]
    path = tmp_path_factory.getbasetemp() / "cut.wandb"
    path.write_bytes(written(records)[:cut])

    assert transaction_log.has_preempting(str(path)) is (cut >= ends[1])
    assert transaction_log.exit_code(str(path)) == (143 if cut >= ends[2] else None)


@given(st.binary(max_size=300))
def test_any_content_is_read_without_another_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.wandb"
    path.write_bytes(MAGIC + content)

    assert transaction_log.has_preempting(str(path)) in (True, False)
    assert transaction_log.exit_code(str(path)) is None
