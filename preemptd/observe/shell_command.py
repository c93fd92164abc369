"""Runs one command of the user's to its end, or to the end of its time."""

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from preemptd.discretion import discreet
from preemptd.provider import Commands

REAPED_WITHIN = 1.0
"""Seconds for the end of what was killed: one that hangs in the kernel is waited for no longer."""
LOOK_EVERY = 0.05
READ_AT_ONCE = 64 * 1024
TAIL, TAIL_LINES = 500, 3
"""Characters and lines of its output that are kept."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of it."""

    status: int | None
    """128 + n for a signal; None: it never ran, or did not end by itself."""
    why: str | None
    """What went wrong; None: nothing."""
    output: str = ""
    """The last it wrote, to stdout or stderr."""


def run(
    popen: Commands, command: str, env: Mapping[str, str], seconds: float, is_over: Callable[[], bool] = lambda: False
) -> Ran:
    """Run *command* through the shell; after *seconds*, or when it *is_over*, it is killed with all of its session.

    What it leaves in the background goes on; only its output is read by nobody.
    """
    ends = time.monotonic() + seconds
    try:
        process = popen.popen(("/bin/sh", "-c", command), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except (OSError, ValueError) as error:  # no more processes; a variable with a null byte in it
        return Ran(None, f"could not be run: {getattr(error, 'strerror', None) or error}")
    killed, tail = False, b""
    with _output_of(process) as output:
        while process.poll() is None and not killed:
            killed = time.monotonic() >= ends or is_over()
            if killed:
                _kill(process)
            tail = _more(output, tail, LOOK_EVERY)
        tail = _more(output, tail, 0.0)
    if process.returncode is not None:
        popen.release(process)
    kept = discreet("\n".join(tail.decode("utf-8", "replace").strip().split("\n")[-TAIL_LINES:])[-TAIL:])
    if killed:
        return Ran(None, f"was killed after {time.monotonic() - ends + seconds:.1f} s: its time was over", kept)
    status = 128 - process.returncode if process.returncode < 0 else process.returncode
    return Ran(status, f"ended with status {status}" if status else None, kept)


def _output_of(process: "subprocess.Popen[bytes]") -> IO[bytes]:
    assert process.stdout is not None  # noqa: S101 - it was asked for
    os.set_blocking(process.stdout.fileno(), False)
    return process.stdout


def _more(output: IO[bytes], tail: bytes, within: float) -> bytes:
    """Read what is there, or comes *within* seconds; keep the end."""
    poll = select.poll()
    poll.register(output, select.POLLIN)
    if not poll.poll(within * 1000):
        return tail
    with suppress(BlockingIOError):
        read = os.read(output.fileno(), READ_AT_ONCE)
        if not read:  # it has closed its output and goes on, or has ended
            time.sleep(min(within, LOOK_EVERY / 10))
        return (tail + read)[-4 * TAIL :]
    return tail


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # not reaped yet: the number is still its own
    with suppress(subprocess.TimeoutExpired):
        process.wait(REAPED_WITHIN)
