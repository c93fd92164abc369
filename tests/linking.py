"""A link to test: the real server on a real socket, and peers that speak raw lines to it."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from preemptd.events import Event
from preemptd.link.server import Server
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
E = TypeVar("E")


class Events(list[Event]):
    """Stands where the daemon's inbox stands."""

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self if isinstance(event, kind)]

    def wait_for(self, kind: type[E], count: int = 1) -> list[E]:
        wait_until(lambda: len(self.of(kind)) >= count, what=f"{count} {kind.__name__} in {self}")
        return self.of(kind)


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory whose name leaves room for a socket's (107 bytes); pytest's own may not."""
    directory = tempfile.mkdtemp(prefix="pl-")
    try:
        yield Path(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def serving(path: str | None = None, group: int | None = None) -> Iterator[tuple[Server, Events]]:
    with short_directory() as directory:
        events = Events()
        server = Server(path or str(directory / "run" / "link"), events.append, "9.9", attempt=2, group=group)
        server.open()
        server.start()
        try:
            yield server, events
        finally:
            server.close()


class RawPeer(contextlib.AbstractContextManager["RawPeer"]):
    """Says what it is told to say, byte by byte; leaves the rest to the test."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(path)
        self._file = self.sock.makefile("rb")

    def say(self, verb: str, **fields: object) -> None:
        self.sock.sendall(json.dumps({"v": 1, "verb": verb, **fields}).encode() + b"\n")

    def hear(self) -> Mapping[str, Any]:
        line = self._file.readline()
        assert line, "the server hung up"
        message = json.loads(line)
        assert isinstance(message, dict)
        return message

    def register(self, role: str = "trainer") -> Mapping[str, Any]:
        self.say("register", pid=os.getpid(), role=role)
        return self.hear()

    def is_hung_up(self) -> bool:
        """Read to the end; False if the server only stays silent."""
        try:
            while self._file.readline():
                pass
        except TimeoutError:
            return False
        except ConnectionResetError:
            pass
        return True

    def close(self) -> None:
        self._file.close()
        self.sock.close()

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def script(code: str, link: str | None, *arguments: str, **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """Run *code* with ``$PREEMPTD_LINK``; it is killed at the end if it still lives."""
    env = {name: value for name, value in os.environ.items() if name != "PREEMPTD_LINK"}
    env |= {"PYTHONPATH": str(ROOT), **({"PREEMPTD_LINK": link} if link else {})}
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(
        command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line and process.stderr is not None:
        raise AssertionError(f"ended: {process.stderr.read()}")
    return line.strip()


def tell_to_go_on(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def notice(event_id: str = "e1", level: str = "act", remaining: float | None = 30.0) -> dict[str, object]:
    return {
        "type": "notice",
        "event_id": event_id,
        "kind": "preempt",
        "level": level,
        "source": "test/source",
        "remaining": remaining,
    }
