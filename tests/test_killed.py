"""kill -9 of preemptd at any moment around a notice, and started again: one training, told once."""

import json
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.metadata_server import FaultyEc2
from tests.test_watch import on_ec2
from tests.waiting import wait_until
from tests.watching import Watch

pytestmark = pytest.mark.slow

COUNTING = [sys.executable, str(ROOT / "tests" / "standins" / "counting.py")]


@pytest.fixture
def ec2() -> Iterator[FaultyEc2]:
    with FaultyEc2(grace=60.0) as server:
        yield server


def options(directory: Path) -> list[str]:
    (directory / "often.toml").write_text("[providers.ec2]\ninterval = 0.1\n")
    return ["--config", str(directory / "often.toml"), "--job-id", "run42", "--state-dir", str(directory / "state")]


def fell_in_between(watch: Watch, directory: Path) -> bool:
    """Say whether it died after it had written down whom it would tell, and before it wrote that it had.

    In the first part of that moment nobody was told: the price of never telling twice, less than a millisecond without
    W&B. In the second part the signal was on its way, and only the journal, which comes after it, is missing.
    """
    record = json.loads((directory / "state" / "run42.json").read_text())
    return bool(record["told"]) and watch.lines("told") == []


def survives(directory: Path, ec2: FaultyEc2, chance: random.Random) -> None:
    environ = {**on_ec2(ec2), "GO": str(directory / "go")}
    with Watch(directory, COUNTING, *options(directory), env=environ) as first:
        first.await_said("ready")
        pause = chance.uniform(-0.05, 0.3)
        due = time.monotonic() + max(0.0, -pause)
        if pause >= 0:
            ec2.announcement.announce()
            due = time.monotonic() + pause
        wait_until(lambda: time.monotonic() >= due)
        first.signal(signal.SIGKILL)
        first.process.wait(20)
        if pause < 0:
            ec2.announcement.announce()
        between = fell_in_between(first, directory)
        with Watch(directory, COUNTING, *options(directory), env=environ, name="again") as again:
            again.await_line("notice")
            wait_until(lambda: between or first.said("signal"))
            heard = time.monotonic()
            wait_until(lambda: time.monotonic() > heard + 0.5)  # two scans: time for a second telling
            (directory / "go").touch()
            status = again.wait()

    assert status == 75
    assert [line["adopted"] for line in again.lines("started")] == [True]
    assert len(again.lines("told")) == (not first.lines("told") and not between)
    signals = [line["name"] for line in first.said("signal")]
    assert signals == ["SIGUSR1"] or (between and signals == [])
    assert len(first.said("ready")) == len(first.said("exit")) == 1
    assert again.said() == []


@pytest.mark.parametrize("seed", range(8))
def test_killed_around_a_notice_and_started_again_one_training_is_told_once(
    tmp_path: Path, ec2: FaultyEc2, seed: int
) -> None:
    survives(tmp_path, ec2, random.Random(seed))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 200))
def test_killed_a_hundred_times_one_training_is_told_once(tmp_path: Path, ec2: FaultyEc2, seed: int) -> None:
    survives(tmp_path, ec2, random.Random(seed))


def test_killed_twice_and_told_by_the_third(tmp_path: Path, ec2: FaultyEc2) -> None:
    environ = {**on_ec2(ec2), "GO": str(tmp_path / "go")}
    with Watch(tmp_path, COUNTING, *options(tmp_path), env=environ) as first:
        first.await_said("ready")
        first.signal(signal.SIGKILL)
        first.process.wait(20)
        with Watch(tmp_path, COUNTING, *options(tmp_path), env=environ, name="second") as second:
            second.await_line("started")
            second.signal(signal.SIGKILL)
            second.process.wait(20)
        with Watch(tmp_path, COUNTING, *options(tmp_path), env=environ, name="third") as third:
            third.await_line("started")
            ec2.announcement.announce()
            third.await_line("told")
            (tmp_path / "go").touch()
            status = third.wait()

    assert status == 75
    assert len(first.said("ready")) == len(first.said("signal")) == 1
