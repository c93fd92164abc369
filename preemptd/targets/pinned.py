"""Targets that are one process, held so that the next owner of its pid is never taken for it."""

import errno
import os
import select
import stat
import time
from contextlib import suppress

from preemptd.model import ProcessId
from preemptd.procfs import process_id, stat_of
from preemptd.targets.census import GONE_STATES, Census, id_of
from preemptd.targets.ways import Found, How

LONGEST_PIDFILE = 64
"""Bytes."""
_TICK = 1 / os.sysconf("SC_CLK_TCK")


class Held:
    """One process. Its descriptor tells it from another one that was started in the same tick of the clock."""

    def __init__(self, process: ProcessId) -> None:
        self.id = process
        self._pidfd: int | None = None
        with suppress(OSError, AttributeError):  # no descriptors left, or no pidfd here: the start time has to do
            self._pidfd = os.pidfd_open(process.pid)
        self._ended = self._is_another()

    def is_in(self, census: Census) -> bool:
        """Say whether it lives, and is the one that *census* has by that pid."""
        census.add([self.id.pid])
        return self.lives() and self.id in census

    def lives(self) -> bool:
        if not self._ended and self._has_ended():
            self._ended = True
            self.close()
        return not self._ended

    def close(self) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def _has_ended(self) -> bool:
        if self._pidfd is not None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            return bool(poll.poll(0))
        return self._is_another() or _is_nobody(self.id.pid)

    def _is_another(self) -> bool:
        """Say whether somebody else has its pid, or only its zombie; what cannot be read is neither."""
        found = stat_of(self.id.pid)
        return found is not None and (id_of(found) != self.id or found.state in GONE_STATES)


def _is_nobody(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


class ByPid:
    """The process that has *pid* now, and no later one."""

    how: How = "pid"
    only_heads = False

    def __init__(self, pid: int) -> None:
        self._pid = pid
        process = None if pid == os.getpid() else process_id(pid)
        self._held = Held(process) if process else None

    def find(self, census: Census) -> Found:
        if self._held is None:
            why = "that is preemptd itself" if self._pid == os.getpid() else f"there was no process {self._pid}"
            return Found(why=f"{why}: a pid is looked up once, at the start", for_ever=True)
        if self._held.is_in(census):
            return Found([self._pid])
        return Found(why=f"process {self._pid} has ended", for_ever=not self._held.lives())

    def close(self) -> None:
        if self._held is not None:
            self._held.close()


class _RefusedError(Exception):
    """The file is none that anybody should go by."""


class ByPidFile:
    """The process that the file at *path* names, if it is older than what the file says of it."""

    how: How = "pidfile"
    only_heads = False

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: tuple[int, ...] | None = None
        """What tells this file from one that was written since."""
        self._held: Held | None = None
        self._why = ""
        self._refused = False

    def find(self, census: Census) -> Found:
        try:
            self._look()
        except OSError as error:
            # The process may remove its file first, and save then: it is followed until it ends.
            self._seen, self._refused = None, error.errno == errno.ELOOP
            self._why = f"{self._path} is a symbolic link" if self._refused else f"{self._path}: {error.strerror}"
        except _RefusedError as error:
            self._why, self._refused = f"{self._path} {error}", True
        if self._held is not None and self._held.is_in(census):
            return Found([self._held.id.pid], self._why, self._refused)
        return Found(why=self._why or f"the process that {self._path} names has ended", refused=self._refused)

    def close(self) -> None:
        if self._held is not None:
            self._held.close()

    def _look(self) -> None:
        """Read the file if it was written since. Raises OSError, _RefusedError."""
        # Nobody waits at a FIFO, and what is a link here is a file of somebody's choice.
        fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            seen = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if seen == self._seen:
                return
            self._seen, self._why, self._refused = seen, "", False
            _check(found)
            self._take(_number(os.read(fd, LONGEST_PIDFILE + 1)), found.st_mtime_ns)
        finally:
            os.close(fd)

    def _take(self, pid: int | None, written: int) -> None:
        process = process_id(pid) if pid else None
        if pid is None:
            self._seen = None  # it is being written
            self._why = f"{self._path} is empty"
        elif process is None:
            self._why = f"{self._path} names process {pid}, which is not there"
        elif _started(process) > written / 1e9 + _tolerance(written):
            self._why = f"{self._path} is older than the process {pid} that it names: it means an earlier one"
        elif self._held is None or self._held.id != process:
            self.close()
            self._held = Held(process)


def _check(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _RefusedError("is no regular file")
    if found.st_uid not in {0, os.geteuid()}:
        raise _RefusedError(f"belongs to another user (uid {found.st_uid})")
    if found.st_mode & stat.S_IWOTH:
        raise _RefusedError("may be written by everybody")


def _number(text: bytes) -> int | None:
    """Read what a pidfile says; None: nothing yet. Raises _RefusedError."""
    if len(text) > LONGEST_PIDFILE:
        raise _RefusedError(f"is longer than {LONGEST_PIDFILE} bytes")
    word = text.strip()
    if word and not word.isdigit():
        raise _RefusedError("does not hold a process number")
    pid = int(word) if word else None
    if pid is not None and (not 1 < pid < 2**31 or pid == os.getpid()):
        raise _RefusedError(f"names process {pid}, which is no target")
    return pid


def _started(process: ProcessId) -> float:
    """Say when it was started: Unix time, by the clock as it is set now."""
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - process.start * _TICK)


def _tolerance(written: int) -> float:
    """Seconds by which a file may seem older than its writer: its clock ticks too, on some file systems in seconds."""
    return 1.0 if written % 10**9 == 0 else 3 * _TICK
