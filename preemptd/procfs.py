"""Snapshots of /proc, and signals that reach exactly the process that was seen there."""

import os
import signal
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import NamedTuple

from preemptd.masks import Masks, masks, read
from preemptd.model import Process, ProcessId

_GONE_STATES = frozenset("ZXx")
_HIDDEN = (b"0",) * 5


class Sent(Enum):
    """What became of a signal."""

    SENT = "sent"
    GONE = "gone"
    """The process has ended, is a zombie, or its pid now belongs to another one."""
    NOT_CAUGHT = "not caught"
    """It neither catches nor blocks the signal at this moment: nothing was sent."""
    DENIED = "denied"
    """The kernel does not let us: the process belongs to another user."""


class Stat(NamedTuple):
    """What /proc/PID/stat says, for everybody to read."""

    pid: int
    comm: str
    state: str
    ppid: int
    pgid: int
    threads: int
    start: int
    layout: tuple[bytes, ...]
    """Where its stack, arguments and environment lie: another one after each exec. Zeros: it may not be read."""


@dataclass(slots=True)
class _Known:
    """What is read once of a process, as long as it runs the same program."""

    layout: tuple[bytes, ...]
    exe: str
    cmdline: tuple[str, ...]
    masks: Masks | None = None


class Tree:
    """The processes below *root*, seen again and again. For one thread at a time.

    *root* should be the process that orphans of the tree are given to (PR_SET_CHILD_SUBREAPER): who double-forks is
    then still found. *include_root* puts *root* itself into the snapshots. *group*: a process group whose members
    and their descendants belong to the tree as well, wherever they hang.
    """

    def __init__(self, root: int, include_root: bool, group: int | None = None) -> None:
        self._root = root
        self._include_root = include_root
        self._group = group
        self._details = Details()
        # Absent without CONFIG_PROC_CHILDREN.
        self._walks = group is None and os.path.exists("/proc/thread-self/children")

    def snapshot(self, unread: Container[ProcessId] = ()) -> tuple[Process, ...]:
        """Look at every process of the tree, zombies included.

        For those in *unread* the signal masks are the ones that were read last: they cost most of the time.
        """
        stats = _walk(self._root) if self._walks else _scan(self._root, self._group, self._details)
        wanted = (stat for stat in stats if stat.pid != self._root or self._include_root)
        return self._details.of(wanted, unread)


class Details:
    """What is read of a process besides its stat, remembered from one snapshot to the next. One thread at a time."""

    def __init__(self) -> None:
        self._known: dict[ProcessId, _Known] = {}

    def __contains__(self, process: object) -> bool:
        """Say whether *process* was in the last snapshot."""
        return process in self._known

    def of(self, stats: Iterable[Stat], unread: Container[ProcessId] = ()) -> tuple[Process, ...]:
        """Make a snapshot of *stats*; see `Tree.snapshot`."""
        known: dict[ProcessId, _Known] = {}
        processes = []
        for stat in stats:
            process = ProcessId(stat.pid, stat.start)
            known[process] = self._look(process, stat, process in unread)
            processes.append(_process(stat, known[process]))
        self._known = known
        return tuple(processes)

    def _look(self, process: ProcessId, stat: Stat, unread: bool) -> _Known:
        known = self._known.get(process)
        # The same exe is no proof of the same program: python that execs python keeps pid, start and exe.
        if known is None or known.layout != stat.layout or stat.layout == _HIDDEN:
            kept = known.masks if known else None
            known = _Known(stat.layout, _exe(stat.pid), command_line(stat.pid), kept)
        if stat.state in _GONE_STATES:
            known.masks = Masks()
        elif known.masks is None or not unread:
            known.masks = masks(stat.pid)
        return known


def everybody() -> Iterator[Stat]:
    """Look at every process that this /proc shows."""
    for name in os.listdir("/proc"):
        stat = stat_of(int(name)) if name.isdecimal() else None
        if stat is not None:
            yield stat


def process_id(pid: int) -> ProcessId | None:
    """Identify the process that has *pid* now; None if there is none, or only a zombie."""
    stat = stat_of(pid)
    return None if stat is None or stat.state in _GONE_STATES else ProcessId(pid, stat.start)


def parent(pid: int) -> int:
    """Return the pid of the parent of *pid*; 0: it is gone, or its parent is outside of our pid namespace."""
    stat = stat_of(pid)
    return stat.ppid if stat else 0


def send(process: ProcessId, signum: int, only_if_caught: bool = True) -> Sent:
    """Send *signum* to *process* and to no other that got its pid since.

    The descriptor is opened first and the rest is looked at afterwards, so what was looked at is what is signalled.
    With *only_if_caught* a process that would take the default action, or ignores the signal, is left alone.
    """
    try:
        with _grip(process.pid) as kill:
            if process_id(process.pid) != process:
                return Sent.GONE
            if only_if_caught:
                found = masks(process.pid)
                if not (found.caught | found.blocked) >> (signum - 1) & 1:
                    return Sent.NOT_CAUGHT
            kill(signum)
    except ProcessLookupError:
        return Sent.GONE
    except PermissionError:
        return Sent.DENIED
    return Sent.SENT


def environ(pid: int) -> Mapping[str, str]:
    """Return the environment that *pid* was started with, not what it changed since; empty if it may not be read."""
    pairs = (item.partition("=") for item in read(f"/proc/{pid}/environ").decode(errors="replace").split("\0"))
    return {name: value for name, equals, value in pairs if equals}


def boot_id() -> str:
    """Name this boot, the same in every container of a machine; empty: the kernel does not say."""
    return read("/proc/sys/kernel/random/boot_id").decode().strip()


def machine_life() -> str:
    """Name the stretch of time in which (pid, start time) means one process: this boot, this pid namespace.

    The boot id is the same in every container of a machine, and the namespace's inode comes again in the next
    container: only the start time of its first process differs then. Parts that may not be read (ProcSubset=pid,
    hidepid) are a dash.
    """
    boot = boot_id() or "-"
    try:
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        namespace = "-"
    first = stat_of(1)
    return f"{boot}:{namespace}:{first.start if first else '-'}"


@contextmanager
def _grip(pid: int) -> Iterator[Callable[[int], None]]:
    """Take hold of *pid* by a pidfd and yield what sends a signal through it.

    Kernels before 5.3, some seccomp profiles (ENOSYS, or EPERM) and Pythons that were built with old headers (no
    such function) have no pidfd: os.kill() then, a moment after the same checks.

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (OSError, AttributeError):
        yield partial(os.kill, pid)
        return
    try:
        yield partial(_kill, fd, pid)
    finally:
        os.close(fd)


def _kill(fd: int, pid: int, signum: int) -> None:
    try:
        signal.pidfd_send_signal(fd, signum)
    except ProcessLookupError:
        raise
    except (OSError, AttributeError):
        os.kill(pid, signum)


def _walk(root: int) -> list[Stat]:
    """Go down from *root* by task/*/children, then look once more at its direct children.

    A process whose parent dies meanwhile is missed by the first look and found by the second one.
    """
    top = stat_of(root)
    stats = [] if top is None else [top]
    seen = {root}
    for _ in range(2):
        pids = [pid for pid in (_children(top) if top else []) if pid not in seen]
        while pids:
            pid = pids.pop()
            stat = None if pid in seen else stat_of(pid)
            if stat is not None:
                seen.add(pid)
                stats.append(stat)
                pids += _children(stat)
    return stats


def _scan(root: int, group: int | None, known: Container[ProcessId] = ()) -> list[Stat]:
    """Find the same by reading every process of the machine; with *group* its members too, and all that is *known*."""
    children: dict[int, list[Stat]] = {}
    found: list[Stat] = []
    for stat in everybody():
        children.setdefault(stat.ppid, []).append(stat)
        grouped = group is not None and (stat.pgid == group or ProcessId(stat.pid, stat.start) in known)
        if stat.pid == root or grouped:
            found.append(stat)
    seen = {stat.pid for stat in found}
    for above in found:  # grows while it is walked
        below = [stat for stat in children.get(above.pid, []) if stat.pid not in seen]
        seen.update(stat.pid for stat in below)
        found += below
    return found


def _children(stat: Stat) -> list[int]:
    tasks = [str(stat.pid)]
    if stat.threads > 1:
        try:
            tasks = os.listdir(f"/proc/{stat.pid}/task")
        except OSError:
            return []
    return [int(pid) for task in tasks for pid in read(f"/proc/{stat.pid}/task/{task}/children").split()]


def stat_of(pid: int) -> Stat | None:
    """Look at the process that has *pid* now, be it a zombie; None: there is none, or it is hidden."""
    text = read(f"/proc/{pid}/stat")
    end = text.rfind(b")")  # a name may hold parentheses and blanks
    if end < 0:
        return None
    comm = text[text.index(b"(") + 1 : end].decode(errors="replace")
    fields = text[end + 2 :].split()
    # proc(5) counts from 1 and from the pid: field n is fields[n - 3].
    layout = (fields[25], *fields[45:49])
    ppid, pgid, threads, start = (int(fields[n]) for n in (1, 2, 17, 19))
    return Stat(pid, comm, fields[0].decode(), ppid, pgid, threads, start, layout)


def _process(stat: Stat, known: _Known) -> Process:
    blocked, ignored, caught = known.masks or Masks()
    who = stat.pid, stat.start, stat.ppid, stat.pgid, stat.state, stat.comm
    return Process(*who, known.cmdline, known.exe, caught, blocked, ignored)


def command_line(pid: int) -> tuple[str, ...]:
    text = read(f"/proc/{pid}/cmdline").decode(errors="replace")
    return tuple(text.removesuffix("\0").split("\0")) if text else ()


def _exe(pid: int) -> str:
    try:
        return os.fsencode(os.readlink(f"/proc/{pid}/exe")).decode(errors="replace").removesuffix(" (deleted)")
    except OSError:
        return ""
