"""Launchers that start a training anew which has just left because it was told to: they are ended."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from signal import Signals

from preemptd.model import Process, ProcessId
from preemptd.procfs import send
from preemptd.targets.roles import is_core


@dataclass(frozen=True, slots=True)
class Start:
    """That a launcher has started a program."""

    process: ProcessId
    launcher: int
    """Pid; 0: none is in the tree."""
    exe: str
    cmdline: tuple[str, ...]


class Restarts:
    """Remembers what was told to leave, and ends what starts it anew: by SIGTERM, once each."""

    def __init__(self) -> None:
        self._before: set[Start] = set()
        self._beside: frozenset[ProcessId] = frozenset()
        """Who was there when a told one was seen for the last time."""
        self._stopped: set[ProcessId] = set()
        self.going_on = False
        """The last look found something to end: look once more, for it may have been starting more at that moment."""

    def __contains__(self, process: ProcessId) -> bool:
        return process in self._stopped

    def clear(self) -> None:
        """Begin anew: another escalation."""
        self._before.clear()
        self.going_on = False

    def told(self, process: Process, processes: Iterable[Process]) -> None:
        self._before.update(starts(process, processes))

    def stop(self, processes: Sequence[Process], told_live: bool) -> list[ProcessId]:
        """End what starts anew, and what it has started; return whom. Call it for every snapshot of an escalation."""
        found: list[ProcessId] = []
        if told_live or not self._before:
            self._beside = frozenset(process.id for process in processes)
        else:
            ending = restarted(self._before, self._beside, processes)
            found = [process.id for process in ending if process.id not in self._stopped]
        for process in found:
            send(process, Signals.SIGTERM, only_if_caught=False)
        self._stopped.update(found)
        self.going_on = bool(found)
        return found


def starts(process: Process, processes: Iterable[Process]) -> tuple[Start, ...]:
    """List what was started on the way from the command down to *process*: a loop may be round any of it.

    Forks are left out, for nobody can tell one from another: a subshell, a child of multiprocessing (whose command line
    is the same for each of them).
    """
    by_pid = {other.pid: other for other in processes}
    return tuple(start for member in (process, *_above(process, by_pid)) if (start := _start(member, by_pid)))


def restarted(
    before: Iterable[Start], beside: Container[ProcessId], processes: Sequence[Process]
) -> tuple[Process, ...]:
    """Find what must end for that: the launchers, then what they have started, from the top down.

    Only the same program by the same launcher counts, and only if it is gone: an upload after the training is what a
    script should do now. A launcher that has ended may have left its last one behind.

    Args:
        before: on the ways to all processes that were told; none of these is alive.
        beside: who ran at the same time as one of them: a rank that is slow to import is no restart.
        processes: a snapshot.
    """
    by_pid = {process.pid: process for process in processes if process.state not in "ZX"}
    living = {process.id for process in by_pid.values()}
    gone = {
        (start.launcher if start.launcher in by_pid else 0, start.exe, start.cmdline)
        for start in before
        if start.launcher and start.process not in living
    }
    ending: dict[int, Process] = {}
    again = set()
    for process in by_pid.values():
        start = _start(process, by_pid)
        if start and start.process not in beside and (start.launcher, start.exe, start.cmdline) in gone:
            again.add(process.pid)
            if start.launcher:
                ending[start.launcher] = by_pid[start.launcher]
    for process in by_pid.values():
        way = [process, *_above(process, by_pid)]
        if any(member.pid in again for member in way) and not any(is_core(member) for member in way):
            ending.update((member.pid, member) for member in reversed(_below(way, ending)))
    return tuple(ending.values())


def _below(way: Sequence[Process], ending: Mapping[int, Process]) -> list[Process]:
    """Take the members of *way*, which leads upwards, that are not as high as one that ends anyway."""
    found = []
    for member in way:
        if member.pid in ending:
            break
        found.append(member)
    return found


def _start(process: Process, by_pid: Mapping[int, Process]) -> Start | None:
    """Say who has started *process*: not the subshell in between, which is another one each time."""
    if _is_fork(process, by_pid):
        return None
    launcher = next((above.pid for above in _above(process, by_pid) if not _is_fork(above, by_pid)), 0)
    return Start(process.id, launcher, process.exe, process.cmdline)


def _is_fork(process: Process, by_pid: Mapping[int, Process]) -> bool:
    parent = by_pid.get(process.ppid)
    is_copy = parent is not None and (process.exe, process.cmdline) == (parent.exe, parent.cmdline)
    return is_copy or "--multiprocessing-fork" in process.cmdline


def _above(process: Process, by_pid: Mapping[int, Process]) -> Iterator[Process]:
    # A snapshot is not taken at one instant: with pids used again it may hold a circle.
    seen = {process.pid}
    while (parent := by_pid.get(process.ppid)) is not None and parent.pid not in seen:
        seen.add(parent.pid)
        yield parent
        process = parent
