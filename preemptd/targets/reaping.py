"""Whose end is whose to wait for: the daemon's own commands, and orphans that it adopted."""

import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_PR_SET_CHILD_SUBREAPER = 36
STARTED_WITHIN = 0.05
"""Seconds; a helper's exec can hang on a network file system, and nobody waits for that."""
OWN_COMMAND = "PREEMPTD_OWN_COMMAND"
"""In the environment of our own commands, and of what srun starts for one on other nodes: this is no training."""


def become_subreaper() -> None:
    """Adopt descendants whose parents end: a trainer that was forked twice stays in our tree (also as no PID 1)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), *[ctypes.c_ulong(0)] * 3)


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    ppid: int
    group: int


class Helpers:
    """The one place where the daemon starts commands of its own (hooks, repairs), and where orphans are reaped.

    A zombie that is reaped by anyone but its owner's Popen gives that Popen return code 0, silently. So commands are
    started and registered under the lock under which orphans are listed and reaped.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pids: set[int] = set()
        self._left_lock = threading.Lock()  # for what follows; never held for long
        self._left: set[int] = set()
        """Groups of commands that have ended, and left something in the background."""

    @property
    def pids(self) -> frozenset[int]:
        """The commands that run, and those that have ended and left something: their process groups bear the pid."""
        if self._lock.acquire(timeout=STARTED_WITHIN):  # one that is just being started may be seen before it is known
            self._lock.release()
        with self._left_lock:
            self._left = {group for group in self._left if _has_members(group)}
            return frozenset(self._pids | self._left)

    def popen(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start *command* in a session of its own: no Ctrl-C hits it. The caller waits for it, then calls `release`."""
        marked = {**(os.environ if env is None else env), OWN_COMMAND: "1"}
        with self._lock:
            process = subprocess.Popen(
                command, env=marked, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
            )
            self._pids.add(process.pid)
        return process

    def release(self, process: subprocess.Popen[bytes]) -> None:
        """Forget *process*, which its owner has waited for."""
        if _has_members(process.pid):
            with self._left_lock:
                self._left.add(process.pid)
        with self._lock:
            self._pids.discard(process.pid)

    def reap_orphans(self, but_not: int) -> int:
        """Reap what we adopted and what has ended; never *but_not* (the training), never a helper. Returns how many.

        Never waits, not even for the lock: a helper's exec can hang on a network file system. The next SIGCHLD or the
        next second is soon enough. Children in our own process group are left alone: an orphan is in another one, but
        a subprocess of a plug-in, which its owner will wait for, is there.
        """
        if not self._lock.acquire(blocking=False):
            return 0
        try:
            own = os.getpgrp()
            orphans = [
                pid
                for pid, stat in _children()
                if stat.state == "Z" and stat.group != own and pid != but_not and pid not in self._pids
            ]
            return sum(map(_reap, orphans))
        finally:
            self._lock.release()


class Shielded:
    """Starts a provider's commands with TERM, USR1 and USR2 ignored: SLURM signals every process of a job.

    By way of a shell: only the new process itself may ignore them, and code between fork and exec is not safe in a
    program with threads.
    """

    def __init__(self, helpers: Helpers) -> None:
        self._helpers = helpers

    def popen(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> subprocess.Popen[bytes]:
        shielded = ("/bin/sh", "-c", 'trap "" TERM USR1 USR2; exec "$0" "$@"', *command)
        return self._helpers.popen(shielded, env=env, stdin=stdin, stdout=stdout, stderr=stderr)

    def release(self, process: subprocess.Popen[bytes]) -> None:
        self._helpers.release(process)


def _has_members(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _reap(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None
    except ChildProcessError:
        return False


def _children() -> Iterator[tuple[int, _Stat]]:
    me = os.getpid()
    for pid in _listed_children():
        stat = _stat(pid)
        if stat is not None and stat.ppid == me:
            yield pid, stat


def _listed_children() -> list[int]:
    if not os.path.exists("/proc/thread-self/children"):  # a kernel without CONFIG_PROC_CHILDREN
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    lists = (_read(f"/proc/self/task/{thread}/children") for thread in os.listdir("/proc/self/task"))
    return [int(pid) for pids in lists for pid in pids.split()]


def _read(path: str) -> bytes:
    """Read a file of /proc; empty when its process or thread has ended (another thread then has its children)."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _stat(pid: int) -> _Stat | None:
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return _Stat(fields[0].decode(), int(fields[1]), int(fields[2])) if fields else None
