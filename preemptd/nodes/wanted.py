"""Whether we speak for a whole SLURM job."""

import os
import re
from collections.abc import Mapping

from preemptd import procfs

FIRST_OF_THEIR_OWN = 0xFFFFFFF0
"""The batch script and the shell of salloc are steps too, with ids from the top of 32 bits."""
_TITLE = re.compile(r"slurmstepd: \[\d+(?:\+\d+)?\.(\w+)")


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Say whether we run in the batch script of a job, or in the shell of salloc: in a step each rank has its own."""
    # What a step submits by sbatch inherits its variables: the slurmstepd above us knows better, where we see it.
    step = own_step()
    in_step = is_step({"SLURM_STEP_ID": step}) if step else is_step(environ)
    return bool(environ.get("SLURM_JOB_ID")) and not in_step


def own_step() -> str:
    """Name the step that we are in (``batch``, ``0``); empty: no slurmstepd is to be seen above us."""
    pid, title = os.getppid(), None
    while pid > 1 and title is None:
        title = _TITLE.match(" ".join(procfs.command_line(pid)))
        pid = procfs.parent(pid)
    return title[1] if title else ""


def is_step(environ: Mapping[str, str]) -> bool:
    """Say whether srun has started this."""
    step = environ.get("SLURM_STEP_ID", "")
    return step.isascii() and step.isdecimal() and int(step) < FIRST_OF_THEIR_OWN
