"""What survives a kill -9 of preemptd, and what a second one does."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.metadata_server import FaultyEc2
from tests.test_watch import on_ec2
from tests.waiting import wait_until
from tests.watching import Watch, trainer

pytestmark = pytest.mark.slow


@pytest.fixture
def ec2() -> Iterator[FaultyEc2]:
    with FaultyEc2(grace=30.0) as server:
        yield server


def test_a_killed_preemptd_leaves_the_training_running(tmp_path: Path) -> None:
    with Watch(tmp_path, trainer("USR1"), env={"STEPS": "100"}) as watch:
        watch.await_said("ready")
        watch.signal(signal.SIGKILL)
        watch.process.wait(20)
        wait_until(lambda: watch.said("exit"))

    assert watch.said("signal") == []


def test_with_die_with_parent_a_killed_preemptd_takes_the_training_with_it(tmp_path: Path) -> None:
    with Watch(tmp_path, trainer("TERM"), "--die-with-parent") as watch:
        watch.await_said("ready")
        watch.signal(signal.SIGKILL)
        watch.process.wait(20)
        wait_until(lambda: watch.said("exit"))

    assert [line["name"] for line in watch.said("signal")] == ["SIGTERM"]


def test_killed_after_the_telling_and_started_again_nobody_is_told_twice(tmp_path: Path, ec2: FaultyEc2) -> None:
    options = ("--job-id", "run42", "--state-dir", str(tmp_path / "state"))
    with Watch(tmp_path, trainer("USR1", save=3.0), *options, env=on_ec2(ec2)) as first:
        first.await_said("ready")
        ec2.announcement.announce()
        first.await_line("told")
        first.signal(signal.SIGKILL)
        first.process.wait(20)
        with Watch(tmp_path, trainer("USR1"), *options, env=on_ec2(ec2), name="again") as again:
            status = again.wait()

    assert len(first.said("ready")) == 1
    assert len(first.said("signal")) == 1
    assert again.said() == []
    assert again.lines("started")[0]["adopted"] is True
    assert again.lines("told") == []
    assert status == 75


def test_an_adopted_training_is_told_of_the_next_notice(tmp_path: Path, ec2: FaultyEc2) -> None:
    options = ("--job-id", "run42", "--state-dir", str(tmp_path / "state"))
    with Watch(tmp_path, trainer("USR1"), *options, env=on_ec2(ec2)) as first:
        first.await_said("ready")
        first.signal(signal.SIGKILL)
        first.process.wait(20)
        with Watch(tmp_path, trainer("USR1"), *options, env=on_ec2(ec2), name="again") as again:
            again.await_line("started")
            ec2.announcement.announce()
            status = again.wait()

    assert len(first.said("signal")) == 1
    assert len(first.said("saved")) == 1
    assert status == 75


def test_a_client_finds_the_preemptd_that_took_over(tmp_path: Path, ec2: FaultyEc2) -> None:
    options = ("--job-id", "run42", "--state-dir", str(tmp_path / "state"))
    with Watch(tmp_path, trainer("link"), *options, env=on_ec2(ec2)) as first:
        first.await_said("ready")
        first.signal(signal.SIGKILL)
        first.process.wait(20)
        with Watch(tmp_path, trainer("link"), *options, env=on_ec2(ec2), name="again") as again:
            again.await_line("started")
            ec2.announcement.announce()
            status = again.wait()

    assert [line["how"] for line in again.lines("told")] == ["link"]
    assert status == 75


def test_two_live_watches_of_one_job_are_refused_with_the_pid(tmp_path: Path) -> None:
    options = ("--job-id", "run42", "--state-dir", str(tmp_path / "state"))
    with Watch(tmp_path, trainer("none"), *options) as first:
        first.await_said("ready")
        with Watch(tmp_path, trainer("none"), *options, name="second") as second:
            status = second.wait()

    assert status == 2
    assert second.err == (
        f"preemptd: job run42 is already watched by pid {first.process.pid}: end that one, or give another --job-id\n"
    )
    assert second.said() == []


def test_attempts_are_counted_until_the_job_is_done(tmp_path: Path) -> None:
    options = ("--job-id", "run42", "--state-dir", str(tmp_path / "state"))
    show = ["sh", "-c", 'echo "attempt $PREEMPTD_ATTEMPT resumed ${PREEMPTD_RESUMED-no}"; exit $CODE']
    texts: list[str] = []
    for code in ("1", "1", "0", "1"):
        with Watch(tmp_path, show, *options, env={"CODE": code}, name=f"run-{len(texts)}") as watch:
            watch.wait()
        texts.append(watch.out)

    assert texts == [
        "attempt 0 resumed no\n",
        "attempt 1 resumed 1\n",
        "attempt 2 resumed 1\n",
        "attempt 0 resumed no\n",
    ]


def test_after_three_attempts_without_progress_the_commands_own_status_is_passed_on(
    tmp_path: Path, ec2: FaultyEc2
) -> None:
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    options = ("--job-id", "run42", "--state-dir", str(tmp_path / "state"), "--checkpoint-dir", str(checkpoints))
    script = "trap 'exit 9' USR1; echo up; while :; do sleep 0.05; done"
    statuses = []
    for number in range(3):
        with Watch(
            tmp_path, ["sh", "-c", script], "--signal-target", "main", *options, env=on_ec2(ec2), name=f"run-{number}"
        ) as watch:
            watch.await_line("started")
            ec2.announcement.announce()
            statuses.append(watch.wait())
            ec2.announcement.revoke()

    assert statuses == [75, 75, 9]


def test_a_nested_preemptd_is_a_plain_wrapper_and_reports_the_preemption(tmp_path: Path, ec2: FaultyEc2) -> None:
    inner = [*Watch.command("watch"), "--", *trainer("USR1")]
    script = [*inner, "; echo inner ended with $?"]
    with Watch(tmp_path, ["sh", "-c", " ".join(script)], env=on_ec2(ec2)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        status = watch.wait()

    assert status == 75
    assert len(watch.said("signal")) == 1
    assert "inner ended with 75" in watch.out
