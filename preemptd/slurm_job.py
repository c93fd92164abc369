"""Which SLURM job an environment belongs to, and which attempt of it."""

from collections.abc import Mapping


def job_of(environ: Mapping[str, str]) -> str | None:
    """Name the SLURM job as every command takes it; None: this is none.

    The last task of an array has the id of the whole array as its SLURM_JOB_ID: only ARRAY_TASK is that task alone.
    A component of a heterogeneous job is requeued and watched over by its leader's id.
    """
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    if array and task:
        return f"{array}_{task}"
    return environ.get("SLURM_HET_JOB_ID") or environ.get("SLURM_JOB_ID") or None


def numbers_of(environ: Mapping[str, str]) -> frozenset[str]:
    """List what SLURM_JOB_ID is in the processes of this job; empty: this is none.

    Unlike the variables of an array it is never that of the job in which sbatch was called. In a component of a
    heterogeneous job it is the component's; the batch script has the leader's.
    """
    number, leader = environ.get("SLURM_JOB_ID"), environ.get("SLURM_HET_JOB_ID")
    return frozenset({number, leader or number}) if number else frozenset()


def attempt_of(environ: Mapping[str, str]) -> int | None:
    """Count the restarts before this one; None: nobody knows.

    In a job SLURM sets its variable from the second attempt on. Prolog and Epilog (SLURM_SCRIPT_CONTEXT) have one of
    another name, not in every version.
    """
    in_slurm = bool(environ.get("SLURM_JOB_ID"))
    names = ("SLURM_RESTART_COUNT", "SLURM_JOB_RESTART_COUNT") if in_slurm else ("PREEMPTD_ATTEMPT",)
    count = next((environ[name] for name in names if environ.get(name)), "")
    if count.isascii() and count.isdecimal():
        return int(count)
    return 0 if in_slurm and not environ.get("SLURM_SCRIPT_CONTEXT") else None
