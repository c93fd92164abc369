"""A process that is forked early, waits behind a gate, and becomes the command when the gate opens."""

import errno
import os
import select
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

_GO = b"g"
_NOT_FOUND = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT})
"""What execvp(3) passes over on its way through PATH; EACCES it passes over, too, but reports it at the end."""


@dataclass(frozen=True, slots=True)
class Command:
    """What the process shall become, worked out before the fork: little is safe to do after it."""

    argv: Sequence[str]
    env: Mapping[str, str]
    shielded: bool = False
    """It starts with SIGTERM ignored, until it installs a handler of its own."""

    @property
    def paths(self) -> list[str]:
        """The files to try, in order: the lookup in PATH is that of the command's own environment."""
        name = self.argv[0]
        if not name:
            return []
        if "/" in name:
            return [name]
        return [os.path.join(folder, name) for folder in self.env.get("PATH", os.defpath).split(":")]


def _resets() -> list[signal.Signals]:
    """Signals that the command shall have with their default action; all others it gets as we inherited them.

    Those that we handle, and those that CPython itself ignores. What nobody handles here and is ignored stays ignored:
    SIGHUP after nohup, SIGINT after ``&`` in a script.
    """
    handled = {n for n in signal.Signals if callable(signal.getsignal(n))}
    return sorted(handled | {signal.SIGPIPE, signal.SIGXFSZ})


class Gate:
    """The waiting process. Nothing of it is left behind when the daemon is killed: it reads end of file and exits.

    While it waits, and until the command has installed handlers of its own, a signal has the effect that it has on any
    freshly started program: its default action, or none where it was inherited ignored, or later where it was
    inherited blocked. SIGTERM ends it. No signal is swallowed by a handler of ours.
    """

    def __init__(self, pid: int, opener: int, failure: int) -> None:
        self.pid = pid
        self._opener: int | None = opener
        self._failure: int | None = failure

    @classmethod
    def fork(cls, command: Command) -> "Gate":
        """Fork. No other thread may exist (Python 3.12 warns: a lock that it holds stays locked in the child)."""
        paths, argv, env = command.paths, list(command.argv), dict(command.env)
        dispositions = dict.fromkeys(_resets(), signal.SIG_DFL)
        if command.shielded:
            dispositions[signal.SIGTERM] = signal.SIG_IGN
        waiting, opener = os.pipe2(os.O_CLOEXEC)
        failure, report = os.pipe2(os.O_CLOEXEC)
        # Everything is blocked around fork(): until the child has left our wake-up pipe and dropped our handlers, a
        # signal to it would be swallowed, and would write its number into our pipe.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        pid = os.fork()
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                os.setpgid(0, 0)
                for signum, disposition in dispositions.items():
                    signal.signal(signum, disposition)
                os.close(opener)
                os.close(failure)
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                if os.read(waiting, 1) == _GO:
                    os.write(report, b"%d" % _become(paths, argv, env))
            finally:
                os._exit(126)
        with suppress(OSError):
            os.setpgid(pid, pid)  # both sides do it: whoever comes first
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(waiting)
        os.close(report)
        return cls(pid, opener, failure)

    @property
    def held(self) -> bool:
        return self._opener is not None

    def open(self) -> None:
        """Let the process become the command."""
        if self._opener is None:
            return
        try:
            os.write(self._opener, _GO)
        except BrokenPipeError:
            pass  # a signal has ended it while it was held: its exit status tells
        finally:
            os.close(self._opener)
            self._opener = None

    def failed(self, patience: float) -> int | None:
        """Say with which errno exec() failed, after at most *patience* seconds; None: it did not, or not yet."""
        if self._failure is None or self._opener is not None:
            return None
        poll = select.poll()
        poll.register(self._failure, select.POLLIN)
        if not poll.poll(patience * 1000):
            return None  # exec() can hang on a network file system
        said = os.read(self._failure, 16)
        os.close(self._failure)
        self._failure = None
        return int(said) if said else None

    def close(self) -> None:
        """Let go; a process that is still held exits."""
        for fd in (self._opener, self._failure):
            if fd is not None:
                os.close(fd)
        self._opener = self._failure = None


def _become(paths: Sequence[str], argv: list[str], env: dict[str, str]) -> int:
    """Execute the first of *paths* that can be; return an errno when none can."""
    missing, denied = errno.ENOENT, 0
    for path in paths:
        failed = _execute(path, argv, env)
        if failed == errno.ENOEXEC and _is_text(path):
            # A script without #!: every shell and execvp(3) run it with sh.
            failed = _execute("/bin/sh", ["/bin/sh", path, *argv[1:]], env)
        if failed == errno.EACCES:
            denied = failed
        elif failed in _NOT_FOUND:
            missing = failed
        else:
            return failed
    return denied or missing


def _execute(path: str, argv: list[str], env: dict[str, str]) -> int:
    try:
        os.execve(path, argv, env)  # noqa: S606 - no shell is the point
    except OSError as error:
        return error.errno or errno.EINVAL
    except ValueError:  # a NUL in an argument, or "=" in a variable's name
        return errno.EINVAL


def _is_text(path: str) -> bool:
    """Tell a script from a program for another machine as bash does: no NUL in its first line."""
    try:
        with open(path, "rb") as file:
            return b"\0" not in file.read(80).partition(b"\n")[0]
    except OSError:
        return False
