"""The search for units: on directories that look like those of cgroups."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from preemptd.targets.census import Census
from preemptd.targets.cgroups import ByUnit, Units, hierarchies
from tests.waiting import wait_until

US = os.geteuid()
OTHER = 4242
MANAGER = f"user.slice/user-{US}.slice/user@{US}.service"
OTHERS_MANAGER = f"user.slice/user-{OTHER}.slice/user@{OTHER}.service"


@pytest.fixture
def pid() -> Iterator[int]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        process.kill()


def cgroup(path: Path, *pids: int) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    return path


def units(name: str, *mounts: Path) -> Units:
    made = Units([name], lambda: [str(mount) for mount in mounts])
    made.look()
    return made


def found(name: str, *mounts: Path) -> list[int] | None:
    return units(name, *mounts).pids(name)


# -- where -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mountinfo", "expected"),
    [
        (
            b"35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n",
            ("/sys/fs/cgroup",),
        ),
        (
            (
                b"33 25 0:28 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs ro,mode=755\n"
                b"35 33 0:30 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd\n"
                b"34 33 0:29 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw\n"
                b"38 33 0:33 / /sys/fs/cgroup/memory rw shared:15 - cgroup cgroup rw,memory\n"
            ),
            ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"),
        ),
        (
            b"35 33 0:30 /docker/4711 /sys/fs/cgroup/systemd ro master:11 - cgroup systemd rw,name=systemd\n",
            ("/sys/fs/cgroup/systemd",),
        ),
        (b"35 24 0:30 / /with\\040blank rw - cgroup2 none rw\n", ("/with blank",)),
        (b"38 33 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n", ()),
        (b"", ()),
    ],
    ids=["v2", "hybrid", "v1 in a container", "escaped", "no systemd", "nothing"],
)
def test_the_mounts_in_which_systemd_keeps_its_units_are_found(mountinfo: bytes, expected: tuple[str, ...]) -> None:
    assert hierarchies(mountinfo) == expected


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("train.service", "system.slice/train.service"),
        ("train@7.service", "system.slice/system-train.slice/train@7.service"),
        ("jobs-night.slice", "jobs.slice/jobs-night.slice"),
        ("run-4711.scope", "jobs.slice/jobs-night.slice/run-4711.scope"),
        ("session-3.scope", f"user.slice/user-{US}.slice/session-3.scope"),
        ("train.service", f"{MANAGER}/app.slice/train.service"),
        (f"user@{US}.service", MANAGER),
        ("cpu.service", "system.slice/_cpu.service"),
        ("tr\u00e4in.service", "system.slice/tr\u00e4in.service"),
    ],
)
def test_a_unit_is_found_where_systemd_puts_it(tmp_path: Path, name: str, place: str) -> None:
    cgroup(tmp_path / "system.slice" / "other.service", 5)
    cgroup(tmp_path / place, 7, 8)

    assert found(name, tmp_path) == [7, 8]


def test_what_is_in_the_cgroups_below_belongs_to_the_unit(tmp_path: Path) -> None:
    cgroup(tmp_path / "a.slice", 3)
    cgroup(tmp_path / "a.slice" / "one.service", 4)
    cgroup(tmp_path / "a.slice" / "two.service" / "payload" / "deep", 5, 0)

    assert sorted(found("a.slice", tmp_path) or []) == [3, 4, 5]


def test_a_unit_of_a_container_that_has_the_same_name_is_another_one(tmp_path: Path) -> None:
    cgroup(tmp_path / "system.slice" / "docker-1.scope" / "system.slice" / "train.service", 5)

    assert found("train.service", tmp_path) is None


def test_a_link_is_no_cgroup(tmp_path: Path) -> None:
    cgroup(tmp_path / "elsewhere" / "train.service", 5)
    cgroup(tmp_path / "mount")
    (tmp_path / "mount" / "system.slice").symlink_to(tmp_path / "elsewhere")

    assert found("train.service", tmp_path / "mount") is None


def test_on_a_hybrid_machine_a_unit_is_counted_once_and_found_in_either_hierarchy(tmp_path: Path) -> None:
    for hierarchy in ("unified", "systemd"):
        cgroup(tmp_path / hierarchy / "system.slice" / "both.service", 5)
    cgroup(tmp_path / "systemd" / "system.slice" / "old.service", 6)
    mounts = tmp_path / "unified", tmp_path / "systemd"

    assert found("both.service", *mounts) == [5]
    assert found("old.service", *mounts) == [6]


def test_no_user_can_put_a_unit_in_the_place_of_another_ones(tmp_path: Path) -> None:
    cgroup(tmp_path / OTHERS_MANAGER / "train.service", 9)
    alone = found("train.service", tmp_path)
    cgroup(tmp_path / MANAGER / "train.service", 8)
    with_our_own = found("train.service", tmp_path)
    cgroup(tmp_path / "system.slice" / "train.service", 7)

    assert (alone, with_our_own) == ([9], [8])
    assert found("train.service", tmp_path) == [7 if US == 0 else 8]


def test_a_better_one_that_comes_later_takes_the_place(tmp_path: Path) -> None:
    cgroup(tmp_path / OTHERS_MANAGER / "train.service", 9)
    made = units("train.service", tmp_path)
    before = made.pids("train.service")
    cgroup(tmp_path / MANAGER / "train.service", 8)

    def after() -> list[int] | None:
        made.look()
        return made.pids("train.service")

    assert before == [9]
    wait_until(lambda: after() == [8])


# -- who -------------------------------------------------------------------------------------------------------------


def test_a_unit_that_vanishes_and_comes_back_is_followed_at_once(tmp_path: Path, pid: int) -> None:
    place = cgroup(tmp_path / "system.slice" / "train.service", pid)
    way = ByUnit("train.service", units("train.service", tmp_path))
    first = way.find(Census())
    (place / "cgroup.procs").write_text("")
    second = way.find(Census())
    (place / "cgroup.procs").unlink()
    place.rmdir()
    third = way.find(Census())
    cgroup(place, pid)

    assert list(first.pids) == [pid]
    assert (list(second.pids), second.why) == ([], "train.service has no processes")
    assert (list(third.pids), third.why) == ([], "train.service is not active")
    assert list(way.find(Census()).pids) == [pid]


def test_who_came_after_the_look_at_all_processes_is_looked_at_too(tmp_path: Path) -> None:
    census = Census()
    with subprocess.Popen(["sleep", "1000"]) as late:
        cgroup(tmp_path / "system.slice" / "train.service", late.pid)

        assert list(ByUnit("train.service", units("train.service", tmp_path)).find(census).pids) == [late.pid]
        assert census[late.pid].comm in {"sleep", "python", "python3", census[os.getpid()].comm}
        late.kill()


def test_processes_that_are_hidden_from_us_are_named_as_that(tmp_path: Path) -> None:
    cgroup(tmp_path / "system.slice" / "train.service", 2**30, 2**30 + 1)

    way = ByUnit("train.service", units("train.service", tmp_path))

    assert way.find(Census()).why == "the processes of train.service are hidden from us"
