"""When a notice is open and no command runs: waits until that is taken back, or the machine has outlived it."""

from collections.abc import Callable
from dataclasses import dataclass
from signal import Signals

from preemptd.answering import Answering
from preemptd.escalating import EXPIRES_AFTER, Escalating
from preemptd.escalation import NOTIFIED, Escalation, deadline_of
from preemptd.events import Event, LinkAsked, NoticeArrived, NoticeRevoked, SignalArrived, WatchChanged
from preemptd.model import Outcome
from preemptd.notices import OUTLIVED_AFTER, Meaning, Notice
from preemptd.parts import Parts, Supervised, Timers
from preemptd.supervision import STOPS
from preemptd.targets.terminal import can_be_resumed, stop_own_group
from preemptd.watching import Watching


@dataclass(frozen=True, slots=True)
class Safe:
    """The command may be started again."""

    why: str
    outlived: frozenset[str]
    """Events that the platform still announces, and that did not come."""


class Outliving:
    """Takes what comes in after the loop has ended: the watches go on, and nobody is left to be told."""

    def __init__(
        self,
        parts: Parts,
        clock: Callable[[], float],
        supervision: Supervised,
        watching: Watching,
        escalating: Escalating,
        answering: Answering,
    ) -> None:
        self._parts = parts
        self._now = clock
        self._supervision = supervision
        self._watching = watching
        self._escalating = escalating
        self._answering = answering
        self.stop: Signals | None = None
        """The stop signal that has ended the waiting."""

    def hold(self, why: str) -> None:
        """Wait until no notice is open, the machine should be gone, or a stop signal comes; *why*: for people."""
        self._escalating.rest()
        if self._escalating.current is not None:
            self._parts.journal.warn(why)
        while (escalation := self._escalating.current) is not None and self._take_until(outlived_at(escalation)):
            pass
        self._answering.end()

    def wait(self, pause: float, why: str) -> Safe | None:
        """Wait as `hold` does, and *pause* seconds in any case; None: there was a stop signal, or the job goes."""
        self._escalating.rest()
        self._answering.waiting = why
        earliest = self._now() + pause
        while not self.is_final and self._take_until(max(earliest, outlived_at(self._escalating.current))):
            pass
        self._answering.waiting = ""
        self._answering.end()
        if self.stop is not None or self.is_final:
            return None
        escalation = self._escalating.current
        if escalation is None:
            return Safe("the notice was taken back", self._watching.outlived)
        return Safe("the machine has outlived the notice", self._watching.outlived | frozenset(escalation.event_ids))

    @property
    def is_final(self) -> bool:
        """A notice tells for certain that the job ends here."""
        return self._escalating.meaning is not Meaning.PREEMPTED or self._escalating.is_irrevocable

    def _take_until(self, end: float) -> bool:
        """Take one event, or wait for a moment; False: *end* has come, or a stop signal."""
        left = end - self._now()
        if left <= 0 or self.stop is not None:
            return False
        interval = self._parts.pulse.interval
        event = self._parts.inbox.get(left if interval is None else min(left, interval))
        self._answering.beat()
        if event is not None:
            self._handle(event)
        return True

    def _handle(self, event: Event) -> None:
        match event:
            case SignalArrived():
                self._signal(event.signum)
            case NoticeArrived():
                if (notice := self._watching.arrived(event)) is not None:
                    self._escalating.notice(notice)
            case NoticeRevoked():
                self._watching.revoked(event.event_id)
                self._escalating.revoke(event)
            case WatchChanged():
                self._watching.changed(event)
            case LinkAsked():
                self._answering.take(event, at_once=True)

    def _signal(self, signum: Signals) -> None:
        if signum in STOPS:
            self._parts.journal.warn(f"{signum.name} ends the waiting")
            self.stop = signum
        elif signum is Signals.SIGCHLD:
            self._supervision.children()
        elif signum is Signals.SIGTSTP and can_be_resumed():
            stop_own_group(signum)


class Holding:
    """An open notice holds the command back before its start; a start in place no longer than `Outliving.wait` does."""

    def __init__(self, parts: Parts, timers: Timers, watching: Watching, escalating: Escalating) -> None:
        self._parts = parts
        self._timers = timers
        self._watching = watching
        self._escalating = escalating
        self._again = parts.outlived is not None
        self._said = False

    def given_up(self) -> Outcome | None:
        """Return what is to become of a command that is never started; None: it will be, now or later."""
        if self._escalating.meaning is Meaning.SUPERSEDED:
            return Outcome(128 + Signals.SIGKILL)
        irrevocable, settings = self._escalating.is_irrevocable, self._parts.settings
        if self._escalating.current is None or not (irrevocable or settings.when_pending == "exit"):
            return None
        why = "it will not be taken back" if irrevocable else "--when-pending exit"
        self._parts.journal.warn(f"not started: a notice is pending ({why})")
        return Outcome(settings.preempted_exit_code)

    def waits(self, look: Callable[[], None]) -> bool:
        """Say whether the command may not start yet; *look* is called when it may, unless an event comes before."""
        escalation = self._escalating.current
        if escalation is None:
            return False
        if self._again and outlived_at(escalation) <= self._timers.now():
            for notice in self._escalating.outlive():
                self._watching.outlive(notice)
            return False
        if self._again:
            self._timers.at(outlived_at(escalation), look)
        if not self._said:
            self._said = True
            or_when = f", or {OUTLIVED_AFTER:.0f} s after its deadline" if self._again else ""
            anyway = "(--when-pending start: start anyway)"
            self._parts.journal.warn(f"not started before the notice is taken back{or_when} {anyway}")
        return True

    def was_ended(self, outcome: Outcome) -> bool:
        """Say whether *outcome* of a command to be started again is SIGTERM, the end that an open notice announces."""
        return self._again and self._escalating.current is not None and outcome.status == 128 + Signals.SIGTERM


def outlived_at(escalation: Escalation | None) -> float:
    """Compute the monotonic time at which all that is announced did not come; in the past: nothing is."""
    if escalation is None:
        return float("-inf")
    return max(deadline_of(notice, escalation.timing) + _margin(notice) for notice in escalation.notices)


def _margin(notice: Notice) -> float:
    """Return for how long *notice* counts past its deadline; one that came over the link nobody takes back."""
    return EXPIRES_AFTER if notice.provider == NOTIFIED else OUTLIVED_AFTER
