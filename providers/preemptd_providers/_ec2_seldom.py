"""What EC2's metadata announce seldom or early: a rebalance, scheduled events, the wish of an Auto Scaling group."""

import math
from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Literal, get_args

from pydantic import BaseModel, Field, ValidationError

from preemptd.notices import STALE_AFTER, Kind, Level, Notice
from preemptd.provider import Observation
from preemptd_providers._deadline_text import moment_of
from preemptd_providers._identity import ProvenWatch
from preemptd_providers._imds import METADATA, Imds
from preemptd_providers._metadata import Answer

SELDOM_SECONDS = 5.0
"""Between two looks, as AWS recommends: three more keys are not to be three times the requests."""
NOTICE_SECONDS = 120.0
_OVER = frozenset({"canceled", "completed"})
Leaving = Literal["Terminated", "Warmed:Terminated", "Warmed:Stopped", "Warmed:Hibernated", "Detached", "Standby"]
GOING: tuple[Leaving, ...] = ("Terminated", "Warmed:Terminated")
"""Target states of an Auto Scaling group that end this machine for good."""
_STATES = frozenset({*get_args(Leaving), "InService", "Warmed:Running"})


class Rebalance(BaseModel, strict=True, defer_build=True):
    """The document at ``events/recommendations/rebalance``."""

    notice_time: str = Field(alias="noticeTime", min_length=1, max_length=64)


class ScheduledEvent(BaseModel, strict=True, defer_build=True):
    """One of the list at ``events/maintenance/scheduled``; names as AWS writes them."""

    Code: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    EventId: str = Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")
    NotBefore: str = ""
    State: str

    @property
    def is_over(self) -> bool:
        return self.State.lower() in _OVER

    def left(self, now: datetime) -> float:
        """Compute the seconds to its beginning; infinite where that is not said."""
        moment = moment_of(self.NotBefore, timezone.utc)  # 21 Jan 2019 09:00:43 GMT
        return math.inf if moment is None else (moment - now).total_seconds()


class SeldomWatch(ProvenWatch):
    """A key that is absent, or says so, while there is nothing."""

    interval = SELDOM_SECONDS
    notice_period = NOTICE_SECONDS
    secondary = True

    def __init__(self, imds: Imds, provider: str, key: str) -> None:
        super().__init__(f"{provider}:{key}", imds.client, imds.identify)
        self._imds = imds
        self._provider = provider
        self._key = key

    def look(self) -> Observation:
        answer = self._imds.get(METADATA + self._key)
        if answer.status == 200:
            notice = self.judge(answer)
            return Observation.clear() if notice is None else Observation.of(notice)
        if answer.status != 404:
            raise answer.rejected()
        self.identity.check()
        return Observation.clear()

    @abstractmethod
    def judge(self, answer: Answer) -> Notice | None:
        """Say what stands there; None: nothing that concerns us. Raises ProviderError for what is not this key's."""

    def notice(self, answer: Answer, what: str, kind: Kind, level: Level, left: float | None) -> Notice:
        return Notice(
            provider=self._provider,
            event_id=f"{self._provider}:{what}",
            kind=kind,
            level=level,
            source=self._key,
            observed=answer.observed,
            remaining=left,
            detail=answer.detail,
        )


class RebalanceWatch(SeldomWatch):
    """A recommendation: the machine is at a higher risk. Most of those that get one are not interrupted soon."""

    def __init__(self, imds: Imds, provider: str) -> None:
        super().__init__(imds, provider, "events/recommendations/rebalance")

    def judge(self, answer: Answer) -> Notice:
        try:
            Rebalance.model_validate_json(answer.body)
        except ValidationError:
            raise answer.malformed("not a rebalance recommendation") from None
        return self.notice(answer, "rebalance", Kind.REBALANCE, Level.ADVISE, None)


class ScheduledWatch(SeldomWatch):
    """Reboots, retirements and maintenance, planned days ahead; the next one counts, then one that has begun."""

    def __init__(self, imds: Imds, provider: str, interval: float, lead: float) -> None:
        super().__init__(imds, provider, "events/maintenance/scheduled")
        self.interval = interval
        self._lead = lead

    def judge(self, answer: Answer) -> Notice | None:
        listed, broken = _events(answer)
        events = [event for event in listed if not event.is_over]
        if not events:
            if broken:
                raise answer.malformed("an event that cannot be read")
            return None
        now = answer.date or datetime.now(timezone.utc)
        # One that has begun may go on for hours, and stay listed: it hides no other one that comes.
        left, event = min(
            ((event.left(now), event) for event in events), key=lambda pair: (pair[0] < -STALE_AFTER, pair[0])
        )
        known = None if math.isinf(left) else left
        notice = self.notice(answer, f"scheduled-{event.EventId}", Kind.MAINTENANCE, Level.ADVISE, known)
        return replace(
            notice, source=f"{notice.source}: {event.Code}", act_within=None if known is None else self._lead
        )


class LifecycleWatch(SeldomWatch):
    """What an Auto Scaling group wants of this instance. Completing the lifecycle hook is the operator's business."""

    secondary = False  # who asked for it wants to know that it is not heard

    def __init__(self, imds: Imds, provider: str, states: Collection[str], seconds: float | None) -> None:
        super().__init__(imds, provider, "autoscaling/target-lifecycle-state")
        self._states = states
        self._seconds = seconds

    def judge(self, answer: Answer) -> Notice | None:
        if answer.text not in _STATES:
            raise answer.malformed("not a lifecycle state")
        if answer.text not in self._states:
            return None
        kind = Kind.TERMINATE if answer.text in GOING else Kind.STOP
        return self.notice(answer, "lifecycle", kind, Level.ACT, self._seconds)


def _events(answer: Answer) -> tuple[Sequence[ScheduledEvent], bool]:
    """Read the events, and say whether one of them could not be read: it hides no other."""
    listed = answer.json
    if not isinstance(listed, list):
        raise answer.malformed("no list of events")
    events = [event for event in map(_event, listed) if event is not None]
    return events, len(events) < len(listed)


def _event(item: object) -> ScheduledEvent | None:
    try:
        return ScheduledEvent.model_validate(item)
    except ValidationError:
        return None
