"""What SLURM says of itself and of a job: read-only questions to scontrol, each with a time limit."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ANSWER_WITHIN = 5.0
"""Seconds for one question: scontrol itself gives up on a controller that hangs after 10."""
_CONFIG_LINE = re.compile(r"^(\w+)\s+= ?(.*)$", re.MULTILINE)
_FIELD = re.compile(r"(?:^|\s)([A-Za-z]\w*)=(\S*)")


@dataclass(frozen=True, slots=True)
class Answers:
    """Everything that could be found out; what could not is empty."""

    config: Mapping[str, str] = field(default_factory=dict)
    """``scontrol show config``: keys as SLURM writes them, values without their padding."""
    partitions: Sequence[Mapping[str, str]] = ()
    job: Mapping[str, str] = field(default_factory=dict)
    script: str = ""
    """The batch script: readable for the job's user alone."""
    silent: str = ""
    """Why the controller gave no answer; empty: it did."""


class _NoAnswerError(Exception):
    pass


def ask(job_id: str | None, environ: Mapping[str, str]) -> Answers:
    """Ask about the cluster, and about one job of it.

    Args:
        job_id: SLURM_JOB_ID, of the last task of an array that of all of it. None asks for all partitions instead.
        environ: the job's; says which cluster (SLURM_CONF).
    """
    env = {**os.environ, **{name: environ[name] for name in ("SLURM_CONF",) if name in environ}}
    try:
        config = parse_config(_said(env, "show", "config"))
        if job_id is None:
            return Answers(config, parse_records(_said(env, "--oneliner", "show", "partition")))
        job = _job(env, job_id)
        job = _job(env, job["HetJobId"]) if job.get("HetJobId", job_id) != job_id else job  # the leader's settings hold
        partition = _said(env, "--oneliner", "show", "partition", job["Partition"]) if job.get("Partition") else ""
    except _NoAnswerError as error:
        return Answers(silent=str(error))
    try:
        script = _said(env, "write", "batch_script", _name(job), "-") if job.get("BatchFlag") == "1" else ""
    except _NoAnswerError:  # another user's
        script = ""
    return Answers(config, parse_records(partition), job, script)


def _job(env: Mapping[str, str], number: str) -> Mapping[str, str]:
    """Ask for the record of the job with this SLURM_JOB_ID; empty: there is none."""
    records = parse_records(_said(env, "--oneliner", "show", "job", number))
    return next((record for record in records if record.get("JobId") == number), {})


def _name(job: Mapping[str, str]) -> str:
    """Name the one job. Its record says what it is: the environment's variables may be those of who called sbatch."""
    array, task = job.get("ArrayJobId"), job.get("ArrayTaskId")
    return f"{array}_{task}" if array and task else job["JobId"]


def _said(env: Mapping[str, str], *question: str) -> str:
    program = shutil.which("scontrol", path=env.get("PATH"))
    if program is None:
        raise _NoAnswerError("there is no scontrol here")
    try:
        done = subprocess.run(
            [program, *question],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=ANSWER_WITHIN,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _NoAnswerError(f"no answer to `scontrol {' '.join(question)}` within {ANSWER_WITHIN:g} s") from None
    except OSError as error:
        raise _NoAnswerError(f"{program} cannot be run: {error.strerror}") from None
    if done.returncode != 0:
        why = next(iter((done.stderr or done.stdout).strip().splitlines()), f"status {done.returncode}")
        raise _NoAnswerError(f"`scontrol {' '.join(question)}`: {why}")
    return done.stdout


def parse_config(text: str) -> Mapping[str, str]:
    """Read ``Key   = value`` lines; ``(null)`` is an empty value."""
    return {key: _value(value) for key, value in _CONFIG_LINE.findall(text)}


def parse_records(text: str) -> Sequence[Mapping[str, str]]:
    """Read ``Key=value Key=value`` lines. Of a value that holds spaces (Command=) only the first word is kept."""
    records = ({key: _value(value) for key, value in _FIELD.findall(line)} for line in text.splitlines())
    return [record for record in records if record]


def _value(text: str) -> str:
    text = text.strip()
    return "" if text in {"(null)", "N/A"} else text
