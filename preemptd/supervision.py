"""The command under supervision: held, started, signalled, stopped and resumed, and at last ended."""

from collections.abc import Callable, Mapping, Sequence
from signal import SIG_IGN, Signals, getsignal

from preemptd.events import SignalArrived
from preemptd.model import Outcome, ProcessId
from preemptd.notices import Level, Meaning, Notice
from preemptd.targets.attached import Attached
from preemptd.targets.child import Child, Exited, Helpers, Stopped

STOPS = frozenset({Signals.SIGHUP, Signals.SIGINT, Signals.SIGQUIT, Signals.SIGTERM})
FORWARDED = STOPS | {Signals.SIGUSR1, Signals.SIGUSR2, Signals.SIGWINCH, Signals.SIGTSTP}
"""Ordinary signals to us: the command gets them, nothing is marked."""


def signals_to_catch() -> frozenset[Signals]:
    """List the signals that the loop hears.

    What a shell had us ignore stays ignored (nohup; ``command &`` in a script ignores INT and QUIT). TERM, USR1 and
    USR2 do not: ``trap '' USR1 TERM; exec preemptd watch`` closes the gap before our handlers stand.
    """
    kept = {s for s in (Signals.SIGHUP, Signals.SIGINT, Signals.SIGQUIT, Signals.SIGTSTP) if getsignal(s) is SIG_IGN}
    return (FORWARDED | {Signals.SIGCHLD, Signals.SIGCONT}) - kept


class Supervision:
    """The target: a `Child`, or an `Attached` training that an earlier preemptd started. Runs in the loop's thread."""

    is_left_alone = False

    def __init__(self, target: Child | Attached, helpers: Helpers, started: Callable[[], None]) -> None:
        """Make it; *started* is called when the command runs."""
        self._target = target
        self._helpers = helpers
        self._say_started = started
        self.started = False
        self._interrupted = False
        self._terminated = False
        """A provider has made a notice of a SIGTERM, which the command has not had."""
        self.stopped = False
        """Somebody wanted it to end: a stop signal came to us."""
        self.held = isinstance(target, Child)
        """The command is forked, and waits for `release`."""

    @property
    def id(self) -> ProcessId:
        return self._target.id

    def release(self) -> None:
        """Start the command.

        Raises:
            CommandError: it cannot be executed.
        """
        if isinstance(self._target, Attached):
            self._target.start()
        else:
            self.held = False
            self._target.release()
        self.started = True
        self._say_started()

    def abandon(self) -> None:
        """Never start it."""
        if isinstance(self._target, Child):
            self.held = False
            self._target.abandon()

    def note(self, signum: Signals) -> None:
        """Remember a stop that is not, or no more, to be passed on."""
        self.stopped = self.stopped or signum in STOPS

    def signal(self, event: SignalArrived) -> Outcome | None:
        """Deal with an ordinary signal; the outcome, when it said that the command has ended."""
        target = self._target
        self.note(event.signum)
        if event.signum is Signals.SIGCHLD:
            return self.children()
        if event.signum is Signals.SIGCONT:
            if isinstance(target, Child):
                target.resume()
        elif self.held and event.signum is not Signals.SIGTSTP:  # Ctrl-Z stops us together with what we hold
            return self._stop_held(event.signum)
        elif event.signum is Signals.SIGINT and self._interrupted:
            target.forward(Signals.SIGTERM)  # who presses Ctrl-C again wants it to end
        else:
            self._interrupted = self._interrupted or event.signum is Signals.SIGINT
            target.forward(event.signum)
        return None

    def keep(self, signum: Signals) -> None:
        """Hold back a signal that was made a notice of; only a SIGTERM may be meant for the command after all."""
        self._terminated = self._terminated or signum is Signals.SIGTERM

    def give(self, notice: Notice, was_announced: Callable[[], bool]) -> None:
        """Pass on what was held back, if *notice* says that it was but somebody's wish, and sent to us alone."""
        if notice.meaning is Meaning.UNDECIDED or notice.level is Level.ADVISE:
            return
        terminated, self._terminated = self._terminated, False
        wished = terminated and notice.meaning is Meaning.STOPPED and Signals.SIGTERM not in notice.already_sent
        if wished and not was_announced():
            self._target.forward(Signals.SIGTERM)

    def _stop_held(self, signum: Signals) -> Outcome | None:
        if signum not in STOPS:
            return None
        self.abandon()
        return Outcome(128 + signum)

    def children(self) -> Outcome | None:
        """Look after our children; the outcome, when the command was among those that ended."""
        outcome = None
        if isinstance(self._target, Child):
            for change in self._target.changes():
                if isinstance(change, Exited):
                    outcome = change.outcome
                elif isinstance(change, Stopped):
                    self._target.suspend_with()
        self._helpers.reap_orphans(but_not=self._target.pid)
        return outcome

    def targets(self) -> Sequence[Mapping[str, object]]:
        """List nothing: all that there is of one command, the processes say."""
        return ()

    def finish(self) -> None:
        """Let go: reap it, give the terminal back."""
        self._target.finish()
