"""A peer's end of the link, in a thread of its own; standard library only, and never an exception to the caller."""

import contextlib
import json
import logging
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from preemptd.link.lines import Lines, LineTooLongError

ANSWER_LIMIT = 64 * 1024
"""Bytes of the longest line that the daemon sends."""
LINE_LIMIT = 8 * 1024
FIRST_ANSWER = 1.0
"""Seconds that `Subscription.start` waits for the answer to the registration."""
RETRY = 2.0
"""Seconds between two attempts to connect."""
SENDING = 0.005
"""Seconds that a caller waits at most for a daemon that does not read."""
MOST_UNSENT = 64

logger = logging.getLogger("preemptd")


class Subscription:
    """Connects, registers, hears, and does so again whenever the daemon is gone and comes back.

    Args:
        path: of the daemon's socket.
        pid: our own.
        role: ``trainer`` or ``wrapper``.
        hear: called for each message, in the listening thread (the first ones: in the thread that calls `start`).
    """

    def __init__(self, path: str, pid: int, role: str, hear: Callable[[Mapping[str, object]], None]) -> None:
        self._path = path
        self._register = {"verb": "register", "pid": pid, "role": role}
        self._hear = hear
        self._socket: socket.socket | None = None
        self._lines = Lines(ANSWER_LIMIT)
        self._unsent: deque[bytes] = deque(maxlen=MOST_UNSENT)
        self._current = b""
        self._sent = 0
        self._sending = threading.Lock()
        self._warned = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.asked_at = 0.0
        """time.monotonic() just before the last registration was sent."""
        self.registered = False

    def connect(self) -> bool:
        """Connect, register and wait for the answer, for a second at most; False: nobody answered."""
        end = time.monotonic() + FIRST_ANSWER
        self._connect()
        while self._socket is not None and not self.registered and time.monotonic() < end:
            self._listen(end - time.monotonic())
        if not self.registered:
            self._warn("it does not answer")
        return self.registered

    def start(self) -> None:
        """Listen in a thread from now on."""
        thread = threading.Thread(target=self._run, name="preemptd-link", daemon=True)
        with contextlib.suppress(RuntimeError):  # no thread to be had, or the interpreter is at its end
            thread.start()
            self._thread = thread

    @property
    def listens(self) -> bool:
        """Whether there is a thread that hears what comes; else it has to be asked for by `look`."""
        return self._thread is not None

    def look(self, patience: float = 0.0) -> None:
        """Take what has come, or comes in *patience* seconds, where there is no thread and none can be had."""
        if not self.listens:
            self.start()
        if not self.listens:
            self._listen(patience)

    def say(self, verb: str, **fields: object) -> None:
        """Send, or keep for the next connection, one message. Takes a few milliseconds at most, whatever happens."""
        line = _line({"verb": verb, **fields})
        if len(line) > LINE_LIMIT:
            line = _line({"verb": verb})
        self._unsent.append(line)
        self._flush(SENDING)

    def close(self) -> None:
        """Leave: the daemon sees it at once."""
        self._closed.set()
        connection = self._socket
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join(FIRST_ANSWER)
        self._drop()

    def forget(self) -> None:
        """In a forked child: let go of the parent's connection without a word to the daemon."""
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()

    def _run(self) -> None:
        while not self._closed.is_set():
            if self._socket is not None:
                self._listen(None)
            elif not self._closed.wait(RETRY):
                self._connect()

    def _connect(self) -> None:
        try:
            connection = _connected(self._path)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            self._warn(getattr(error, "strerror", None) or str(error))
            return
        self._lines = Lines(ANSWER_LIMIT)
        with self._sending:
            self._current, self._sent = _line(self._register), 0
            self.asked_at = time.monotonic()
            self._socket = connection
        self._flush(0)

    def _listen(self, timeout: float | None) -> None:
        """Wait for what the daemon says, and pass it on."""
        connection = self._socket
        if connection is None:
            return
        try:
            if timeout is not None and not _wait(connection, select.POLLIN, timeout):
                return
            # Without a poll() before it: each call is one more wait for the GIL, up to 5 ms beside busy Python code.
            data = connection.recv(ANSWER_LIMIT)
            messages = [_read(line) for line in self._lines.feed(data)]
        except (OSError, LineTooLongError, _RubbishError) as error:
            self._warn(str(error))
            self._drop()
            return
        if not data:
            self._drop()
        for message in messages:
            self._take(message)

    def _take(self, message: Mapping[str, object]) -> None:
        if message.get("type") == "registered":
            self.registered = True
            self._flush(0)
        elif message.get("type") == "error" and not self.registered:
            self._warn(str(message.get("text")))
        self._hear(message)

    def _flush(self, patience: float) -> None:
        """Send what waits. A signal handler that interrupted a sending leaves its line to that, after *patience*."""
        end = time.monotonic() + patience
        while (self._unsent or self._current) and self._sending.acquire(timeout=max(0.0, end - time.monotonic())):
            try:
                is_done = self._send(end)
            finally:
                self._sending.release()
            if not is_done:
                return

    def _send(self, end: float) -> bool:
        connection = self._socket
        while connection is not None and (self._unsent or self._current):
            if not self._current:
                self._current, self._sent = self._unsent.popleft(), 0
            try:
                self._sent += connection.send(self._current[self._sent :], socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
            except BlockingIOError:
                if _wait(connection, select.POLLOUT, end - time.monotonic()):
                    continue
                return False
            except OSError:  # the listening thread sees it as well, and connects anew
                return False
            if self._sent == len(self._current):
                self._current = b""
        return connection is not None

    def _drop(self) -> None:
        self.registered = False
        with self._sending:
            connection, self._socket = self._socket, None
            if self._current and self._current != _line(self._register):
                self._unsent.appendleft(self._current)
            self._current = b""
        if connection is not None:
            connection.close()

    def _warn(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("no link to preemptd at %s: %s; training goes on without it", self._path, why)


class _RubbishError(Exception):
    """What came in is not a message."""


def _connected(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)  # a full backlog is an error, not a wait
        connection.connect(path)
        connection.setblocking(True)
    except BaseException:
        connection.close()
        raise
    return connection


def _wait(connection: socket.socket, event: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(connection, event)
    return bool(poll.poll(None if timeout is None else max(0.0, timeout) * 1000))


def _line(message: Mapping[str, object]) -> bytes:
    return json.dumps({"v": 1, **message}, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _read(line: bytes) -> Mapping[str, object]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise _RubbishError("it does not speak preemptd's language")
    return message
