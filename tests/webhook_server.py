"""Takes what `--webhook` posts, on loopback, and misbehaves on demand."""

import json
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from tests.waiting import wait_until

SECRET = "T0/B1/s3cr3t"
"""The part of the URL that must be nowhere else."""

Fault = Callable[[socket.socket], None]


class WebhookServer:
    def __init__(self) -> None:
        self.statuses: list[int] = []
        """What the next requests are answered with; then 200."""
        self.headers: Mapping[str, str] = {}
        self.fault: Fault | None = None
        """Gets the connection instead of an answer."""
        self.requests: list[tuple[str, Mapping[str, str], bytes]] = []
        """Path, headers and body of each, whatever it was answered with."""
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}/{SECRET}"

    @property
    def events(self) -> list[str]:
        return [str(message["event"]) for message in self.messages]

    @property
    def messages(self) -> list[dict[str, object]]:
        return [json.loads(body) for _, _, body in list(self.requests)]

    def await_events(self, count: int, timeout: float = 30.0) -> list[str]:
        wait_until(lambda: len(self.requests) >= count, timeout, f"{count} posts")
        return self.events

    def hang(self, _: socket.socket) -> None:
        self._closing.wait(60)

    def drip(self, connection: socket.socket) -> None:
        """Answer a byte at a time: no `timeout=` of a client ends that."""
        try:
            for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 10_000:
                if self._closing.wait(0.1):
                    return
                connection.sendall(bytes([byte]))
        except OSError:
            pass  # the client has gone

    def reset(self, connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "WebhookServer":  # noqa: PYI034  # typing.Self is newer than Python 3.10
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.requests.append((self.path, dict(self.headers), body))
                if (fault := server.fault) is not None:
                    fault(self.connection)
                    self.close_connection = True
                    return
                self.send_response(server.statuses.pop(0) if server.statuses else 200)
                for name, value in server.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's own signature
                pass

        return Handler
