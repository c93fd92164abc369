"""HTTP on loopback for the metadata servers of a rehearsal, and the interruption that they announce."""

import contextlib
import email.utils
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TypeVar
from urllib.parse import parse_qs, urlsplit

Server = TypeVar("Server", bound="MetadataServer")
LONGEST_BODY = 64 * 1024
"""Bytes of a request that are read."""

NOT_FOUND = b"""<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
\t"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>404 - Not Found</title>
 </head>
 <body>
  <h1>404 - Not Found</h1>
 </body>
</html>
"""
"""EC2's and GCE's page."""


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked."""

    method: str
    path: str
    """Without the query."""
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """Keys in lower case. A header that came twice is joined by a comma."""
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def wire(self, date: float, with_body: bool = True) -> bytes:
        """Make the whole answer, for one write: two would cost 40 ms (Nagle's algorithm and delayed ACK)."""
        headers = {
            "Date": email.utils.formatdate(date, usegmt=True),
            "Content-Length": str(len(self.body)),
            **self.headers,
        }
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}", *(f"{k}: {v}" for k, v in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (self.body if with_body else b"")


class Announcement:
    """One interruption: none yet, announced *after* seconds from the first good look, perhaps taken back."""

    def __init__(self, after: float, grace: float, revoke: float | None, say: Callable[[str], None]) -> None:
        """Take seconds from the first look to the notice, from it to the end, and from it to its end (None: never)."""
        self._after = after
        self.grace = grace
        self._revoke = revoke
        self._say = say
        self._timers: list[threading.Timer] = []
        self._watched = False
        self._closed = False
        self.changed = threading.Condition()
        """Notified when the announcement, or `closed`, changes."""
        self.deadline: float | None = None
        """Unix seconds of the end that is announced; None: nothing is."""
        self.withdrawn: float | None = None
        """Unix seconds of the end that was announced and is not any more; None: nothing was, or it still is."""

    @property
    def closed(self) -> bool:
        return self._closed

    def looked(self) -> None:
        """Note a good look at the signal: the first one starts the clock."""
        with self.changed:
            if self._watched:
                return
            self._watched = True
            self._say("watched")
            self._start(self._after, self.announce)

    def announce(self) -> None:
        """Announce it now."""
        with self.changed:
            self._watched = True
            self.deadline, self.withdrawn = time.time() + self.grace, None
            self._say("raised")
            if self._revoke is not None:
                self._start(self._revoke, self.revoke)
            self._start(self.grace, self._end)
            self.changed.notify_all()

    def revoke(self) -> None:
        """Take it back."""
        with self.changed:
            self.deadline, self.withdrawn = None, self.deadline
            self._say("revoked")
            self.changed.notify_all()

    def _end(self) -> None:
        if self.deadline is not None:
            self._say("over")

    def close(self) -> None:
        with self.changed:
            self._closed = True
            for timer in self._timers:
                timer.cancel()
            self.changed.notify_all()
        for timer in self._timers:
            timer.join()

    def _start(self, seconds: float, act: Callable[[], None]) -> None:
        if self._closed:
            return
        timer = threading.Timer(seconds, act)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()


class MetadataServer(socketserver.ThreadingMixIn, HTTPServer):
    """What all clouds' servers share. Used as a context manager: serves in a thread of its own."""

    daemon_threads = False  # so that server_close() waits for them
    allow_reuse_address = True
    request_queue_size = 64
    keeps_connections = True
    event: str
    """What is announced: one of the words of `clouds.CLOUDS`."""

    def __init__(self, announcement: Announcement, address: str = "127.0.0.1", port: int = 0) -> None:
        self.announcement = announcement
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        super().__init__((address, port), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="metadata server")

    @property
    def url(self) -> str:
        address, port = self.server_address[:2]
        host = f"[{address!s}]" if self.address_family is socket.AF_INET6 else str(address)
        return f"http://{host}:{port}"

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def answer(self, request: Request) -> Reply:
        """Answer as the cloud does."""
        raise NotImplementedError

    def write(self, connection: socket.socket, request: Request, reply: Reply) -> None:
        connection.sendall(reply.wire(time.time(), with_body=request.method != "HEAD"))

    def __enter__(self: Server) -> Server:  # noqa: PYI019  # typing.Self is newer than Python 3.10
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop, cut all connections and wait for their threads."""
        self.announcement.close()
        self.shutdown()
        with self._open_lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()
        self._thread.join()

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of our own name, which waits for a name server."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.port

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        with self._open_lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: MetadataServer

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        headers = {name.lower(): ", ".join(self.headers.get_all(name, [])) for name in self.headers}
        request = Request(self.command, parts.path, query, headers, self._body(headers))
        self.close_connection = self.close_connection or not self.server.keeps_connections
        with contextlib.suppress(ConnectionError):
            self.server.write(self.connection, request, self.server.answer(request))

    def _body(self, headers: Mapping[str, str]) -> bytes:
        length = headers.get("content-length", "")
        return self.rfile.read(min(int(length), LONGEST_BODY)) if length.isascii() and length.isdigit() else b""

    do_PUT = do_HEAD = do_POST = do_DELETE = do_GET  # noqa: N815  # the names that http.server calls

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # http.server's own signature
        pass
