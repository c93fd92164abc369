"""When an announcement was first seen: GCE says that a maintenance comes, and not since when."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from preemptd.provider import Surroundings
from preemptd.sightings import SightingFiles
from preemptd_providers.gce import Gce, GceOptions
from tests.metadata_server import FaultyGce
from tests.test_watch import on_gce
from tests.watching import Watch


def test_the_first_sight_counts_until_it_is_forgotten(tmp_path: Path) -> None:
    files = [SightingFiles(str(tmp_path / "state"), "boot-1") for _ in range(2)]
    first, again = files[0].since("gce:x", 100.0, 3600.0), files[1].since("gce:x", 160.0, 3600.0)
    other = files[1].since("gce:y", 170.0, 3600.0)
    files[1].forget("gce:x")

    assert (first, again, other) == (100.0, 100.0, 170.0)
    assert files[0].since("gce:x", 180.0, 3600.0) == 180.0


@pytest.mark.parametrize(
    ("boot", "now"), [("boot-2", 160.0), ("boot-1", 3701.0), ("boot-1", 99.0)], ids=["a boot", "too old", "to come"]
)
def test_what_belongs_to_another_announcement_is_none(tmp_path: Path, boot: str, now: float) -> None:
    SightingFiles(str(tmp_path), "boot-1").since("gce:x", 100.0, 3600.0)
    files = SightingFiles(str(tmp_path), boot)

    assert files.since("gce:x", now, 3600.0) == now
    assert files.since("gce:x", now + 1, 3600.0) == now


@pytest.mark.parametrize("content", ["", "boot-1", "boot-1 soon", "boot-1 nan", "a b c", "\0" * 300])
def test_a_file_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "seen-gce:x").write_text(content)

    assert SightingFiles(str(tmp_path), "boot-1").since("gce:x", 100.0, 3600.0) == 100.0


def test_where_nothing_can_be_kept_each_sight_is_the_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for files in SightingFiles(str(tmp_path / "file" / "x"), "boot-1"), SightingFiles(str(tmp_path), ""):
        assert [files.since("gce:x", now, 3600.0) for now in (100.0, 160.0)] == [100.0, 160.0]
        files.forget("gce:x")

    assert os.listdir(tmp_path) == ["file"]


@pytest.fixture
def gce() -> Iterator[FaultyGce]:
    with FaultyGce() as server:
        server.announced = {"maintenance-event": ("NONE", "TERMINATE_ON_HOST_MAINTENANCE")}
        yield server


def test_a_maintenance_comes_nearer_from_one_watch_to_the_next(tmp_path: Path, gce: FaultyGce) -> None:
    """As in `--loop`, or in a shell's: each command may be shorter than what is left."""
    gce.announcement.announce()
    left: list[Any] = []
    for number in range(2):
        command = ["--provider", "gce", "--state-dir", "state"]
        with Watch(tmp_path, ["sleep", "1"], *command, env=on_gce(gce), name=f"watch-{number}") as watch:
            watch.wait()
        left += [line["remaining"] for line in watch.lines("advice")]

    first, second = left
    assert first == 3600.0
    assert 3000.0 < second < 3599.5


def test_a_second_maintenance_has_its_whole_notice_though_nobody_saw_the_first_one_end(
    tmp_path: Path, gce: FaultyGce
) -> None:
    gce.announcement.announce()
    remembers = Surroundings({"GCE_METADATA_HOST": gce.url}, sightings=SightingFiles(str(tmp_path), "boot-1"))
    seen = []
    for announced in (True, False, True):
        (gce.announcement.announce if announced else gce.announcement.revoke)()
        provider = Gce(GceOptions(), remembers)
        seen.append(provider.watches()[1].observe().notice)
        provider.close()

    assert [notice and notice.remaining for notice in seen] == [3600.0, None, 3600.0]
