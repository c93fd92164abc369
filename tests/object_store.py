"""Servers that speak like S3 and GCS, on loopback, and a line to them that can be slow, full or cut."""

import contextlib
import json
import re
import socket
import subprocess
import threading
import time
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TypeVar, final

BUCKET = "bucket"
CHUNK = 16384
FULL = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>QuotaExceeded</Code>"
    b"<Message>The quota of this bucket is used up.</Message></Error>"
)
SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
}
"""Moto looks whether there is a signature, and not whether it is right."""
_GCS = """
import sys, time
from gcp_storage_emulator.server import create_server
server = create_server("127.0.0.1", 0, in_memory=True, default_bucket=sys.argv[1])
server.start()
print("ready", server._api._httpd.server_port, flush=True)
sys.stdin.read()
"""
S = TypeVar("S", bound="Server")


class Server:
    """One server process; ends with the test."""

    def __init__(self, command: list[str], ready: str, env: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env
        )
        assert self._process.stdout is not None
        said = b""
        for line in self._process.stdout:
            said += line
            if match := re.search(ready, line.decode()):
                self.port = int(match[1])
                break
        else:
            raise AssertionError(said.decode())
        self._log = threading.Thread(target=self._process.stdout.read, daemon=True)  # it must not fill the pipe
        self._log.start()
        self.address = f"http://127.0.0.1:{self.port}"

    def __enter__(self: S) -> S:  # noqa: PYI019  # typing.Self is newer than Python 3.10
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._log.join()
        for end in (self._process.stdin, self._process.stdout):
            if end is not None:
                end.close()


def _ask(url: str, method: str = "GET") -> bytes:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        urllib.request.Request(url, method=method, headers=SIGNED), timeout=30
    ) as answer:
        return bytes(answer.read())


class S3(Server):
    """Moto's server: it takes any credentials, unless it *checks* them: then it takes none."""

    url = f"s3://{BUCKET}"

    def __init__(self, python: str, *, checks: bool = False) -> None:
        env = {"INITIAL_NO_AUTH_ACTION_COUNT": "1"} if checks else {}
        command = [python, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        super().__init__(command, r"Running on http://127\.0\.0\.1:(\d+)", env)
        _ask(f"{self.address}/{BUCKET}", "PUT")

    def env(self, port: int | None = None) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }

    def names(self, prefix: str = "") -> list[str]:
        answer = ET.fromstring(_ask(f"{self.address}/{BUCKET}?list-type=2&prefix={prefix}"))
        return [str(key.text) for key in answer.iter("{http://s3.amazonaws.com/doc/2006-03-01/}Key")]

    def read(self, name: str) -> bytes:
        return _ask(f"{self.address}/{BUCKET}/{name}")


class Gcs(Server):
    """The emulator of Google's."""

    url = f"gs://{BUCKET}"

    def __init__(self, python: str) -> None:
        super().__init__([python, "-c", _GCS, BUCKET], r"ready (\d+)")

    def env(self) -> dict[str, str]:
        return {"STORAGE_EMULATOR_HOST": self.address, "NO_GCE_CHECK": "true"}

    def names(self, prefix: str = "") -> list[str]:
        listed = json.loads(_ask(f"{self.address}/storage/v1/b/{BUCKET}/o"))
        return [item["name"] for item in listed.get("items", []) if item["name"].startswith(prefix)]


@final
class Line:
    """A line to a server on loopback, for clients that are told its `port`."""

    def __init__(self, port: int, listener: socket.socket | None = None) -> None:
        self.rate = 0
        """Bytes a second, both ways together; 0: as fast as it goes."""
        self.full = False
        """What stores data is answered by 507."""
        self.carried = 0
        """Bytes so far, both ways together."""
        self._target = port
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._is_cut = False
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Drop every connection, and each that comes."""
        with self._lock:
            self._is_cut = True
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._is_cut = False

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._target)) as server:
            with self._lock:
                if self._is_cut:
                    return
                self._open |= {client, server}
            back = threading.Thread(target=self._answer, args=(server, client), daemon=True)
            back.start()
            for data in _read(client):
                if self.full and data.startswith(b"PUT ") and b"/data/" in data.partition(b"\n")[0]:
                    head = (
                        f"HTTP/1.1 507 Insufficient Storage\r\nContent-Length: {len(FULL)}\r\nConnection: close\r\n\r\n"
                    )
                    client.sendall(head.encode() + FULL)
                    return
                self._send(server, data)
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_WR)
            back.join()

    def _send(self, to: socket.socket, data: bytes) -> None:
        with self._lock:  # it is one line for all
            self.carried += len(data)
            if self.rate:
                time.sleep(len(data) / self.rate)
        to.sendall(data)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            for data in _read(server):
                self._send(client, data)
            client.shutdown(socket.SHUT_WR)


def _read(end: socket.socket) -> Iterator[bytes]:
    while data := end.recv(CHUNK):
        yield data
