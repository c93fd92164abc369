"""`preemptd notify`: tells the preemptd of a job, over its link if it can be reached, else by a signal file."""

import math
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer

from preemptd.cli.acks import Question
from preemptd.cli.announcing import Announcing
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
        if not (node or directory or wait) and _over_the_link(announcement, link, meant):
            return 0
        question = _by_file(announcement, directory, meant)
    return 0 if wait is None else _await(question, wait)


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


def _over_the_link(announcement: Announcement, link: str | None, meant: _Meant) -> bool:
    """Tell the preemptds of the job. False: none was reached, or the link has no words for it.

    Raises:
        ConfigError: it must be *link*, and cannot.
    """
    if not announcement.fits_the_link:
        if link:
            raise ConfigError("the link knows neither --kind cancel nor --no-requeue: leave --link out for a file")
        return False
    announcing = Announcing(announcement.line(), meant.job)
    if link:
        announcing.must_tell(link)
        told = [link]
    else:
        told = announcing.tell(os.environ, is_ours=meant.is_ours)
    if told:
        print(f"told the preemptd at {', '.join(told)}{f', for job {meant.job}' if meant.job else ''}")
    return bool(told)


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


def _await(question: Question, seconds: float) -> int:
    said = question.answer(seconds)
    print(f"{question.job}: {said}" if said else f"{question.job}: no answer within {seconds:g} s")
    return 0 if said not in {None, "failed"} else 1


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
