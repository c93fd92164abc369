"""The answers to a signal file: `ID.RESTART.ack`, as preemptd writes them in a SLURM job (docs/signal-files.md)."""

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

_INTERVAL = 0.1
_SLACK = 2.0
"""Seconds by which the job's clock may be behind that of whoever wrote the signal file."""
_LAST = frozenset({"requeued", "ended", "failed"})
_SIZE_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class Question:
    """A signal file that was written."""

    path: str
    job: str
    restart: int | None
    """The attempt that was meant; None: whichever runs, and answers."""
    directories: Sequence[str]
    """Where an answer may lie: the job may have a directory of its own for them."""

    def answer(self, seconds: float) -> str | None:
        """Wait for the last word, *seconds* at the most; return what was said last, None: nothing."""
        try:
            since = os.stat(self.path).st_mtime - _SLACK
        except OSError:  # somebody has taken it away already
            since = time.time() - _SLACK
        end = time.monotonic() + seconds
        said: str | None = None
        while True:
            said = next(self._states(since), said)
            left = end - time.monotonic()
            if said in _LAST or left <= 0:
                return said
            time.sleep(min(_INTERVAL, left))

    def _states(self, since: float) -> Iterator[str]:
        """Read the answers, the newest first. In a listing an NFS client sees what it would otherwise miss for long."""
        restart = r"\d+" if self.restart is None else str(self.restart)
        name = re.compile(rf"{re.escape(self.job)}\.{restart}\.ack")
        found = sorted(((mtime, path) for path in self._listed(name) if (mtime := _mtime(path)) >= since), reverse=True)
        return (state for _, path in found if (state := _state(path)))

    def _listed(self, name: "re.Pattern[str]") -> Iterator[str]:
        for directory in self.directories:
            with suppress(OSError):
                yield from (os.path.join(directory, entry) for entry in os.listdir(directory) if name.fullmatch(entry))


def _mtime(path: str) -> float:
    """Return when it was written; 0: it is gone again."""
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def _state(path: str) -> str:
    """Read what it says; empty: it is no answer."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            said = json.loads(file.read(_SIZE_LIMIT))
    except (OSError, ValueError, RecursionError):
        return ""
    state = said.get("state") if isinstance(said, dict) else None
    return state if isinstance(state, str) else ""
