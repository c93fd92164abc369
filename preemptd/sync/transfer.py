"""One child process at work, seen from ours: a store that hangs hangs that alone, and it can be killed."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from preemptd.discretion import discreet
from preemptd.provider import Commands

STALLED = 300.0
"""Seconds without a word after which a transfer is given up: a part of a file takes less on any line."""
REAPED_WITHIN = 1.0
"""Seconds for the end of what was killed: one that hangs in the kernel is waited for no longer."""
READ_AT_ONCE = 65536
_PROGRAM = """\
import sys
sys.path[:] = [*filter(None, sys.path), sys.argv[1]]
try:
    from preemptd.sync.work import main
except ImportError as error:
    sys.exit(f"preemptd.sync needs {error.name}")
main()
"""
"""The training's directory is not searched for modules: it may hold a random.py of its own."""

Line = Mapping[str, object]


class Transfer:
    """A fetch or a send. Used by one thread."""

    def __init__(
        self, popen: Commands, environ: Mapping[str, str], order: Mapping[str, object], hear: Callable[[Line], None]
    ) -> None:
        """Begin.

        Args:
            popen: starts it.
            environ: all of the user's: whatever the store's client reads its credentials from.
            order: what is to be done.
            hear: takes each line that is not the last one.

        Raises:
            OSError: no process can be started.
        """
        self._popen = popen
        self._hear = hear
        self._rest = b""
        self._tail = ""
        self._result: Line | None = None
        self._heard = time.monotonic()
        above = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
        command = (sys.executable, "-c", _PROGRAM, above)
        self._process = popen.popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        with suppress(BrokenPipeError):  # it has ended already: its output says why
            assert self._process.stdin is not None  # noqa: S101 - it was asked for
            self._process.stdin.write(json.dumps({**order, "parent": os.getpid()}).encode())
            self._process.stdin.close()

    def advance(self, within: float) -> Line | None:
        """Wait up to *within* seconds for news; return the last line, when it has come: ``done`` or ``failed``."""
        if self._result is None and self._read(within):
            self._end("")
        if self._result is None and time.monotonic() - self._heard > STALLED:
            self.kill(f"nothing has moved for {STALLED:.0f} s")
        return self._result

    def kill(self, why: str) -> None:
        """End it, wherever it is; *why* is the reason that `advance` gives from then on."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # not reaped yet: the number is still its own
        self._end(why)

    def _end(self, why: str) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(REAPED_WITHIN)
        if self._process.returncode is not None:
            self._popen.release(self._process)
        if self._process.stdout is not None:
            self._process.stdout.close()
        if self._result is None:
            missing = self._tail.removeprefix("preemptd.sync needs ") if "preemptd.sync needs " in self._tail else ""
            if missing:
                self._result = _failed("needs", f"this needs {missing}: pip install 'preemptd[sync]'")
            else:
                said = f": {discreet(self._tail)}" if self._tail else ""
                ended = f"the transfer's process ended with status {self._process.returncode}{said}"
                self._result = _failed("killed" if why else "died", why or ended)

    def _read(self, within: float) -> bool:
        """Take what it says; True: it says nothing more."""
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        if not poll.poll(within * 1000):
            return False
        data = os.read(self._process.stdout.fileno(), READ_AT_ONCE)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in filter(None, lines):
            self._take(line)
        return not data

    def _take(self, text: bytes) -> None:
        try:
            line = json.loads(text)
            event = line["event"]
        except (ValueError, TypeError, KeyError):
            self._tail = text.decode("utf-8", "replace").strip()[-300:] or self._tail
            return
        self._heard = time.monotonic()
        if event in {"done", "failed"}:
            self._result = line
            self._end("")
        else:
            self._hear(line)


def _failed(kind: str, why: str) -> Line:
    return {"event": "failed", "kind": kind, "why": why}
