"""Which job this is, which attempt of it, and which part of it we are: as far as that can be known without asking."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

# The steps of the batch script and of salloc's shell, and the one that ssh sessions are put into, have names.
_TITLE = re.compile(rb"slurmstepd: \[\d+(?:\+\d+)?\.(\w+)")
_TOPMOST = 1


@dataclass(frozen=True, slots=True)
class Job:
    """The job as its environment describes it.

    Only SLURM_JOB_ID is to be relied on: sbatch, called in a task of an array or in a step, hands the variables of that
    task or step on to the new job.
    """

    id: str
    """For people and for signal files, until a row of squeue has named it."""
    number: str
    """SLURM_JOB_ID. The last task of an array has the whole array's; of a heterogeneous job it is the leader's."""
    restart: int
    """SLURM_RESTART_COUNT; 0 in the first run, where SLURM does not set it."""
    counted: bool
    """SLURM_RESTART_COUNT was set: what ssh or a container starts may not have it, in whatever run."""
    node: str | None
    """SLURMD_NODENAME; None: not on a node of the job (the shell of an salloc)."""
    in_step: bool
    """We were started by srun: then SLURM signals our trainers and us alike."""
    is_first: bool
    """We are the one that speaks for the whole job: the batch script, or rank 0 of a step."""


def job_of(environ: Mapping[str, str]) -> Job | None:
    """Read the job from *environ*; None: this is no job."""
    number, count = environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_RESTART_COUNT", "")
    if not _is_number(number):
        return None
    array, task = environ.get("SLURM_ARRAY_JOB_ID", ""), environ.get("SLURM_ARRAY_TASK_ID", "")
    counted = _is_number(count) and len(count) < 10
    return Job(
        id=f"{array}_{task}" if _is_number(array) and _is_number(task) else number,
        number=number,
        restart=int(count) if counted else 0,
        counted=counted,
        node=environ.get("SLURMD_NODENAME") or None,
        in_step=_is_step(_own_step() or environ.get("SLURM_STEP_ID", "")),
        is_first=all(environ.get(name, "0") in {"", "0"} for name in ("SLURM_NODEID", "SLURM_PROCID")),
    )


def _own_step() -> str:
    """Name the step that we are in by the title of the slurmstepd above us; empty: there is none that we can see."""
    pid, title = os.getppid(), None
    with suppress(OSError, ValueError, IndexError):  # one has ended, or /proc is mounted hidepid=2
        while pid > _TOPMOST and title is None:
            title = _TITLE.match(_read(pid, "cmdline"))
            pid = int(_read(pid, "stat").rpartition(b")")[2].split()[1])
    return "" if title is None else title[1].decode()


def _read(pid: int, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read()


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _is_step(text: str) -> bool:
    """Say whether srun started us; batch script and salloc's shell are steps with ids from the top of 32 bits."""
    return _is_number(text) and len(text) < 12 and int(text) < 0xFFFFFFF0
