"""A network namespace with EC2's metadata address: containers in it need no variable to find the server."""

import os
import subprocess
import sys
from types import TracebackType

from tests.conftest import ROOT

ADDRESS = "169.254.169.254"


class Cloud:
    def __init__(self) -> None:
        self.name = f"pods{os.getpid()}"
        self._ip("netns", "add", self.name)
        self._ip("-n", self.name, "link", "set", "lo", "up")
        self._ip("-n", self.name, "addr", "add", f"{ADDRESS}/32", "dev", "lo")
        self._server = self._serve()
        self._announced = False

    def __enter__(self) -> "Cloud":  # noqa: PYI034  # typing.Self is newer than Python 3.10
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._ip("netns", "del", self.name)

    def announce(self) -> None:
        """Announce that the instance will be terminated."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write("now\n")
        self._server.stdin.flush()
        assert self._server.stdout.readline() == "announced\n"
        self._announced = True

    def renew(self) -> None:
        """Be as a new instance, with nothing announced."""
        if self._announced:
            self._end()
            self._server = self._serve()
            self._announced = False

    def _end(self) -> None:
        with self._server:
            self._server.kill()

    def _serve(self) -> "subprocess.Popen[str]":
        command = ["ip", "netns", "exec", self.name, sys.executable, "-m", "tests.lab.containers.metadata", ADDRESS]
        server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        return server

    def _ip(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)
