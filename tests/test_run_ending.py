"""What the end of a run calls for, and what is done without a real wandb."""

import os
import time
from pathlib import Path

import pytest

from preemptd.model import ProcessId, Run
from preemptd.runs.ending import Action, Left, decide, left_behind
from preemptd.runs.mending import Mender, Policy, Repair
from preemptd.runs.owner import Owner, rights_of
from preemptd.runs.roster import Entry, Roster
from tests.transaction_logs import EXIT, PREEMPTING, RUN, exit_record, run_record, write_log

CODE = 75
GONE = ProcessId(os.getpid(), 1)
ONLINE = "run-20260102_030405-abc"
OFFLINE = "offline-run-20260102_030405-abc"


def left(
    code: int | None, *, marked: bool = True, delivered: bool = True, offline: bool = False, final: bool = False
) -> Left:
    return Left(offline, marked, code, delivered, "team", "project", has_run=True, final=final)


@pytest.mark.parametrize(
    ("found", "action", "code"),
    [
        (left(143), Action.NOTHING, 143),
        (left(1), Action.NOTHING, 1),
        (left(-1), Action.NOTHING, -1),
        (left(0), Action.REPAIR, CODE),
        (left(None), Action.REPAIR, CODE),
        (left(143, marked=False), Action.REPAIR, 143),
        (left(143, delivered=False), Action.REPAIR, 143),
        (left(143, offline=True, final=True), Action.NOTHING, 143),
        (left(143, offline=True), Action.AMEND, 143),
        (left(143, offline=True, final=True, marked=False), Action.AMEND, 143),
        (left(0, offline=True, final=True), Action.AMEND, CODE),
        (left(None, offline=True), Action.AMEND, CODE),
        (Left(True, True, None, False, has_run=False), Action.GIVE_UP, None),
        (Left(False, True, None, False, why="unreadable"), Action.GIVE_UP, None),
    ],
)
def test_a_run_has_to_be_marked_and_to_end_with_a_code_that_is_not_0(found: Left, action: Action, code: int) -> None:
    decision = decide(found, CODE)

    assert (decision.action, decision.code) == (action, code)
    assert decision.why


def entry_in(directory: Path, **more: object) -> Entry:
    entry = Entry(Run("abc", GONE.pid, GONE.pid, str(directory)))
    entry.owner = Owner(GONE, GONE, rights_of("self"), "/", {}, None, None, confined=False)
    for name, value in more.items():
        setattr(entry, name, value)
    return entry


def run_directory(tmp_path: Path, name: str, *records: bytes, said: str | None = "stream: closed") -> Path:
    directory = tmp_path / "wandb" / name
    (directory / "logs").mkdir(parents=True)
    if said is not None:
        (directory / "logs" / "debug-internal.log").write_text(said)
    write_log(directory / "run-abc.wandb", *records)
    return directory


def test_what_a_run_left_behind_is_read_from_its_files(tmp_path: Path) -> None:
    directory = run_directory(tmp_path, ONLINE, run_record("team", "project"), PREEMPTING, exit_record(143))

    assert left_behind(entry_in(directory)) == Left(False, True, 143, True, "team", "project")


def test_a_mark_that_was_acknowledged_needs_no_record_on_the_disk_but_offline(tmp_path: Path) -> None:
    online = run_directory(tmp_path, ONLINE, run_record("", "project"))
    offline = run_directory(tmp_path, OFFLINE, run_record("", "project"))

    assert left_behind(entry_in(online, marked=True)).marked
    assert not left_behind(entry_in(offline, marked=True)).marked


@pytest.mark.parametrize(
    ("said", "delivered"),
    [
        ("x\nstream: all finished\n", True),
        ("x\nstream: closed\n", True),
        ('"filestream: sending request","complete":true,"exit_code":1}\n"filestream: request sent"\n', True),
        ('"filestream: sending request","complete":true,"exit_code":1}\n', False),
        ('"filestream: request sent"\n"filestream: sending request","complete":true}\n', False),
        ("stream: closing\n", False),
        ("", False),
        (None, True),
    ],
)
def test_what_wandb_core_did_not_get_rid_of_was_not_delivered(
    tmp_path: Path, said: str | None, delivered: bool
) -> None:
    directory = run_directory(tmp_path, ONLINE, run_record("", "p"), exit_record(143), said=said)

    assert left_behind(entry_in(directory)).delivered is delivered


def test_a_run_without_a_log_is_not_judged(tmp_path: Path) -> None:
    decision = decide(left_behind(entry_in(tmp_path)), CODE)

    assert decision.action is Action.GIVE_UP
    assert "no transaction log" in decision.why


def test_a_log_that_is_a_fifo_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run-abc.wandb")

    assert "not a plain file" in str(left_behind(entry_in(tmp_path)).why)


class Known(Roster):
    """A roster that somebody else has filled."""

    def __init__(self, *entries: Entry) -> None:
        super().__init__()
        self._entries = {entry.run: entry for entry in entries}


def mend(*entries: Entry, told_at: float = 0.0, done: tuple[int, ...] = (), budget: float = 20.0) -> list[Repair]:
    repairs: list[Repair] = []
    mender = Mender(Known(*entries), repairs.append)
    mender.start(Policy(CODE, told_at, done), budget)
    assert mender.wait()
    return repairs


def test_without_runs_there_is_nothing_to_wait_for() -> None:
    began = time.monotonic()

    assert mend() == []
    assert time.monotonic() - began < 5.0


def test_a_run_that_reported_its_end_itself_is_left_alone(tmp_path: Path) -> None:
    directory = run_directory(tmp_path, ONLINE, run_record("", "p"), PREEMPTING, exit_record(143))
    (repair,) = mend(entry_in(directory))

    assert (repair.run_id, repair.ok, repair.how, repair.code) == ("abc", True, "nothing", 143)


def test_a_run_that_had_closed_before_anybody_was_told_is_left_alone(tmp_path: Path) -> None:
    directory = run_directory(tmp_path, ONLINE, run_record("", "p"), exit_record(0))
    (repair,) = mend(entry_in(directory, closed=5.0), told_at=5.1)

    assert (repair.how, repair.why) == ("nothing", "it had ended 0.1 s before anybody was told")


def test_a_wandb_core_that_fell_to_the_signal_that_is_the_notice_did_not_end_by_itself(tmp_path: Path) -> None:
    directory = run_directory(tmp_path, OFFLINE, run_record("", "p"))
    (struck,) = mend(entry_in(directory, closed=5.0), told_at=5.1)
    other = run_directory(tmp_path / "other", OFFLINE, run_record("", "p"))
    (earlier,) = mend(entry_in(other, closed=5.0), told_at=50.0)

    assert (struck.how, struck.code) == ("log", CODE)
    assert (earlier.how, earlier.why) == ("nothing", "it had ended 45.0 s before anybody was told")


def test_a_mark_that_came_after_the_exit_is_none(tmp_path: Path) -> None:
    late = run_directory(tmp_path, ONLINE, run_record("", "p"), exit_record(143), PREEMPTING)
    both = run_directory(tmp_path / "both", ONLINE, run_record("", "p"), PREEMPTING, exit_record(143), PREEMPTING)

    unwritten = run_directory(tmp_path / "unwritten", ONLINE, run_record("", "p"), exit_record(143))
    open_end = run_directory(tmp_path / "open", ONLINE, run_record("", "p"))

    assert not left_behind(entry_in(late, marked=True)).marked
    assert not left_behind(entry_in(unwritten, marked=True)).marked
    assert left_behind(entry_in(open_end, marked=True)).marked  # killed: not all was on disk
    assert left_behind(entry_in(both)).marked


def test_a_run_of_a_process_that_is_done_is_left_alone(tmp_path: Path) -> None:
    directory = run_directory(tmp_path, ONLINE, run_record("", "p"), exit_record(0))
    (repair,) = mend(entry_in(directory), done=(GONE.pid,))

    assert (repair.how, repair.why) == ("nothing", "its process said that it is done")


def test_a_run_whose_process_lives_is_never_touched(tmp_path: Path) -> None:
    directory = run_directory(tmp_path, OFFLINE, run_record("", "p"))
    entry = entry_in(directory)
    before = (directory / "run-abc.wandb").read_bytes()
    me = ProcessId(os.getpid(), _start_of(os.getpid()))
    entry.owner = Owner(me, GONE, rights_of("self"), "/", {}, None, None, confined=False)
    (repair,) = mend(entry)

    assert (repair.ok, repair.why) == (False, "its process still runs")
    assert (directory / "run-abc.wandb").read_bytes() == before


def test_another_users_run_that_nobody_could_look_at_is_named(tmp_path: Path) -> None:
    entry = Entry(Run("abc", GONE.pid, GONE.pid, str(tmp_path)), foreign=True)
    (repair,) = mend(entry)

    assert (repair.ok, repair.why) == (False, "it belongs to another user: only root can repair it")


def test_a_run_that_several_processes_wrote_is_mended_once(tmp_path: Path) -> None:
    directory = run_directory(tmp_path, OFFLINE, run_record("", "p"))
    first = entry_in(directory, closed=1.0)
    last = entry_in(directory)
    last.run = Run("abc", 7, 7, str(directory))

    assert [repair.how for repair in mend(first, last)] == ["log"]


def test_a_run_without_a_project_is_not_guessed_at(tmp_path: Path) -> None:
    (repair,) = mend(entry_in(run_directory(tmp_path, ONLINE)))

    assert (repair.ok, repair.how) == (False, "")
    assert "its project is not known" in repair.why


def test_offline_the_log_gets_what_sync_needs(tmp_path: Path) -> None:
    directory = run_directory(tmp_path, OFFLINE, run_record("", "p"), exit_record(0))
    (repair,) = mend(entry_in(directory))
    again = decide(left_behind(entry_in(directory)), CODE)

    assert (repair.ok, repair.how, repair.code) == (True, "log", CODE)
    assert (again.action, again.code) == (Action.NOTHING, CODE)


def test_the_records_that_are_written_are_those_that_are_read() -> None:
    assert (RUN, EXIT) == (17, 18)


def _start_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
