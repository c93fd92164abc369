"""A web server for a few small pages: one thread, bounded in all that a client can make it spend."""

import os
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

from preemptd.errors import ConfigError

MOST_CONNECTIONS = 32
"""With one more the oldest is closed: who is served takes milliseconds, who is old is slow."""
WITHIN = 5.0
"""Seconds for a connection, from its beginning to its end."""
LONGEST_HEAD = 8 * 1024
"""Bytes of request line and headers."""
STOP_WITHIN = 0.5
BREATH = 0.2
"""Seconds without new connections when the process has no descriptor for one."""

_REQUEST = re.compile(rb"([A-Z]{1,16}) (/[!-~]{0,2048}) HTTP/1\.[01]")


@dataclass(frozen=True, slots=True)
class Page:
    """What is answered."""

    status: HTTPStatus
    content: bytes
    form: str = "text/plain; charset=utf-8"

    def wire(self, *, body: bool) -> bytes:
        head = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\nContent-Type: {self.form}\r\n"
            f"Content-Length: {len(self.content)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (self.content if body else b"")


def text(status: HTTPStatus, words: str) -> Page:
    return Page(status, f"{words}\n".encode())


@dataclass(slots=True, eq=False)
class _Connection:
    sock: socket.socket
    since: float
    heard: bytearray = field(default_factory=bytearray)
    answer: bytes | None = None
    """What is still to be sent; None: the request is not complete."""


class Web:
    """`start` and `stop` are for other threads."""

    def __init__(self, address: str, answer: Callable[[str], Page]) -> None:
        """Listen; nobody is answered before `start`.

        Args:
            address: ``HOST:PORT``.
            answer: makes the page for a path with its query. Called in the server's thread.

        Raises:
            ConfigError: we cannot listen there.
        """
        self._answer = answer
        self._listener = _listen(address)
        self._listener.setblocking(False)
        self._stopping = False
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._connections: dict[int, _Connection] = {}
        self._lock = threading.Lock()  # for the wake-up, whose number may be another's when it is closed
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="web", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End it; what is under way is cut off."""
        self._stopping = True
        if self._thread.ident is None:
            self._close()
            return
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._wakeup, 1)
        self._thread.join(STOP_WITHIN)  # where a page takes longer to make, what it uses is closed after it

    def _close(self) -> None:
        for connection in self._connections.values():
            connection.sock.close()
        self._listener.close()
        self._selector.close()
        with self._lock:
            self._closed = True
            os.close(self._wakeup)

    def _run(self) -> None:
        try:
            self._serve_all()
        finally:
            self._close()

    def _serve_all(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        while not self._stopping:
            for key, _ in self._selector.select(BREATH if self._connections else None):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fd in self._connections:
                    self._serve(self._connections[key.fd])
            end = time.monotonic() - WITHIN
            for connection in [late for late in self._connections.values() if late.since < end]:
                self._drop(connection)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError:  # EMFILE would be reported again at once, for ever
            time.sleep(BREATH)
            return
        sock.setblocking(False)
        if len(self._connections) >= MOST_CONNECTIONS:
            self._drop(next(iter(self._connections.values())))
        self._connections[sock.fileno()] = _Connection(sock, time.monotonic())
        self._selector.register(sock, selectors.EVENT_READ)

    def _drop(self, connection: _Connection) -> None:
        del self._connections[connection.sock.fileno()]
        self._selector.unregister(connection.sock)
        connection.sock.close()

    def _serve(self, connection: _Connection) -> None:
        try:
            if connection.answer is None:
                goes_on = self._read(connection)
            elif connection.answer:
                goes_on = self._write(connection)
            else:  # all is sent: closing before the client has read it, with data of its own unread, would be a reset
                goes_on = bool(connection.sock.recv(LONGEST_HEAD))
        except BlockingIOError:
            return
        except OSError:
            goes_on = False
        if not goes_on:
            self._drop(connection)

    def _read(self, connection: _Connection) -> bool:
        data = connection.sock.recv(LONGEST_HEAD)
        connection.heard += data
        head, end, _ = connection.heard.partition(b"\r\n\r\n")
        if end or len(connection.heard) > LONGEST_HEAD:
            connection.answer = self._respond(bytes(head) if end else None)
            connection.heard.clear()
            self._selector.modify(connection.sock, selectors.EVENT_WRITE)
        return bool(data)

    def _respond(self, head: bytes | None) -> bytes:
        """Answer a request with this *head*; None: it is too long."""
        if head is None:
            return text(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too long").wire(body=True)
        request = _REQUEST.fullmatch(head.split(b"\r\n", 1)[0])
        if request is None:
            return text(HTTPStatus.BAD_REQUEST, "no request that is understood here").wire(body=True)
        method, path = request[1].decode(), request[2].decode()
        if method not in {"GET", "HEAD"}:
            return text(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD are all that there is").wire(body=True)
        try:
            page = self._answer(path)
        except Exception as error:  # noqa: BLE001 - whoever made the page: the server goes on
            page = text(HTTPStatus.INTERNAL_SERVER_ERROR, f"internal error, please report it: {type(error).__name__}")
        return page.wire(body=method == "GET")

    def _write(self, connection: _Connection) -> bool:
        answer = connection.answer or b""
        connection.answer = answer[connection.sock.send(answer) :]
        if not connection.answer:
            connection.sock.shutdown(socket.SHUT_WR)
            self._selector.modify(connection.sock, selectors.EVENT_READ)
        return True


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    if int(port) > 65535:
        raise ConfigError(f"--listen {address}: a port is a number up to 65535")
    try:
        if not host:
            return _everywhere(int(port))
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        return socket.create_server(found[0][4][:2], family=found[0][0], backlog=MOST_CONNECTIONS)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--listen {address}: cannot listen there ({_why(error)})") from error


def _why(error: OSError | UnicodeError) -> str:
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)  # Python's own words for it repeat the address
    return str(getattr(error, "strerror", None) or error)


def _everywhere(port: int) -> socket.socket:
    try:
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=MOST_CONNECTIONS, dualstack_ipv6=True)
    except (OSError, ValueError):  # a kernel or a machine without IPv6; what else is wrong shows again
        return socket.create_server(("", port), backlog=MOST_CONNECTIONS)
