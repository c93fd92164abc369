"""Kills a forked process of ours, or fails its call, at the n-th of those by which it changes the disk.

The code under test knows nothing of it: `os` is what is replaced, in the child alone.
"""

import errno
import os
import signal
from collections.abc import Callable
from typing import Any

CALLS = ("open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir")
FINE, FAILED, UNHARMED = 0, 3, 4


def fault_at(number: int, how: str) -> Callable[[], bool]:
    """Let the call of that *number* not happen: *how* is kill, torn (a write is half done), or the name of an errno.

    The result says whether it has come to that call.
    """
    count = 0

    def faulty(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count != number:
                return real(*args, **options)
            if how in {"kill", "torn"}:
                if how == "torn" and name == "write":
                    real(args[0], memoryview(args[1])[: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(getattr(errno, how), os.strerror(getattr(errno, how)))

        return call

    for name in CALLS:
        setattr(os, name, faulty(name, getattr(os, name)))
    return lambda: count >= number


def survives(number: int, how: str, act: Callable[[], object], expected: type[Exception]) -> str:
    """Do *act* in a forked child with the fault; return what became of it.

    That is killed, failed (as *expected*), fine in spite of it, or unharmed: there are not that many calls.
    """
    child = os.fork()
    if child == 0:
        status = 1  # an exception that nobody expects
        try:
            reached = fault_at(number, how)
            act()
            status = FINE if reached() else UNHARMED
        except expected:
            status = FAILED
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    ends = {FINE: "fine", -signal.SIGKILL: "killed", FAILED: "failed", UNHARMED: "unharmed"}
    return ends.get(os.waitstatus_to_exitcode(status), f"ended with {status}")
