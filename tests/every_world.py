"""A place for each source in which it can be said that the end is near: a server, a command or a file."""

import os
import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from preemptd.provider import Observation, Provider, State, Surroundings, Watch
from preemptd.rehearsal.serving import MetadataServer, Reply, Request
from preemptd.targets.reaping import Helpers
from preemptd.targets.scripts import Scripts
from preemptd_providers.exec import Exec, ExecOptions
from preemptd_providers.file import FileOptions, SignalFile
from tests.every_provider import SOURCES, Pages, Source
from tests.metadata_server import Exchange, Fault, announcement


class Site(MetadataServer):
    """A server of pages."""

    def __init__(self, headers: Mapping[str, str], port: int = 0) -> None:
        super().__init__(announcement(), port=port)
        self.pages: dict[str, tuple[int, bytes]] = {}
        self.clock: Callable[[], float] | None = time.time
        """What its Date goes by; None: it says none."""
        self.fault: Fault | None = None
        """None: behave."""
        self.fault_on = ""
        """Only this request meets the fault, as `Pages` name it; empty: all."""
        self.asked: list[str] = []
        """Every request so far."""
        self._headers = dict(headers)
        # There are a thousand of them: none is to be waited for at its end.
        self._thread = threading.Thread(target=self.serve_forever, args=(0.005,), name="site")

    def answer(self, request: Request) -> Reply:
        status, body = self.pages.get(f"{request.method} {request.path}", (404, b"<html>404 - Not Found</html>"))
        return Reply(status, body, self._headers)

    def write(self, connection: socket.socket, request: Request, reply: Reply) -> None:
        name = f"{request.method} {request.path}"
        self.asked.append(name)
        fault = self.fault  # a test may take it back at this moment
        if fault is not None and self.fault_on in ("", name):
            fault(Exchange(self, connection, request, reply))
        else:
            connection.sendall(self._wire(reply))

    def _wire(self, reply: Reply) -> bytes:
        if self.clock is not None:
            return reply.wire(self.clock())
        status, _, rest = reply.wire(0.0).partition(b"\r\n")
        return status + b"\r\n" + rest.partition(b"\r\n")[2]  # Date is the first of them


class World(ABC):
    """One source, and where it listens."""

    provider: Provider
    watch: Watch
    event_id: str

    @abstractmethod
    def announce(self, left: float = 90.0) -> None:
        """Say that the machine goes in *left* seconds."""

    @abstractmethod
    def withdraw(self) -> None:
        """Say that there is nothing."""

    @abstractmethod
    def misbehave(self, fault: Fault | str | None) -> None:
        """Meet each look with *fault*; None: behave again."""

    def look(self) -> Observation:
        return self.watch.observe()

    def states(self, number: int) -> list[State]:
        return [self.look().state for _ in range(number)]

    def event_ids(self, number: int) -> set[str]:
        """Look *number* times; return the events that were told of: all looks tell of one."""
        return {seen.notice.event_id if seen.notice else str(seen) for seen in (self.look() for _ in range(number))}


class Looking:
    """A look that is under way in a thread of its own."""

    def __init__(self, watch: Watch) -> None:
        self._seen: list[Observation] = []
        self._thread = threading.Thread(target=lambda: self._seen.append(watch.observe()), daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Observation:
        self._thread.join(20)
        assert self.is_done
        return self._seen[0]


class SiteWorld(World):
    def __init__(self, source: Source, site: Site, within: float) -> None:
        self.source = source
        self.site = site
        self.event_id = source.event_id
        self.provider = source.make(site.url, within)
        (self.watch,) = [watch for watch in self.provider.watches() if watch.name == source.watch]
        self.withdraw()

    def announce(self, left: float = 90.0) -> None:
        now = (self.site.clock or time.time)()
        self.site.pages = dict(self.source.announced(now + left))

    def withdraw(self) -> None:
        self.show({})

    def show(self, pages: Pages) -> None:
        self.site.pages = {**self.source.quiet, **pages}

    def misbehave(self, fault: Fault | str | None) -> None:
        assert not isinstance(fault, str)
        self.site.fault = fault


class Recording(Helpers):
    """Knows which commands there were."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[int] = []

    def release(self, process: "subprocess.Popen[bytes]") -> None:
        self.started.append(process.pid)
        super().release(process)

    def remaining(self) -> Sequence[int]:
        """Return the groups of commands that still have a member."""
        return [group for group in self.started if _has_members(group)]


class ExecWorld(World):
    event_id = "exec:preempt"

    def __init__(self, directory: Path, within: float) -> None:
        self.script = directory / "is-it-near"
        self.commands = Recording()
        options = ExecOptions(command=f"exec sh '{self.script}'", within=within)
        self.provider = Exec(options, Surroundings({}, scripts=Scripts(self.commands, os.environ)))
        (self.watch,) = self.provider.watches()
        self._said = ""
        self.withdraw()

    def run(self, script: str) -> None:
        """Let the next looks run *script*."""
        new = self.script.with_suffix(".new")
        new.write_text(script)
        new.rename(self.script)

    def announce(self, left: float = 90.0) -> None:
        self._said = f"echo {left:.0f}; exit 75"
        self.run(self._said)

    def withdraw(self) -> None:
        self._said = "exit 0"
        self.run(self._said)

    def misbehave(self, fault: Fault | str | None) -> None:
        assert fault is None or isinstance(fault, str)
        self.run(self._said if fault is None else fault)


class FileWorld(World):
    """A new file is a new event, so that the event's id is known only when it lies there."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "the-end"
        self.provider = SignalFile(
            FileOptions(path=str(self.path)), Surroundings({"PREEMPTD_SIGNAL_DIR": str(directory)})
        )
        (self.watch,) = self.provider.watches()

    def announce(self, left: float = 90.0) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(f'{{"deadline": {time.time() + left}}}')
        status = new.stat()
        self.event_id = f"file:{self.path.name}:{status.st_ino}.{status.st_mtime_ns}.{status.st_size}"
        new.rename(self.path)

    def withdraw(self) -> None:
        with suppress(FileNotFoundError):
            self.path.unlink()

    def misbehave(self, fault: Fault | str | None) -> None:
        raise NotImplementedError


@contextmanager
def at_site(source: Source, within: float = 5.0, port: int = 0) -> Iterator[SiteWorld]:
    with Site(source.headers, port) as site:
        world = SiteWorld(source, site, within)
        try:
            yield world
        finally:
            world.provider.close()


@contextmanager
def world_of(name: str, directory: Path, within: float = 5.0) -> Iterator[World]:
    """Make the world of one of `SOURCES`, of ``exec`` or of ``file``."""
    if name in SOURCES:
        with at_site(SOURCES[name], within) as world:
            yield world
        return
    local = FileWorld(directory) if name == "file" else ExecWorld(directory, within)
    yield local
    local.provider.close()


def _has_members(group: int) -> bool:
    """Say whether a process of *group* lives; zombies, which others have yet to reap, do not."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                state, _, its_group = (
                    Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")[2].split()[:3]
                )
                if int(its_group) == group and state not in "ZX":
                    return True
    return False
