"""A Finder, and what it says; and processes for it to find."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from preemptd.model import Process, ProcessId
from preemptd.procfs import process_id
from preemptd.targets.finding import Finder, Wanted
from tests.watching import ROOT


class Finding:
    """A `Finder` for *wanted*, the warnings and the changes that it has said."""

    def __init__(self, *wanted: Wanted) -> None:
        self.linked: set[ProcessId] = set()
        self.ours: set[int] = set()
        self.warnings: list[str] = []
        self.changes: list[tuple[str, str]] = []
        self.pids: list[int | None] = []
        self.finder = Finder(wanted, lambda: self.linked, lambda: self.ours, self.warnings.append, self._note)

    def look(self) -> dict[int, Process]:
        found = self.finder.snapshot()
        assert len({process.pid for process in found}) == len(found)
        return {process.pid: process for process in found}

    def living(self) -> set[int]:
        return {pid for pid, process in self.look().items() if process.state != "Z"}

    def state(self, place: int = 0) -> object:
        return self.finder.status()[place]["state"]

    def why(self, place: int = 0) -> str:
        return str(self.finder.status()[place]["why"])

    def heads(self, place: int = 0) -> object:
        return self.finder.status()[place]["pids"]

    def _note(self, name: str, state: str, why: str, pid: int | None) -> None:  # noqa: ARG002 - read from the status
        self.changes.append((name, state))
        self.pids.append(pid)


@contextmanager
def running(command: Sequence[str], **options: object) -> Iterator["subprocess.Popen[str]"]:
    """Start *command*, which says one line when it is ready; it is killed in the end."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(list(command), **{**pipes, **options}) as popen:  # type: ignore[call-overload]  # text=True
        try:
            yield popen
        finally:
            popen.kill()


def line_of(popen: "subprocess.Popen[str]") -> list[int]:
    """Read the pids that it says."""
    assert popen.stdout is not None
    return [int(word) for word in popen.stdout.readline().split()]


def identify(pid: int) -> ProcessId:
    found = process_id(pid)
    assert found is not None
    return found


def inside(*command: str) -> list[list[dict[str, object]]]:
    """Run `tests/standins/finding_inside.py`; *command* ends with what it is to do."""
    *before, what, argument = command
    done = subprocess.run(
        [*before, sys.executable, "-m", "tests.standins.finding_inside", what, argument],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
