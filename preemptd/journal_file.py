"""Where the journal's lines are kept: in ``--journal FILE``, whatever becomes of it meanwhile, or in memory."""

import errno
import json
import os
import time
from collections.abc import Callable, Mapping


class JournalFile:
    """A file that cannot be written is complained of once. Each line tries anew: there may be room again.

    It is opened when the first line comes: on a disk that hangs even that may never return. Where it was renamed or
    deleted, as logrotate does, the next line makes it anew at its path.
    """

    def __init__(self, path: str, complain: Callable[[str], None]) -> None:
        self._path = path
        self._complain = complain
        self._complained = False
        self._fd: int | None = None
        self._torn = False
        """The file ends in the middle of a line: the disk became full there."""
        self._missing = 0
        """Lines that are lost since the last that was written."""

    def write(self, line: Mapping[str, object]) -> None:
        if line["event"] == "progress":
            return
        try:
            fd = self._there()
            if self._missing:
                text = f"{self._missing} lines are missing here: they could not be written"
                apology = {"event": "warning", "t": round(time.time(), 3), "mono": round(time.monotonic(), 4)}
                self._append(fd, {**apology, "text": text})
                self._missing = 0
            self._append(fd, line)
        except OSError as error:
            self._missing += 1
            self._failed("opened" if self._fd is None else "written", error)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _there(self) -> int:
        """Return a descriptor of what is at the path now; of what was, where nothing new can be made."""
        if self._fd is None:
            return self._open()
        try:
            if os.path.samestat(os.stat(self._path), os.fstat(self._fd)):
                return self._fd
        except OSError:
            pass  # deleted, or moved away
        try:
            return self._open()
        except OSError as error:
            self._failed("opened", error)
            return self._fd

    def _open(self) -> int:
        # A FIFO that nobody reads would hold us up for ever: it is refused instead.
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        os.set_blocking(fd, True)
        self.close()
        self._fd, self._torn = fd, False
        return fd

    def _append(self, fd: int, line: Mapping[str, object]) -> None:
        data = b"\n" * self._torn + json.dumps(line, default=str).encode() + b"\n"
        written = os.write(fd, data)
        self._torn = written < len(data)
        if self._torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _failed(self, what: str, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            self._complain(f"journal {self._path} cannot be {what} ({error.strerror}): what it misses is lost")


class Lines:
    """Keeps the lines: complete after `Journal.close`."""

    def __init__(self) -> None:
        self.lines: list[Mapping[str, object]] = []

    def write(self, line: Mapping[str, object]) -> None:
        if line["event"] != "progress":
            self.lines.append(line)

    def close(self) -> None:
        pass
