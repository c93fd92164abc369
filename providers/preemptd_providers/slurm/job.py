"""Which job this is, which attempt of it, and which part of it we are: from the environment alone."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Job:
    """The job as its environment describes it."""

    id: str
    """As every query and requeue takes it: the last task of an array has the whole array's id as SLURM_JOB_ID."""
    restart: int
    """SLURM_RESTART_COUNT; 0 in the first run, where SLURM does not set it."""
    node: str | None
    """SLURMD_NODENAME; None: not on a node of the job (the shell of an salloc)."""
    is_heterogeneous: bool
    """*id* is that of the leader, under which SLURM lists every component."""
    in_step: bool
    """We were started by srun: then SLURM signals our trainers and us alike."""
    is_first: bool
    """We are the one that speaks for the whole job: the batch script, or rank 0 of a step."""

    @property
    def attempt(self) -> str:
        return f"{self.id}.{self.restart}"


def job_of(environ: Mapping[str, str]) -> Job | None:
    """Read the job from *environ*; None: this is no job."""
    job_id = _id(environ)
    if not job_id:
        return None
    return Job(
        id=job_id,
        restart=_count(environ.get("SLURM_RESTART_COUNT", "")),
        node=environ.get("SLURMD_NODENAME") or None,
        # The first is for Prolog and Epilog; in the job itself SLURM_JOB_ID is the leader's, and this tells.
        is_heterogeneous=any(environ.get(name) for name in ("SLURM_HET_JOB_ID", "SLURM_HET_SIZE")),
        in_step=_is_step(environ.get("SLURM_STEP_ID", "")),
        is_first=all(environ.get(name, "0") in {"", "0"} for name in ("SLURM_NODEID", "SLURM_PROCID")),
    )


def _id(environ: Mapping[str, str]) -> str | None:
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    words = (environ.get("SLURM_HET_JOB_ID"), f"{array}_{task}" if array and task else None)
    known = next((word for word in (*words, environ.get("SLURM_JOB_ID")) if word), None)
    return known if known and known.isascii() and known.replace("_", "").isdecimal() else None


def _count(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0


def _is_step(text: str) -> bool:
    """Say whether srun started us; batch script and salloc's shell are steps with ids from the top of 32 bits."""
    return text.isascii() and text.isdecimal() and int(text) < 0xFFFFFFF0
