"""Who is still writing in a directory: a file that is written in place is no checkpoint before it is closed."""

import os
from collections.abc import Iterator
from contextlib import suppress

_WRITES = os.O_WRONLY | os.O_RDWR


def written_now(directory: str) -> frozenset[str]:
    """List the files below *directory*, relative to it, that a process of ours has open for writing.

    Other users' processes cannot be looked at, nor those on other machines.
    """
    top = os.path.realpath(directory) + "/"
    found = set()
    for handle in _handles():
        with suppress(OSError):  # closed meanwhile, or not for us to see
            path = os.readlink(handle)
            if path.startswith(top) and _flags(handle) & _WRITES:
                found.add(path.removeprefix(top))
    return frozenset(found)


def _handles() -> Iterator[str]:
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                yield f"/proc/{pid}/fd/{fd}"


def _flags(handle: str) -> int:
    with open(handle.replace("/fd/", "/fdinfo/"), encoding="ascii") as file:
        return next((int(line.split()[1], 8) for line in file if line.startswith("flags:")), 0)
