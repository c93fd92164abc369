"""The one loop: read this first.

Providers, scanner, marker, link and ledger have threads of their own and put events into the inbox. `Daemon.run` takes
them out one after the other, in the main thread; what is due by time waits in `Timers`. Nothing blocks while it runs.
The parts: `Watching` (providers), `Telling` (who is told), `Supervision` (the command), `settle` (our exit status).
"""

from collections.abc import Sequence
from functools import partial
from signal import Signals

from preemptd.answering import Answering
from preemptd.errors import CommandError, place_of
from preemptd.escalating import Escalating
from preemptd.escalation import Timing
from preemptd.events import (
    Event,
    LedgerWritten,
    LinkAsked,
    LinkJoined,
    LinkLeft,
    LinkSaid,
    MarkingDone,
    NoticeArrived,
    NoticeRevoked,
    ProvidersProbed,
    RunEnded,
    RunMarked,
    RunsFound,
    Scanned,
    SignalArrived,
    TargetExited,
    WatchChanged,
)
from preemptd.first_term import FirstTerm
from preemptd.model import Outcome
from preemptd.notices import Meaning, Notice
from preemptd.outliving import Holding, Outliving
from preemptd.parts import Parts, Supervised, Timers
from preemptd.provider import Conclusion
from preemptd.settling import Ending
from preemptd.supervision import STOPS
from preemptd.telling import Telling
from preemptd.watching import BEFORE_THE_END, Turn, Watching

PENDING_WITHIN = 0.3
"""Seconds in which watches that are certain to be at home may say before the start that a notice is pending: they
answer within 10 ms; a busy machine needs more. Ignorance starts the command."""
TELLING_SOON = 0.05
"""Seconds between two looks whether the telling is over, for a SIGTERM that came into the middle of it."""
LOOK_EVERY = 5.0
"""Seconds between scans while nothing is announced: keeps what telling needs warm."""
CONCLUDE_WITHIN = 5.0
"""Seconds at the most for the providers' last word: a SLURM controller may hang."""
DECIDE_WITHIN = 300.0
"""Seconds for it if nobody can say yet what was announced: a job that is to come back would be lost otherwise."""
WARN_AFTER = 30.0
"""Seconds after the start at which a training has its handlers, if it will ever have any."""


class Daemon:
    """Runs from the start of the command, or the taking over of one that runs already, to our exit status."""

    def __init__(self, parts: Parts, timing: Timing, supervision: Supervised) -> None:
        self._parts = parts
        self._supervision = supervision
        self._timers = Timers()
        self._watching = Watching(parts)
        self._telling = Telling(parts, self._timers, supervision.id.pid)
        self._escalating = Escalating(parts, self._timers, timing, self._telling)
        self._answering = Answering(parts, self._timers, supervision, self._watching, self._telling, self._escalating)
        self._holding = Holding(parts, self._timers, self._watching, self._escalating)
        self._first_term = FirstTerm(self._escalating, self._telling)
        self._outcome: Outcome | None = None
        self._sent_away = False
        """The command has ended, and somebody does not want us to wait for those who still save."""
        self.called_off = False
        """A stop signal came to us, of itself or with a notice."""

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self, *, stays: bool = False) -> Ending:
        """Run to the end; if it *stays*, the watches go on, for `outliving`. Raises CommandError: it cannot be run."""
        self._parts.journal.start()
        self._parts.ledger.start()
        self._parts.scanner.start()
        self._parts.marker.start()
        self._parts.link.start()
        self._parts.outer.start()
        self._parts.nodes.start()
        self._watching.start()
        try:
            self._answering.beat()
            self._begin()
            while self._escalating.waits(ended=self._outcome is not None, sent_away=self._sent_away):
                event = self._parts.inbox.get(self._timers.wait())
                try:
                    if event is not None:
                        self._handle(event)
                    self._timers.run_due()
                except CommandError:
                    raise
                except Exception as error:  # noqa: BLE001 - a bug in here must not cost the training
                    self._parts.journal.warn(f"internal error, please report it: {error!r} at {place_of(error)}")
            self._answering.end()
            return self._end(self._outcome or Outcome(128 + Signals.SIGKILL, known=False))
        finally:
            if not stays:
                self._watching.stop()
            self._parts.scanner.stop()
            self._parts.marker.stop()

    def _handle(self, event: Event) -> None:  # noqa: C901, PLR0912 - a table of events, one line each
        match event:
            case SignalArrived():
                self._signal(event)
            case NoticeArrived():
                self._notice(self._watching.arrived(event))
            case NoticeRevoked():
                self._watching.revoked(event.event_id)
                self._escalating.revoke(event)
                self._decide()
            case WatchChanged():
                self._watching.changed(event)
            case ProvidersProbed():
                self._watching.probed(event)
            case Scanned():
                self._scanned(event)
            case MarkingDone():
                self._telling.marking_done(event.asked)
            case LedgerWritten():
                self._telling.ledger_written(event.number)
            case RunMarked():
                self._escalating.marked(event)
            case RunEnded():
                self._escalating.ended(event)
            case RunsFound():
                self._answering.runs = event.runs
            case LinkJoined():
                self._telling.joined(event)
            case LinkLeft():
                self._telling.left(event)
            case LinkSaid():
                self._telling.heard(event)
            case LinkAsked():
                self._answering.take(event)
            case TargetExited():
                self._take_outcome(event.outcome)
        if self._supervision.held and self._watching.all_answered:
            self._decide()

    def _notice(self, notice: Notice | None) -> None:
        if notice is not None:
            self._escalating.notice(notice)
            self._supervision.give(notice, self._first_term.was_announced)

    def _scanned(self, event: Scanned) -> None:
        self._telling.scanned(event.processes)
        self._answering.answer_all()
        if self._escalating.needs_no_time:
            self._watching.relax()

    # -- start ---------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Hold the command until the watches have said whether a notice is pending, if that makes a difference."""
        if self._supervision.held and self._watching.providers and self._parts.settings.when_pending != "start":
            self._timers.after(0.0 if self._watching.all_answered else PENDING_WITHIN, self._decide)
        else:
            self._release()

    def _decide(self) -> None:
        """Start the command, unless a notice is pending."""
        self._timers.cancel(self._decide)
        if not self._supervision.held:
            return
        if (given_up := self._holding.given_up()) is not None:
            self._supervision.abandon()
            self._outcome = given_up
        elif not self._holding.waits(self._decide):
            self._release()

    def _release(self) -> None:
        if not self._supervision.started:
            self._supervision.release()
        self._watching.child_started(self._supervision.id.pid)
        if self._parts.candidates:
            self._watching.probe()
        self._timers.after(WARN_AFTER, self._telling.warn)
        self._look()
        self._escalating.let_go()

    def _look(self) -> None:
        """Keep the picture warm while nothing is announced, and no zombie waiting for a SIGCHLD that was merged."""
        if self._escalating.current is None:
            self._telling.look()
        self._take_outcome(self._supervision.children())
        self._timers.after(LOOK_EVERY, self._look)

    def _take_outcome(self, outcome: Outcome | None) -> None:
        if outcome is not None and self._outcome is None:
            self._outcome = outcome
            self._telling.ended(self._supervision.id)

    # -- signals and questions -----------------------------------------------------------------------------------

    def _signal(self, event: SignalArrived) -> None:
        """Pass an ordinary signal on, unless a provider or an open notice makes more of it: a stop is no preemption."""
        self.called_off = self.called_off or event.signum in STOPS
        notices = () if self._supervision.held else self._watching.judge_signal(event.signum)
        for notice in notices:
            self._escalating.notice(notice)
        if notices:
            self._supervision.keep(event.signum)
        else:
            self._pass_on(event)

    def _pass_on(self, event: SignalArrived) -> None:
        if event.signum is Signals.SIGTERM and self._telling.about_to_tell:
            # GCE may shut down at once: who is told in a moment must not die of SIGTERM, nor torchrun above it.
            self._timers.after(TELLING_SOON, partial(self._pass_on, event))
            return
        if self._supervision.is_left_alone and event.signum in STOPS:
            self._sent_away = True
            self._take_outcome(self._supervision.signal(event))
            return
        terminated = event.signum is Signals.SIGTERM and (len(self._telling.roll) > 0 or self._parts.nodes.reached)
        if terminated and self._first_term.take():
            return
        self._sent_away = self._outcome is not None and event.signum in STOPS
        if self._sent_away and self._escalating.current is None:
            self._telling.agents.pass_on(event.signum, self._telling.selection)
        self._take_outcome(self._supervision.signal(event))

    def settle(self, conclusion: Conclusion, budget: float, turns: Sequence[Turn] = BEFORE_THE_END) -> Sequence[str]:
        """Have the providers do what only they can, as the last act; see `Watching.settle`."""
        return self._watching.settle(conclusion, budget, turns)

    def outliving(self) -> Outliving:
        """After `run(stays=True)` and all else: what waits while a notice is open."""
        known = self._supervision, self._watching, self._escalating, self._answering
        return Outliving(self._parts, self._timers.now, *known)

    @property
    def is_in_escalation(self) -> bool:
        return self._escalating.current is not None

    def close(self) -> None:
        self._watching.close()

    def _conclude(self) -> None:
        """Hear the last word on what ended the command: the signal for it may lie unread behind the end itself."""
        self._parts.link.sync()  # "done" may be the last that it has said
        while self._supervision.started and (event := self._parts.inbox.get(0)) is not None:
            if isinstance(event, LinkSaid):
                self._telling.heard(event)
            elif isinstance(event, SignalArrived):
                self._supervision.note(event.signum)
                for notice in self._watching.judge_signal(event.signum):
                    self._escalating.conclude(notice)
            elif isinstance(event, NoticeRevoked):
                self._escalating.revoke(event)
        self._parts.nodes.sync()
        spare = self._escalating.current.deadline - self._timers.now() if self._escalating.current else 60.0
        undecided = self._escalating.meaning is Meaning.UNDECIDED
        for notice in self._watching.conclude(
            DECIDE_WITHIN if undecided else max(1.0, min(CONCLUDE_WITHIN, spare / 2))
        ):
            self._escalating.conclude(notice)

    def _end(self, outcome: Outcome) -> Ending:
        ended = self._timers.now()
        if self._escalating.meaning is not Meaning.SUPERSEDED:  # there the new copy waits for what we hold
            self._conclude()
        now, roll, escalation = self._timers.now(), self._telling.roll, self._escalating.current
        sent_at = min(ended, escalation.began) if escalation is not None and escalation.already_sent else None
        reached = (self._telling.reached and self._escalating.explains_an_end) or sent_at is not None
        ended_held = not self._supervision.started and self._holding.was_ended(outcome)
        return Ending(
            outcome,
            told=self._parts.outer.preempted or reached or ended_held,
            meaning=self._escalating.meaning,
            started=self._supervision.started,
            done=roll.finished,
            done_pids=roll.done,
            told_at=sent_at if roll.first_told is None else roll.first_told,
            saved=roll.saved > 0,
            since_notice=None if escalation is None else now - escalation.began,
            spare=None if escalation is None else escalation.deadline - now,
            running=self._supervision.started and self._outcome is None,
            agent_ended=bool(self._telling.agents.ended),
            silent=roll.silent,
            acted=frozenset(escalation.event_ids if escalation is not None else ()),
        )
