"""What is kept of a job's W&B run, and what its next start makes of it: pure decisions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from preemptd.model import Run

LONGEST_RUN_ID = 128
NOT_IN_RUN_IDS = frozenset("/\\#?%:")
FRUITLESS = 2
"""Starts in a row that got the id, failed and had no run: from then on it is `wandb.init` that fails of it.

It does with ``resume="never"`` in the code, and for a run that was deleted on the server."""


@dataclass(frozen=True, slots=True)
class Record:
    """One job's W&B run."""

    run_id: str | None = None
    """None: there is none to go on with."""
    several: bool = False
    """More than one run was begun in one attempt: nobody can say for which `wandb.init` an id would be."""
    sweep: bool = False
    """Its runs belong to a sweep, whose server gives out the ids."""
    lost_by_sync: bool = False
    """It is offline, and `wandb sync` would put a second part in the place of the first."""
    restart: int | None = None
    """SLURM's count of restarts when it was written; None: the job has a ``--job-id``."""
    fruitless: int = 0
    """Starts in a row that got the id, failed, and had no run."""
    directory: str = ""
    """Of the run's files, on the machine where it was written: for people."""


@dataclass(frozen=True, slots=True)
class JobName:
    """By what a job's next start is known from any other command."""

    name: str
    restart: int | None = None
    """SLURM's count of restarts; None: ``--job-id`` vouches for it."""

    def continues(self, record: Record) -> bool:
        """Say whether this start goes on with what an earlier one has recorded."""
        return self.restart is None or (record.restart is not None and record.restart < self.restart)

    def shares_attempt(self, record: Record) -> bool:
        """Say whether another command of this very attempt has recorded it."""
        return self.restart is not None and record.restart == self.restart


def job_name(environ: Mapping[str, str], job_id: str | None, argv: Sequence[str], cwd: str) -> JobName | None:
    """Name the job; None: nothing would prove that a later start continues it.

    A SLURM job may hold many commands, so the command, its directory and its rank in the step are part of the name.
    """
    if job_id is not None:
        return JobName(job_id)
    slurm, restart = environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_RESTART_COUNT", "")
    if not _is_number(slurm):
        return None
    import hashlib  # loads OpenSSL: not before the start of a command that needs no name

    parts = (environ.get("SLURM_CLUSTER_NAME", ""), environ.get("SLURM_PROCID", ""), cwd, *argv)
    digest = hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:12]
    return JobName(f"_slurm-{slurm}-{digest}", int(restart) if _is_number(restart) else 0)  # no --job-id begins with _


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def variables(environ: Mapping[str, str], record: Record) -> dict[str, str]:
    """Say what the command gets so that `wandb.init` goes on with the run; nothing where the user has spoken."""
    if "WANDB_RESUME" in environ:
        return {}
    if record.sweep or "WANDB_SWEEP_ID" in environ:  # the agent sets WANDB_RUN_ID
        return {"WANDB_RESUME": "allow"}
    useless = record.several or record.lost_by_sync or record.fruitless >= FRUITLESS
    if record.run_id is None or useless or "WANDB_RUN_ID" in environ:
        return {}
    return {"WANDB_RUN_ID": record.run_id, "WANDB_RESUME": "allow"}


def updated(kept: Record, runs: Sequence[Run], *, sweep: bool, adopted: bool) -> Record:
    """Take in what was seen.

    Args:
        kept: what was known.
        runs: the runs that were seen in this attempt, the first one first.
        sweep: they belong to a sweep.
        adopted: an earlier preemptd of this attempt has seen the run in *kept*.
    """
    begun = {(run.run_id, run.core_pid, run.directory) for run in runs}
    another = adopted and kept.run_id not in {None, runs[0].run_id}
    return replace(
        kept,
        run_id=runs[0].run_id,
        several=kept.several or another or len(begun) > 1,
        sweep=kept.sweep or sweep,
        fruitless=0,
        directory=runs[0].directory,
    )


def encode(job: str, record: Record) -> bytes:
    return json.dumps({"preemptd": 1, "job": job, **asdict(record)}).encode()


def decode(job: str, text: bytes) -> Record:
    """Read a record. Raises ValueError: it is damaged, or another program's, or another job's."""
    try:
        raw = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(raw, dict) or raw.get("preemptd") != 1 or raw.get("job") != job:
        raise ValueError("not a record of this job")
    run_id, restart, fruitless = raw.get("run_id"), raw.get("restart"), raw.get("fruitless", 0)
    if not (run_id is None or _is_run_id(run_id)):
        raise ValueError("no W&B run has such an id")
    if not isinstance(restart, int | None) or not isinstance(fruitless, int):
        raise ValueError("not a number")  # noqa: TRY004 - of the file, not of a caller
    several, sweep, lost_by_sync = (bool(raw.get(name)) for name in ("several", "sweep", "lost_by_sync"))
    return Record(run_id, several, sweep, lost_by_sync, restart, fruitless, str(raw.get("directory", "")))


def _is_run_id(value: object) -> bool:
    """Say whether W&B could have given it: it goes into an environment, and from there into URLs and paths."""
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_RUN_ID:
        return False
    return value.isprintable() and not NOT_IN_RUN_IDS.intersection(value)
