"""Disks that are full or hang, under a whole `preemptd watch`: a notice is told in time all the same."""

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.metadata_server import FaultyEc2
from tests.test_watch import on_ec2
from tests.waiting import wait_until
from tests.watching import PREEMPTD, Watch, environment, trainer


@pytest.fixture
def ec2() -> Iterator[FaultyEc2]:
    with FaultyEc2(grace=30.0) as server:
        yield server


def options(directory: Path) -> list[str]:
    (directory / "often.toml").write_text("[providers.ec2]\ninterval = 0.1\n")
    return ["--config", str(directory / "often.toml")]


def job(directory: Path) -> list[str]:
    return ["--job-id", "run42", "--state-dir", str(directory / "state")]


def warnings(watch: Watch) -> list[str]:
    return [str(line["text"]) for line in watch.lines("warning")]


def told_ms(watch: Watch) -> float:
    (line,) = watch.lines("told")
    return float(str(line["ms"]))


def test_a_full_disk_below_the_ledger_is_said_once_and_they_are_told(tmp_path: Path, ec2: FaultyEc2) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "run42.json.new").symlink_to("/dev/full")
    with Watch(tmp_path, trainer("USR1"), *options(tmp_path), *job(tmp_path), env=on_ec2(ec2)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        status = watch.wait()

    assert status == 75
    assert len(watch.said("signal")) == 1
    assert [text for text in warnings(watch) if "No space left" in text] == warnings(watch)
    assert len(warnings(watch)) == 1


def test_a_disk_that_hangs_below_the_ledger_delays_telling_by_its_budget_only(tmp_path: Path, ec2: FaultyEc2) -> None:
    with Watch(tmp_path, trainer("USR1", save=1.0), *options(tmp_path), *job(tmp_path), env=on_ec2(ec2)) as watch:
        watch.await_said("ready")
        os.mkfifo(tmp_path / "state" / "run42.json.new")  # nobody reads it: opening it hangs, as on a dead NFS
        ec2.announcement.announce()
        status = watch.wait()

    assert status == 75
    assert len(watch.said("signal")) == 1
    assert 200 < told_ms(watch) < 2500


@pytest.mark.parametrize("kind", ["full", "missing", "a FIFO that nobody reads", "a directory"])
def test_a_journal_that_cannot_be_written_is_said_once_and_stops_nothing(tmp_path: Path, kind: str) -> None:
    journal = {"full": "/dev/full", "missing": str(tmp_path / "none" / "journal")}.get(kind, str(tmp_path / "journal"))
    if kind == "a FIFO that nobody reads":
        os.mkfifo(journal)
    elif kind == "a directory":
        os.mkdir(journal)
    began = time.monotonic()
    command = [*PREEMPTD, "watch", "--journal", journal, "--", "sh", "-c", "exit 5"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=30)

    assert done.returncode == 5
    assert time.monotonic() - began < 25
    assert len([line for line in done.stderr.splitlines() if "journal" in line]) == 1


def test_a_journal_whose_reader_sleeps_delays_neither_the_training_nor_log_hooks_and_history(
    tmp_path: Path, ec2: FaultyEc2
) -> None:
    fifo = tmp_path / "sleeping"
    os.mkfifo(fifo)
    with open(os.open(fifo, os.O_RDWR), "wb") as end:
        fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(end.fileno(), False)
        end.raw.write(b"x" * 4000)  # the next lines do not fit
        heard = ["--journal", str(fifo), "--on-notice", "touch hook", "--state-dir", "state"]
        command = [*PREEMPTD, "watch", *options(tmp_path), *heard, "--", *trainer("USR1", save=2.0)]
        log = {"LOG": str(tmp_path / "log"), "CHECKPOINTS": str(tmp_path)}
        env = environment({**on_ec2(ec2), **log})
        with (tmp_path / "err").open("wb") as err, subprocess.Popen(command, env=env, stderr=err, cwd=tmp_path) as job:
            wait_until(lambda: "ready" in text(tmp_path / "log"))
            ec2.announcement.announce()
            began = time.monotonic()
            wait_until(lambda: "SIGUSR1" in text(tmp_path / "log"))
            took = time.monotonic() - began
            wait_until((tmp_path / "hook").exists)
            wait_until(lambda: '"told": 1' in text(tmp_path / "state" / "history.jsonl"))
            wait_until(lambda: "preemptd: told pid" in text(tmp_path / "err"))
            still_ran = job.poll() is None
            assert job.wait(30) == 75

    assert took < 2.5
    assert still_ran
    assert "exit 75: preempted" in text(tmp_path / "err")


def test_an_stderr_that_nobody_reads_delays_nobody(tmp_path: Path, ec2: FaultyEc2) -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write, b"x" * 4000)
    command = [*PREEMPTD, "watch", *options(tmp_path), "--", *trainer("USR1")]
    log = {"LOG": str(tmp_path / "log"), "CHECKPOINTS": str(tmp_path)}
    with subprocess.Popen(command, env=environment({**on_ec2(ec2), **log}), stderr=write) as process:
        os.close(write)
        wait_until(lambda: "ready" in text(tmp_path / "log"))
        ec2.announcement.announce()
        began = time.monotonic()
        wait_until(lambda: "SIGUSR1" in text(tmp_path / "log"))
        took = time.monotonic() - began
        assert process.wait(30) == 75
    os.close(read)

    assert took < 2.5


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


# -- journals that are taken away ------------------------------------------------------------------------------------


def watching(watch: Watch) -> bool:
    return any(line["state"] == "watching" for line in watch.lines("provider"))


@pytest.mark.parametrize("how", ["renamed", "renamed and made anew", "deleted", "cut to nothing"])
def test_a_journal_that_is_rotated_under_us_goes_on_at_its_path(tmp_path: Path, ec2: FaultyEc2, how: str) -> None:
    rotated = tmp_path / "rotated"
    with Watch(tmp_path, trainer("USR1"), *options(tmp_path), env=on_ec2(ec2)) as watch:
        watch.await_said("ready")
        wait_until(lambda: watching(watch) and watch.lines("started"))
        before = watch.journal.read_bytes()
        if how == "deleted":
            watch.journal.unlink()
        elif how == "cut to nothing":  # logrotate's copytruncate
            os.truncate(watch.journal, 0)
        else:
            watch.journal.rename(rotated)
        if how == "renamed and made anew":
            watch.journal.touch()
        ec2.announcement.announce()
        status = watch.wait()

    events = [line["event"] for line in watch.lines()]
    assert status == 75
    assert (events[0], events[-1], "told" in events, "warning" in events) == ("notice", "settled", True, False)
    assert not rotated.exists() or rotated.read_bytes() == before


def test_a_journal_whose_directory_is_moved_away_is_said_once_and_kept_where_it_is(
    tmp_path: Path, ec2: FaultyEc2
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    with Watch(tmp_path, trainer("USR1"), *options(tmp_path), env=on_ec2(ec2), logs=logs) as watch:
        watch.await_said("ready")
        wait_until(lambda: watching(watch) and watch.lines("started"))
        watch.journal = logs.rename(tmp_path / "elsewhere") / watch.journal.name
        ec2.announcement.announce()
        status = watch.wait()

    assert status == 75
    assert len(watch.lines("told")) == 1
    assert [text for text in warnings(watch) if "cannot be opened (No such file or directory)" in text] == warnings(
        watch
    )
    assert len(warnings(watch)) == 1
