"""The terminal of our session, and whose turn it is on it."""

import os
import signal

from preemptd.procfs import parent


class Terminal:
    """The controlling terminal; a no-op where there is none (a service, a batch job, a container)."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._ttou: signal.Handlers | None = None

    @classmethod
    def open(cls) -> "Terminal":
        """Look for the terminal of the session, wherever stdin, stdout and stderr may go."""
        try:
            return cls(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY))
        except OSError:
            return cls(None)

    @property
    def present(self) -> bool:
        return self._fd is not None

    @property
    def foreground(self) -> int | None:
        """The process group that may read and that Ctrl-C reaches; None: no terminal, or it has hung up."""
        if self._fd is None:
            return None
        try:
            return os.tcgetpgrp(self._fd)
        except OSError:
            return None

    @property
    def is_ours(self) -> bool:
        return self.foreground == os.getpgrp()

    def give(self, group: int) -> None:
        """Put *group* into the foreground, but only if our own group is there: it is never taken from others."""
        if self.is_ours:
            self._set_foreground(group)

    def take_back(self, group: int) -> None:
        """Put our own group into the foreground if *group* is there, or a group that has no member left."""
        foreground = self.foreground
        if foreground is not None and (foreground == group or not _has_members(foreground)):
            self._set_foreground(os.getpgrp())

    def speak_from_background(self) -> None:
        """Keep ``stty tostop`` from stopping us at our next log line: with the command in front we are behind.

        After the fork only: the command inherits what is ignored.
        """
        if self.present and signal.getsignal(signal.SIGTTOU) is signal.SIG_DFL:
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            self._ttou = signal.SIG_DFL

    def close(self) -> None:
        if self._ttou is not None:
            signal.signal(signal.SIGTTOU, self._ttou)
            self._ttou = None
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _set_foreground(self, group: int) -> None:
        if self._fd is None:
            return
        # From the background tcsetpgrp() stops its caller, or fails with EINTR where SIGTTOU is handled: it works
        # where SIGTTOU is blocked. Blocked just here: a mask would be inherited by every process that we start.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            os.tcsetpgrp(self._fd, group)
        except OSError:
            return  # hung up, or the group has just gone: there is nothing to give
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def can_be_resumed() -> bool:
    """Say whether a shell above us could continue our group; if none can, the kernel does not stop it by Ctrl-Z.

    Such an orphaned group is that of `tmux new 'preemptd ...'`, or of anything that leads its session.
    """
    group, above = os.getpgrp(), os.getppid()
    try:
        while above > 0 and os.getpgid(above) == group:
            above = parent(above)
        return above > 0 and os.getsid(above) == os.getsid(0)
    except ProcessLookupError:
        return False


def stop_own_group(signum: int) -> None:
    """Stop our process group as the terminal would; returns when it is continued."""
    handler = signal.signal(signum, signal.SIG_DFL)
    try:
        os.kill(0, signum)
    finally:
        if handler is not None:
            signal.signal(signum, handler)


def interrupt_own_group() -> None:
    """End us and the script that runs us by SIGINT, as Ctrl-C would have: the last thing that we do.

    The terminal sent it to the command's group alone. A shell gives up a loop only if it gets SIGINT itself and sees
    that what it waited for was killed by it; else ``for i in 1 2 3; do preemptd watch ...`` takes three Ctrl-C.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(0, signal.SIGINT)


def _has_members(group: int) -> bool:
    if group <= 1:
        return True  # 0: a group of another pid namespace
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
