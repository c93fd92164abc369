"""The end that is written into the log of a run that was offline."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preemptd.runs import transaction_log
from preemptd.runs.amendment import AmendError, amend
from preemptd.runs.transaction_log import Summary
from tests.transaction_logs import BLOCK, FINAL, PREEMPTING, exit_record, history_record, run_record, write_log

AMENDED = Summary("team", "project", 75, preempting=True, final=True, has_run=True)
FIRST = run_record("team", "project")


def messages(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        return [message.data for message in transaction_log.messages(file)]


def kinds(path: Path) -> list[int]:
    return [transaction_log.kind_of(message)[0] for message in messages(path)]


def run_and_history(path: Path) -> list[bytes]:
    return [message for message in messages(path) if transaction_log.kind_of(message)[0] in (17, 2)]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "run-abc.wandb"


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((), [17, 2, 23, 18, 20]),
        ((PREEMPTING,), [17, 2, 23, 18, 20]),
        ((exit_record(0),), [17, 2, 23, 18, 20]),
        ((PREEMPTING, exit_record(0)), [17, 2, 23, 18, 20]),
        ((PREEMPTING, exit_record(0), history_record(9)), [17, 2, 23, 2, 18, 20]),
        ((PREEMPTING, exit_record(75), FINAL), [17, 2, 23, 18, 20]),
        ((exit_record(0), exit_record(1)), [17, 2, 23, 18, 20]),
    ],
)
def test_the_log_ends_with_one_mark_one_code_and_a_final_record(
    log: Path, ends: tuple[bytes, ...], expected: list[int]
) -> None:
    write_log(log, FIRST, history_record(30), *ends)
    amend(str(log), 75, os.getuid())

    assert kinds(log) == expected
    assert transaction_log.summarize(str(log)) == AMENDED


def test_the_runtime_of_the_run_is_kept(log: Path) -> None:
    write_log(log, FIRST, exit_record(0))
    amend(str(log), 75, os.getuid())

    assert b"\x92\x01\x04\x08\x4b\x10\x05" in log.read_bytes()


def test_amending_again_adds_nothing(log: Path) -> None:
    write_log(log, FIRST)
    amend(str(log), 75, os.getuid())
    before = kinds(log)
    amend(str(log), 75, os.getuid())

    assert kinds(log) == before


@given(
    st.lists(st.integers(0, 3 * BLOCK), max_size=6),
    st.integers(BLOCK - 60, BLOCK),
    st.integers(0, 200),
    st.binary(max_size=30),
    st.sampled_from([(), (exit_record(0),), (PREEMPTING, exit_record(3))]),
)
def test_wherever_it_was_cut_off_no_whole_record_is_lost(
    sizes: list[int], fill: int, cut: int, rubbish: bytes, ends: tuple[bytes, ...]
) -> None:
    with TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        write_log(log, FIRST, history_record(fill), *map(history_record, sizes), *ends)
        data = log.read_bytes()
        log.write_bytes(data[: max(len(data) - cut, 200)] + rubbish)
        whole = run_and_history(log)
        amend(str(log), 75, os.getuid())

        assert run_and_history(log) == whole
        assert transaction_log.summarize(str(log)) == AMENDED


@pytest.mark.parametrize("content", [b"", b":W&B\xe1\xbe\x00", b":W&"])
def test_a_log_without_its_run_is_left_as_it_is(log: Path, content: bytes) -> None:
    log.write_bytes(content)

    with pytest.raises(AmendError, match="does not hold the run"):
        amend(str(log), 75, os.getuid())
    assert log.read_bytes() == content


def test_what_is_no_log_is_left_as_it_is(log: Path) -> None:
    log.write_bytes(b"somebody:x:1000:1000::/nowhere:/bin/sh\n")

    with pytest.raises(AmendError, match="damaged"):
        amend(str(log), 75, os.getuid())
    assert log.read_bytes().startswith(b"somebody")


def test_the_file_of_another_user_is_left_as_it_is(log: Path) -> None:
    write_log(log, FIRST)
    before = log.read_bytes()

    with pytest.raises(AmendError, match="its owner alone"):
        amend(str(log), 75, os.getuid() + 1)
    assert log.read_bytes() == before


def test_links_are_not_followed(log: Path) -> None:
    write_log(log.with_name("target"), FIRST)
    log.symlink_to("target")

    with pytest.raises(OSError, match="symbolic links"):
        amend(str(log), 75, os.getuid())


def test_a_long_log_is_read_at_its_ends_only(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction_log, "TAIL", 4 * BLOCK)
    write_log(log, FIRST, PREEMPTING, *[history_record(BLOCK)] * 20, exit_record(3))
    before = transaction_log.summarize(str(log))
    amend(str(log), 75, os.getuid())

    assert before == Summary("team", "project", 3, preempting=False, has_run=True)
    assert transaction_log.summarize(str(log)) == AMENDED
    assert kinds(log).count(2) == 20
