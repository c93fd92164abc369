"""The processes of a systemd unit, by its cgroup: no D-Bus, so it works in a container and while systemd is busy."""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from preemptd.masks import read
from preemptd.targets.census import GONE_STATES, Census
from preemptd.targets.ways import Found, How

_MANAGER = re.compile(r"user@(\d+)\.service")
# The root of a mount, the mount point and, behind the optional fields, type and options: proc_pid_mountinfo(5).
_MOUNT = re.compile(r"^\d+ \d+ \S+ \S+ (?P<point>\S+) .* - (?P<type>cgroup2?) \S+ (?P<options>\S+)$", re.MULTILINE)
_OCTAL = re.compile(r"\\([0-7]{3})")
_PAUSE = 1.0
"""Seconds between two searches; more where one takes long: then `_REST` times as long as that."""
_REST = 20


def hierarchies(mountinfo: bytes) -> tuple[str, ...]:
    """Find where cgroups are mounted in which systemd keeps its units: cgroup2, or ``name=systemd`` of v1.

    A hybrid machine has both, with the same units.
    """
    found: dict[str, list[str]] = {"cgroup2": [], "cgroup": []}
    for mount in _MOUNT.finditer(os.fsdecode(mountinfo)):
        if mount["type"] == "cgroup2" or "name=systemd" in mount["options"].split(","):
            found[mount["type"]].append(_OCTAL.sub(lambda octal: chr(int(octal[1], 8)), mount["point"]))
    return (*found["cgroup2"], *found["cgroup"])


def our_hierarchies() -> tuple[str, ...]:
    return hierarchies(read("/proc/self/mountinfo"))


@dataclass(frozen=True, slots=True)
class _Place:
    directory: str
    uid: int | None
    """The user whose manager it belongs to; None: the system's."""


class Units:
    """Where the units of these *names* have their cgroups; *mounts* tells where to search. One thread at a time."""

    def __init__(self, names: Iterable[str], mounts: Callable[[], Sequence[str]] = our_hierarchies) -> None:
        self._names = frozenset(names)
        self._mounts = mounts
        self._known: dict[str, tuple[str, ...]] = {}
        """Directories by unit, where the last search found any."""
        self._next_search = 0.0

    def look(self) -> None:
        """Search for them, unless that was done just now: a unit that starts again does so in the same place."""
        began = time.monotonic()
        if self._names and began >= self._next_search:
            self._known.update(_search(self._names, self._mounts()))
            ended = time.monotonic()
            self._next_search = ended + max(_PAUSE, _REST * (ended - began))

    def pids(self, name: str) -> list[int] | None:
        """List who is in the cgroup of unit *name* and in those below; None: there is no such cgroup."""
        directories = [directory for directory in self._known.get(name, ()) if os.path.isdir(directory)]
        if not directories:
            return None
        return list(dict.fromkeys(pid for directory in directories for pid in _members(directory)))


class ByUnit:
    """All that is in the cgroup of unit *name*, whoever its parents are."""

    how: How = "unit"
    only_heads = True

    def __init__(self, name: str, units: Units) -> None:
        self._name = name
        self._units = units

    def find(self, census: Census) -> Found:
        pids = self._units.pids(self._name)
        if not pids:
            return Found(why=f"{self._name} has no processes" if pids == [] else f"{self._name} is not active")
        late = [pid for pid in pids if census.id(pid) is None]
        if late:
            census.add(late)
            # Who is still there was in it all the time: its number was nobody else's when it was looked at.
            pids = [pid for pid in self._units.pids(self._name) or () if census.id(pid) is not None]
            if not pids:
                return Found(why=f"the processes of {self._name} are hidden from us")
        # The kernel lists no zombies.
        ended = [pid for above in pids for pid in census.children(above) if census[pid].state in GONE_STATES]
        return Found([*pids, *ended])

    def close(self) -> None:
        """Nothing is held."""


def _search(names: Iterable[str], mounts: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, list[_Place]] = {name: [] for name in names}
    for mount in mounts:
        missing = {name for name, places in found.items() if not places}
        for name, place in _units(mount, None) if missing else ():
            if name in missing:
                found[name].append(place)
    return {name: _best(places) for name, places in found.items() if places}


def _best(places: Sequence[_Place]) -> tuple[str, ...]:
    """Choose among units of one name: the system's before our own user's, and those before other users'.

    Any user can make one with whatever name; for us, unless we are root, our own come first.
    """
    us = os.geteuid()

    def rank(place: _Place) -> int:
        if place.uid is None:
            return 0 if us == 0 else 1
        return (1 if us == 0 else 0) if place.uid == us else 2

    best = min(map(rank, places))
    return tuple(place.directory for place in places if rank(place) == best)


def _units(directory: str, uid: int | None) -> Iterator[tuple[str, _Place]]:
    """Yield the units below *directory*, down through slices and users' managers alone.

    What lies in other units is made by whoever runs there: a container may have a systemd of its own.
    """
    for name, path in _subdirectories(directory):
        unit = name.removeprefix("_")  # the escape of names that the kernel's own files could have: _cpu.service
        yield unit, _Place(path, uid)
        if name.endswith(".slice"):
            yield from _units(path, uid)
        elif uid is None and (manager := _MANAGER.fullmatch(name)):
            yield from _units(path, int(manager[1]))


def _members(directory: str) -> Iterator[int]:
    # 0 stands for a process outside of our pid namespace.
    yield from (int(pid) for pid in read(f"{directory}/cgroup.procs").split() if pid != b"0")
    for _, path in _subdirectories(directory):
        yield from _members(path)


def _subdirectories(directory: str) -> list[tuple[str, str]]:
    try:
        with os.scandir(directory) as entries:
            return [(entry.name, entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:  # it vanished
        return []
