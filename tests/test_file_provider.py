import json
import os
import time
from pathlib import Path

import pytest

from preemptd.errors import ConfigError
from preemptd.events import Event, NoticeArrived, NoticeRevoked, WatchChanged
from preemptd.notices import Kind, Level
from preemptd.poller import Poller
from preemptd.provider import Found, Machine, State, Surroundings
from preemptd.registry import options_for
from preemptd_providers._signal_file import addresses
from preemptd_providers.file import FileOptions, SignalFile
from tests.signal_files import notice_of, surroundings, watch_of
from tests.waiting import wait_until


def test_no_file_is_clear(tmp_path: Path) -> None:
    assert watch_of(tmp_path).observe().state is State.CLEAR


def test_a_missing_directory_is_clear(tmp_path: Path) -> None:
    assert watch_of(tmp_path / "not there").observe().state is State.CLEAR


def test_a_touched_file_is_a_preemption_with_an_unknown_deadline(tmp_path: Path) -> None:
    (tmp_path / "12.preempt").touch()

    notice = notice_of(watch_of(tmp_path))

    assert (notice.provider, notice.kind, notice.level) == ("file", Kind.PREEMPT, Level.ACT)
    assert (notice.remaining, notice.deadline) == (None, None)
    assert notice.source == str(tmp_path / "12.preempt")
    assert notice.already_sent == frozenset()


def test_a_file_is_seen_that_appears_later_and_gone_is_clear(tmp_path: Path) -> None:
    watch = watch_of(tmp_path)
    before = watch.observe().state
    path = tmp_path / "12.preempt"
    path.touch()
    during = watch.observe().state
    path.unlink()

    assert (before, during, watch.observe().state) == (State.CLEAR, State.NOTICE, State.CLEAR)


def test_json_names_the_deadline_and_unknown_keys_are_ignored(tmp_path: Path) -> None:
    deadline = time.time() + 90
    text = json.dumps({"v": 1, "deadline": deadline, "reason": "spot", "requeue": True, "new": [1]})
    (tmp_path / "12.preempt").write_text(text)

    notice = notice_of(watch_of(tmp_path))

    assert notice.remaining == pytest.approx(90, abs=5)
    assert notice.deadline is not None
    assert notice.deadline.timestamp() == pytest.approx(deadline, abs=0.01)
    assert notice.detail == text


def test_a_deadline_long_past_is_told_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "12.preempt").write_text(json.dumps({"deadline": int(time.time()) - 3600}))

    assert notice_of(watch_of(tmp_path)).remaining == pytest.approx(-3600, abs=5)


def test_what_remains_is_computed_once_so_that_a_clock_that_jumps_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "12.preempt").write_text(json.dumps({"deadline": time.time() + 90}))
    watch = watch_of(tmp_path)

    assert notice_of(watch) is notice_of(watch)


def test_a_cancelled_job_gets_advice_and_is_never_told_or_marked(tmp_path: Path) -> None:
    (tmp_path / "12.preempt").write_text('{"kind": "cancel"}')

    notice = notice_of(watch_of(tmp_path))

    assert (notice.level, notice.act_within) == (Level.ADVISE, None)


@pytest.mark.parametrize("text", ["not json", "{", "[]", "17", '"now"', "null", "\0\xff", "[" * 60_000, "{}"])
def test_text_that_makes_no_sense_counts_as_an_empty_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "12.preempt").write_text(text, encoding="latin-1")

    notice = notice_of(watch_of(tmp_path))

    assert (notice.level, notice.remaining) == (Level.ACT, None)


@pytest.mark.parametrize(
    "deadline", ["NaN", "Infinity", "-1", "1e999", "true", '"soon"', "[]", "1700000000000", "9" * 400, "0"]
)
def test_a_deadline_that_is_no_time_is_an_unknown_deadline(tmp_path: Path, deadline: str) -> None:
    (tmp_path / "12.preempt").write_text(f'{{"deadline": {deadline}}}')

    notice = notice_of(watch_of(tmp_path))

    assert (notice.level, notice.remaining) == (Level.ACT, None)


def test_a_file_that_is_just_being_written_is_read_again_before_it_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "12.preempt"
    path.touch()  # `echo ... > FILE` is between its open() and its write() when we look
    monkeypatch.setattr(time, "sleep", lambda _: path.write_text('{"kind": "cancel"}'))

    assert notice_of(watch_of(tmp_path)).level is Level.ADVISE


# Names


@pytest.mark.parametrize(
    "name", ["12.preempt", "12.3.preempt", "7_4.preempt", "7.preempt", "99.preempt", "node-n1.preempt"]
)
def test_each_documented_name_is_heard(tmp_path: Path, name: str) -> None:
    environ = {
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "4",
        "SLURM_JOB_ID": "99",
        "SLURMD_NODENAME": "n1",
    }
    (tmp_path / name).touch()

    assert notice_of(watch_of(tmp_path, environ=environ, attempt=3)).source.endswith(name)


@pytest.mark.parametrize(
    "name", ["13.preempt", "12.4.preempt", "node-n2.preempt", "12", ".12.preempt.tmp", "12.preempt.ack", "7.3.preempt"]
)
def test_files_for_others_are_not_heard(tmp_path: Path, name: str) -> None:
    environ = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "4", "SLURMD_NODENAME": "n1"}
    (tmp_path / name).touch()

    assert watch_of(tmp_path, environ=environ, attempt=3).observe().state is State.CLEAR


def test_without_slurm_the_node_has_its_host_name_short_and_full(tmp_path: Path) -> None:
    host = os.uname().nodename
    names = {os.path.basename(place.path) for place in addresses([str(tmp_path)], None, Surroundings({}))}

    assert names == {f"node-{host}.preempt", f"node-{host.partition('.')[0]}.preempt"}


@pytest.mark.parametrize("job_id", ["../elsewhere", "/etc/passwd", "a\0b", "", "."])
def test_a_job_id_that_is_no_file_name_leads_nowhere_else(tmp_path: Path, job_id: str) -> None:
    directory = tmp_path / "signals"
    directory.mkdir()
    (tmp_path / "elsewhere.preempt").touch()

    assert watch_of(directory, job_id=job_id).observe().state is State.CLEAR


@pytest.mark.parametrize("name", ["with space", "quo'te\"", "new\nline", "ünï", "\udcff", "-x", "%s"])
def test_hostile_paths_are_heard_and_stay_on_one_line_of_the_log(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    directory.mkdir()
    (directory / f"{name}.preempt").touch()

    notice = notice_of(watch_of(directory, job_id=name))

    for text in (notice.source, notice.event_id):
        text.encode()
        assert text.isprintable()


def test_an_exact_path_is_heard_besides_the_directories(tmp_path: Path) -> None:
    path = tmp_path / "spot_termination_notice"
    watch = watch_of(tmp_path / "none", FileOptions(path=str(path)))
    before = watch.observe().state
    path.touch()

    assert (before, notice_of(watch).source) == (State.CLEAR, str(path))


@pytest.mark.parametrize("path", ["relative", "", "/tmp/", "/a\0b", 3])
def test_a_path_that_cannot_be_a_file_is_refused_at_the_start(path: object) -> None:
    with pytest.raises(ConfigError, match=r"\[providers\.file\] path = "):
        options_for(SignalFile, {"path": path})


# Under way


def test_through_the_poller_each_file_is_announced_once_and_revoked_once(tmp_path: Path) -> None:
    watch = watch_of(tmp_path)
    watch.interval = 0.05
    events: list[Event] = []
    poller = Poller(watch, events.append)
    path = tmp_path / "12.preempt"
    poller.start()
    wait_until(lambda: len(events) == 1)
    for change in (path.touch, path.unlink, path.touch, path.unlink, path.mkdir, path.rmdir):
        expected = len(events) + 1
        change()
        wait_until(lambda expected=expected: len(events) == expected)  # type: ignore[misc]  # binds the loop's value
    poller.stop()

    assert [type(event) for event in events] == [
        WatchChanged,
        *[NoticeArrived, NoticeRevoked] * 2,
        WatchChanged,
        WatchChanged,
    ]


def test_it_is_detected_by_its_variable() -> None:
    detection = SignalFile.detect(Machine({"PREEMPTD_SIGNAL_DIR": "/x"}))

    assert detection is not None
    assert detection.found is Found.ENVIRONMENT


def test_it_says_where_it_looks(tmp_path: Path) -> None:
    known = surroundings(tmp_path, environ={"SLURMD_NODENAME": "n1"})
    names = f"12.preempt or 12.0.preempt or node-n1.preempt in {tmp_path} or /run/preemptd-signals"

    assert SignalFile(FileOptions(), known).describe() == names
    assert SignalFile(FileOptions(path="/x"), known).describe() == f"/x, {names}"
