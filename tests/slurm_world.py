"""A node of a SLURM job without SLURM: programs of its names on the PATH, which say what a test wants them to."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from preemptd.provider import Requeue, Surroundings
from preemptd.targets.reaping import Helpers, Shielded
from preemptd_providers.slurm.controller import Controller
from preemptd_providers.slurm.job import job_of
from preemptd_providers.slurm.provider import Slurm, SlurmOptions
from tests.watching import read_lines

STANDIN = Path(__file__).resolve().parent / "standins" / "slurm_command.py"
JOB = "JobId=12 JobName=x Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 NodeList=n1\n"
CONFIG = """Configuration data as of 2026-11-20T13:53:02
JobRequeue              = 1
KillWait                = 7 sec
PreemptParameters       = (null)
SlurmctldParameters     = (null)
"""
NODE = "NodeName=n1 Arch=x86_64 CPUAlloc=1 State={} ThreadsPerCore=1 Reason={} [root@2026-11-20T13:53:02]\n"
RUNNING = "RUNNING"
HOUR = 3600.0


class SlurmWorld:
    """The programs, their state, and what they were asked."""

    def __init__(self, directory: Path, *programs: str) -> None:
        self.directory = directory
        self.bin = directory / "bin"
        self.bin.mkdir()
        self._state = directory / "state.json"
        self._calls = directory / "calls"
        self.helpers = Helpers()
        self.warnings: list[str] = []
        self._said: dict[str, object] = {}
        for program in programs or ("squeue", "scontrol", "srun"):
            path = self.bin / program
            path.write_text(
                f'#!/bin/sh\nexec {sys.executable} -S -E {STANDIN} {self._state} {self._calls} {program} "$@"\n'
            )
            path.chmod(0o755)
        self.say(job=JOB, config=CONFIG, node=NODE.format("ALLOCATED", "(null)"), row=row())

    def say(self, **state: object) -> None:
        """Change what the programs say; None: forget it."""
        on_disk = json.loads(self._state.read_text()) if self._state.exists() else {}
        on_disk.update(state)
        new = self._state.with_suffix(".new")
        new.write_text(json.dumps({name: said for name, said in on_disk.items() if said is not None}))
        new.rename(self._state)

    def calls(self, name: str, first: str | None = None) -> list[dict[str, object]]:
        """List the calls of a program, or of one command of it."""
        calls = [call for call in read_lines(self._calls) if call["name"] == name]
        return [call for call in calls if first is None or call["arguments"][0] == first]  # type: ignore[index]

    def environ(self, **more: str) -> dict[str, str]:
        path = f"{self.bin}{os.pathsep}/usr/bin{os.pathsep}/bin"
        return {"PATH": path, "SLURM_JOB_ID": "12", "SLURMD_NODENAME": "n1", **more}

    def surroundings(self, environ: Mapping[str, str] | None = None, requeue: Requeue | None = None) -> Surroundings:
        return Surroundings(
            self.environ() if environ is None else environ,
            started=time.time() - 60,
            requeue=requeue or Requeue(),
            commands=Shielded(self.helpers),
            warn=self.warnings.append,
        )

    def provider(self, options: SlurmOptions | None = None, requeue: Requeue | None = None, **environ: str) -> "Slurm":
        return Slurm(options or SlurmOptions(canary=False), self.surroundings(self.environ(**environ), requeue))

    def controller(self, **environ: str) -> Controller:
        job = job_of(self.environ(**environ))
        assert job is not None
        return Controller(job, Shielded(self.helpers), self.environ(**environ))


def row(  # one argument a column
    state: str = RUNNING,
    reason: str = "None",
    end: object = HOUR,
    preempted: object = None,
    restarts: int = 0,
) -> list[object]:
    """Make a row; *end* and *preempted* in seconds from now, or as they are to be printed."""
    now = time.time()
    times = [round(now + moment) if isinstance(moment, (int, float)) else moment for moment in (end, preempted)]
    return [state, reason, *times, restarts]
