"""Whether we speak for a whole SLURM job."""

from collections.abc import Mapping

FIRST_OF_THEIR_OWN = 0xFFFFFFF0
"""The batch script and the shell of salloc are steps too, with ids from the top of 32 bits."""


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Say whether we run in the batch script of a job, or in the shell of salloc: in a step each rank has its own."""
    return bool(environ.get("SLURM_JOB_ID")) and not is_step(environ)


def is_step(environ: Mapping[str, str]) -> bool:
    """Say whether srun has started this."""
    step = environ.get("SLURM_STEP_ID", "")
    return step.isascii() and step.isdecimal() and int(step) < FIRST_OF_THEIR_OWN
