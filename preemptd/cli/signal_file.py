"""Signal files as `preemptd notify` writes them: whole or not at all, and readable for whom they are meant."""

import errno
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from preemptd.errors import ConfigError

VARIABLE = "PREEMPTD_SIGNAL_DIR"
MACHINE_DIRECTORY = "/run/preemptd-signals"
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_REASON_LIMIT = 512
"""Characters of a reason: what the link takes, too."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """What is to happen, whoever it is said to."""

    deadline_s: float | None = None
    """Seconds from now; None: unknown."""
    reason: str = ""
    cancelled: bool = False
    requeue: bool = True

    @property
    def fits_the_link(self) -> bool:
        """Whether the link has words for it."""
        return not self.cancelled and self.requeue

    def line(self) -> bytes:
        """Make the line that says it over the link."""
        said = {"v": 1, "verb": "notify", "deadline_s": self.deadline_s, "reason": self._reason()}
        return json.dumps({key: value for key, value in said.items() if value not in (None, "")}).encode() + b"\n"

    def text(self, restart: int | None) -> bytes:
        """Make the content of the file that says it to attempt *restart*; None: to the one that runs."""
        said: dict[str, object] = {"v": 1}
        if restart is not None:
            said["restart"] = restart
        if self.deadline_s is not None:
            said["deadline"] = round(time.time() + self.deadline_s, 3)
        if self._reason():
            said["reason"] = self._reason()
        if self.cancelled:
            said["kind"] = "cancel"
        if not self.requeue:
            said["requeue"] = False
        return json.dumps(said).encode() + b"\n"

    def _reason(self) -> str:
        """Cut what is too long, and spell out bytes that are no text: a reason never stands in a notice's way."""
        return self.reason.encode(errors="backslashreplace").decode()[:_REASON_LIMIT]


def directory_of(wish: str | None, environ: Mapping[str, str]) -> str:
    """Choose where the file goes: *wish*, else where the environment says, else the machine's own place.

    Raises:
        ConfigError: it is no directory, or must not be written to.
    """
    path = os.path.abspath(wish or environ.get(VARIABLE) or MACHINE_DIRECTORY)
    said_by = "--dir" if wish else VARIABLE if environ.get(VARIABLE) else "the default; --dir DIR names another"
    if not os.path.isdir(path):
        why = "no preemptd of that job answers here, or it cannot be said by message: a signal file is needed"
        raise ConfigError(f"{why}, but there is no directory {path} ({said_by})")
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"{path} may not be written to by user {os.geteuid()} ({said_by})")
    return path


def name_of(job: str | None, restart: int | None, node: str | None) -> str:
    """Name the file as its readers look for it: one attempt of a job, the job, or (*node*) everything on a machine."""
    if node is not None:
        return f"node-{node}.preempt"
    return f"{job}.preempt" if restart is None else f"{job}.{restart}.preempt"


def write(directory: str, name: str, announcement: Announcement, restart: int | None) -> str:
    """Put the file there by one rename, instead of what stood there; return what is lacking in it (nearly always "").

    Raises:
        ConfigError: it could not be written. Nothing is left behind then.
    """
    temporary = os.path.join(directory, f".{name}.{os.urandom(6).hex()}.tmp")
    try:
        lacking = _fill(temporary, announcement, restart)
        os.rename(temporary, os.path.join(directory, name))
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):
            os.unlink(temporary)
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{os.path.join(directory, name)} could not be written: {why}") from error
    return lacking


def _fill(path: str, announcement: Announcement, restart: int | None) -> str:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        # A prolog runs as root, under any umask: the job's user has to read it.
        os.fchmod(fd, 0o644)
        _write_all(fd, announcement.text(restart))
    except OSError as error:
        # An empty file says "now": a full disk stands in no notice's way. A cancelled job must not be told that.
        if error.errno not in _NO_SPACE or announcement.cancelled:
            raise
        os.ftruncate(fd, 0)
        return f"empty, which says `now`: {error.strerror}"
    finally:
        os.close(fd)
    return ""


def _write_all(fd: int, text: bytes) -> None:
    while text:
        text = text[os.write(fd, text) :]
