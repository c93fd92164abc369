import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preemptd.errors import ProviderError
from preemptd.provider import State
from preemptd_providers._signal_file import Scope, addresses, is_for_us, parse, read
from preemptd_providers.file import FileOptions
from tests.signal_files import notice_of, surroundings, watch_of

ME = frozenset({os.geteuid()})


def stale(path: Path) -> Path:
    os.utime(path, (time.time() - 3600,) * 2)
    return path


# Freshness


def test_a_file_left_by_an_earlier_run_is_not_for_us(tmp_path: Path) -> None:
    (tmp_path / "12.preempt").touch()

    assert watch_of(tmp_path, started=time.time() + 10).observe().state is State.CLEAR


def test_a_writer_whose_clock_is_a_second_behind_is_heard(tmp_path: Path) -> None:
    (tmp_path / "12.preempt").touch()

    assert watch_of(tmp_path, started=time.time() + 1).observe().state is State.NOTICE


def test_a_stale_file_that_names_this_attempt_is_obeyed(tmp_path: Path) -> None:
    (tmp_path / "12.preempt").write_text('{"restart": 3}')
    stale(tmp_path / "12.preempt")
    by_text = watch_of(tmp_path, attempt=3).observe().state
    (tmp_path / "12.preempt").rename(tmp_path / "12.4.preempt")
    (tmp_path / "12.4.preempt").write_text("")
    stale(tmp_path / "12.4.preempt")

    assert (by_text, watch_of(tmp_path, attempt=4).observe().state) == (State.NOTICE, State.NOTICE)


@pytest.mark.parametrize(("name", "text"), [("12.preempt", '{"restart": 2}'), ("12.3.preempt", '{"restart": 2}')])
def test_a_fresh_file_that_names_another_attempt_is_not_for_us(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)

    assert watch_of(tmp_path, attempt=3).observe().state is State.CLEAR


def test_a_restart_count_proves_nothing_in_a_file_whose_name_is_not_the_jobs(tmp_path: Path) -> None:
    """Each new job on the node has restart 0: a node's file of last week would preempt them all."""
    node, exact = tmp_path / "node-n1.preempt", tmp_path / "exact"
    for path in (node, exact):
        path.write_text('{"restart": 0}')
        stale(path)
    watch = watch_of(tmp_path, FileOptions(path=str(exact)), environ={"SLURMD_NODENAME": "n1"})

    assert watch.observe().state is State.CLEAR


def test_a_nodes_file_speaks_to_every_attempt(tmp_path: Path) -> None:
    (tmp_path / "node-n1.preempt").write_text('{"restart": 0}')

    assert watch_of(tmp_path, environ={"SLURMD_NODENAME": "n1"}, attempt=3).observe().state is State.NOTICE


def test_a_stale_file_that_is_touched_again_is_a_notice(tmp_path: Path) -> None:
    path = tmp_path / "12.preempt"
    path.touch()
    stale(path)
    watch = watch_of(tmp_path)
    before = watch.observe().state
    path.touch()

    assert (before, watch.observe().state) == (State.CLEAR, State.NOTICE)


# Identity


def test_the_same_file_is_the_same_event_and_a_rewrite_is_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "12.preempt"
    path.touch()
    watch = watch_of(tmp_path)
    first, again = notice_of(watch).event_id, notice_of(watch).event_id
    path.write_text('{"reason": "now really"}')

    assert first == again
    assert notice_of(watch).event_id != first


def test_of_several_files_the_most_urgent_is_the_notice(tmp_path: Path) -> None:
    now = time.time()
    (tmp_path / "12.preempt").write_text(json.dumps({"deadline": now + 600}))
    (tmp_path / "12.0.preempt").write_text(json.dumps({"kind": "cancel", "deadline": now + 5}))
    (tmp_path / "node-n1.preempt").write_text(json.dumps({"deadline": now + 90}))
    watch = watch_of(tmp_path, environ={"SLURMD_NODENAME": "n1"})
    sources = []
    for name in ("node-n1.preempt", "12.preempt", "12.0.preempt"):
        sources.append(os.path.basename(notice_of(watch).source))
        (tmp_path / name).unlink()

    assert sources == ["node-n1.preempt", "12.preempt", "12.0.preempt"]
    assert watch.observe().state is State.CLEAR


# What is refused


def a_link(path: Path) -> None:
    (path.parent / "real").touch()
    path.symlink_to(path.parent / "real")


def a_dangling_link(path: Path) -> None:
    path.symlink_to("/nowhere/at/all")


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_directory(path: Path) -> None:
    path.mkdir()


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket is short
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)


def a_big_file(path: Path) -> None:
    path.write_bytes(b" " * 65_537)


REFUSED = [a_link, a_dangling_link, a_fifo, a_directory, a_socket, a_big_file]


@pytest.mark.parametrize("make", REFUSED)
def test_what_is_no_plain_small_file_is_refused_without_blocking(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "12.preempt")

    observation = watch_of(tmp_path).observe()

    assert observation.state is State.UNKNOWN
    assert "12.preempt is refused: it is " in str(observation.error)


@pytest.mark.parametrize("make", REFUSED)
def test_a_refused_file_does_not_hide_a_good_one(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "12.preempt")
    (tmp_path / "12.0.preempt").touch()

    assert notice_of(watch_of(tmp_path)).source.endswith("12.0.preempt")


def test_a_device_is_refused_without_being_opened() -> None:
    with pytest.raises(ProviderError, match="not a regular file"):
        read("/dev/zero", ME | {0})


def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "12.preempt").touch()

    with pytest.raises(ProviderError, match=f"belongs to user {os.geteuid()}, who is not in trusted_uids"):
        read(str(tmp_path / "12.preempt"), frozenset({4_000_000}))


@pytest.mark.usefixtures("needs_root")
def test_trusted_uids_are_believed_and_others_are_not(tmp_path: Path) -> None:
    (tmp_path / "12.preempt").touch()
    os.chown(tmp_path / "12.preempt", 65534, 65534)
    strict, trusting = watch_of(tmp_path), watch_of(tmp_path, FileOptions(trusted_uids=frozenset({65534})))

    assert (strict.observe().state, trusting.observe().state) == (State.UNKNOWN, State.NOTICE)


def test_a_directory_that_is_none_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    observation = watch_of(tmp_path / "file").observe()

    assert observation.state is State.UNKNOWN
    assert "Not a directory" in str(observation.error)


@pytest.fixture
def as_nobody() -> Iterator[Callable[[], None]]:
    """Become nobody from the call to the end of the test."""
    yield lambda: os.seteuid(65534)
    os.seteuid(0)


@pytest.mark.usefixtures("needs_root")
def test_a_directory_that_may_not_be_searched_is_unknown(tmp_path: Path, as_nobody: Callable[[], None]) -> None:
    watch = watch_of(tmp_path)
    as_nobody()

    observation = watch.observe()

    assert observation.state is State.UNKNOWN
    assert "Permission denied" in str(observation.error)


@pytest.mark.usefixtures("needs_root")
def test_an_empty_file_of_root_that_we_may_not_read_says_all_the_same(as_nobody: Callable[[], None]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o711)  # to look up names, not to list them
        for name, text in (("12.preempt", ""), ("13.preempt", "{}")):
            path = Path(directory, name)
            path.write_text(text)
            path.chmod(0o600)
        empty, full = watch_of(directory), watch_of(directory, job_id="13")
        as_nobody()

        states = (empty.observe().state, full.observe().state)
        os.seteuid(0)

    assert states == (State.NOTICE, State.UNKNOWN)


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_file_is_for_us_though_the_clock_was_set_since_the_start_and_a_stale_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    watch, left = watch_of(tmp_path), tmp_path / "12.preempt"
    left.touch()
    stale(left)
    before, clock = watch.observe().state, time.time
    monkeypatch.setattr(time, "time", lambda: clock() + hours * 3600)
    after = watch.observe().state
    left.unlink()
    left.touch()
    os.utime(left, (time.time(),) * 2)

    assert (before, after) == (State.CLEAR, State.CLEAR)
    assert watch.observe().state is State.NOTICE


# Fuzz

TEXTS = (
    st.binary(max_size=300)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries(
        {},
        optional={
            "restart": st.integers() | st.text() | st.booleans(),
            "deadline": st.integers() | st.floats() | st.text() | st.none(),
            "kind": st.sampled_from(["preempt", "cancel", 1, None]),
            "reason": st.text() | st.integers(),
            "requeue": st.booleans() | st.none(),
        },
    ).map(lambda value: json.dumps(value).encode())
)


@given(raw=TEXTS)
def test_any_text_is_understood_as_something(raw: bytes) -> None:
    text = parse(raw)

    assert text.deadline is None or 0 < text.deadline < 1e12
    assert text.restart is None or type(text.restart) is int


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


@given(raw=TEXTS, name=st.sampled_from(["12.preempt", "12.5.preempt", "node-n1.preempt", "exact"]))
def test_no_text_makes_a_stale_file_or_one_of_somebody_else_a_notice(fuzzed: Path, raw: bytes, name: str) -> None:
    path = fuzzed / name
    path.write_bytes(raw)
    stale(path)
    known = surroundings(fuzzed, attempt=7, environ={"SLURMD_NODENAME": "n1"})
    content = read(str(path), ME | {0})
    assert content is not None
    heard = [
        place
        for place in addresses([str(fuzzed)], str(fuzzed / "exact"), known)
        if place.path == str(path) and is_for_us(place, content, parse(content.raw), known)
    ]

    assert not heard or (heard[0].scope is Scope.JOB and parse(raw).restart == 7)
    with pytest.raises(ProviderError):
        read(str(path), frozenset())
