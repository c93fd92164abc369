import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from preemptd.journal import Journal, Line
from preemptd.journal_file import JournalFile, Lines
from preemptd.log import Log, printable, say
from tests.waiting import wait_until

NOTICE = {
    "event": "notice",
    "provider": "ec2",
    "event_id": "e1",
    "kind": "terminate",
    "source": "spot/instance-action",
    "remaining": 118.2,
    "grace": 118.2,
    "acted": True,
    "why": "",
}
TOLD = {"event": "told", "pid": 7, "how": "USR1", "ms": 5.7, "command": "python train.py"}


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def fill(fd: int) -> None:
    """Make a pipe as full as it gets, as when nobody reads it."""
    os.set_blocking(fd, False)
    try:
        while True:
            os.write(fd, bytes(65536))
    except BlockingIOError:
        os.set_blocking(fd, True)


def read_all(fd: int) -> str:
    os.set_blocking(fd, False)
    text = b""
    try:
        while chunk := os.read(fd, 65536):
            text += chunk
    except BlockingIOError:
        pass
    return text.decode()


def test_lines_hold_their_event_both_clocks_and_what_was_given(tmp_path: Path) -> None:
    journal = Journal()
    journal.add(JournalFile(str(tmp_path / "journal"), journal.warn))
    before = time.time()
    journal.start()
    journal.write("told", pid=7, path=Path("x"))
    journal.close()
    (line,) = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()]

    assert (line["event"], line["pid"], line["path"]) == ("told", 7, "x")
    assert abs(line["t"] - before) < 60
    assert abs(line["mono"] - time.monotonic()) < 60


def test_lines_from_many_threads_are_whole_and_each_threads_are_in_order(tmp_path: Path) -> None:
    journal = Journal()
    journal.add(JournalFile(str(tmp_path / "journal"), journal.warn))
    journal.start()

    def write(number: int) -> None:
        for step in range(200):
            journal.write("saved", pid=number, step=step)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    lines = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()]

    assert all([line["step"] for line in lines if line["pid"] == number] == list(range(200)) for number in range(4))


def test_what_was_said_before_a_start_that_never_came_is_written_at_close(tmp_path: Path) -> None:
    journal = Journal()
    journal.add(JournalFile(str(tmp_path / "journal"), journal.warn))
    journal.warn("early")
    journal.close()

    assert "early" in (tmp_path / "journal").read_text()


def test_a_complaint_that_comes_behind_the_end_is_heard() -> None:
    journal, kept = Journal(), Lines()
    journal.add(kept)
    journal.add(JournalFile("/dev/full", journal.warn))
    journal.write("told")
    journal.close()

    assert [line["event"] for line in kept.lines] == ["told", "warning"]


def test_a_journal_is_appended_to(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("old\n")
    file = JournalFile(str(tmp_path / "journal"), pytest.fail)
    file.write(TOLD)
    file.close()

    assert (tmp_path / "journal").read_text().startswith('old\n{"event": "told"')


@pytest.mark.parametrize("name", ["file/journal", ".", "fifo"])
def test_a_journal_that_cannot_be_opened_is_said_once_and_done_without(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    complaints: list[str] = []
    file = JournalFile(str(tmp_path / name), complaints.append)
    file.write(TOLD)
    file.write(TOLD)
    file.close()

    assert len(complaints) == 1
    assert complaints[0].endswith("what it misses is lost")


def test_a_journal_on_a_full_disk_is_said_once() -> None:
    complaints: list[str] = []
    file = JournalFile("/dev/full", complaints.append)
    file.write(TOLD)
    file.write(TOLD)
    file.close()

    assert complaints == ["journal /dev/full cannot be written (No space left on device): what it misses is lost"]


def test_a_pipe_that_nobody_reads_costs_a_second_once_and_never_the_end(pipe: tuple[int, int]) -> None:
    fill(pipe[1])
    journal, kept = Journal(), Lines()
    journal.add(Log(pipe[1], "text"))
    journal.add(kept)
    journal.start()
    began = time.monotonic()
    for _ in range(500):
        journal.write(**TOLD)  # type: ignore[arg-type]  # an event and its fields
    journal.close(timeout=20)

    assert len(kept.lines) == 500
    assert time.monotonic() - began < 15


def test_a_pipe_that_is_read_again_gets_lines_again(pipe: tuple[int, int]) -> None:
    fill(pipe[1])
    log = Log(pipe[1], "text")
    log.write(TOLD)
    read_all(pipe[0])
    log.write(NOTICE)
    text = read_all(pipe[0])

    assert "NOTICE from ec2" in text
    assert "told" not in text


def test_a_line_that_is_longer_than_a_pipe_does_not_stop_the_writer(pipe: tuple[int, int]) -> None:
    size = fcntl.fcntl(pipe[1], 1032)  # F_GETPIPE_SZ
    log = Log(pipe[1], "json")
    log.write({**TOLD, "command": "x" * (3 * size)})

    assert len(read_all(pipe[0])) == size


def test_a_reader_that_has_gone_costs_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    log = Log(writing, "text")
    log.write(TOLD)
    log.write(TOLD)
    log.close()
    os.close(writing)


def test_json_logs_are_the_journals_own_lines(pipe: tuple[int, int]) -> None:
    log = Log(pipe[1], "json")
    log.write(TOLD)
    log.write({"event": "progress", "text": "12 s left"})

    assert [json.loads(line) for line in read_all(pipe[0]).splitlines()] == [TOLD]


def test_progress_stands_on_the_last_line_of_a_terminal_and_is_wiped_for_the_next() -> None:
    master, terminal = os.openpty()
    log = Log(terminal, "text")
    for left in (3, 2):
        log.write({"event": "progress", "text": f"{left} s left"})
    log.write(TOLD)
    log.write({"event": "progress", "text": "1 s left"})
    log.close()
    os.close(terminal)
    screen = b""
    with contextlib.suppress(OSError):  # EIO: all is read, and nobody has the terminal open
        while chunk := os.read(master, 4096):
            screen += chunk
    os.close(master)

    assert screen.decode().replace("\r\n", "\n") == (
        "\r\x1b[K3 s left\r\x1b[K2 s left\r\x1b[K"
        "preemptd: told pid 7 by SIGUSR1 after 6 ms: python train.py\n"
        "\r\x1b[K1 s left\r\x1b[K"
    )


def test_a_notice_that_comes_again_is_said_again_to_people_if_its_kind_or_its_end_is_another(
    pipe: tuple[int, int],
) -> None:
    log = Log(pipe[1], "text")
    for change in ({}, {"kind": "stop"}, {"kind": "stop", "grace": 60.0}, {"event_id": "another", "kind": "stop"}):
        for repeated in (change, change, {**change, "acted": False, "why": "the command has ended"}):
            log.write({**NOTICE, **repeated})

    assert [line.split()[4:7] for line in read_all(pipe[0]).splitlines()] == [
        ["terminate", "in", "118"],
        ["stop", "in", "118"],
        ["stop", "in", "60"],
        ["stop", "in", "118"],
    ]


@pytest.mark.parametrize("form", ["text", "json"])
def test_progress_goes_to_no_pipe(pipe: tuple[int, int], form: str) -> None:
    log = Log(pipe[1], form)
    log.write({"event": "progress", "text": "12 s left"})
    log.close()

    assert read_all(pipe[0]) == ""


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (NOTICE, "NOTICE from ec2: terminate in 118 s (spot/instance-action)"),
        ({**NOTICE, "acted": False, "why": "it only advises"}, "not acted on, it only advises"),
        (TOLD, "told pid 7 by SIGUSR1 after 6 ms: python train.py"),
        ({**TOLD, "how": "link"}, "told pid 7 over the link after 6 ms: python train.py"),
        ({"event": "marked", "run_id": "r1", "ok": True, "why": None, "ms": 4.2}, "W&B run r1 marked preempting"),
        ({"event": "marked", "run_id": "r1", "ok": False, "why": "gone", "ms": 4.2}, "could not be marked preempting"),
        ({"event": "saved", "pid": 7, "step": 0, "path": "/x"}, "pid 7 has saved step 0 to /x"),
        ({"event": "saved", "pid": 7, "step": None, "path": None}, "pid 7 has saved"),
        ({"event": "settled", "status": 75, "preempted": True, "why": "preempted"}, "exit 75: preempted"),
        ({"event": "settled", "status": 0, "preempted": False, "announced": True, "why": "done"}, "exit 0: done"),
        (
            {**NOTICE, "kind": "requested", "meaning": "stopped"},
            "NOTICE from ec2: somebody stops this job, it does not",
        ),
        ({**NOTICE, "kind": "cancelled", "meaning": "stopped"}, "NOTICE from ec2: cancelled in 118 s"),
        ({"event": "warning", "text": "mind"}, "warning: mind"),
        ({"event": "serving", "targets": 2, "wandb": True}, "preemptd: looking after 2 targets"),
        ({"event": "serving", "targets": 1, "wandb": False}, "1 target; W&B runs are neither marked nor mended"),
    ],
)
def test_people_read_what_happened(line: Line, text: str) -> None:
    assert text in say(line)
    assert say(line).startswith("preemptd: ")


def test_each_event_has_one_line_whatever_stands_in_it(pipe: tuple[int, int]) -> None:
    log = Log(pipe[1], "text")
    log.write({**TOLD, "command": "a\nb\x1b[2J\udcff ü"})

    assert read_all(pipe[0]).splitlines() == ["preemptd: told pid 7 by SIGUSR1 after 6 ms: a\\nb\\x1b[2J\\udcff ü"]


def test_a_log_survives_what_is_no_text(pipe: tuple[int, int]) -> None:
    journal = Journal()
    journal.add(Log(pipe[1], "text"))
    journal.start()
    journal.warn("\ud800")
    journal.warn("after")
    journal.close()
    text = read_all(pipe[0])

    assert "after" in text


def test_kept_lines_leave_progress_out() -> None:
    journal, kept = Journal(), Lines()
    journal.add(kept)
    journal.start()
    journal.progress("12 s left")
    journal.warn("mind")
    wait_until(lambda: kept.lines)
    journal.close()

    assert [line["event"] for line in kept.lines] == ["warning"]


def test_printable_text_stays_as_it_is() -> None:
    assert printable("Zürich 東京 {}") == "Zürich 東京 {}"
