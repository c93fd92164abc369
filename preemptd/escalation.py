"""Which step is due when: pure functions of the open notices and the monotonic clock."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from preemptd.notices import PUT_OFF, STALE_AFTER, Kind, Level, Meaning, Notice

DEFAULT_GRACE = 30.0
"""Seconds that we count with when neither the source nor ``--grace`` says: GCE's, the shortest of the big clouds."""
TIGHTER_BY = 0.5
"""Seconds by which a deadline must move forward to count as tighter: below it is the jitter of server clocks."""


class Step(Enum):
    """What is left to do after the telling, in the order of time."""

    TERM = "term"
    EXIT = "exit"
    """The exit record of W&B runs, before our own SIGKILL: what it ends can no longer report by itself."""
    KILL = "kill"
    DEADLINE = "deadline"


class Killing(Enum):
    """When the target is killed by us; platforms kill late, and a save in its last second must finish."""

    NEVER = "never"
    AT_RESERVE = "reserve"
    AT_DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class Timing:
    """The user's wishes about time, in seconds; None: the rule of `reserve`, or the source's own time."""

    grace: float | None = None
    reserve: float | None = None
    kill: Killing = Killing.NEVER


class Verdict(Enum):
    """What a notice asks for at this moment."""

    ACT = "act"
    ADVISE = "advise"
    STALE = "stale"


def deadline_of(notice: Notice, timing: Timing) -> float:
    """Compute the monotonic time at which the machine goes; for a source that does not say, by ``--grace``."""
    remaining = notice.remaining
    if remaining is None:
        remaining = DEFAULT_GRACE if timing.grace is None else timing.grace
    return notice.observed + remaining


def judge(notice: Notice, timing: Timing) -> Verdict:
    """Say what *notice* asks for when it is first seen."""
    if deadline_of(notice, timing) < notice.observed - STALE_AFTER:
        return Verdict.STALE
    if notice.level is Level.ACT or acts_at(notice, timing, notice.observed) == notice.observed:
        return Verdict.ACT
    return Verdict.ADVISE


def acts_at(notice: Notice, timing: Timing, now: float) -> float | None:
    """Compute when a dated ADVISE becomes ACT, not before *now*; None: it never does by itself."""
    if notice.act_within is None or notice.remaining is None:
        return None
    return max(now, deadline_of(notice, timing) - notice.act_within)


NOTIFIED = "notify"
"""In the place of a provider: somebody said it over the link."""


def notified(event_id: str, fields: Mapping[str, object], now: float) -> Notice:
    """Make a notice of what somebody said over the link: ``deadline_s`` in seconds, ``kind``, ``reason``."""
    remaining = fields.get("deadline_s")
    return Notice(
        provider=NOTIFIED,
        event_id=event_id,
        kind=Kind(str(fields.get("kind", Kind.PREEMPT))),
        level=Level.ACT,
        source=str(fields.get("reason") or "asked for over the link"),
        observed=now,
        remaining=float(remaining) if isinstance(remaining, int | float) else None,
    )


def reserve(total: float, wish: float | None) -> float:
    """Compute the seconds of *total* kept free at its end: exit records, requeue, and a platform that is early."""
    return min(5.0, 0.15 * total) if wish is None else min(wish, total)


def term_after(total: float, wish: float | None) -> float:
    """Compute after how many seconds of *total* the TERM step comes: never before half of the time has gone."""
    return max(0.5 * total, total - reserve(total, wish) - min(10.0, 0.25 * total))


@dataclass(frozen=True, slots=True)
class Escalation:
    """The open notices that ask to act, and the timeline to the earliest deadline among them."""

    number: int
    """The first escalation of a daemon's life is 1."""
    began: float
    """Monotonic time at which the first of its notices was observed."""
    timing: Timing
    notices: tuple[Notice, ...]
    deadline: float
    """Monotonic; the earliest among the notices."""
    since: float
    """Monotonic time since which this deadline holds: steps are parts of the time between the two."""
    done: frozenset[Step] = frozenset()

    @classmethod
    def open(cls, number: int, notice: Notice, timing: Timing) -> "Escalation":
        return cls(number, notice.observed, timing, (notice,), deadline_of(notice, timing), notice.observed)

    @property
    def total(self) -> float:
        """Seconds between the moment from which we count and the deadline; never negative."""
        return max(0.0, self.deadline - self.since)

    @property
    def first(self) -> Notice:
        """The notice with the earliest deadline: the one to name to people."""
        return min(self.notices, key=lambda notice: deadline_of(notice, self.timing))

    @property
    def event_ids(self) -> tuple[str, ...]:
        return tuple(notice.event_id for notice in self.notices)

    @property
    def meaning(self) -> Meaning:
        """What the end will mean: one notice that brings the job back is enough."""
        meanings = {notice.meaning for notice in self.notices}
        return next(m for m in (Meaning.PREEMPTED, Meaning.UNDECIDED, Meaning.STOPPED) if m in meanings)

    @property
    def already_sent(self) -> frozenset[int]:
        return frozenset().union(*(notice.already_sent for notice in self.notices))

    def joined(self, notice: Notice, now: float) -> "Escalation":
        """Take in another notice, or the same one seen again: its meaning can be decided, its deadline only tighten.

        As long as a notice is undecided its deadline is a guess: SLURM's first SIGTERM may begin a grace or end one.
        """
        known = next((known for known in self.notices if known.event_id == notice.event_id), None)
        if known is not None:
            guessed = known.meaning is Meaning.UNDECIDED and notice.meaning is not Meaning.UNDECIDED
            if known.remaining is None and notice.remaining is not None:  # `--grace` was but a guess, and it was wrong
                guessed = guessed or deadline_of(known, self.timing) < now
            if notice.act_within is not None and notice.remaining is not None:  # maintenance has a date, and may move
                guessed = guessed or deadline_of(notice, self.timing) > deadline_of(known, self.timing) + PUT_OFF
            if notice.meaning is Meaning.UNDECIDED:
                notice = replace(notice, kind=known.kind, meaning=known.meaning)
            if not guessed and deadline_of(known, self.timing) <= deadline_of(notice, self.timing):
                notice = replace(notice, observed=known.observed, remaining=known.remaining, deadline=known.deadline)
        others = tuple(other for other in self.notices if other.event_id != notice.event_id)
        return self._with((*others, notice), now)

    def without(self, event_id: str, now: float) -> "Escalation | None":
        """Drop a revoked notice; None: that was the last one, the escalation is over."""
        left = tuple(notice for notice in self.notices if notice.event_id != event_id)
        return self._with(left, now) if left else None

    def _with(self, notices: tuple[Notice, ...], now: float) -> "Escalation":
        deadline = min(deadline_of(notice, self.timing) for notice in notices)
        if abs(deadline - self.deadline) < TIGHTER_BY:
            return replace(self, notices=notices)
        return replace(self, notices=notices, deadline=deadline, since=now)

    def at(self, step: Step) -> float | None:
        """Compute the monotonic time of *step*; None: there is no such step (a final notice plans none)."""
        if step is Step.DEADLINE:
            return self.deadline
        if step is Step.KILL:
            return self._kill_at()
        if step is Step.EXIT:
            kill = self.at(Step.KILL)
            return None if kill is None else kill - min(2.0, 0.1 * self.total)
        if self.total <= 0 or any(notice.final for notice in self.notices):
            return None
        return self.since + term_after(self.total, self.timing.reserve)

    def _kill_at(self) -> float | None:
        kill, final = self.timing.kill, any(notice.final for notice in self.notices)
        if final and kill is Killing.AT_DEADLINE and self.timing.grace is not None:
            return self.began + self.timing.grace  # EC2 gives a hibernation no time, and a rehearsal needs an end
        if final or kill is Killing.NEVER:
            return None
        return self.deadline - (reserve(self.total, self.timing.reserve) if kill is Killing.AT_RESERVE else 0.0)

    def due(self, now: float) -> tuple[Step, ...]:
        """List the steps whose time has come and that are not done, in their order."""
        return tuple(step for step in Step if step not in self.done and (at := self.at(step)) is not None and at <= now)

    def did(self, step: Step) -> "Escalation":
        return replace(self, done=self.done | {step})

    def next_at(self) -> float | None:
        """Compute when the next step is due; None: all are done."""
        times = [at for step in Step if step not in self.done and (at := self.at(step)) is not None]
        return min(times, default=None)
