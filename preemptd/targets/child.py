"""The supervised command: as if the user had started it without us."""

import errno
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from preemptd.errors import CommandError
from preemptd.model import Outcome, ProcessId
from preemptd.procfs import process_id
from preemptd.targets.gate import Command, Gate
from preemptd.targets.reaping import Helpers, become_subreaper
from preemptd.targets.terminal import Terminal, can_be_resumed, stop_own_group

__all__ = ["Change", "Child", "Continued", "Exited", "Helpers", "Stopped"]

logger = logging.getLogger(__name__)

ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP})
STOPPING = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
"""What the terminal stops a process group with; unlike SIGSTOP it has no effect on a group that nobody can resume."""
_EXEC_PATIENCE = 2.0


@dataclass(frozen=True, slots=True)
class Stopped:
    """The command was stopped: Ctrl-Z (TSTP), reading the terminal from the background (TTIN), or kill -STOP."""

    signum: int


@dataclass(frozen=True, slots=True)
class Continued:
    """The command goes on after a stop."""


@dataclass(frozen=True, slots=True)
class Exited:
    """The command's own process has ended. Said once."""

    outcome: Outcome


Change = Stopped | Continued | Exited


class Child:
    """The command, from the fork to the last wait. Main thread only."""

    def __init__(self, gate: Gate, terminal: Terminal, name: str) -> None:
        self.pid = gate.pid
        # A start of 0 is no process's: it has been killed already, and `changes` says so.
        self.id = process_id(gate.pid) or ProcessId(gate.pid, 0)
        self.outcome: Outcome | None = None
        """How it ended; None: it has not, as far as `changes` knows."""
        self._gate = gate
        self._terminal = terminal
        self._name = name
        # A shell without job control ignores SIGINT for what it starts with `&`: the terminal is not for that.
        self._may_have_terminal = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
        self.interrupted = False
        """True after `finish`: Ctrl-C ended it, and reached nobody else; see `terminal.interrupt_own_group`."""
        self._stopped_by: int | None = None
        self._killed_by: int | None = None
        self._reaped = False

    @classmethod
    def prepare(cls, argv: Sequence[str], env: Mapping[str, str], *, shielded: bool = False) -> "Child":
        """Fork the process that will be the command, and hold it; its pid and start time are final.

        No thread may exist yet, and our signal handlers are in place. *shielded*: it starts with SIGTERM ignored.
        """
        become_subreaper()
        gate, terminal = Gate.fork(Command(argv, env, shielded)), Terminal.open()
        terminal.speak_from_background()
        return cls(gate, terminal, argv[0])

    def release(self) -> None:
        """Execute the command, in the foreground of the terminal if we are there.

        Raises `CommandError` if it cannot be executed. An exec that takes longer than two seconds (a network file
        system) goes on by itself; should it fail then, `changes` raises the same.
        """
        if self._may_have_terminal:
            self._terminal.give(self.pid)
        self._gate.open()
        self._raise_if_failed(_EXEC_PATIENCE)

    def abandon(self) -> None:
        """End the process that is held: the command is never executed."""
        if self._gate.held:
            os.kill(self.pid, signal.SIGKILL)  # end of file would do, but not for one that is stopped
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            self.outcome = Outcome(128 + signal.SIGKILL)
            self.finish()

    def changes(self) -> list[Change]:
        """Say what has happened since the last call; for each SIGCHLD. It waits for this one pid and reaps nothing.

        Our own child that is not reaped keeps its pid: waiting by pid is as safe as by pidfd, on every kernel.
        """
        self._raise_if_failed(0)
        changes: list[Change] = []
        # Stops are taken out (a peek would show the same one again and again), the end is only looked at.
        while info := self._wait(os.WSTOPPED | os.WCONTINUED):
            stopped = info.si_code == os.CLD_STOPPED
            self._stopped_by = info.si_status if stopped else None
            changes.append(Stopped(info.si_status) if stopped else Continued())
        if self.outcome is None and (outcome := self._look_for_end()):
            self.outcome = outcome
            changes.append(Exited(outcome))
        return changes

    def forward(self, signum: int) -> None:
        """Pass on a signal that was sent to us; a stop by the terminal goes to the whole group, as Ctrl-Z does."""
        if signum in STOPPING:
            self._signal_group(signum)
        elif not self._reaped:
            try:
                os.kill(self.pid, signum)
            except PermissionError:
                logger.warning("signal %d not passed on: %s runs as another user", signum, self._name)
        if signum in ENDING:
            self._signal_group(signal.SIGCONT)  # one that is stopped would not see it

    def resume(self) -> None:
        """Go on after our own SIGCONT (``fg``, ``bg``): the terminal is the command's again if it is ours."""
        if not self._gate.held:
            self._terminal.give(self.pid)
        self._signal_group(signal.SIGCONT)

    def suspend_with(self) -> None:
        """Stop our own process group as the command was stopped, so that the shell that started us takes over.

        Returns when we are continued: our SIGCONT then calls for `resume`. Without a terminal there is no job control
        and nobody who would resume us: the stop is the command's alone.
        """
        stop = self._stopped_by
        if stop is None or not self._terminal.present:
            return
        if stop in {signal.SIGTTIN, signal.SIGTTOU} and self._terminal.foreground in {os.getpgrp(), self.pid}:
            self.resume()  # `fg` of a job that runs: bash gives it the terminal and sends no SIGCONT
            return
        if stop == signal.SIGTSTP and not can_be_resumed():
            self.resume()  # the kernel would not have stopped the command either, had it been in our group
            return
        self._terminal.take_back(self.pid)
        stop_own_group(stop if stop in STOPPING else signal.SIGTSTP)

    def finish(self) -> None:
        """Take the terminal back and reap, when nothing needs the pid or its group any more. Does not wait."""
        if self._reaped:
            return
        if self.outcome is not None:
            self.interrupted = self._killed_by == signal.SIGINT and self._terminal.foreground == self.pid
            self._terminal.take_back(self.pid)
            self._reaped = True
            try:
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                logger.debug("process %d was reaped by someone else", self.pid)
        self._gate.close()
        self._terminal.close()

    def _raise_if_failed(self, patience: float) -> None:
        failed = self._gate.failed(patience)
        if failed is None:
            return
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        self.outcome = Outcome(127 if failed in {errno.ENOENT, errno.ENOTDIR} else 126)
        self.finish()
        why = os.strerror(failed)
        if failed == errno.ENOENT and "/" in self._name and os.path.exists(self._name):
            why += " (the file is there: what its first line or its loader names is not)"
        raise CommandError(f"{self._name}: {why}", self.outcome.status)

    def _wait(self, states: int) -> os.waitid_result | None:
        try:
            return os.waitid(os.P_PID, self.pid, states | os.WNOHANG)
        except ChildProcessError:
            return None  # the kernel says so, too, of a zombie whose end was not asked for

    def _look_for_end(self) -> Outcome | None:
        try:
            info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # somebody in this process waits for what is not theirs
            return Outcome(1, known=False)
        if info is None:
            return None
        if info.si_code == os.CLD_EXITED:
            return Outcome(info.si_status)
        self._killed_by = info.si_status
        return Outcome(128 + info.si_status)

    def _signal_group(self, signum: int) -> None:
        if self._reaped:
            return
        try:
            os.killpg(self.pid, signum)
        except OSError as error:  # it runs as another user, or left its group
            logger.debug("signal %d to group %d: %s", signum, self.pid, error)
