"""`preemptd history`: what is kept of past notices without being asked for, and what a journal tells of them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preemptd.cli.history import table
from preemptd.observe.history import Entry, Story, last_of_each
from preemptd.observe.history_file import LONGEST, append, read
from tests.metadata_server import FaultyEc2
from tests.test_cli import ask
from tests.test_metrics import on_ec2
from tests.waiting import wait_until
from tests.watching import Watch, trainer

pytestmark = pytest.mark.slow

NOTHING_KEPT = "no notice was acted on, says "


@pytest.fixture
def ec2() -> Iterator[FaultyEc2]:
    with FaultyEc2(grace=60.0) as server:
        yield server


def entries(*options: str) -> list[dict[str, object]]:
    ended = ask("history", "--json", *options)
    assert (ended.returncode, ended.stderr) == (0, "")
    return [json.loads(line) for line in ended.stdout.splitlines()]


def preempted(directory: Path, server: FaultyEc2, *options: str, how: str = "link") -> Watch:
    """Run a training to its end by a notice."""
    with Watch(directory, trainer(how), *options, env=on_ec2(server)) as watch:
        watch.await_said("ready")
        server.announcement.announce()
        assert watch.wait() == 75
    return watch


def test_a_notice_is_kept_with_what_it_took_and_how_it_ended(tmp_path: Path, ec2: FaultyEc2) -> None:
    preempted(tmp_path, ec2, "--job-id", "run42")
    ended = ask("history")
    (entry,) = entries()

    assert (entry["provider"], entry["kind"], entry["job_id"]) == ("ec2", "terminate", "run42")
    assert (entry["told"], entry["saved"], entry["marked"]) == (1, 1, 0)
    tell, save, spare = (float(str(entry[name])) for name in ("tell_s", "save_s", "spare_s"))
    assert 0 < tell < save
    assert 0 < spare < 60
    assert (entry["end"], entry["status"], entry["preempted"], entry["requeued"]) == ("settled", 75, True, False)
    heading, row = ended.stdout.splitlines()
    assert heading.split()[:3] == ["when", "provider", "kind"]
    assert "  run42  " in row
    assert row.endswith("  exit 75: preempted (its own status was 0)")


def test_the_journal_tells_the_same(tmp_path: Path, ec2: FaultyEc2) -> None:
    watch = preempted(tmp_path, ec2)
    (kept,) = entries()
    (told,) = entries("--journal", str(watch.journal))

    assert {**kept, "id": "", "by": {}} == {**told, "id": "", "by": {}}


def test_each_job_of_a_machine_leaves_its_entry_and_last_shows_the_latest(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        with FaultyEc2(grace=60.0) as server:
            preempted(tmp_path / name, server, "--job-id", name, how="USR1")

    assert [entry["job_id"] for entry in entries()] == ["a", "b", "c"]
    assert [entry["job_id"] for entry in entries("--last", "2")] == ["b", "c"]


def test_a_preemptd_that_was_killed_leaves_what_had_happened(tmp_path: Path, ec2: FaultyEc2) -> None:
    with Watch(tmp_path, trainer("USR1", save=30), env=on_ec2(ec2)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        watch.await_line("told")
        wait_until(lambda: [entry["told"] for entry in entries()] == [1])
        (before,) = entries()
        watch.signal(signal.SIGKILL)
        watch.process.wait(20)
        (after,) = entries()
        shown = ask("history").stdout

    assert (before["end"], before["told"]) == ("open", 1)
    assert (after["end"], after["told"], after["saved"]) == ("cut off", 1, 0)
    assert shown.rstrip().endswith("no end is known: preemptd was killed")


def test_a_notice_that_is_taken_back_is_over_and_a_training_that_left_for_it_is_told_of(
    tmp_path: Path, ec2: FaultyEc2
) -> None:
    with Watch(tmp_path, trainer("USR1", save=2), env=on_ec2(ec2)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        watch.await_line("told")
        ec2.announcement.revoke()
        watch.await_line("revoked")
        status = watch.wait()
    (entry,) = entries()
    words = read(str(Path(os.environ["XDG_STATE_HOME"], "preemptd", "history.jsonl")))

    assert [word["end"] for word in words[-3:]] == [None, "revoked", "settled"]
    assert table(words[-2:-1]).endswith("taken back")
    assert (status, entry["end"], entry["status"], entry["preempted"]) == (75, "settled", 75, True)


def test_a_rehearsal_and_an_ordinary_end_leave_nothing() -> None:
    rehearsed = ask("rehearse", "--after", "0.3", "--grace", "8", "--", *trainer("link"))
    plain = ask("watch", "--", "true")
    ended = ask("history")

    assert (rehearsed.returncode, plain.returncode) == (0, 0)
    assert (ended.returncode, entries()) == (0, [])
    assert ended.stdout.startswith(NOTHING_KEPT)
    assert ended.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--last", "0"], "--last 0: a number from 1 on"),
        (["--journal", "absent"], "journal absent cannot be read: No such file or directory"),
        (["--journal", "/"], "journal / cannot be read: Is a directory"),
    ],
)
def test_what_cannot_be_shown_is_one_line_and_status_2(options: list[str], said: str) -> None:
    ended = ask("history", *options)

    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"preemptd: {said}\n")


@pytest.mark.parametrize("named", [True, False])
def test_a_disk_that_takes_nothing_is_said_once_and_only_to_who_named_the_directory(
    tmp_path: Path, ec2: FaultyEc2, named: bool
) -> None:
    state = tmp_path / "state" / "preemptd"
    state.mkdir(parents=True)
    (state / "history.jsonl").symlink_to("/dev/full")
    where = ("--state-dir", str(state)) if named else ()
    with Watch(
        tmp_path, trainer("USR1"), *where, env={**on_ec2(ec2), "XDG_STATE_HOME": str(tmp_path / "state")}
    ) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        status = watch.wait()
    warnings = [line["text"] for line in watch.lines("warning")]

    assert status == 75
    assert [text for text in warnings if "history" in str(text)] == [
        f"history {state}/history.jsonl cannot be written (No space left on device): no notice is kept there"
    ] * named


WRITER = """
import sys
from preemptd.observe.history_file import append
for number in range(int(sys.argv[3])):
    append(sys.argv[1], {"id": f"{sys.argv[2]}-{number}", "t": number, "pad": "x" * 2000})
"""


def test_several_processes_write_whole_lines_into_a_file_that_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(number), "300"]) for number in range(4)]
    statuses = [writer.wait(50) for writer in writers]
    files = [path, tmp_path / "history.jsonl.1"]
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]

    assert statuses == [0, 0, 0, 0]
    assert sorted(tmp_path.iterdir()) == files
    assert all(file.stat().st_size < LONGEST + 3000 for file in files)
    assert len({line["id"] for line in lines}) == len(lines) > LONGEST // 2200
    assert all(line["pad"] == "x" * 2000 for line in lines)


def test_a_line_that_was_cut_off_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    append(str(path), {"id": "a", "t": 1})
    with path.open("a") as file:
        file.write('{"id": "b", "t"')
    append(str(path), {"id": "c", "t": 3})

    assert [entry["id"] for entry in read(str(path))] == ["a", "c"]


# -- the reading of lines --------------------------------------------------------------------------------------------


def story(*lines: Mapping[str, object]) -> list[Entry]:
    reader = Story({})
    found = [entry for line in lines if (entry := reader.take(line)) is not None]
    left = reader.close()
    return last_of_each([*found, *([left] if left else [])])


def notice(event_id: str, t: float = 1.0, **more: object) -> dict[str, object]:
    return {"event": "notice", "t": t, "event_id": event_id, "acted": True, "grace": 30.0, **more}


SETTLED = {"event": "settled", "status": 75, "preempted": True, "why": "preempted"}


def test_notices_that_are_open_together_are_one_entry_until_the_last_is_taken_back() -> None:
    revoked = {"event": "revoked", "event_id": "a"}
    (entry,) = story(notice("a"), notice("b"), notice("a", kind="stop"), revoked, SETTLED)

    assert (entry["event_id"], entry["kind"], entry["notices"], entry["end"]) == ("a", "stop", 2, "settled")


def test_of_notices_that_are_open_together_the_one_that_ends_first_is_named() -> None:
    first, sooner = notice("a", 1.0, kind="stop"), notice("b", 5.0, kind="preempt", grace=10.0)
    (entry,) = story(first, sooner, notice("c", 6.0, grace=5.0, acted=False), SETTLED)

    assert (entry["t"], entry["event_id"], entry["kind"], entry["grace"]) == (1.0, "b", "preempt", 14.0)


def test_a_notice_that_came_with_the_end_counts_only_if_it_was_the_reason() -> None:
    late = notice("a", acted=False)

    assert [entry["status"] for entry in story(late, SETTLED)] == [75]
    assert story(late, {**SETTLED, "preempted": False, "status": 0}) == []


def test_a_requeue_is_known_by_what_settle_says() -> None:
    why = "preempted (its own status was 0); requeued job 7 (preempt, restart 1)"

    assert [entry["requeued"] for entry in story(notice("a"), {**SETTLED, "why": why})] == [True]
    assert [entry["requeued"] for entry in story(notice("a"), SETTLED)] == [False]


def test_marks_and_tellings_count_to_the_last_and_a_dry_run_tells_nobody() -> None:
    (entry,) = story(
        notice("a"),
        {"event": "marked", "ok": True, "ms": 4.0},
        {"event": "marked", "ok": False, "ms": 9.0},
        {"event": "told", "ms": 5.0},
        {"event": "told", "ms": 900.0},
        {"event": "told", "ms": 950.0, "dry_run": True},
        {"event": "saved", "ms": None},
        {"event": "repaired", "ok": True, "how": "nothing"},
        {"event": "repaired", "ok": True, "how": "api"},
        {"event": "stopped", "why": "a new configuration"},
    )

    assert (entry["marked"], entry["not_marked"], entry["mark_s"]) == (1, 1, 0.004)
    assert (entry["told"], entry["tell_s"], entry["saved"], entry["mended"]) == (2, 0.9, 0, 1)
    assert table([entry]).endswith("still open when preemptd ended: a new configuration")


EVENTS = ["started", "notice", "told", "marked", "saved", "repaired", "exited", "revoked", "settled", "stopped"]
FIELDS = ["t", "event_id", "acted", "ms", "ok", "how", "grace", "status", "why", "spare", "kind", "preempted"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
LINES = st.builds(
    lambda event, fields: {"event": event, **fields},
    st.sampled_from(EVENTS),
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6),
)


@given(st.lists(LINES, max_size=12))
def test_whatever_a_journal_holds_can_be_shown(lines: list[dict[str, object]]) -> None:
    found = story(*lines)

    assert len(table(found).splitlines()) == len(found) + 1


def test_a_file_of_something_else_is_no_history(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(os.urandom(3000) + b"\n" + b"[" * 100_000 + b'\n7\n{"id": []}\n')

    assert read(str(path)) == []
