"""One peer's connection to the link: bounded in what it may send, in how fast, and in what waits for it."""

import contextlib
import socket
from collections import deque

from preemptd.link.lines import Lines, LineTooLongError
from preemptd.link.peer import Peer
from preemptd.link.protocol import ANSWER_LIMIT, LINE_LIMIT

LINES_PER_SECOND = 20.0
BURST = 64.0
LONGEST_PAUSE = 30.0
OF_A_PROCESS_PER_SECOND = 100.0
OF_A_PROCESS_AT_ONCE = 1024.0
OF_A_PROCESS_LONGEST_PAUSE = 2.0
"""All connections of a process together, also one after the other: else who comes anew is always fresh."""
BAD_LINES = 16
LAST_READS = 64
"""More than a socket's buffer holds."""
PATIENCE = 10.0
"""Seconds that an unregistered connection may be silent, and that a line may stay unfinished."""


class HangupError(Exception):
    """The connection is of no further use; the text says why, and is empty where the peer simply left."""


class Allowance:
    """How many lines may come; who has overdrawn it has to wait."""

    @classmethod
    def of_process(cls, now: float) -> "Allowance":
        return cls(OF_A_PROCESS_PER_SECOND, OF_A_PROCESS_AT_ONCE, OF_A_PROCESS_LONGEST_PAUSE, now)

    def __init__(self, per_second: float, at_once: float, longest_pause: float, now: float) -> None:
        self._per_second = per_second
        self._at_once = self._left = at_once
        self._lowest = -longest_pause * per_second
        self._counted = now

    def spend(self, lines: int, now: float) -> None:
        self._refill(now)
        self._left = max(self._left - lines, self._lowest)

    def pause(self, now: float) -> float:
        """Return the seconds until there is something left."""
        self._refill(now)
        return max(0.0, -self._left / self._per_second)

    def is_whole(self, now: float) -> bool:
        self._refill(now)
        return self._left >= self._at_once

    def _refill(self, now: float) -> None:
        self._left = min(self._at_once, self._left + (now - self._counted) * self._per_second)
        self._counted = now


class Connection:
    """*of_process* is what its peer may say on all its connections."""

    def __init__(self, sock: socket.socket, serial: int, peer: Peer, of_process: Allowance, now: float) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.serial = serial
        self.peer = peer
        self.role: str | None = None
        """None: not registered."""
        self._lines = Lines(LINE_LIMIT)
        self._unsent = bytearray()
        self._own = Allowance(LINES_PER_SECOND, BURST, LONGEST_PAUSE, now)
        self._of_process = of_process
        self._since = now
        self._bad = 0

    @property
    def unsent(self) -> bool:
        return bool(self._unsent)

    def receive(self, now: float) -> list[bytes]:
        """Return the lines that came in; they are counted against the rate, also beyond what it allows now.

        Raises:
            HangupError: the peer left, or sent a line that is too long.
        """
        try:
            data = self.sock.recv(LINE_LIMIT // 2)
        except BlockingIOError:
            return []
        except OSError:
            raise HangupError from None
        if not data:
            raise HangupError
        if not self._lines.unfinished:
            self._since = now
        try:
            lines = self._lines.feed(data)
        except LineTooLongError as error:
            raise HangupError(str(error)) from None
        for allowance in (self._own, self._of_process):
            allowance.spend(max(data.count(b"\n"), 1), now)
        return lines

    def last_lines(self, now: float) -> list[bytes]:
        """Return the end of what a peer sent that left while it was paused: its last word may be `saved`."""
        in_debt = self._of_process.pause(now) > 0
        lines: deque[bytes] = deque(maxlen=int(self.role is not None) if in_debt else int(BURST))
        with contextlib.suppress(HangupError):
            for _ in range(LAST_READS):
                lines += self.receive(now)
        return list(lines)

    def pause(self, now: float) -> float:
        """Return the seconds for which nothing more is read from this peer: its rate is used up."""
        return max(self._own.pause(now), self._of_process.pause(now))

    def bad_line(self) -> None:
        """Count a line that was no good; raises `HangupError` at the last straw."""
        self._bad += 1
        if self._bad >= BAD_LINES:
            raise HangupError("too many lines that are not of this protocol")

    def is_calm(self) -> bool:
        """Say whether no clock runs against this peer."""
        return self.role is not None and not self._lines.unfinished

    def is_overdue(self, now: float) -> bool:
        return not self.is_calm() and now - self._since > PATIENCE

    def send(self, line: bytes) -> None:
        """Send *line*, or keep it until the peer reads on; raises `HangupError` for one that does not."""
        if len(self._unsent) + len(line) > ANSWER_LIMIT and self._unsent:
            raise HangupError("it does not read what it is sent")
        self._unsent += line
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the peer takes it; for one that has left it is dropped.

        No more than that: what it said before it left may not have been read yet, and its end is seen after it.
        """
        while self._unsent:
            try:
                sent = self.sock.send(self._unsent)
            except BlockingIOError:
                return
            except OSError:
                sent = len(self._unsent)
            del self._unsent[:sent]
