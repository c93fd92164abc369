"""Every provider on one machine, each led to a server, a command or a file of its own; anything can be announced."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from tests.metadata_server import FaultyAlibaba, FaultyAzure, FaultyBytePlus, FaultyEc2, FaultyGce, FaultyTencent
from tests.test_watch import on_ec2, on_gce

E = TypeVar("E", bound="Everywhere")


class FaultyPage(FaultyTencent):
    """A cloud that nobody knows yet."""

    signal_path = "/leaving"
    identity_path = "/machine"


Server = FaultyEc2 | FaultyGce | FaultyAzure | FaultyAlibaba | FaultyTencent | FaultyBytePlus
SERVERS: Mapping[str, type[Server]] = {
    "ec2": FaultyEc2,
    "gce": FaultyGce,
    "azure": FaultyAzure,
    "alibaba": FaultyAlibaba,
    "tencent": FaultyTencent,
    "byteplus": FaultyBytePlus,
    "http": FaultyPage,
}
LOCAL = ("exec", "file")
PROVIDERS = (*SERVERS, *LOCAL, "sigterm")


class Everywhere:
    """Used as a context manager: serves."""

    def __init__(self, directory: Path, paces: Mapping[str, float] | None = None, command: str | None = None) -> None:
        """Make it.

        Args:
            directory: for what is said there in files, and for the configuration.
            paces: seconds from look to look, by provider, where they are not to be the default.
            command: for `exec`; None: one that looks for what is announced.
        """
        self.servers = {name: made() for name, made in SERVERS.items()}
        self.path = directory / "everywhere.toml"
        self._said = {name: directory / f"{name}.leaving" for name in LOCAL}
        said = self._said["exec"]
        self._command = command or f"test ! -e {said} || {{ cat {said}; exit 75; }}"
        self._paces = paces or {}
        self._stack = ExitStack()

    def __enter__(self: E) -> E:  # noqa: PYI019  # typing.Self is newer than Python 3.10
        for server in self.servers.values():
            self._stack.enter_context(server)
        self.path.write_text("".join(map(self._table, PROVIDERS)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def azure(self) -> FaultyAzure:
        server = self.servers["azure"]
        assert isinstance(server, FaultyAzure)
        return server

    @property
    def env(self) -> dict[str, str]:
        ours = {
            f"PREEMPTD_{name.upper()}_ENDPOINT": self.servers[name].url
            for name in ("azure", "alibaba", "tencent", "byteplus")
        }
        ec2, gce = self.servers["ec2"], self.servers["gce"]
        assert isinstance(ec2, FaultyEc2)
        assert isinstance(gce, FaultyGce)
        return {**ours, **on_ec2(ec2), **on_gce(gce)}

    def options(self, *names: str) -> Sequence[str]:
        """Name the providers on the command line, all of them if none is given."""
        return ["--config", str(self.path), *(f"--provider={name}" for name in names or PROVIDERS)]

    def announce(self, name: str, grace: float) -> None:
        """Say that the machine goes in *grace* seconds, or that it goes at another time than was said."""
        if name in self.servers:
            announcement = self.servers[name].announcement
            with announcement.changed:
                announcement.deadline = time.time() + grace
                announcement.changed.notify_all()
            return
        new = self._said[name].with_suffix(".new")
        new.write_text(f"{grace}\n" if name == "exec" else json.dumps({"deadline": time.time() + grace}))
        new.rename(self._said[name])

    def revoke(self, name: str) -> None:
        if name in self.servers:
            self.servers[name].announcement.revoke()
        else:
            self._said[name].unlink()

    def _table(self, name: str) -> str:
        lines = [f"[providers.{name}]"]
        if name == "http":
            page = self.servers["http"].url
            lines += [f'url = "{page}/leaving"', 'notice = "^20"', 'deadline = "(.*)"', 'zone = "+08:00"']
            lines += [f'clear_status = 404\nidentity_url = "{page}/machine"']
        if name == "exec":
            lines += [f"command = '{self._command}'"]
        if name == "file":
            lines += [f"path = '{self._said['file']}'"]
        if name in self._paces:
            lines += [f"interval = {self._paces[name]}"]
        return "\n".join([*lines, ""])
