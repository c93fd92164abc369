"""The open notices and the time that is left: when an escalation begins, what is due, when it is over."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from preemptd.escalation import NOTIFIED, Escalation, Timing, Verdict, acts_at, deadline_of, judge, notified
from preemptd.events import NoticeRevoked, RunEnded, RunMarked
from preemptd.notices import AFTER_REVOCATION, Level, Meaning, Notice
from preemptd.parts import Parts, Timers
from preemptd.subscribers import Advice
from preemptd.telling import Telling

EXPIRES_AFTER = 10.0
"""Seconds past its deadline after which a notice that came over the link counts no more: nobody takes it back."""

LAST_ACT = 1.0
"""Seconds before the platform's SIGKILL at which a command that still runs is waited for no longer: a requeue takes
some milliseconds, and a save that is under way needs every second."""


class Escalating:
    """Owns the escalation. Runs in the loop's thread."""

    def __init__(self, parts: Parts, timers: Timers, timing: Timing, telling: Telling) -> None:
        self._parts = parts
        self._timers = timers
        self._timing = timing
        self._telling = telling
        self._count = 0
        self._revoked_at = float("-inf")
        self._advice = Advice(parts.link, timers)
        self._holding = True
        self.current: Escalation | None = None
        self._without_escalation = Meaning.PREEMPTED
        """What a notice meant that opened no escalation."""
        self._out_of_time = False
        """The platform is about to kill us with all the rest: what must not be left undone is to be done now."""

    # -- notices -------------------------------------------------------------------------------------------------

    def notice(self, notice: Notice) -> None:
        """Act on *notice*, or write it down and plan when it is to be acted on."""
        verdict = judge(notice, self._timing)
        if notice.meaning is Meaning.SUPERSEDED or (notice.meaning is Meaning.STOPPED and self.current is None):
            self._dismiss(notice)
            return
        if verdict is Verdict.ACT:
            self._act(replace(notice, level=Level.ACT))  # advice whose time has come when it is first heard
            return
        if verdict is Verdict.ADVISE and self.current and notice.event_id in self.current.event_ids:
            self.revoke(NoticeRevoked(notice.provider, notice.provider, notice.event_id))  # it was put off
        why = "its deadline is long past" if verdict is Verdict.STALE else "it only advises"
        self._write("advice" if verdict is Verdict.ADVISE else "notice", notice, acted=False, why=why)
        if verdict is Verdict.ADVISE:
            at = acts_at(notice, self._timing, self._timers.now())
            self._advice.give(notice, at, partial(self._due, notice))

    def _due(self, notice: Notice) -> None:
        """Act on advice whose time has come: its clock begins now, not when it was first heard of."""
        now = self._timers.now()
        self._act(replace(notice, level=Level.ACT, observed=now, remaining=deadline_of(notice, self._timing) - now))

    def asked(self, fields: Mapping[str, object]) -> None:
        """Take a notice that came over the link: more of the one that is open, or another event."""
        now = self._timers.now()
        known = self._asked_for()
        if known is not None and deadline_of(known, self._timing) < now:
            self._expire()
            known = None
        event_id = known.event_id if known else f"{NOTIFIED}:{os.urandom(4).hex()}"
        self.notice(notified(event_id, fields, now))
        if (notice := self._asked_for()) is not None:
            self._timers.at(deadline_of(notice, self._timing) + EXPIRES_AFTER, self._expire)

    def _asked_for(self) -> Notice | None:
        notices = self.current.notices if self.current else ()
        return next((notice for notice in notices if notice.provider == NOTIFIED), None)

    def _expire(self) -> None:
        """Take back what nobody else would: the machine has outlived what somebody said of it."""
        self._timers.cancel(self._expire)
        if (notice := self._asked_for()) is not None:
            self.revoke(NoticeRevoked(NOTIFIED, NOTIFIED, notice.event_id))

    def revoke(self, event: NoticeRevoked) -> None:
        """Drop a notice that the platform took back; with the last one the escalation is over."""
        level = Level.ADVISE if self._advice.drop(event.event_id) else Level.ACT
        if self._without_escalation is Meaning.STOPPED:
            self._without_escalation = Meaning.PREEMPTED
        self._parts.journal.write("revoked", provider=event.provider, event_id=event.event_id, level=str(level))
        if self.current is not None:
            self.current = self.current.without(event.event_id, self._timers.now())
            if self.current is None:
                self._revoked_at = self._timers.now()
                self._telling.end()
                self._timers.cancel(self._step)
                self._timers.cancel(self._stop_waiting)
            else:
                self._telling.update(self.current)  # before the revocation: clients always know of an open notice
                self._plan()
            self._parts.nodes.inform(self.current)
        self._telling.revoked(event.event_id)

    def conclude(self, notice: Notice) -> None:
        """Take the last word on an event when the command has ended and nobody is left to tell."""
        if notice.meaning is Meaning.SUPERSEDED:
            self._without_escalation, self.current = Meaning.SUPERSEDED, None
        elif self.current is None and notice.meaning is Meaning.PREEMPTED:
            self.current = Escalation.open(self._count + 1, notice, self._timing)
        elif self.current is not None:
            self.current = self.current.joined(notice, self._timers.now())
        else:
            self._without_escalation = notice.meaning
        self._write("notice", notice, acted=False, why="the command has ended")

    def _dismiss(self, notice: Notice) -> None:
        """Tell nobody: somebody wants it to end, or it runs elsewhere and is to end here at once."""
        if notice.meaning is Meaning.SUPERSEDED and self.meaning is not Meaning.SUPERSEDED:
            self._without_escalation, self.current = Meaning.SUPERSEDED, None
            self._telling.fence()
            self._timers.cancel(self._step)
            self._parts.nodes.inform(None, fenced=True)
        elif notice.meaning is Meaning.STOPPED:
            self._without_escalation = Meaning.STOPPED
        self._write("notice", notice, acted=notice.meaning is Meaning.SUPERSEDED, why=str(notice.meaning))

    def outlive(self) -> Sequence[Notice]:
        """Close what is open and told to nobody: the machine is still here. Return its notices."""
        closed, self.current = self.current, None
        self._timers.cancel(self._step)
        self._timers.cancel(self._stop_waiting)
        self._parts.nodes.inform(None)
        return closed.notices if closed is not None else ()

    @property
    def meaning(self) -> Meaning:
        """What the end of the command will mean, if it was told of something."""
        return self._without_escalation if self.current is None else self.current.meaning

    @property
    def is_irrevocable(self) -> bool:
        """What is open will not be taken back."""
        return self.current is not None and any(notice.irrevocable for notice in self.current.notices)

    @property
    def needs_no_time(self) -> bool:
        """A notice is open, and whoever can be told was told, and has saved or left: the platform may go on."""
        telling = self._telling
        if self.current is None or telling.about_to_tell:
            return False
        untold = any(choice.process.id not in telling.roll for choice in telling.selection.told)
        return not (untold or telling.selection.unreachable or telling.roll.owes(telling.processes))

    def let_go(self) -> None:
        """Tell from now on: the command is no longer held back."""
        self._holding = False
        if self.current is not None:
            self._telling.begin(self.current)

    def _act(self, notice: Notice) -> None:
        if self.current is None:
            self._count += 1
            self.current = Escalation.open(self._count, notice, self._timing)
            if not self._holding:
                self._telling.begin(self.current)
            self._progress()
        else:
            named = self.current.first.event_id
            self.current = self.current.joined(notice, self._timers.now())
            if not self._holding:
                self._telling.update(self.current)
            if named == notice.event_id != self.current.first.event_id:  # put off: nobody hears of it any more
                self._parts.link.announce({"type": "revoked", "event_id": named})
        self._advice.became(notice, self.current)
        self._parts.nodes.inform(self.current)
        self._plan()
        self._plan_end(notice)
        self._write("notice", notice, acted=True, why="")

    def _plan_end(self, notice: Notice) -> None:
        """Wait for the command no longer than the platform lets us live. A cancelled job may be killed as it stands."""
        if notice.meaning is Meaning.STOPPED:
            self._timers.cancel(self._stop_waiting)
        elif notice.meaning is Meaning.PREEMPTED and notice.killed_in is not None:
            self._timers.at(notice.observed + notice.killed_in - LAST_ACT, self._stop_waiting)

    def _stop_waiting(self) -> None:
        if not self._holding:
            self._parts.journal.warn("the command still runs, and is about to be killed: it is not waited for")
        self._out_of_time = True

    def _write(self, event: str, notice: Notice, *, acted: bool, why: str) -> None:
        self._parts.journal.write(
            event,
            provider=notice.provider,
            event_id=notice.event_id,
            kind=str(notice.kind),
            meaning=str(notice.meaning),
            level=str(notice.level),
            source=notice.source,
            remaining=notice.remaining,
            grace=round(self._left(notice), 1),
            deadline=notice.deadline.isoformat() if notice.deadline else None,
            ms=round((self._timers.now() - notice.observed) * 1000, 1),
            acted=acted,
            why=why,
        )

    def _left(self, notice: Notice) -> float:
        return deadline_of(notice, self._timing) - self._timers.now()

    # -- the time that is left -----------------------------------------------------------------------------------

    def _plan(self) -> None:
        at = self.current.next_at() if self.current else None
        if at is not None:
            self._timers.at(at, self._step)

    def _step(self) -> None:
        for step in self.current.due(self._timers.now()) if self.current else ():
            if not self._holding:
                self._telling.insist(step)
            self.current = self.current.did(step) if self.current else None
        self._plan()

    def _progress(self) -> None:
        """Show on a terminal what is going on, once a second."""
        if self.current is not None:
            left, roll = max(0.0, self.current.deadline - self._timers.now()), self._telling.roll
            self._parts.journal.progress(f"preemptd: {left:.0f} s left, {len(roll)} told, {roll.saved} saved ")
            self._timers.after(1.0, self._progress)

    def marked(self, event: RunMarked) -> None:
        """Write down what became of the mark of a run."""
        began = self.current.began if self.current else event.mono
        self._parts.journal.write(
            "marked",
            run_id=event.run.run_id,
            core_pid=event.run.core_pid,
            ok=event.why is None,
            why=event.why,
            ms=round((event.mono - began) * 1000, 1),
        )

    def ended(self, event: RunEnded) -> None:
        """Write down what became of the exit record of a run."""
        self._parts.journal.write(
            "repaired",
            run_id=event.run.run_id,
            ok=event.why is None,
            how="wire",
            why=event.why,
            code=event.code,
            ms=round((event.mono - (self.current.began if self.current else event.mono)) * 1000, 1),
        )

    def rest(self) -> None:
        """Tell nobody from now on: the command has ended."""
        self._holding = True

    # -- what others ask -----------------------------------------------------------------------------------------

    @property
    def explains_an_end(self) -> bool:
        """A notice is open, was taken back a moment ago, or has cost the job its W&B agent."""
        recent = self._timers.now() - self._revoked_at <= AFTER_REVOCATION
        return self.current is not None or bool(self._telling.agents.ended) or recent

    def waits(self, *, ended: bool, sent_away: bool) -> bool:
        """Say whether the command is waited for, or after it has *ended* those that it left."""
        return not self._out_of_time and (not ended or (self._lingers and not sent_away))

    @property
    def _lingers(self) -> bool:
        """Told processes outlive the command (a shell may leave before its training has saved), and there is time.

        Or the command was stopped because it started them anew, and what it had just started may be left. What a W&B
        agent leaves that was ended is waited for even if nobody was told yet, or the notice was taken back.
        """
        told = bool(self._telling.roll.alive(self._telling.processes))
        left = self._telling.agents.left(self._telling.selection)
        if self.current is None:
            return left or (told and bool(self._telling.agents.ended))
        return self._timers.now() < self.current.deadline and (self._telling.restarts.going_on or told or left)

    def status(self) -> Sequence[Mapping[str, object]]:
        """List the open notices, with the seconds that are left."""
        return [
            {"event_id": notice.event_id, "kind": str(notice.kind), "remaining": round(self._left(notice), 1)}
            for notice in (self.current.notices if self.current else ())
        ]

    def advice(self) -> Sequence[Mapping[str, object]]:
        """List what is only advised."""
        return self._advice.status()
