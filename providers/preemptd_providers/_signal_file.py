"""Where a signal file may lie, whether it may be believed, what it says, and whether it is meant for this run."""

import errno
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from preemptd.errors import ProviderError
from preemptd.provider import Surroundings

SIZE_LIMIT = 64 * 1024
SLACK = 2.0
"""Seconds that the clock of the writer's machine may be behind ours."""
HALF_WRITTEN = 0.05
"""Seconds in which a writer that does not rename (``echo '{...}' > FILE``) gets from its open() to its write()."""
LAST_YEAR = 253_402_300_799.0
"""The last second that `datetime` knows. Milliseconds taken for seconds lie beyond: such a deadline is unknown."""


class Scope(Enum):
    """For whom a file of this name is: one job, everything on this machine, or whoever was told its path."""

    JOB = "job"
    NODE = "node"
    PATH = "path"


@dataclass(frozen=True, slots=True)
class Address:
    """A path where a signal file for us may lie."""

    path: str
    scope: Scope
    restart: int | None = None
    """The attempt that the name is for; None: the name does not say."""


@dataclass(frozen=True, slots=True)
class SignalText:
    """What a signal file says; an empty or unreadable one says "now"."""

    restart: int | None = None
    deadline: float | None = None
    """Unix time; None: unknown."""
    reason: str = ""
    cancelled: bool = False
    """The job was cancelled by a person: it is not to come back."""
    requeue: bool = True


@dataclass(frozen=True, slots=True)
class SignalFileContent:
    """One signal file as it was read."""

    identity: tuple[int, int, int]
    """Inode, mtime in ns and size: a rewrite changes it. (The size: two writes within one tick share their mtime.)"""
    mtime: float
    raw: bytes


def printable(text: str) -> str:
    """Return *text*, escaped if it would break a line of a log (a path may hold newlines or bytes that are no text)."""
    return text if text.isprintable() else ascii(text)


def addresses(directories: Iterable[str], path: str | None, surroundings: Surroundings) -> tuple[Address, ...]:
    """List every place where a file for this job, this attempt or this machine may lie."""
    found = [Address(path, Scope.PATH)] if path else []
    names: list[tuple[str, Scope, int | None]] = []
    for job in _job_ids(surroundings):
        names.append((f"{job}.preempt", Scope.JOB, None))
        names.append((f"{job}.{surroundings.attempt}.preempt", Scope.JOB, surroundings.attempt))
    names += [(f"{array}.preempt", Scope.JOB, None) for array in _arrays(surroundings.environ)]
    names += [(f"node-{node}.preempt", Scope.NODE, None) for node in _node_names(surroundings)]
    names = list(dict.fromkeys(names))
    for directory in directories:
        found += [Address(os.path.join(directory, name), scope, restart) for name, scope, restart in names]
    return tuple(found)


def _job_ids(surroundings: Surroundings) -> Iterator[str]:
    environ = surroundings.environ
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    known = (surroundings.job_id, f"{array}_{task}" if array and task else None, environ.get("SLURM_JOB_ID"))
    return _file_names(known)


def _arrays(environ: Mapping[str, str]) -> Iterator[str]:
    """Name the array that the job is a task of; the last task has its number as SLURM_JOB_ID as well."""
    return _file_names((environ.get("SLURM_ARRAY_JOB_ID") if environ.get("SLURM_ARRAY_TASK_ID") else None,))


def _node_names(surroundings: Surroundings) -> Iterator[str]:
    named = surroundings.environ.get("SLURMD_NODENAME")
    host = os.uname().nodename
    return _file_names((named,) if named else (host.partition(".")[0], host))


def _file_names(words: Iterable[str | None]) -> Iterator[str]:
    """Drop duplicates, and words that cannot be part of one file name (a job id with a slash leads elsewhere)."""
    return (word for word in dict.fromkeys(words) if word and "/" not in word and "\0" not in word)


def read(path: str, trusted: frozenset[int]) -> SignalFileContent | None:
    """Read the file; None: there is none. Never blocks on a FIFO or a device, never follows a link.

    Raises:
        ProviderError: something is there, or may be, that cannot be read or must not be believed.
    """
    try:
        status = os.lstat(path)
        _refuse(path, status, trusted)
        return _open_and_read(path, status, trusted)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ProviderError(f"{printable(path)} cannot be read: {error_text(error)}") from error


def error_text(error: Exception) -> str:
    """Say what went wrong without the path, which an OSError would repeat."""
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)


def _open_and_read(path: str, seen: os.stat_result, trusted: frozenset[int]) -> SignalFileContent:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EACCES and seen.st_size == 0:  # root's `touch` under umask 077 says all it has to say
            return _content(seen, b"")
        raise
    try:
        status = os.fstat(fd)
        _refuse(path, status, trusted)
        return _content(status, os.read(fd, SIZE_LIMIT))
    finally:
        os.close(fd)


def _content(status: os.stat_result, raw: bytes) -> SignalFileContent:
    return SignalFileContent((status.st_ino, status.st_mtime_ns, status.st_size), status.st_mtime, raw)


def _refuse(path: str, status: os.stat_result, trusted: frozenset[int]) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise ProviderError(f"{printable(path)} is refused: it is a symbolic link")
    if not stat.S_ISREG(status.st_mode):
        raise ProviderError(f"{printable(path)} is refused: it is not a regular file")
    if status.st_uid not in trusted:
        whom = f"user {status.st_uid}, who is not in trusted_uids"
        raise ProviderError(f"{printable(path)} is refused: it belongs to {whom}")
    if status.st_size > SIZE_LIMIT:
        raise ProviderError(f"{printable(path)} is refused: it is larger than {SIZE_LIMIT} bytes")


def read_settled(path: str, trusted: frozenset[int]) -> SignalFileContent | None:
    """Read the file; if it holds no JSON (yet), once more a moment later: its writer may be in the middle of it."""
    content = read(path, trusted)
    if content is None or _json_object(content.raw) is not None:
        return content
    time.sleep(HALF_WRITTEN)
    return read(path, trusted)


def parse(raw: bytes) -> SignalText:
    """Understand the text of a signal file. Never raises: what makes no sense counts as not said."""
    said = _json_object(raw) or {}
    restart, deadline, reason = said.get("restart"), said.get("deadline"), said.get("reason")
    return SignalText(
        restart=restart if isinstance(restart, int) and not isinstance(restart, bool) else None,
        deadline=_unix_time(deadline),
        reason=reason if isinstance(reason, str) else "",
        cancelled=said.get("kind") == "cancel",
        requeue=said.get("requeue") is not False,
    )


def _json_object(raw: bytes) -> dict[str, object] | None:
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):  # RecursionError: 64 KiB of "["
        return None
    return said if isinstance(said, dict) else None


def _unix_time(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 < value <= LAST_YEAR else None  # NaN is in no range


def is_for_us(address: Address, content: SignalFileContent, text: SignalText, surroundings: Surroundings) -> bool:
    """Say whether the file is meant for this attempt, and not left over from an earlier one.

    A restart count proves something only in a file whose name holds our job id: ``{"restart": 0}`` in a node's file
    would be true for every job that ever starts on that node.
    """
    if address.scope is not Scope.NODE and text.restart not in (None, surroundings.attempt):
        return False
    said = address.restart if address.restart is not None else text.restart
    if address.scope is Scope.JOB and said == surroundings.attempt:
        return True
    return content.mtime >= surroundings.started - SLACK
