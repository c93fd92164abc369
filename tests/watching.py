"""Runs the real `preemptd watch` as a user would, and reads its journal."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
TRAINER = str(ROOT / "tests" / "standins" / "trainer.py")
PREEMPTD = (sys.executable, "-m", "preemptd")
QUIET = {"AWS_EC2_METADATA_DISABLED": "true", "NO_GCE_CHECK": "true"}
"""No test asks the network of the machine that it runs on."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if name not in {"PREEMPTD_REQUIRE_LAB", "PREEMPTD_SOAK"}}
    return {**ours, **QUIET, **(extra or {})}


def trainer(how: str, save: float = 0.2, code: int = 0, python: str = sys.executable) -> list[str]:
    return [python, TRAINER, how, str(save), str(code)]


W = TypeVar("W", bound="Watch")


class Watch:
    """One `preemptd watch` with a journal; ends with the test."""

    def __init__(
        self,
        directory: Path,
        command: Sequence[str],
        *options: str,
        env: Mapping[str, str] | None = None,
        verb: str = "watch",
        name: str = "job",
        before: Sequence[str] = (),
        logs: Path | None = None,
        preemptd: Sequence[str] = PREEMPTD,
    ) -> None:
        """Take in *before* a command that starts preemptd in its turn (setpriv, unshare); its journal is in *logs*."""
        self.journal = (logs or directory) / f"{name}.journal"
        self.log = directory / f"{name}.log"
        extra = {"LOG": str(self.log), "CHECKPOINTS": str(directory), **(env or {})}
        self.process = subprocess.Popen(
            [*before, *preemptd, verb, "--journal", str(self.journal), *options, "--", *command],
            env=environment(extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=directory,
        )
        self.out = self.err = ""

    def __enter__(self: W) -> W:  # noqa: PYI019  # typing.Self is newer than Python 3.10
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self.training():
            _kill(pid)
        if self.process.poll() is None:
            self.process.kill()
        self.wait()

    @staticmethod
    def command(verb: str) -> list[str]:
        return [*PREEMPTD, verb]

    def training(self) -> set[int]:
        """List the pids of trainers that said something and did not say exit."""
        ended = {line["pid"] for line in self.said("exit")}
        return {int(str(line["pid"])) for line in self.said() if line["pid"] not in ended}

    def lines(self, event: str | None = None) -> list[dict[str, object]]:
        return [line for line in read_lines(self.journal) if event is None or line["event"] == event]

    def said(self, what: str | None = None) -> list[dict[str, object]]:
        """List what the trainers noted."""
        return [line for line in read_lines(self.log) if what is None or line["what"] == what]

    def await_said(self, what: str, count: int = 1, timeout: float = 30.0) -> list[dict[str, object]]:
        wait_until(lambda: len(self.said(what)) >= count or self.process.poll() is not None, timeout, f"said {what}")
        assert len(self.said(what)) >= count, self.wait()
        return self.said(what)

    def await_line(self, event: str, count: int = 1, timeout: float = 30.0) -> list[dict[str, object]]:
        wait_until(lambda: len(self.lines(event)) >= count or self.process.poll() is not None, timeout, event)
        assert len(self.lines(event)) >= count, (self.wait(), self.err)
        return self.lines(event)

    def signal(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def wait(self, timeout: float = 30.0) -> int:
        if self.process.stdout is not None and not self.process.stdout.closed:
            out, err = self.process.communicate(timeout=timeout)
            self.out, self.err = out.decode(), err.decode()
        return self.process.wait(timeout)


def read_lines(path: Path) -> list[dict[str, object]]:
    """Read the whole lines of a file that somebody is writing."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _kill(pid: int) -> None:
    try:
        if TRAINER in Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0"):
            os.kill(pid, signal.SIGKILL)
    except OSError:
        pass  # it has ended
