"""What a process would do with a signal, as /proc/PID/status shows it."""

import os
import re
import signal
from typing import NamedTuple

_MASKS = re.compile(rb"^SigBlk:\s*([0-9a-f]+)\nSigIgn:\s*([0-9a-f]+)\nSigCgt:\s*([0-9a-f]+)$", re.MULTILINE)
_SEGV = 1 << (signal.SIGSEGV - 1)
_TELLING = sum(1 << (signum - 1) for signum in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM))


class Masks(NamedTuple):
    """Bit n-1 stands for signal n."""

    blocked: int = 0
    """By the main thread, and by every other one that would take the default action."""
    ignored: int = 0
    caught: int = 0


def masks(pid: int) -> Masks:
    """Read the masks of *pid*; all empty if there is nothing to read."""
    found = _masks(f"/proc/{pid}/status")
    # Nobody who waits for a signal blocks SIGSEGV. Who blocks everything is inside vfork or pthread_create for a
    # moment (CPython's subprocess, posix_spawn), and a signal sent now would kill it a millisecond later.
    if found.blocked & _SEGV:
        return found._replace(blocked=0)
    awaited = found.blocked & ~found.caught & _TELLING
    return found._replace(blocked=found.blocked & ~_deadly(pid, awaited)) if awaited else found


def _deadly(pid: int, awaited: int) -> int:
    """Pick those of *awaited* that would end the process: the kernel gives a signal to any thread that takes it.

    A thread in sigwait() does not block it for that time, and is no danger; only `wchan` tells it from another one,
    such as a library's that was started before the main thread blocked the signal.
    """
    deadly = 0
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return awaited
    for thread in threads:
        task = f"/proc/{pid}/task/{thread}"
        taken = awaited & ~_masks(f"{task}/status").blocked
        if taken and b"sigtimedwait" not in read(f"{task}/wchan"):
            deadly |= taken
    return deadly


def _masks(path: str) -> Masks:
    match = _MASKS.search(read(path))
    return Masks(*(int(mask, 16) for mask in match.groups())) if match else Masks()


def read(path: str) -> bytes:
    """Read a file of /proc whole; empty if it is gone or may not be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        chunks = []
        # A list such as `children` comes a page at a time.
        while chunk := os.read(fd, 65536):
            chunks.append(chunk)
        return b"".join(chunks)
    except OSError:
        return b""
    finally:
        os.close(fd)
