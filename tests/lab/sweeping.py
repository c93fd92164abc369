"""Real W&B agents under the real `preemptd watch`, for the tests: machines that a sweep's runs go to."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.conftest import ROOT
from tests.lab.wandb_backend import ENTITY, WandbBackend
from tests.lab.wandb_sweeps import SWEEP
from tests.metadata_server import FaultyGce
from tests.watching import Watch, environment

TRAIN = str(ROOT / "tests" / "standins" / "wandb_resume.py")
ENOUGH = 20
"""Steps after which a training has sent something."""
PATIENCE = 150.0
"""Seconds: two agents take twenty on an idle machine, and wait for most of that time."""
GRACE = {"PREEMPTD_GRACE": "120"}
"""A busy machine saves slowly."""
ENDS = {"STEPS": "40"}
"""For a machine on which each run ends by itself."""


def agent(python: str, *options: str) -> list[str]:
    return [str(Path(python).with_name("wandb")), "agent", *options, f"{ENTITY}/project/{SWEEP}"]


def training(python: str, *wrapper: str, more: str = "") -> list[str]:
    """Return a sweep's `command:`, with checkpoints by the id of the run; STEPS in the environment ends it."""
    words = " ".join([*wrapper, python, TRAIN])
    return ["${env}", "sh", "-c", f'exec {words} "$CHECKPOINTS/$WANDB_RUN_ID" --steps ${{STEPS:-100000}} {more}']


def inside(*options: str) -> tuple[str, ...]:
    """Return the beginning of a sweep's `command:` that has preemptd watch over each run."""
    return (sys.executable, "-m", "preemptd", "watch", "--journal", "$JOURNAL", *options, "--")


class Machine(Watch):
    """One `preemptd watch`; what it leaves running ends with the test."""

    def __exit__(self, *error: object) -> None:
        self.process.kill()  # first: an agent would start the next one
        while left := self.alive():
            for pid in left:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        super().__exit__(None, None, None)

    def await_said(self, what: str, count: int = 1, timeout: float = PATIENCE) -> list[dict[str, object]]:
        return super().await_said(what, count, timeout)

    def await_line(self, event: str, count: int = 1, timeout: float = PATIENCE) -> list[dict[str, object]]:
        return super().await_line(event, count, timeout)

    def wait(self, timeout: float = PATIENCE) -> int:
        return super().wait(timeout)

    def alive(self) -> list[int]:
        """List the processes that have this machine's log in their environment: all that it runs."""
        mine = f"LOG={self.log}".encode()
        found = []
        for name in filter(str.isdecimal, os.listdir("/proc")):
            with suppress(OSError):
                if mine in Path(f"/proc/{name}/environ").read_bytes().split(b"\0") and int(name) != self.process.pid:
                    found.append(int(name))
        return found

    def number(self, event: str, field: str = "mono") -> float:
        """Return *field* of the only line of *event*."""
        (line,) = self.lines(event)
        return float(str(line[field]))

    def left(self) -> list[int]:
        """List what lives on; a wandb-core has some time to end by itself, as it does."""
        end = time.monotonic() + 20
        while (alive := self.alive()) and time.monotonic() < end:
            time.sleep(0.05)
        return alive

    def ready(self) -> list[tuple[str, bool, int]]:
        """List the runs that began: their id, whether they were resumed, and at which step."""
        return [(str(line["runs"][0]), bool(line["resumed"]), int(str(line["step"]))) for line in self.said("ready")]  # type: ignore[index]


class Unwatched(Machine):
    """A bare agent, whose sweep has preemptd in its `command:`; the journal is that one's."""

    def __init__(self, directory: Path, command: list[str], *, env: Mapping[str, str]) -> None:
        self.journal = directory / "inner.journal"
        self.log = directory / "job.log"
        self.process = subprocess.Popen(
            command,
            env=environment({"LOG": str(self.log), **env}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # no pipe: the Python service of 0.19 would keep it open
            stderr=subprocess.DEVNULL,
            cwd=directory,
        )
        self.out = self.err = ""


@contextmanager
def machine(
    directory: Path,
    backend: WandbBackend,
    command: list[str],
    *options: str,
    env: Mapping[str, str] | None = None,
    watched: bool = True,
) -> Iterator[tuple[Machine, FaultyGce]]:
    """Start *command* on a machine of its own; checkpoints lie where every machine sees them."""
    directory.mkdir(exist_ok=True)
    with FaultyGce() as gce:
        about = {
            **backend.env(),
            **GRACE,
            "GCE_METADATA_HOST": gce.url.removeprefix("http://"),
            "NO_GCE_CHECK": "false",
            "HOME": str(directory),
            "WANDB_DIR": str(directory),
            "CHECKPOINTS": str(directory.parent / "checkpoints"),
            "JOURNAL": str(directory / "inner.journal"),
            **(env or {}),
        }
        (directory.parent / "checkpoints").mkdir(exist_ok=True)
        made = Machine(directory, command, *options, env=about) if watched else Unwatched(directory, command, env=about)
        with made as watch:
            yield watch, gce
