"""`preemptd watch` on scripts that use W&B, for the tests: its journal, the script's notes, its wandb-cores."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from preemptd.model import ProcessId
from preemptd.procfs import Tree, process_id
from preemptd.runs import discovery, transaction_log
from tests.metadata_server import FaultyGce
from tests.waiting import wait_until
from tests.watching import Watch

VERSIONS = ("0.31.0", "0.22.3", "0.19.11")
SCRIPT = str(Path(__file__).parent.parent / "standins" / "wandb_train.py")
PATIENCE = 100.0
"""Seconds that an `import wandb`, or an end, may take on a machine that is busy with other things."""
patient = pytest.mark.timeout(3 * PATIENCE)
every_version = pytest.mark.parametrize("version", VERSIONS)


def quickly(*chosen: str) -> pytest.MarkDecorator:
    """Run with *chosen* versions; with the others in the soak."""
    rest = [pytest.param(version, marks=pytest.mark.soak) for version in VERSIONS if version not in chosen]
    return pytest.mark.parametrize("version", [*chosen, *rest])


class Training(Watch):
    """`preemptd watch` on a script that uses W&B."""

    def __exit__(self, *error: object) -> None:
        for line in self.lines("started"):
            started = ProcessId(int(str(line["pid"])), int(str(line["start"])))
            with suppress(OSError):
                if process_id(started.pid) == started:
                    os.killpg(started.pid, signal.SIGKILL)
        super().__exit__(None, None, None)

    def wait(self, timeout: float = PATIENCE) -> int:
        status = super().wait(timeout)
        print(self.err)  # pytest shows it when the test fails
        return status

    def await_said(self, what: str, count: int = 1, timeout: float = PATIENCE) -> list[dict[str, object]]:
        return super().await_said(what, count, timeout)

    def await_line(self, event: str, count: int = 1, timeout: float = PATIENCE) -> list[dict[str, object]]:
        return super().await_line(event, count, timeout)

    def runs(self) -> list[str]:
        """Wait until the script trains; return the ids of its runs."""
        return strings(self.await_said("ready")[0]["runs"])

    def marked(self) -> list[str]:
        """List the runs that wandb-core was said to have marked."""
        assert [line for line in self.lines("marked") if not line["ok"]] == []
        return sorted(str(line["run_id"]) for line in self.lines("marked"))

    def number(self, event: str, field: str = "mono") -> float:
        """Return *field* of the only line of *event*."""
        (line,) = self.lines(event)
        return float(str(line[field]))

    def signalled(self) -> float:
        """Return the monotonic time at which the script's handler ran, which it did once."""
        (line,) = self.said("signal")
        return float(str(line["mono"]))

    def cores(self) -> list[int]:
        (started,) = self.lines("started")
        tree = Tree(int(str(started["pid"])), include_root=True)
        return [process.pid for process in discovery.cores(tree.snapshot())]


def strings(value: object) -> list[str]:
    assert isinstance(value, list)
    return value


def announce(gce: FaultyGce) -> None:
    """Say that the machine is preempted, once both keys are being watched."""
    wait_until(lambda: gce.waiting >= 2)
    gce.announcement.announce()


def preempting_records(directory: Path, run_id: str) -> int:
    (path,) = directory.glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb")
    return sum(transaction_log._PREEMPTING in record for record in transaction_log._records(str(path)))


def stop(core: int) -> None:
    """Stop it, and see that it has: a thread that runs on another processor may answer for some moments more."""
    os.kill(core, signal.SIGSTOP)
    tasks = Path(f"/proc/{core}/task")
    wait_until(lambda: all((task / "stat").read_text().rpartition(") ")[2][0] == "T" for task in tasks.iterdir()))


@contextmanager
def stopped(core: int) -> Iterator[None]:
    stop(core)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(core, signal.SIGCONT)


def imported(lines: Sequence[str]) -> set[str]:
    """Read the output of -X importtime."""
    return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
