"""One look at every process of the machine, which all targets of the daemon share."""

import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from preemptd.masks import read
from preemptd.model import ProcessId
from preemptd.procfs import Stat, command_line, everybody, stat_of

GONE_STATES = frozenset("ZXx")
_UIDS = re.compile(rb"^Uid:\t(\d+)\t(\d+)\t(\d+)", re.MULTILINE)


def belongs_to_us(pid: int) -> bool:
    """Say whether *pid* has the rights of our own user and of no other one: real, effective and saved uid."""
    match = _UIDS.search(read(f"/proc/{pid}/status"))
    return match is not None and {int(uid) for uid in match.groups()} == {os.geteuid()}


def id_of(stat: Stat) -> ProcessId:
    return ProcessId(stat.pid, stat.start)


@dataclass(frozen=True, slots=True)
class Command:
    """What a process runs."""

    layout: tuple[bytes, ...]
    """As in `Stat`: another one after each exec."""
    comm: str
    words: tuple[str, ...]


class CommandLines:
    """The command lines of all processes, each read once."""

    def __init__(self) -> None:
        self._known: dict[ProcessId, Command] = {}

    def of(self, stat: Stat) -> Command:
        """Find what it runs: the same object as before, as long as it runs the same."""
        known = self._known.get(id_of(stat))
        # The layout of other users' processes is hidden: a new program shows in `comm` alone, or not at all.
        if known is None or known.layout != stat.layout or known.comm != stat.comm:
            known = self._known[id_of(stat)] = Command(stat.layout, stat.comm, command_line(stat.pid))
        return known

    def forget_others(self, census: "Census") -> None:
        """Forget who is not in *census*."""
        self._known = {process: known for process, known in self._known.items() if process in census}


class Census:
    """All processes as they were at one time, nearly: whoever is started or ends meanwhile may be missing."""

    def __init__(self) -> None:
        self._stats = {stat.pid: stat for stat in everybody()}
        self._children: dict[int, list[int]] = {}
        self._groups: dict[int, list[int]] = {}
        for stat in self._stats.values():
            self._children.setdefault(stat.ppid, []).append(stat.pid)
            self._groups.setdefault(stat.pgid, []).append(stat.pid)

    def __contains__(self, process: object) -> bool:
        """Say whether *process* is there, be it a zombie."""
        return isinstance(process, ProcessId) and self.id(process.pid) == process

    def __iter__(self) -> Iterator[Stat]:
        return iter(self._stats.values())

    def __getitem__(self, pid: int) -> Stat:
        return self._stats[pid]

    def id(self, pid: int) -> ProcessId | None:
        """Identify who has *pid*; None: nobody, or it is hidden."""
        stat = self._stats.get(pid)
        return id_of(stat) if stat else None

    def lives(self, process: ProcessId) -> bool:
        """Say whether *process* is there and no zombie."""
        return process in self and self._stats[process.pid].state not in GONE_STATES

    def add(self, pids: Iterable[int]) -> frozenset[int]:
        """Look at those of *pids* that came later than the rest; returns those that there are."""
        for pid in pids:
            stat = None if pid in self._stats else stat_of(pid)
            if stat is not None:
                self._stats[pid] = stat
                self._children.setdefault(stat.ppid, []).append(pid)
        return frozenset(pid for pid in pids if pid in self._stats)

    def children(self, pid: int) -> Collection[int]:
        """List the children of *pid*; it may have ended while we looked, and is then no more than a number."""
        return self._children.get(pid, ())

    def group(self, pgid: int) -> Collection[int]:
        return self._groups.get(pgid, ())

    def below(self, pids: Iterable[int]) -> set[int]:
        """Collect *pids* and everything below them."""
        found = set(pids)
        left = list(found)
        while left:
            new = [pid for pid in self.children(left.pop()) if pid not in found]
            found.update(new)
            left += new
        return found & self._stats.keys()

    def above(self, pid: int) -> Iterator[int]:
        """Yield the parent of *pid*, its parent, and so on."""
        seen = {pid}  # with pids used again while we looked there may be a circle
        while (stat := self._stats.get(pid)) is not None and stat.ppid not in seen:
            pid = stat.ppid
            seen.add(pid)
            if pid in self._stats:
                yield pid

    def topmost(self, pids: set[int]) -> list[int]:
        """Pick those of *pids* that have none of them above."""
        return [pid for pid in sorted(pids) if pids.isdisjoint(self.above(pid))]
