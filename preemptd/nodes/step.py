"""One srun that runs an agent on each node of a job (or of one component of it), started again when it ends."""

import os
import select
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from preemptd.nodes.wire import LONGEST, WireError, decode
from preemptd.provider import Commands

END_WITHIN = 1.5
"""Seconds in which srun ends once its stdin has; usually 50 ms. slurmctld may hang."""
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 120.0
STEADY = 30.0
"""Seconds after which a step that ends was a good one: the next is started after the shortest pause."""
MOST_UNSENT = 2**20


class Step:
    """Owns the srun and the thread that speaks with it; the rest of us only leaves lines to be sent."""

    def __init__(
        self,
        command: Sequence[str],
        commands: Commands,
        environ: Mapping[str, str],
        greet: Callable[[], bytes],
        hear: Callable[[dict[str, Any]], None],
    ) -> None:
        """Make it.

        Args:
            command: the srun.
            commands: starts it.
            environ: its environment.
            greet: what agents that start have to know.
            hear: takes each line of an agent; ``complaint`` with ``text`` for what SLURM or Python says, ``gone`` when
                all of them have ended.
        """
        self._command = command
        self._commands = commands
        self._environ = environ
        self._greet = greet
        self._hear = hear
        self._lock = threading.Lock()
        self._orders: deque[bytes] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closing = False
        self._again = True
        self._start_at = 0.0
        self._thread = threading.Thread(target=self._run, name="nodes", daemon=True)

    def start(self, after: float) -> None:
        """Start srun in *after* seconds, or when `hurry` is called."""
        self._start_at = time.monotonic() + after
        self._thread.start()

    def hurry(self) -> None:
        """Start it now, if it is not there: there is news."""
        self._start_at = 0.0
        os.eventfd_write(self._wake, 1)

    def send(self, line: bytes) -> None:
        """Send *line* to every agent. Never blocks; while there is none, `greet` is what they will get."""
        with self._lock:
            self._orders.append(line)
        os.eventfd_write(self._wake, 1)

    def send_last(self, line: bytes) -> None:
        """Send *line*, after which the agents end by themselves."""
        self._again = False
        self.send(line)

    def begin_close(self) -> None:
        """End the agents: their stdin ends."""
        self._again = False
        self._closing = True
        os.eventfd_write(self._wake, 1)

    def join(self, within: float) -> None:
        """Wait for the end of srun, after `begin_close`, no longer than so many seconds. Nothing may be sent then."""
        if self._thread.ident is not None:
            self._thread.join(within)
        if not self._thread.is_alive():
            os.close(self._wake)

    # -- in the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while self._awaits_start():
            began = time.monotonic()
            try:
                process = self._popen()
            except OSError as error:
                self._hear({"event": "complaint", "text": f"srun cannot be started: {error.strerror}"})
            else:
                self._serve(process)
                self._finish(process)
            if self._again:
                self._hear({"event": "gone"})
            pause = FIRST_PAUSE if time.monotonic() - began > STEADY else min(LONGEST_PAUSE, 2 * pause)
            self._start_at = time.monotonic() + pause

    def _awaits_start(self) -> bool:
        """Wait until it is time; False: we are to close."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while self._again and (left := self._start_at - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                os.eventfd_read(self._wake)
        return self._again

    def _popen(self) -> "subprocess.Popen[bytes]":
        pipe = subprocess.PIPE
        process = self._commands.popen(
            self._command, env=self._environ, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT
        )
        with self._lock:
            self._orders.clear()
            self._orders.append(self._greet())
        return process

    def _serve(self, process: "subprocess.Popen[bytes]") -> None:
        """Pass lines on, both ways, until the step or our interest ends."""
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018, S101 - as it was started
        into, out = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(into, False)
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(out, select.POLLIN)
        unsent, unread = b"", b""
        while not (self._closing and not unsent) and len(unsent) < MOST_UNSENT:
            ready = dict(poll.poll())
            if self._wake in ready:
                os.eventfd_read(self._wake)
            if out in ready:
                if not (got := os.read(out, 65536)):
                    return
                unread = self._take(unread + got)
            with self._lock:
                unsent = _write(into, unsent + b"".join(self._orders))
                self._orders.clear()
            if unsent:
                poll.register(into, select.POLLOUT)
            elif into in ready:
                poll.unregister(into)

    def _take(self, text: bytes) -> bytes:
        """Pass whole lines on; return the rest."""
        *lines, rest = text.split(b"\n")
        for line in lines:
            self._hear(_read(line))
        return rest[-4 * LONGEST :]

    def _finish(self, process: "subprocess.Popen[bytes]") -> None:
        """Wait for the end of srun. Killed, it leaves agents whose stdin ends with it."""
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        try:
            process.wait(END_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._commands.release(process)


def _write(fd: int, text: bytes) -> bytes:
    """Write what goes in without waiting; return the rest. What nobody reads any more is dropped."""
    try:
        return text[os.write(fd, text) :] if text else text
    except BlockingIOError:
        return text
    except OSError:
        return b""


def _read(line: bytes) -> dict[str, Any]:
    try:
        return decode(line)
    except WireError:
        return {"event": "complaint", "text": " ".join(line.decode(errors="replace").split())[:300]}
