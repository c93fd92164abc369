"""A training that runs already and is not our child: watched, never waited for."""

import fcntl
import logging
import os
import select
import signal
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

from preemptd.events import Event, TargetExited
from preemptd.model import Outcome, ProcessId
from preemptd.procfs import process_id
from preemptd.targets.child import ENDING, STOPPING

logger = logging.getLogger(__name__)

# include/uapi/linux/pidfd.h: struct pidfd_info has 64 bytes, mask first, exit_code last. Exit codes since Linux 6.15.
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_INFO = struct.Struct("=QQ11Ii")
_REAPED_WITHIN = 2.0
_LOOK_EVERY = 0.5
_UNKNOWN = Outcome(1, known=False)


class Attached:
    """One process that somebody else started; *group* is its process group (0: unknown)."""

    def __init__(self, process: ProcessId, group: int, put: Callable[[Event], None]) -> None:
        self.id = process
        self.pid = process.pid
        self._group = group
        self._put = put
        self._pidfd = _open(process)
        self._closing = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._watch, name=f"attached-{process.pid}", daemon=True)

    def start(self) -> None:
        """Watch it in a thread of its own, which puts one `TargetExited`."""
        self._thread.start()

    def forward(self, signum: int) -> None:
        """Send it a signal that was sent to us; nothing if it has gone.

        Ctrl-Z stops the job of a shell: this process belongs to none that could resume it, and is left alone.
        """
        if signum in STOPPING:
            return
        self._send(signum)
        if signum in ENDING:
            self._continue()

    def finish(self) -> None:
        """Stop watching; it may live on."""
        os.eventfd_write(self._closing, 1)
        if self._thread.is_alive():
            self._thread.join()
        os.close(self._closing)
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def _send(self, signum: int) -> None:
        try:
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, signum)
            elif process_id(self.pid) == self.id:
                os.kill(self.pid, signum)
        except OSError as error:
            logger.debug("signal %d to process %d: %s", signum, self.pid, error)

    def _continue(self) -> None:
        """Wake it up: one that is stopped would not see the signal."""
        self._send(signal.SIGCONT)
        with suppress(OSError):
            # As long as it lives and is in its group, no other group can have that number.
            if process_id(self.pid) == self.id and os.getpgid(self.pid) == self._group > 1:
                os.killpg(self._group, signal.SIGCONT)

    def _watch(self) -> None:
        outcome = self._wait_by_looking() if self._pidfd is None else self._wait_by_pidfd(self._pidfd)
        if outcome is not None:
            self._put(TargetExited(self.id, outcome))

    def _wait_by_pidfd(self, pidfd: int) -> Outcome | None:
        """Wait for the end; None: we stopped watching."""
        poll = select.poll()
        poll.register(self._closing, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        if any(fd == self._closing for fd, _ in poll.poll()):
            return None
        # The exit code is there when its parent has reaped it, which POLLHUP says; older kernels say neither.
        poll.register(pidfd, 0)
        reaped = None if _read_outcome(pidfd) else poll.poll(_REAPED_WITHIN * 1000)
        if reaped and any(fd == self._closing for fd, _ in reaped):
            return None
        return _read_outcome(pidfd) or _UNKNOWN

    def _wait_by_looking(self) -> Outcome | None:
        """Do without pidfd: Linux before 5.3, gVisor, a seccomp filter."""
        poll = select.poll()
        poll.register(self._closing, select.POLLIN)
        while process_id(self.pid) == self.id:
            if poll.poll(_LOOK_EVERY * 1000):
                return None
        return _UNKNOWN


def _open(process: ProcessId) -> int | None:
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:  # gone, or no pidfd here: the start time tells which
        return None
    if process_id(process.pid) == process:
        return pidfd
    os.close(pidfd)
    return None


def _read_outcome(pidfd: int) -> Outcome | None:
    answer = bytearray(_PIDFD_INFO.pack(_PIDFD_INFO_EXIT, *[0] * 13))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, answer, True)
    except OSError:
        return None
    mask, *_, status = _PIDFD_INFO.unpack(answer)
    if not mask & _PIDFD_INFO_EXIT:
        return None
    code = os.waitstatus_to_exitcode(status)
    return Outcome(code if code >= 0 else 128 - code)
