"""``--die-with-parent``: a process of its own that outlives a killed preemptd for a moment, and ends the training.

PR_SET_PDEATHSIG would do without a process, but the kernel sends it at the end of the thread that forked and again
each time that its successor as the parent ends: a trainer got SIGTERM once for each thread of preemptd.

This file is also the guardian's whole program, so it imports nothing of preemptd at run time.
"""

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from preemptd.model import ProcessId
    from preemptd.targets.reaping import Helpers


_CLOSED_WITHIN = 1.0


class Guardian:
    """Sends SIGTERM to one process, once, when preemptd ends before it, however that comes."""

    def __init__(self, process: "ProcessId", helpers: "Helpers") -> None:
        """Start it; before the command runs.

        Raises:
            OSError: no process or descriptor is left.
        """
        from subprocess import DEVNULL

        self._helpers = helpers
        # Only we hold the writing end, which the kernel closes when we end. exec() closes it in all that we start, and
        # the command, which is behind its gate, was forked before.
        ends, self._end = os.pipe2(os.O_CLOEXEC)
        command = [sys.executable, "-I", "-S", __file__, str(process.pid), str(process.start)]
        try:
            self._process = helpers.popen(command, stdin=ends, stdout=DEVNULL, stderr=DEVNULL)
        except OSError:
            os.close(self._end)
            raise
        finally:
            os.close(ends)

    def close(self) -> None:
        """Let it go: what has ended, and was reaped, is not signalled."""
        from subprocess import TimeoutExpired

        os.close(self._end)
        try:
            self._process.wait(_CLOSED_WITHIN)
        except TimeoutExpired:
            return  # its start hangs on a network file system: it will find end of file, and nothing to do
        self._helpers.release(self._process)


def _guard(pid: int, start: str) -> None:
    """Wait for the end of preemptd; then, if the process is still there, send SIGTERM."""
    # A terminal or a service manager sends its signals to all of us: preemptd deals with them.
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(signum, signal.SIG_IGN)
    _introduce()
    os.chdir("/")
    os.read(0, 1)
    try:
        pidfd: int | None = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (OSError, AttributeError):  # Linux before 5.3, seccomp, a Python that was built for either
        pidfd = None
    if _is_alive(pid, start):
        _send(pid, pidfd, signal.SIGTERM)
        _send(pid, pidfd, signal.SIGCONT)  # one that is stopped would not see the other


def _send(pid: int, pidfd: int | None, signum: signal.Signals) -> None:
    try:
        if pidfd is None:
            os.kill(pid, signum)
        else:
            signal.pidfd_send_signal(pidfd, signum)
    except ProcessLookupError:
        return
    except OSError:  # a seccomp filter that lets us open a pidfd and no more, or it runs as another user
        if pidfd is not None:
            _send(pid, None, signum)


def _introduce() -> None:
    """Take our name, for ps, and for a preemptd around this one: it is no part of the training."""
    try:
        with open("/proc/self/comm", "w") as comm:
            comm.write("preemptd")
    except OSError:
        return  # /proc may be read-only


def _is_alive(pid: int, start: str) -> bool:
    """Say whether *pid* is still the process that started at *start*, and no zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return False
    return fields[19].decode() == start and fields[0] not in {b"Z", b"X"}


if __name__ == "__main__":
    _guard(int(sys.argv[1]), sys.argv[2])
