"""The process of a SLURM job's batch script."""

import os

from preemptd.diagnosis import standing
from preemptd.model import Process
from preemptd.procfs import Tree, environ

_FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""Steps with higher ids are the batch script, salloc's shell and the like; most versions give them no id at all."""


def process(number: str) -> Process | None:
    """Find the process of the batch script of job *number* (SLURM_JOB_ID), the one that ``--signal=B:`` reaches.

    None: it runs on another node, or may not be looked at.
    """
    for name in os.listdir("/proc"):
        if name.isdecimal() and _is_started_by_slurm(int(name)):
            environment = environ(int(name))
            if environment.get("SLURM_JOB_ID") == number and _is_batch(environment.get("SLURM_STEP_ID", "")):
                snapshot = Tree(int(name), include_root=True).snapshot()
                return next((one for one in snapshot if one.pid == int(name)), None)
    return None


def _is_started_by_slurm(pid: int) -> bool:
    found = standing.read(pid)
    if found is None or found.parent <= 0:
        return False
    try:
        with open(f"/proc/{found.parent}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip() == "slurmstepd"
    except OSError:
        return False


def _is_batch(step: str) -> bool:
    return not step.isdecimal() or int(step) >= _FIRST_SPECIAL_STEP
