"""`preemptd notify`: tells the preemptd of a job, over its link if it can be reached, else by a signal file."""

import math
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated

import typer

from preemptd.cli.acks import Question
from preemptd.cli.announcing import Announcing
from preemptd.cli.array_tasks import tasks_of
from preemptd.cli.signal_file import VARIABLE, Announcement, directory_of, name_of, write
from preemptd.errors import ConfigError
from preemptd.slurm_job import attempt_of, job_of

_JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_LONGEST = 30 * 86400.0
_KINDS = ("preempt", "cancel")
_SENT_TO_ALL = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def notify(  # noqa: PLR0913, PLR0917 - one parameter an option
    job: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Job that is meant: 4711, 4711_3, a --job-id. Default: the one we are in."),
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds left from now. Default: unknown.")
    ] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="For people.", show_default=False)] = "",
    node: Annotated[
        str | None, typer.Option(metavar="NAME", help="Everything on this node instead: a file for all its jobs.")
    ] = None,
    kind: Annotated[
        str, typer.Option(metavar="preempt|cancel", help="cancel: it is not to come back, so nobody is told.")
    ] = "preempt",
    no_requeue: Annotated[
        bool, typer.Option("--no-requeue", help="Save and end, but do not come back.", show_default=False)
    ] = False,
    link: Annotated[
        str | None, typer.Option(metavar="PATH", help="Socket of the preemptd to tell. Default: $PREEMPTD_LINK.")
    ] = None,
    directory: Annotated[
        str | None,
        typer.Option(
            "--dir", metavar="DIR", help="Write a file, there. Default: $PREEMPTD_SIGNAL_DIR, /run/preemptd-signals."
        ),
    ] = None,
    wait: Annotated[
        float | None, typer.Option(metavar="S", help="Write a file, and wait so many seconds for the job's answer.")
    ] = None,
) -> int:
    """Announce the end of a job, or of all jobs of a node: as a trap, a prolog or a watcher of your own would."""
    announcement = Announcement(_seconds("--deadline", deadline), reason, _cancelled(kind), not no_requeue)
    _check(link, directory, node, wait)
    meant = _meant(job, node)
    with _undisturbed():
        if not (node or directory or wait):
            return _say(announcement, link, meant)
        question = _by_file(announcement, directory, meant)
    return 0 if wait is None else _await(question, meant.tasks(), wait, no_requeue)


def _check(link: str | None, directory: str | None, node: str | None, wait: float | None) -> None:
    _seconds("--wait", wait)
    if link and (directory or node is not None or wait is not None):
        raise ConfigError("--link names one preemptd: leave --dir, --node and --wait out")
    if node is not None and wait is not None:
        raise ConfigError("--wait is for the answer of one job")


@dataclass(frozen=True, slots=True)
class _Meant:
    """Whom it is for: a job, or everything on a node. Neither: whoever listens at the link that we were given."""

    job: str | None
    node: str | None
    is_ours: bool
    """It is the job that we run in."""
    restart: int | None
    """The attempt; None: whichever runs."""

    def tasks(self) -> Mapping[str, str] | None:
        """Ask for the tasks, if the job may be an array: see `tasks_of`."""
        return None if self.is_ours or self.job is None else tasks_of(self.job, os.environ)


def _meant(job: str | None, node: str | None) -> _Meant:
    if node is not None:
        if job is not None:
            raise ConfigError("--node is for everything on a node: leave --job out")
        if not _NODE.fullmatch(node):
            raise ConfigError(f"--node {node!r}: no node can have this name")
        return _Meant(None, node, is_ours=False, restart=None)
    own = job_of(os.environ)
    meant = own if job is None else job
    if meant is not None and not _JOB.fullmatch(meant):
        raise ConfigError(f"job id {meant!r}: letters, digits, dots, dashes, plus signs and underscores, at most 64")
    is_ours = meant == own or job is None
    return _Meant(meant, None, is_ours, attempt_of(os.environ) if is_ours else None)


def _say(announcement: Announcement, link: str | None, meant: _Meant) -> int:
    """Say it by message, and to whom no message reaches by a file."""
    untold = _over_the_link(announcement, link, meant)
    if untold is None:
        return 0
    try:
        _by_file(announcement, None, meant)
    except ConfigError as error:
        if not untold:
            raise
        print(f"preemptd: not told: {untold}: {error}", file=sys.stderr)
        return 1
    return 0


def _over_the_link(announcement: Announcement, link: str | None, meant: _Meant) -> str | None:
    """Tell the preemptds of the job. None: done.

    Returns which tasks of an array were not reached; empty: nobody was, or the link has no words for it.

    Raises:
        ConfigError: it must be *link*, and cannot.
    """
    if not announcement.fits_the_link:
        if link:
            raise ConfigError("the link knows neither --kind cancel nor --no-requeue: leave --link out for a file")
        return ""
    tasks = None if link else meant.tasks()
    announcing = Announcing(announcement.line(), meant.job, tasks)
    told = [announcing.must_tell(link)] if link else announcing.tell(os.environ, is_ours=meant.is_ours)
    if not told:
        return ""
    jobs = sorted({one.job for one in told if one.job})
    whom = f", for job {', '.join(jobs)}" if jobs else ""
    print(f"told the preemptd at {', '.join(one.path for one in told)}{whom}", flush=True)
    if tasks:
        return ", ".join(sorted(set(tasks.values()) - set(jobs))) or None
    is_one_of_several = tasks is None and any(job != meant.job for job in jobs)
    return f"the other tasks of {meant.job}" if is_one_of_several else None


def _by_file(announcement: Announcement, directory: str | None, meant: _Meant) -> Question:
    if meant.job is None and meant.node is None:
        raise ConfigError("which job? Not inside of one, and no --job ID, --node NAME or --link PATH was given")
    where, name = directory_of(directory, os.environ), name_of(meant.job, meant.restart, meant.node)
    lacking = write(where, name, announcement, meant.restart)
    path = os.path.join(where, name)
    attempt = "" if meant.restart is None else f", attempt {meant.restart}"
    whom = f"everything on node {meant.node}" if meant.node is not None else f"job {meant.job}{attempt}"
    print(f"wrote {path}, for {whom}{f' ({lacking})' if lacking else ''}", flush=True)
    own = os.environ.get(VARIABLE)
    directories = (where, own) if own else (where,)
    return Question(path, meant.job or "", meant.restart, tuple(dict.fromkeys(directories)))


def _await(question: Question, tasks: Mapping[str, str] | None, seconds: float, no_requeue: bool) -> int:
    """Wait for the job's answer, or for that of each task of an array."""
    end = time.monotonic() + seconds
    words = {None: f"no answer within {seconds:g} s", "ended": "ended, and does not come back, as was asked"}
    bad = {None, "failed", "requeued" if no_requeue else "failed"}
    status = 0
    for job in sorted((tasks or {}).values()) or [question.job]:
        said = replace(question, job=job).answer(max(0.0, end - time.monotonic()))
        print(f"{job}: {words.get(said, said)}", flush=True)
        status = 1 if said in bad else status
    return status


def _seconds(option: str, value: float | None) -> float | None:
    if value is not None and (math.isnan(value) or not 0 < value <= _LONGEST):
        raise ConfigError(f"{option} {value:g}: seconds from now, more than 0, at most 30 days")
    return value


def _cancelled(kind: str) -> bool:
    if kind not in _KINDS:
        raise ConfigError(f"--kind {kind!r}: one of {', '.join(_KINDS)}")
    return kind == "cancel"


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore what SLURM sends to every process of a job: in a trap, that would end us before we have said it."""
    before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in _SENT_TO_ALL}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
