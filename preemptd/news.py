"""What is new in what a watch sees, given what it saw before; pure."""

import math
from dataclasses import replace

from preemptd.events import Event, NoticeArrived, NoticeRevoked, WatchChanged
from preemptd.notices import OUTLIVED_AFTER, PUT_OFF, STALE_AFTER, Level, Notice
from preemptd.provider import Observation, State

TIGHTENED = 10.0
"""Seconds by which a deadline must move towards us to be news; some servers compute a new one at each GET."""


class News:
    """What is new in an observation, given those before it; pure."""

    def __init__(self, watch: str) -> None:
        self._watch = watch
        self._open: Notice | None = None
        """As it was when it was last said."""
        self._last: Notice | None = None
        """As it was when it was last seen."""
        self._outage: bool | None = None
        self._has_been_clear = False

    def take(self, observation: Observation) -> tuple[Event, ...]:
        """Return the events that *observation* makes, the most urgent first."""
        if observation.state is State.UNKNOWN:
            began, self._outage = self._outage is not True, True
            return (WatchChanged(self._watch, str(observation.error or "no reason given")),) if began else ()
        events = self._arrived(observation.notice) if observation.notice else self._cleared()
        if self._outage is not False:
            events = (*events, WatchChanged(self._watch, None))
        self._outage = False
        return events

    def _arrived(self, notice: Notice) -> tuple[Event, ...]:
        other = self._open
        before = other if other and other.event_id == notice.event_id else None
        if self._has_been_clear and (before is None or before.remaining is None):
            notice = _not_old(notice)
        last, self._last = self._last, notice
        if before and last and _is_another(last, notice):
            self._open = notice
            return self._revoked(before), NoticeArrived(self._watch, notice)
        if before and not _is_news(before, notice):
            return ()
        self._open = notice
        arrived = NoticeArrived(self._watch, notice)
        if other is None or before:
            return (arrived,)
        return arrived, self._revoked(other)  # in this order there is always an open notice: nobody breathes again

    def _cleared(self) -> tuple[Event, ...]:
        self._has_been_clear = True
        before, self._open = self._open, None
        return (self._revoked(before),) if before else ()

    def _revoked(self, notice: Notice) -> NoticeRevoked:
        return NoticeRevoked(self._watch, notice.provider, notice.event_id)


def _not_old(notice: Notice) -> Notice:
    """Correct a time that is long past of what has just come: one of the clocks is wrong. `--grace` counts."""
    if notice.remaining is None or notice.remaining >= -STALE_AFTER:
        return notice
    return replace(notice, remaining=None, level=notice.level if notice.act_within is None else Level.ACT)


def _is_another(before: Notice, now: Notice) -> bool:
    """Say whether *before*, as it was last seen, was outlived, and *now* is to come: a new time is written over it."""
    return _end(before) < now.observed - OUTLIVED_AFTER and _end(now) > now.observed


def _is_news(before: Notice, now: Notice) -> bool:
    if before.level is not now.level or before.final is not now.final or before.meaning is not now.meaning:
        return True
    if (before.killed_in is None) is not (now.killed_in is None) or before.irrevocable is not now.irrevocable:
        return True
    # A date that has passed, or cannot be read for once, is not put off.
    ahead = now.remaining is not None and now.remaining > 0
    if now.level is Level.ADVISE and ahead and _end(now) > _end(before) + PUT_OFF:
        return True
    return not now.already_sent <= before.already_sent or _end(now) < _end(before) - TIGHTENED


def _end(notice: Notice) -> float:
    """Return the end on the monotonic clock; an unknown end is later than any known one."""
    return math.inf if notice.remaining is None else notice.observed + notice.remaining
