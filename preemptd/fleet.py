"""What the daemon looks after instead of a command: targets that others start, and that come and go."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from signal import Signals

from preemptd.events import SignalArrived
from preemptd.model import Outcome, ProcessId
from preemptd.notices import Notice
from preemptd.procfs import process_id
from preemptd.supervision import STOPS
from preemptd.targets.child import Helpers

HEARD = STOPS | {Signals.SIGUSR1, Signals.SIGUSR2, Signals.SIGCHLD}
"""SIGUSR1 and SIGUSR2 are for providers; without one that knows them they mean nothing to a daemon."""
TELL_WITHIN = 1.0
"""Seconds after a SIGTERM that was made a notice of (a pod is ended) before we may go: by then everybody is told."""


class Fleet:
    """In the place of `Supervision`. Runs in the loop's thread."""

    is_left_alone = True

    def __init__(
        self,
        helpers: Helpers,
        targets: Callable[[], Sequence[Mapping[str, object]]],
        started: Callable[[], None],
        reload: Callable[[], bool],
    ) -> None:
        """Make it.

        Args:
            helpers: our own commands.
            targets: lists the targets, for the status.
            started: called when the loop begins.
            reload: reads the configuration anew; True: it is good, and the loop is to be built anew.
        """
        own = process_id(os.getpid())
        self.id = own if own is not None else ProcessId(os.getpid(), 0)
        self.started = False
        self.held = False
        self._helpers = helpers
        self._targets = targets
        self._say_started = started
        self._reload = reload
        self._leaves_at: float | None = None
        self.unheard: list[Signals] = []
        """Signals that came when the loop had ended."""

    def release(self) -> None:
        self.started = True
        self._say_started()

    def abandon(self) -> None:
        """Do nothing: what others start is not ours to hold back."""

    def signal(self, event: SignalArrived) -> Outcome | None:
        """End at a stop, take a new configuration at SIGHUP."""
        if event.signum is Signals.SIGCHLD:
            return self.children()
        if event.signum is Signals.SIGHUP:
            return Outcome(0) if self._reload() else None
        return Outcome(0) if event.signum in STOPS else None

    def keep(self, signum: Signals) -> None:
        """Go, after a stop that was made a notice of, when the told have left or their time is over."""
        if signum in STOPS and self._leaves_at is None:
            self._leaves_at = time.monotonic() + TELL_WITHIN

    def note(self, signum: Signals) -> None:
        self.unheard.append(signum)

    def give(self, notice: Notice, was_announced: Callable[[], bool]) -> None:
        pass

    def children(self) -> Outcome | None:
        self._helpers.reap_orphans(but_not=0)
        return Outcome(0) if self._leaves_at is not None and time.monotonic() >= self._leaves_at else None

    def targets(self) -> Sequence[Mapping[str, object]]:
        return self._targets()
