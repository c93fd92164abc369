"""Which tasks of a job array run now: squeue knows."""

import os
import shutil
import subprocess
from collections.abc import Mapping

ANSWER_WITHIN = 2.0
"""Seconds for squeue: who announces an end waits no longer for a controller that hangs."""
FORMAT = "JobID:|,ArrayTaskID:|"


def tasks_of(job: str, environ: Mapping[str, str]) -> Mapping[str, str] | None:
    """Return the tasks of array *job* that run, as people name them (4711_3), by their SLURM_JOB_ID.

    Empty: none runs, or this is no array. None: nobody knows.
    """
    squeue = shutil.which("squeue", path=environ.get("PATH"))
    if squeue is None or not (job.isascii() and job.isdecimal()):
        return None
    env = {name: text for name, text in environ.items() if not name.startswith("SQUEUE_")}
    command = [squeue, "-h", "-r", "-t", "RUNNING,SUSPENDED", "-j", job, "-O", FORMAT]
    try:
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER_WITHIN, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    rows = [[field.strip() for field in line.split("|")] for line in os.fsdecode(done.stdout).splitlines()]
    return {row[0]: f"{job}_{row[1]}" for row in rows if len(row) > 1 and row[1].isdecimal()}
