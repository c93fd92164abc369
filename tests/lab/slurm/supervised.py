"""Jobs that `preemptd watch` supervises: how they are submitted, and what must be true of one that came back."""

import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.lab.slurm.cluster import Cluster
from tests.lab.slurm.jobs import Job, trainer

PREEMPTD = (sys.executable, "-m", "preemptd")
LONG = 100.0
"""Seconds for what takes SLURM half a minute, on a machine that is busy with many other things."""
NO_CANARY = "[providers.slurm]\npoll_interval = {}\ncanary = false\n"
TRAINING = trainer("--catch", "USR1", "--count", "TERM")
"""It is told by USR1, and outlives SIGTERM: that shows which signals came, and how often."""


def watching(*options: str, training: Sequence[str] | None = None, wandb: bool = False) -> list[str]:
    ours = [] if wandb else ["--no-wandb"]
    return [*PREEMPTD, "watch", *ours, "--journal", "journal", *options, "--", *(training or TRAINING)]


def settings(cluster: Cluster, text: str) -> str:
    """Write a configuration file that the cluster's jobs can read; return the options that name it."""
    path = cluster.job_directory() / "settings.toml"
    path.write_text(text)
    path.chmod(0o644)
    return f"--config={path}"


def wait_for_canary(job: Job) -> None:
    """Wait until the job's canary step listens: what comes before that it does not hear."""
    job.until(lambda: any(_listens(job, pid) for pid in job.cluster.outside_pids()), LONG, "a canary step that listens")


def _listens(job: Job, pid: int) -> bool:
    """Say whether the process that tests see as *pid* is the job's canary, and has its handlers."""
    with suppress(OSError):  # it has ended
        proc = Path(f"/proc/{pid}")
        argv = (proc / "cmdline").read_bytes().split(b"\0")
        if b"-S" not in argv[1:2] or f"SLURM_JOB_ID={job.row.number}".encode() not in environment(proc):
            return False
        (caught,) = (line for line in (proc / "status").read_text().splitlines() if line.startswith("SigCgt"))
        return bool(int(caught.split()[1], 16) >> (signal.SIGUSR2 - 1) & 1)
    return False


def environment(proc: Path) -> list[bytes]:
    return (proc / "environ").read_bytes().split(b"\0")


def preempt_until_requeued(cluster: Cluster, job: Job) -> None:
    """Take the job's node away until SLURM knows that it is to run again."""
    preemptor = cluster.preempt(job)
    job.until(lambda: job.restarts == 1, LONG, "requeued")
    cluster.release(preemptor)


def end(cluster: Cluster, job: Job) -> Job:
    """Cancel a job whose story is told; what it needs of the machine others may have."""
    cluster.scancel(job)
    job.wait_over(LONG)
    return job


def notices(job: Job, attempt: int = 0) -> list[dict[str, object]]:
    """Return the notices of one attempt, as the journal has them."""
    return [line for line in job.lines("notice") if str(line["event_id"]) == f"slurm:{job.id}:{attempt}"]


def kinds(job: Job, attempt: int = 0) -> list[str]:
    """Return the kinds that the notice of one attempt had, in order."""
    return list(dict.fromkeys(str(line["kind"]) for line in notices(job, attempt)))


def saved(job: Job, attempt: int = 0) -> list[object]:
    """Return the steps that were safe on disk, in order."""
    return [note["step"] for note in job.notes("saved") if note["attempt"] == attempt]


def resumed(job: Job, attempt: int = 1) -> list[object]:
    """Return the step at which the attempt began; one, or it was started twice."""
    return [note["step"] for note in job.notes("ready") if note["attempt"] == attempt]


def assert_saved_once_and_resumed(job: Job, attempt: int = 0) -> None:
    """Look at an attempt that was told, and at the next one."""
    assert job.heard(attempt).count("USR1") == 1, job.describe()
    assert len(saved(job, attempt)) == 1, job.describe()
    assert resumed(job, attempt + 1) == saved(job, attempt), job.describe()
