"""The journal's file: whatever happens to it, what can be written is, and what could not is named."""

import json
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from preemptd.journal_file import JournalFile
from tests.waiting import wait_until


def line(number: int) -> dict[str, object]:
    return {"event": "saved", "step": number}


def steps(path: Path) -> list[object]:
    return [json.loads(text).get("step", "warning") for text in path.read_text().splitlines()]


@pytest.fixture
def room() -> Iterator[Callable[[int], None]]:
    """Limits how large files may become: writes beyond it fail, the first one in its middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_where_there_is_room_again_it_goes_on_and_says_what_is_missing(
    tmp_path: Path, room: Callable[[int], None]
) -> None:
    path, complaints = tmp_path / "journal", list[str]()
    file = JournalFile(str(path), complaints.append)
    file.write(line(1))
    room(path.stat().st_size + 5)
    for number in (2, 3, 4):
        file.write(line(number))
    room(1_000_000)
    file.write(line(5))
    file.close()

    first, torn, apology, last = path.read_text().splitlines()
    assert (json.loads(first)["step"], json.loads(last)["step"]) == (1, 5)
    assert len(torn) == 5
    assert json.loads(apology)["text"] == "3 lines are missing here: they could not be written"
    assert len(complaints) == 1


def test_a_file_that_was_renamed_or_deleted_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    file = JournalFile(str(path), pytest.fail)
    file.write(line(1))
    path.rename(tmp_path / "old")
    file.write(line(2))
    path.unlink()
    file.write(line(3))
    file.write(line(4))
    file.close()

    assert steps(tmp_path / "old") == [1]
    assert steps(path) == [3, 4]


def test_a_hundred_rotations_leave_no_descriptor_open(tmp_path: Path) -> None:
    file = JournalFile(str(tmp_path / "journal"), pytest.fail)
    file.write(line(0))
    before = len(os.listdir("/proc/self/fd"))
    for number in range(100):
        file.write(line(number))
        (tmp_path / "journal").rename(tmp_path / "old")

    assert len(os.listdir("/proc/self/fd")) == before
    file.close()


def test_a_journal_is_opened_by_whoever_writes_the_first_line(tmp_path: Path) -> None:
    file = JournalFile(str(tmp_path / "journal"), pytest.fail)
    at_first = list(tmp_path.iterdir())
    file.write(line(1))
    file.close()

    assert at_first == []
    assert steps(tmp_path / "journal") == [1]


def test_a_directory_that_is_there_only_later_is_found(tmp_path: Path) -> None:
    complaints: list[str] = []
    file = JournalFile(str(tmp_path / "later" / "journal"), complaints.append)
    file.write(line(1))
    (tmp_path / "later").mkdir()
    file.write(line(2))
    file.close()

    assert steps(tmp_path / "later" / "journal") == ["warning", 2]
    assert len(complaints) == 1


def test_a_pipe_whose_reader_comes_late_and_leaves_is_written_to_while_there_is_one(tmp_path: Path) -> None:
    path, heard = tmp_path / "fifo", list[str]()
    os.mkfifo(path)
    file = JournalFile(str(path), heard.append)

    def read_one() -> None:
        with open(path) as reader:
            heard.append(reader.readline())

    reading = threading.Thread(target=read_one)
    reading.start()

    def is_heard() -> bool:
        file.write(line(1))
        return not reading.is_alive()

    wait_until(is_heard)
    file.write(line(2))
    file.close()

    assert [text for text in heard if "saved" in text or "missing" in text]
    assert len([text for text in heard if text.startswith("journal ")]) == 1
