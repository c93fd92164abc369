"""Whether an attempt has saved anything: what `--checkpoint-dir` shows of it."""

import time
from pathlib import Path

import pytest

from preemptd.written import progress_in
from tests.metadata_server import FaultyEc2
from tests.test_watch import on_ec2
from tests.watching import Watch, trainer


def test_a_file_that_is_complete_and_new_is_progress(tmp_path: Path) -> None:
    before = progress_in(str(tmp_path), 0.0)
    (tmp_path / "step-1.pt.tmp").write_text("half")
    (tmp_path / "empty.pt").touch()
    half = progress_in(str(tmp_path), 0.0)
    (tmp_path / "step-1.pt").write_text("whole")

    assert (before, half) == (False, False)
    assert progress_in(str(tmp_path), 0.0) is True
    assert progress_in(str(tmp_path), time.time() + 60) is False


@pytest.mark.parametrize("missing", ["checkpoints", "checkpoints/4711"])
def test_a_directory_that_the_first_save_would_make_holds_nothing(
    tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.py").touch()
    monkeypatch.chdir(tmp_path)

    assert progress_in(missing, 0.0) is False
    assert progress_in(str(tmp_path / missing), 0.0) is False


def test_a_share_that_is_not_mounted_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()

    assert progress_in(str(tmp_path / "mnt" / "run42" / "checkpoints"), 0.0) is None


def test_a_path_that_means_nothing_on_this_machine_says_nothing() -> None:
    assert progress_in("/in-the-container/checkpoints", 0.0) is None


def test_what_is_no_directory_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")

    assert progress_in(str(tmp_path / "file"), 0.0) is None
    assert progress_in(str(tmp_path / "link"), 0.0) is None


def test_three_attempts_that_never_made_their_directory_have_saved_nothing(tmp_path: Path) -> None:
    options = "--job-id", "run42", "--checkpoint-dir", str(tmp_path / "checkpoints"), "--state-dir", str(tmp_path)
    statuses = []
    for number in range(3):
        with (
            FaultyEc2(grace=30.0) as ec2,
            Watch(tmp_path, trainer("USR1", 0.0, 9), *options, env=on_ec2(ec2), name=f"attempt-{number}") as watch,
        ):
            watch.await_said("ready")
            ec2.announcement.announce()
            statuses.append(watch.wait())

    assert statuses == [75, 75, 9]
