"""Disks that are really full, or read-only, below state directory and journal: a notice is told all the same."""

import contextlib
import errno
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.metadata_server import FaultyEc2
from tests.test_watch import on_ec2
from tests.test_watch_disks import warnings, watching
from tests.waiting import wait_until
from tests.watching import Watch, trainer

pytestmark = pytest.mark.usefixtures("needs_root")

SIZE = 256 * 1024


class Disk:
    """A disk that only the preemptd that is started with `before` has, and its children."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "disk"
        self.path.mkdir()
        self._fd: int | None = None

    def before(self, options: str = "rw") -> Sequence[str]:
        mount = f'mount -t tmpfs -o size={SIZE},{options} none "$0" && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", mount, str(self.path)]

    def of(self, watch: Watch) -> Path:
        """Return where it is for us; it stays, when its preemptd has ended."""
        self._fd = os.open(f"/proc/{watch.process.pid}/root{self.path}", os.O_RDONLY | os.O_DIRECTORY)
        return Path(f"/proc/self/fd/{self._fd}")

    def become_read_only(self, watch: Watch) -> None:
        """As the kernel does it to a file system with errors: no file can be opened for writing any more."""
        bind = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"'
        enter = ["nsenter", "--mount", "--target", str(watch.process.pid), "sh", "-c", bind, str(self.path)]
        subprocess.run(enter, check=True, capture_output=True)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with contextlib.closing(Disk(tmp_path)) as disk:
        yield disk


@pytest.fixture
def ec2() -> Iterator[FaultyEc2]:
    with FaultyEc2(grace=60.0) as server:
        yield server


def job(disk: Disk, *more: str) -> Sequence[str]:
    return ["--job-id", "run42", "--state-dir", str(disk.path / "state"), *more]


def fill(path: Path, data: bytes) -> None:
    """Append *data* until there is no room for it."""
    with open(path, "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(data)


def events(journal: Path) -> list[str]:
    return [json.loads(line)["event"] for line in journal.read_bytes().splitlines() if line]


def test_a_disk_that_became_full_keeps_no_notice_back_and_its_journal_goes_on_when_there_is_room(
    tmp_path: Path, disk: Disk, ec2: FaultyEc2
) -> None:
    """Journal, ledger and history are on it; the log on stderr is all that is left meanwhile."""
    env = {**on_ec2(ec2), "XDG_STATE_HOME": str(disk.path)}
    options = job(disk, "--log-format", "json", "--journal", str(disk.path / "journal"))
    with Watch(tmp_path, trainer("USR1", save=2.0), *options, env=env, before=disk.before()) as watch:
        watch.await_said("ready")
        ours = disk.of(watch)
        watch.journal = ours / "journal"
        wait_until(lambda: watching(watch) and watch.lines("started"))
        fill(ours / "filler", bytes(4096))
        fill(ours / "journal", b"\n")  # what was left of its last page
        before = events(watch.journal)
        ec2.announcement.announce()
        watch.await_said("signal")
        meanwhile = events(watch.journal)
        (ours / "filler").unlink()
        status = watch.wait()

    after = events(watch.journal)[len(before) :]
    assert status == 75
    assert [line["name"] for line in watch.said("signal")] == ["SIGUSR1"]
    assert meanwhile == before
    assert (after[0], after[-1]) == ("warning", "settled")
    assert watch.err.count("No space left on device") >= 1


def test_a_state_directory_on_a_read_only_disk_is_said_once(tmp_path: Path, disk: Disk, ec2: FaultyEc2) -> None:
    env = {**on_ec2(ec2), "XDG_STATE_HOME": str(disk.path)}
    with Watch(tmp_path, trainer("USR1"), *job(disk), env=env, before=disk.before("ro")) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        status = watch.wait()

    said = [text for text in warnings(watch) if "state directory" in text]
    assert status == 75
    assert len(watch.said("signal")) == 1
    assert len(said) == 1
    assert os.strerror(errno.EROFS) in said[0]


def test_a_disk_that_becomes_read_only_under_us_keeps_no_notice_back(
    tmp_path: Path, disk: Disk, ec2: FaultyEc2
) -> None:
    env = {**on_ec2(ec2), "XDG_STATE_HOME": str(disk.path)}
    with Watch(tmp_path, trainer("USR1"), *job(disk), env=env, before=disk.before()) as watch:
        watch.await_said("ready")
        wait_until(lambda: watching(watch))
        disk.become_read_only(watch)
        ec2.announcement.announce()
        status = watch.wait()

    said = [text for text in warnings(watch) if "ledger" in text]
    assert status == 75
    assert len(watch.said("signal")) == 1
    assert len(watch.lines("told")) == 1
    assert len(said) == 1
    assert os.strerror(errno.EROFS) in said[0]
