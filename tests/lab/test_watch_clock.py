"""The wall clock jumps under a running `preemptd watch`: nothing happens earlier or later for it."""

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from preemptd.escalation import term_after
from tests.conftest import ROOT
from tests.metadata_server import FaultyEc2
from tests.test_watch import on_ec2
from tests.waiting import wait_until
from tests.watching import Watch, trainer


class WallClock:
    """What programs that run with `environ` take for the time of day, and for the time that has passed."""

    def __init__(self, library: Path) -> None:
        self._offset = library.with_suffix(".offset")
        self._offset.write_bytes(bytes(16))
        self.environ = {"LD_PRELOAD": str(library), "WALL_CLOCK_OFFSET": str(self._offset)}

    def jump(self, seconds: int) -> None:
        """Let it be *seconds* off from now on."""
        with open(self._offset, "r+b", buffering=0) as file:  # in place: the program has mapped it
            file.write(struct.pack("=q", seconds * 10**9))

    def age(self, seconds: int) -> None:
        """Let so many seconds have passed for them: what waits goes on waiting as long as it would have."""
        with open(self._offset, "r+b", buffering=0) as file:
            file.write(struct.pack("=qq", seconds * 10**9, seconds * 10**9))


@pytest.fixture
def wall_clock(lab_tool: Callable[[str], str], tmp_path: Path) -> WallClock:
    library, source = tmp_path / "wall_clock.so", ROOT / "tests" / "lab" / "wall_clock.c"
    subprocess.run([lab_tool("cc"), "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    return WallClock(library)


def number(line: dict[str, object], key: str) -> float:
    return float(str(line[key]))


@pytest.mark.parametrize("hour", [3600, -3600])
def test_a_clock_that_jumps_an_hour_before_and_during_the_grace_moves_no_step(
    tmp_path: Path, wall_clock: WallClock, hour: int
) -> None:
    with (
        FaultyEc2(grace=4.0) as ec2,
        Watch(tmp_path, trainer("faulthandler"), env={**on_ec2(ec2), **wall_clock.environ}) as watch,
    ):
        watch.await_said("ready")
        watch.await_line("provider")
        wall_clock.jump(hour)
        ec2.announcement.announce()
        watch.await_line("told")
        wall_clock.jump(-hour)
        status = watch.wait()

    started, notice, (told,), (escalated,), exited = (
        watch.lines(event) for event in ("started", "notice", "told", "escalated", "exited")
    )
    assert status == 75
    assert [line["name"] for line in watch.said("signal")] == ["SIGTERM"]
    assert number(notice[0], "t") - number(started[0], "t") == pytest.approx(hour, abs=60)
    assert number(exited[0], "t") - number(notice[0], "t") == pytest.approx(-2 * hour, abs=60)
    assert 2 < number(notice[0], "grace") <= 5
    assert number(told, "ms") < 2500
    due = term_after(number(notice[0], "grace"), None)
    assert number(escalated, "ms") / 1000 == pytest.approx(due, abs=0.5)  # within 0.1 on an idle machine
    assert number(escalated, "mono") - number(notice[0], "mono") == pytest.approx(due, abs=0.5)


@pytest.mark.parametrize("hour", [3600, -3600])
def test_a_clock_that_jumps_while_nothing_is_announced_announces_nothing(
    tmp_path: Path, wall_clock: WallClock, hour: int
) -> None:
    signals = tmp_path / "signals"
    signals.mkdir()
    environ = {"PREEMPTD_SIGNAL_DIR": str(signals), "STEPS": "150", **wall_clock.environ}
    with (
        FaultyEc2(grace=60.0) as ec2,
        Watch(tmp_path, trainer("both"), "--job-id", "run42", env={**on_ec2(ec2), **environ}) as watch,
    ):
        watch.await_said("ready")
        wait_until(lambda: len(watch.lines("provider")) >= 1)
        looks = len(ec2.asked)
        wall_clock.jump(hour)
        wait_until(lambda: len(ec2.asked) > looks + 1)
        wall_clock.jump(0)
        status = watch.wait()

    assert status == 0
    assert watch.lines("notice") == watch.lines("told") == watch.lines("warning") == []
    assert [line["state"] for line in watch.lines("provider") if line["state"] not in {"watching", "left-out"}] == []
