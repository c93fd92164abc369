"""A command that misbehaves: what it says counts, and nothing of it stays behind."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from preemptd.provider import State
from preemptd_providers.exec import ExecOptions
from tests.every_world import ExecWorld, Looking
from tests.waiting import wait_until

WITHIN = 30.0


@pytest.fixture
def within() -> float:
    """Seconds for the command."""
    return WITHIN


@pytest.fixture
def world(tmp_path: Path, within: float) -> Iterator[ExecWorld]:
    world = ExecWorld(tmp_path, within)
    yield world
    world.provider.close()


SAYS = {
    "nothing": ("", None),
    "no newline": ("printf 90", 90.0),
    "Windows' line ends": ("printf '90\\r\\nmore\\r\\n'", 90.0),
    "empty lines first": ("printf '\\n\\n90\\n'", 90.0),
    "64 KiB": ("echo 90; head -c 65533 /dev/zero", 90.0),
    "64 KiB and one byte more": ("echo 90; head -c 65534 /dev/zero", 90.0),
    "64 KiB on one line": ("head -c 65537 /dev/zero | tr '\\0' 9", None),
    "a megabyte": ("echo 90; head -c 1000000 /dev/urandom", 90.0),
    "bytes that are no text": ("printf '\\377\\376\\0\\n90\\n'", None),
    "its output closed": ("exec 1>&-", None),
    "both outputs closed": ("exec 1>&- 2>&-", None),
    "something on standard error": ("echo 30 >&2; echo 90", 90.0),
}


@pytest.mark.parametrize(("script", "left"), SAYS.values(), ids=SAYS)
def test_its_status_counts_whatever_it_says(world: ExecWorld, script: str, left: float | None) -> None:
    world.run(f"{script}\nexit 75")
    notice = world.look().notice

    assert notice is not None
    assert (notice.event_id, notice.remaining) == ("exec:preempt", left)
    assert len(notice.detail) <= 4096
    assert world.commands.remaining() == []


LEFT_BEHIND = {
    "one that holds its output": "sleep 600 &",
    "one that holds nothing": "sleep 600 >/dev/null 2>&1 &",
    "one that ignores all it can": "(trap '' HUP INT TERM; while :; do sleep 600; done) &",
    "one that says more and more": "(while :; do echo 30; sleep 0.01; done) &",
    "many": "for i in 1 2 3 4 5; do sleep 600 & done",
}


@pytest.mark.parametrize("script", LEFT_BEHIND.values(), ids=LEFT_BEHIND)
def test_what_it_left_in_the_background_neither_holds_us_up_nor_stays(world: ExecWorld, script: str) -> None:
    began = time.monotonic()
    world.run(f"echo 90\n{script}\nexit 75")

    assert world.event_ids(2) == {"exec:preempt"}
    assert time.monotonic() - began < WITHIN
    wait_until(lambda: not world.commands.remaining())


HANGS = {
    "says nothing": "exec sleep 600",
    "says something": "echo 90; exec sleep 600",
    "closed its output": "exec 1>&-; exec sleep 600",
    "ignores SIGTERM": "trap '' HUP INT TERM USR1 USR2; while :; do sleep 1; done",
    "stopped": "kill -STOP $$",
    "writes without end": "exec cat /dev/zero",
    "writes now and then": "while :; do echo 90; sleep 0.1; done",
    "waits for one in the background": "sleep 600 & wait",
}


@pytest.mark.parametrize("within", [0.3])
@pytest.mark.parametrize("script", HANGS.values(), ids=HANGS)
def test_one_that_is_not_done_in_time_is_killed_and_takes_nothing_back(world: ExecWorld, script: str) -> None:
    world.announce()
    wait_until(lambda: world.look().notice)
    world.misbehave(script)
    seen = world.look()

    assert seen.state is State.UNKNOWN
    assert "within 0.3 s" in str(seen.error)
    wait_until(lambda: not world.commands.remaining())
    world.misbehave(None)
    wait_until(lambda: world.look().notice)


@pytest.mark.parametrize("script", HANGS.values(), ids=HANGS)
def test_close_ends_one_that_hangs(world: ExecWorld, script: str, tmp_path: Path) -> None:
    world.run(f"touch {tmp_path}/begun\n{script}")
    looking = Looking(world.watch)
    wait_until((tmp_path / "begun").exists)
    world.watch.close()

    assert looking.result().state is State.UNKNOWN
    wait_until(lambda: not world.commands.remaining())


def test_any_status_and_any_output_are_a_notice_only_with_the_status_of_one(world: ExecWorld, tmp_path: Path) -> None:
    said = tmp_path / "said"

    @settings(max_examples=40, derandomize=True, database=None)
    @given(
        st.binary(max_size=200) | st.text(alphabet="0123456789-:TZ+ .\n", max_size=40).map(str.encode),
        st.integers(0, 255),
    )
    def runs(output: bytes, status: int) -> None:
        said.write_bytes(output)
        world.run(f"cat '{said}'; exit {status}")
        seen = world.look()

        assert seen.state is {0: State.CLEAR, 75: State.NOTICE}.get(status, State.UNKNOWN)

    runs()
    assert world.commands.remaining() == []


def test_a_hundred_looks_leave_neither_a_descriptor_nor_a_process_behind(world: ExecWorld) -> None:
    world.look()
    before = len(os.listdir("/proc/self/fd"))
    for script in ("sleep 600 & exit 75", "exec 1>&-; exit 0", "kill -KILL $$", "echo 90; exit 75") * 25:
        world.run(script)
        world.look()

    assert len(os.listdir("/proc/self/fd")) <= before
    assert len(world.commands.started) == 101  # all of them reaped, or they would not have been let go
    wait_until(lambda: not world.commands.remaining())


def test_one_status_cannot_mean_both() -> None:
    with pytest.raises(ValidationError, match="the same status"):
        ExecOptions(command="x", notice_status=7, clear_status=7)
