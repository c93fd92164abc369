import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from preemptd.errors import ConfigError
from preemptd.events import LedgerWritten
from preemptd.ledger import JobLedger, NoLedger, Record, Told
from preemptd.model import ProcessId
from tests.waiting import wait_until

PROCESS = ProcessId(4711, 99)
FULL = Record("life", PROCESS, 4711, 2, 1, 1.5, (Told("a", PROCESS, "USR1"), Told("b", PROCESS, "link")))


class Heard:
    def __init__(self) -> None:
        self.written: list[int] = []
        self.complaints: list[str] = []

    def put(self, event: LedgerWritten) -> None:
        self.written.append(event.number)

    def open(self, directory: Path, job: str = "job") -> JobLedger:
        return JobLedger(str(directory), job, self.put, self.complaints.append)


@pytest.fixture
def heard() -> Heard:
    return Heard()


def test_the_next_daemon_reads_what_this_one_wrote(tmp_path: Path, heard: Heard) -> None:
    first = heard.open(tmp_path)
    first.write_now(FULL)
    first.close()
    second = heard.open(tmp_path)
    second.close()

    assert second.record == FULL
    assert heard.complaints == []


def test_a_first_page_is_empty(tmp_path: Path, heard: Heard) -> None:
    ledger = heard.open(tmp_path / "made" / "for" / "it")
    ledger.close()

    assert ledger.record == Record()
    assert (tmp_path / "made" / "for" / "it").stat().st_mode & 0o077 == 0


def test_the_writing_thread_says_when_a_record_is_out(tmp_path: Path, heard: Heard) -> None:
    ledger = heard.open(tmp_path)
    ledger.start()
    number = ledger.write(FULL)
    wait_until(lambda: number in heard.written)
    on_disk = json.loads((tmp_path / "job.json").read_text())
    ledger.close()

    assert ledger.record == FULL
    assert on_disk["attempt"] == 2


def test_the_last_record_is_on_the_disk_after_close(tmp_path: Path, heard: Heard) -> None:
    ledger = heard.open(tmp_path)
    ledger.start()
    for attempt in range(100):
        ledger.write(Record(attempt=attempt))
    ledger.close()
    again = heard.open(tmp_path)
    again.close()

    assert again.record.attempt == 99
    assert not (tmp_path / "job.json.new").exists()


def test_a_second_watch_of_the_job_is_refused_and_the_first_is_named(tmp_path: Path, heard: Heard) -> None:
    first = heard.open(tmp_path)
    with pytest.raises(ConfigError, match=f"already watched by pid {os.getpid()}"):
        heard.open(tmp_path)
    heard.open(tmp_path, "other").close()
    first.close()

    heard.open(tmp_path).close()


def test_the_lock_goes_with_the_process_and_is_not_inherited(tmp_path: Path, heard: Heard) -> None:
    code = (
        "import sys, subprocess\n"
        "from preemptd.ledger import JobLedger\n"
        "JobLedger(sys.argv[1], 'job', print, print)\n"
        "left = subprocess.Popen(['sleep', '60'], close_fds=False)\n"
        "print(left.pid, flush=True)\n"
        "import os; os._exit(0)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    left = int(run.stdout.readline())
    run.wait(20)
    try:
        heard.open(tmp_path).close()
    finally:
        os.kill(left, 9)
        run.stdout.close()

    assert heard.complaints == []


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"told": 3}', '{"training": {"pid": 1}, "told": []}', "\xff"])
def test_a_damaged_ledger_is_named_and_begun_anew(tmp_path: Path, heard: Heard, text: str) -> None:
    (tmp_path / "job.json").write_bytes(text.encode("latin-1"))
    ledger = heard.open(tmp_path)
    ledger.write_now(FULL)
    ledger.close()
    again = heard.open(tmp_path)
    again.close()

    assert ledger.record == again.record == FULL
    assert [complaint.partition(" (")[0] for complaint in heard.complaints] == [
        f"ledger {tmp_path}/job.json cannot be read"
    ]


def test_a_directory_that_cannot_be_made_is_said_once_and_done_without(tmp_path: Path, heard: Heard) -> None:
    (tmp_path / "file").touch()
    ledger = heard.open(tmp_path / "file" / "state")
    ledger.start()
    ledger.write_now(FULL)
    number = ledger.write(FULL)
    wait_until(lambda: number in heard.written)
    ledger.close()

    assert len(heard.complaints) == 1
    assert "--job-id has no effect" in heard.complaints[0]


def test_a_ledger_that_can_no_longer_be_written_is_said_once(tmp_path: Path, heard: Heard) -> None:
    ledger = heard.open(tmp_path)
    (tmp_path / "job.json.new").mkdir()
    ledger.write_now(FULL)
    ledger.write_now(FULL)
    ledger.close()

    assert heard.complaints == [
        f"ledger {tmp_path}/job.json cannot be written (Is a directory): a restart may tell twice"
    ]


def test_a_revoked_event_is_forgotten_alone() -> None:
    assert [told.event_id for told in FULL.forgetting("a").told] == ["b"]


def test_without_a_job_id_everything_counts_as_written_at_once(heard: Heard) -> None:
    ledger = NoLedger(heard.put)

    number = ledger.write(FULL)

    assert heard.written == [number]
    assert ledger.record == FULL
