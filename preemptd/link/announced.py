"""What is announced to this process, between those who hear it and those who ask: any thread, any signal handler."""

import contextlib
import itertools
import math
import time
from _thread import RLock
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from preemptd.link.callbacks import Callback, Callbacks
from preemptd.link.open_notice import OpenNotice
from preemptd.link.own_runs import OwnRuns, Wish

T = TypeVar("T")

NOTIFIED = "notify"
"""In the place of the event id and the source of a notice that this process gave itself."""
PREEMPTED = 75
"""What a W&B run reports that would report 0, where no daemon names another code."""


class Announced:
    """The open notices, those who wait for them, and the critical sections that they wait for."""

    def __init__(self) -> None:
        self.told = False
        """True while a notice is open that is to be acted on; stands still in a critical section."""
        self._open: Mapping[str, OpenNotice] = {}
        self._advice: Mapping[str, OpenNotice] = {}
        self._openings: Mapping[str, int] = {}
        self._numbers = itertools.count(1)
        self._sections = 0
        self._changing = RLock()
        """Held for microseconds; reentrant, for a signal handler may come in between."""
        self._wish: Wish | None = None
        self._runs = OwnRuns()
        self._callbacks = Callbacks(self._due)

    # -- what a script asks --------------------------------------------------------------------------------------

    def listens(self) -> bool:
        """Listen, if that takes more than to be there; False: it is not possible yet, here and now."""
        return True

    def notice(self) -> OpenNotice | None:
        """Return the open notice with the earliest deadline."""
        return min(self._open.values(), key=_deadline, default=None)

    def time_left(self) -> float | None:
        notice = self.notice()
        return notice and notice.time_left

    def advice(self) -> OpenNotice | None:
        """Return what may become a notice, the one with the earliest deadline."""
        return min(self._advice.values(), key=_deadline, default=None)

    def on_notice(self, callback: Callback) -> Callable[[], None]:
        return self._callbacks.add(callback)

    @contextlib.contextmanager
    def defer(self) -> Iterator[None]:
        with self._changing:
            self._sections += 1
        try:
            yield
        finally:
            with self._changing:
                self._sections -= 1
            self._show()

    def forking(self) -> None:
        """Prepare for a fork, in the thread that forks."""

    def forked(self) -> None:
        """Go on after a fork, in the same thread of the parent."""

    def forget(self) -> None:
        """In a forked child: let go of what is the parent's. It may be inside a critical section of the parent's."""
        self._changing = RLock()
        self._callbacks.forget()

    # -- what is heard -------------------------------------------------------------------------------------------

    def _keep(self, notice: OpenNotice) -> None:
        """Take in a notice that is to be acted on, or another word on one that is known."""
        with self._changing:
            advice, openings = dict(self._advice), dict(self._openings)
            advice.pop(notice.event_id, None)
            openings.setdefault(notice.event_id, next(self._numbers))
            self._advice, self._openings = advice, openings
            self._open = {**self._open, notice.event_id: notice}

    def _drop(self, event_id: str) -> None:
        """Forget what was taken back."""
        with self._changing:
            self._open = _without(event_id, self._open)
            self._advice = _without(event_id, self._advice)
            self._openings = _without(event_id, self._openings)

    def _advise(self, notice: OpenNotice) -> None:
        with self._changing:
            if notice.event_id not in self._open:  # who is told of it stays told until it is taken back
                self._advice = {**self._advice, notice.event_id: notice}

    def _settle(self) -> None:
        """See to the W&B runs, for a tenth of a second at most, and let everybody know."""
        self._runs.follow(self._wish if self._open else None)
        self._show()

    def _show(self) -> None:
        with self._changing:
            if not self._sections:
                self.told = bool(self._open)
        self._callbacks.look()

    def _notify_self(self, deadline_s: float | None, reason: str) -> None:
        """Open a notice of our own, or tighten it."""
        with self._changing:
            known = self._open.get(NOTIFIED)
            deadline = None if deadline_s is None else time.monotonic() + deadline_s
            if known is not None and known.deadline is not None:
                deadline = known.deadline if deadline is None else min(known.deadline, deadline)
            self._keep(OpenNotice(NOTIFIED, "preempt", reason or NOTIFIED, deadline))
            self._wish = self._wish or Wish(PREEMPTED)
        self._settle()

    def _due(self) -> Mapping[int, OpenNotice]:
        with self._changing:
            if self._sections:
                return {}
            return {self._openings[event_id]: notice for event_id, notice in self._open.items()}


def _without(event_id: str, kept: Mapping[str, T]) -> Mapping[str, T]:
    return {known: what for known, what in kept.items() if known != event_id}


def _deadline(notice: OpenNotice) -> float:
    return math.inf if notice.deadline is None else notice.deadline
