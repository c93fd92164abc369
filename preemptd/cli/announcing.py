"""Finds the preemptds of a job by their sockets, and tells them what is to happen."""

import json
import os
import socket
from collections.abc import Iterator, Mapping

from preemptd.cli.environment import is_safe, link_directory
from preemptd.errors import ConfigError
from preemptd.slurm_job import job_of, numbers_of

ANSWER_WITHIN = 2.0
"""Seconds: it answers when it has looked at its processes."""


class Announcing:
    """*line*: what to say over a link. *job*: whom it is for; None: whoever listens at the link that we were given."""

    def __init__(self, line: bytes, job: str | None) -> None:
        self._line = line
        self._job = job
        self._numbers: frozenset[str] = frozenset()
        """What only this SLURM job has, of which we are a part."""

    def must_tell(self, path: str) -> None:
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

    def tell(self, environ: Mapping[str, str], *, is_ours: bool) -> list[str]:
        """Tell the preemptds of the job on this machine; return the paths of those that took it.

        Args:
            environ: says where to look.
            is_ours: it is the job that we run in, so that ``PREEMPTD_LINK`` is its preemptd, and the one to tell.
        """
        self._numbers = numbers_of(environ) if is_ours else frozenset()
        own = environ.get("PREEMPTD_LINK") if is_ours else None
        if own and self._is_told(own, by_name=False):
            return [own]
        if self._job is None:  # nobody said whom: not everybody
            return []
        return [path for path in _sockets(environ) if path != own and self._is_told(path, by_name=True)]

    def _is_told(self, path: str, *, by_name: bool) -> bool:
        """Tell the preemptd at *path* if it is the job's. One that hangs, or refuses, is as good as none."""
        try:
            with _connected(path) as sock:
                is_meant = self._is_of_the_job(sock, path, by_name=by_name)
                return is_meant and _asked(sock, self._line).get("type") == "status"
        except (OSError, ValueError):
            return False

    def _is_of_the_job(self, sock: socket.socket, path: str, *, by_name: bool) -> bool:
        """Compare jobs: what is submitted from a job inherits its ``PREEMPTD_LINK``, and is another job."""
        if self._job is None:
            return True
        from preemptd.link.peer import credentials
        from preemptd.procfs import environ

        pid, _ = credentials(sock)
        theirs = environ(pid) if pid else {}
        if self._numbers and theirs.get("SLURM_JOB_ID"):
            return theirs["SLURM_JOB_ID"] in self._numbers
        ids = {job_of(theirs), theirs.get("SLURM_JOB_ID"), theirs.get("PREEMPTD_JOB_ID")}
        if by_name:
            return self._job in ids or os.path.basename(path) == f"{self._job}.sock"
        return not theirs or self._job in ids


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
