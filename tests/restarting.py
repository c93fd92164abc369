"""Runs `preemptd watch --restart` on a training that goes on at its checkpoint."""

import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tests.metadata_server import FaultyEc2
from tests.watching import ROOT, Watch

RESTARTED = str(ROOT / "tests" / "standins" / "restarted.py")
NEVER = 99
"""No start ends by itself."""


def on_ec2(server: FaultyEc2) -> dict[str, str]:
    return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url, "AWS_EC2_METADATA_DISABLED": "false"}


def training(how: str = "saves", last: int = NEVER) -> list[str]:
    return [sys.executable, RESTARTED, how, str(last)]


class Restarting(Watch):
    """One `preemptd watch --restart 3`, unless it is said otherwise."""

    def __init__(
        self,
        directory: Path,
        server: FaultyEc2,
        *options: str,
        how: str = "saves",
        last: int = NEVER,
        env: Mapping[str, str] | None = None,
        name: str = "job",
    ) -> None:
        limit = () if "--restart" in options or "--loop" in options else ("--restart", "3")
        command = training(how, last)
        super().__init__(directory, command, *limit, *options, env={**on_ec2(server), **(env or {})}, name=name)
        self.server = server

    def __exit__(self, *error: object) -> None:
        for pid in self.training():
            _kill(pid)
        super().__exit__(None, None, None)

    def preempt(self, count: int = 1) -> None:
        """Announce the end when attempt *count* trains, and wait until it has left for that."""
        self.await_said("ready", count)
        self.server.announcement.announce()
        self.await_line("settled", count)

    def preempt_in_vain(self, count: int = 1) -> None:
        """Do that, and take it back while it is waited for."""
        self.preempt(count)
        self.await_line("waiting", count)
        self.server.announcement.revoke()
        self.await_line("restarted", count)

    def texts(self) -> list[str]:
        return [str(line["text"]) for line in self.lines("warning")]

    def said_of(self, what: str, field: str) -> list[object]:
        return [line[field] for line in self.said(what)]


def _kill(pid: int) -> None:
    with suppress(OSError):  # it has ended
        if RESTARTED in Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0"):
            os.kill(pid, signal.SIGKILL)
