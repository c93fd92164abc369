"""The journal's sinks, each at its own pace: one that hangs holds up nobody else."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from preemptd.journal import MOST_WAITING, Journal, Line
from preemptd.journal_file import JournalFile, Lines
from preemptd.observe.history_file import HistoryFile, read
from tests.waiting import wait_until


class Gate(Lines):
    """Keeps lines, once it was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.reached = threading.Event()

    def write(self, line: Line) -> None:
        self.reached.set()
        self.open.wait(60)
        super().write(line)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def made_of(*sinks: Lines | JournalFile | HistoryFile) -> Journal:
    journal = Journal()
    for sink in sinks:
        journal.add(sink)
    journal.start()
    return journal


def events(sink: Lines) -> list[object]:
    return [line["event"] for line in sink.lines]


def test_a_file_whose_reader_sleeps_keeps_no_line_from_the_others_and_the_end_waits_its_time(tmp_path: Path) -> None:
    fifo, kept = tmp_path / "fifo", Lines()
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDWR)
    journal = made_of(JournalFile(str(fifo), lambda _: None), kept)
    for _ in range(100):
        journal.write("told", command="x" * 4000)
    wait_until(lambda: len(kept.lines) == 100)
    began = time.monotonic()
    journal.close(timeout=0.5)
    took = time.monotonic() - began
    os.close(reader)

    assert 0.4 < took < 10


def test_those_that_hang_are_waited_for_at_the_same_time() -> None:
    gates, kept = [Gate() for _ in range(5)], Lines()
    journal = made_of(*gates, kept)
    journal.write("told")
    began = time.monotonic()
    journal.close(timeout=2.0)
    took = time.monotonic() - began
    for gate in gates:
        gate.open.set()

    assert took < 8
    assert events(kept) == ["told"]


def test_what_finds_no_place_any_more_is_counted_and_said_once_when_there_is_room(gate: Gate) -> None:
    journal = made_of(gate)
    journal.write("first")
    assert gate.reached.wait(20)
    for number in range(MOST_WAITING + 7):
        journal.write("told", number=number)
    gate.open.set()
    wait_until(lambda: "warning" in events(gate))
    journal.write("last")
    journal.close()

    *before, apology, last = gate.lines
    numbers = [line["number"] for line in before if line["event"] == "told"]
    assert numbers == list(range(MOST_WAITING))
    assert apology["text"] == "7 lines are missing here: more came than could be written"
    assert last["event"] == "last"


class Care(Lines):
    """As `runs.aftercare.Aftercare`, whose `rest` ends the marking."""

    rested = False

    def rest(self) -> None:
        self.rested = True


def test_a_sink_that_marks_runs_as_well_is_not_put_to_rest_when_no_line_comes() -> None:
    care = Care()
    journal = made_of(care)
    journal.write("notice")
    journal.close()

    assert events(care) == ["notice"]
    assert not care.rested


def test_the_end_comes_when_all_is_written_that_a_slow_one_still_has(gate: Gate) -> None:
    journal = made_of(gate)
    for _ in range(1000):
        journal.write("told")
    threading.Timer(0.2, gate.open.set).start()
    journal.close(timeout=30)

    assert events(gate) == ["told"] * 1000


def test_all_of_the_many_who_are_told_together_are_in_the_history(tmp_path: Path) -> None:
    path = str(tmp_path / "history.jsonl")
    journal = made_of(HistoryFile(path, pytest.fail))
    journal.write("notice", event_id="e", provider="ec2", kind="terminate", grace=60.0, source="here", acted=True)
    for pid in range(300):
        journal.write("told", pid=pid, start=1, how="USR1", ms=1.0, dry_run=False)
    wait_until(lambda: os.path.exists(path) and read(path)[-1]["told"] == 300)
    written = len(read(path))
    journal.close()

    assert written < 300
