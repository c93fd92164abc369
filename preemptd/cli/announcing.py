"""Finds the preemptds of a job by their sockets, and tells them what is to happen."""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from preemptd.cli.environment import is_safe, link_directory
from preemptd.errors import ConfigError
from preemptd.slurm_job import job_of, numbers_of

ANSWER_WITHIN = 2.0
"""Seconds: it answers when it has looked at its processes."""


@dataclass(frozen=True, slots=True)
class Told:
    """A preemptd that took it."""

    path: str
    job: str
    """Whose it is: the job that was meant, or the task of it; empty: whoever listens there."""


class Announcing:
    """*line*: what to say over a link. *job*: whom it is for; None: whoever listens at the link that we were given.

    *tasks*: of the array that *job* is, as `tasks_of` lists them.
    """

    def __init__(self, line: bytes, job: str | None, tasks: Mapping[str, str] | None = None) -> None:
        self._line = line
        self._job = job
        self._tasks = tasks
        self._numbers: frozenset[str] = frozenset()
        """What only this SLURM job has, of which we are a part."""

    def must_tell(self, path: str) -> Told:
        """Tell the preemptd at *path*, whichever job it has.

        Raises:
            ConfigError: nobody is there, it does not answer, or refuses.
        """
        try:
            with _connected(path) as sock:
                answer = _asked(sock, self._line)
        except (OSError, ValueError) as error:
            raise ConfigError(f"no preemptd answers at {path}: {error}") from error
        if answer.get("type") != "status":
            raise ConfigError(f"the preemptd at {path} refuses: {str(answer.get('text') or answer)[:200]}")
        return Told(path, "")

    def tell(self, environ: Mapping[str, str], *, is_ours: bool) -> list[Told]:
        """Tell the preemptds of the job on this machine; return those that took it.

        Args:
            environ: says where to look.
            is_ours: it is the job that we run in, so that ``PREEMPTD_LINK`` is its preemptd, and the one to tell.
        """
        self._numbers = numbers_of(environ) if is_ours else frozenset()
        own = environ.get("PREEMPTD_LINK") if is_ours else None
        if own and (told := self._told(own, by_name=False)):
            return [told]
        if self._job is None:  # nobody said whom: not everybody
            return []
        others = [path for path in _sockets(environ) if path != own]
        return [told for path in others if (told := self._told(path, by_name=True))]

    def _told(self, path: str, *, by_name: bool) -> Told | None:
        """Tell the preemptd at *path* if it is the job's. One that hangs, or refuses, is as good as none."""
        try:
            with _connected(path) as sock:
                job = self._job_there(sock, path, by_name=by_name)
                took = job is not None and _asked(sock, self._line).get("type") == "status"
        except (OSError, ValueError):
            return None
        return Told(path, job) if took and job is not None else None

    def _job_there(self, sock: socket.socket, path: str, *, by_name: bool) -> str | None:
        """Name the job at the other end; None: it is not meant.

        What is submitted from a job inherits its ``PREEMPTD_LINK``, and is another job.
        """
        if self._job is None:
            return ""
        from preemptd.link.peer import credentials
        from preemptd.procfs import environ

        pid, _ = credentials(sock)
        theirs = environ(pid) if pid else {}
        number = theirs.get("SLURM_JOB_ID", "")
        if self._numbers and number:
            return self._job if number in self._numbers else None
        if self._tasks and number:
            return self._tasks.get(number)
        if theirs.get("SLURM_ARRAY_JOB_ID") == self._job and (task := job_of(theirs)) and self._tasks is None:
            return task
        meant = self._job in {job_of(theirs), number, theirs.get("PREEMPTD_JOB_ID")}
        by_path = os.path.basename(path) == f"{self._job}.sock" if by_name else not theirs
        return self._job if meant or by_path else None


def _sockets(environ: Mapping[str, str]) -> Iterator[str]:
    """List what may be ours. In a login shell the directory is another than in a batch script: no XDG_RUNTIME_DIR."""
    for directory in dict.fromkeys((link_directory(environ), link_directory({}))):
        if is_safe(directory):
            try:
                names = sorted(os.listdir(directory))
            except OSError:
                continue
            yield from (os.path.join(directory, name) for name in names if name.endswith(".sock"))


def _connected(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(ANSWER_WITHIN)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _asked(sock: socket.socket, line: bytes) -> Mapping[str, object]:
    sock.sendall(line)
    with sock.makefile("rb") as lines:
        answer: object = json.loads(lines.readline())
    if not isinstance(answer, dict):
        raise ValueError("it does not speak as preemptd does")  # noqa: TRY004 - wrong content, as of json.loads
    return answer
