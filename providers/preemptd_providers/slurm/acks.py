"""The answer to a signal file: `ID.RESTART.ack` beside it, for whoever wrote it to wait for."""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress

from preemptd_providers._signal_file import error_text, printable


class Acks:
    """Writes what has become of the job: noticed, checkpointed, requeued, ended (as was asked) or failed."""

    def __init__(self, name: Callable[[], str], directory: str | None, warn: Callable[[str], None]) -> None:
        """Make it; *name* returns the file's, *directory* is where to write, None: beside the file that is obeyed."""
        self._name = name
        self._directory = directory
        self._warn = warn
        self._said: set[str] = set()
        self._failed = False

    def obey(self, path: str) -> None:
        """Take the directory of the signal file at *path*, unless there is one already."""
        self._directory = self._directory or os.path.dirname(path)

    def write(self, state: str) -> None:
        """Write *state*, once; that it could not be done is said once."""
        if self._directory is None or state in self._said or self._failed:
            return
        self._said.add(state)
        name = self._name()
        try:
            _replace(self._directory, name, json.dumps({"state": state, "t": round(time.time(), 3)}) + "\n")
        except (OSError, ValueError) as error:
            self._failed = True
            where = printable(os.path.join(self._directory, name))
            self._warn(f"{where} could not be written: {error_text(error)}")


def _replace(directory: str, name: str, text: str) -> None:
    """Put the file there by one rename, which follows no link that lies at its place."""
    temporary = os.path.join(directory, f".{name}.{os.urandom(6).hex()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        with open(fd, "w", encoding="ascii") as file:
            file.write(text)
        os.rename(temporary, os.path.join(directory, name))
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise
