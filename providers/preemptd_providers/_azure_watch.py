"""The watch on Azure's list of Scheduled Events: who we are, and what of the list concerns us."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from preemptd.errors import ProviderError
from preemptd.notices import Kind, Level, Notice
from preemptd.provider import Observation
from preemptd_providers._azure_events import AT_ONCE, PAUSES, Event, Listed, Planned, name_of, parse, plan, pressing
from preemptd_providers._metadata import Answer, Client, MetadataWatch

EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
COMPUTE = "/metadata/instance/compute?api-version=2021-02-01&format=json"
ASKED = {"Metadata": "true"}

FIRST_SECONDS = 125.0  # Azure turns the feature on at the first call, which may take two minutes
WITHIN_SECONDS = 10.0
NAME_WITHIN = 2.0
NAME_AGAIN = 30.0
"""Seconds between two questions for our name in calm."""

KINDS = {"preempt": Kind.PREEMPT, "terminate": Kind.TERMINATE, "freeze": Kind.FREEZE}


@dataclass(frozen=True, slots=True)
class Announced:
    """What the last notice was about."""

    event_id: str
    """That of the notice."""
    event: Event
    certain: bool
    """False: we could not learn our name, and took the only one that was named for it."""


class EventsWatch(MetadataWatch):
    """The list of events. All virtual machines of a set get the same list: only those that name us count."""

    notice_period = 30.0

    def __init__(
        self, provider: str, client: Client, interval: float, lead: float, warn: Callable[[str], None]
    ) -> None:
        super().__init__(f"{provider}:scheduledevents", client)
        self.interval = interval
        self.heard = "not asked yet"
        """What became of the last look, for people."""
        self.announced: Announced | None = None
        """None: there was no notice at the last good look."""
        self._provider = provider
        self._lead = lead
        self._warn = warn
        self._is_on = False
        self._name: str | None = None
        self._ask_again = 0.0
        self._warned = False

    def look(self) -> Observation:
        try:
            answer = self._ask(EVENTS, WITHIN_SECONDS if self._is_on else FIRST_SECONDS)
            self._is_on = True
            listed = parse(answer)
            if not (listed.events or listed.doubtful):
                self._learn_name_in_calm()
                found = None
            else:
                found = self._find(listed, answer)
        except ProviderError as problem:
            self.heard = str(problem)
            raise
        self.heard = "scheduled events"
        if found is None:
            self.announced = None
            return Observation.clear()
        self.announced, planned = found
        return Observation.of(self._notice(self.announced.event_id, planned, answer))

    def _find(self, listed: Listed, answer: Answer) -> tuple[Announced, Planned] | None:
        """Find what concerns us most; None: nothing does. Raises ProviderError: that cannot be told."""
        name, certain = self._who(listed)
        first = min(
            (plan(event, answer) for event in listed.of(name)),
            key=lambda planned: pressing(planned, self._lead),
            default=None,
        )
        if listed.hides(name) and not self._counts(first):
            raise answer.malformed("an event that cannot be read")
        if first is None:
            return None
        return Announced(self._event_id(first.event, listed), first.event, certain), first

    def _counts(self, planned: Planned | None) -> bool:
        """Say whether this counts although something else cannot be read, which may be what was announced before."""
        if planned is None:
            return False
        before = self.announced
        if before is None or pressing(planned, self._lead)[0] == 0:
            return True
        return (before.event.type, before.event.EventId) == (planned.event.type, planned.event.EventId)

    # -- who we are ------------------------------------------------------------------------------------------------

    def _learn_name_in_calm(self) -> None:
        """Ask before it matters: the answer may be slow, and a Preempt leaves 30 s."""
        if self._name is not None or time.monotonic() < self._ask_again:
            return
        try:
            self._learn_name()
        except ProviderError:  # nobody needs it yet
            self._ask_again = time.monotonic() + NAME_AGAIN

    def _learn_name(self) -> str:
        if self._name is None:  # it never changes
            self._name = name_of(self._ask(COMPUTE, NAME_WITHIN))
        return self._name

    def _who(self, listed: Listed) -> tuple[str, bool]:
        """Return our name, and whether it is certain; raises ProviderError."""
        try:
            return self._learn_name(), True
        except ProviderError as problem:
            # A machine by itself is the only one in its list; in a set it may be a neighbour: then one restart is lost,
            # and not all since the last checkpoint.
            if (doomed := listed.doomed) is None:
                raise
            if not self._warned:
                self._warned = True
                self._warn(
                    f"azure: which machine this is cannot be learned, so an event for {doomed} is ours: {problem}"
                )
            return doomed, False

    # -- what is said of it ----------------------------------------------------------------------------------------

    def _event_id(self, event: Event, listed: Listed) -> str:
        """Name it the same at each look. Azure's own id may be another one when it has begun.

        Another maintenance is another event: it may be a day later.
        """
        before = self.announced
        if not event.is_maintenance:
            return f"{self._provider}:{event.type}"
        if before is not None and before.event.type == event.type:
            is_gone = all(before.event.EventId != each.EventId for each in listed.events)
            if before.event.EventId == event.EventId or (event.is_under_way and is_gone):
                return before.event_id
        return f"{self._provider}:{event.type}-{event.EventId}".rstrip("-")

    def _ask(self, path: str, within: float) -> Answer:
        answer = self.client.ask("GET", path, ASKED, within)
        if answer.status != 200:
            raise answer.rejected()
        return answer

    def _notice(self, event_id: str, planned: Planned, answer: Answer) -> Notice:
        kind = planned.event.type
        at_once = kind in AT_ONCE
        return Notice(
            provider=self._provider,
            event_id=event_id,
            kind=KINDS.get(kind, Kind.MAINTENANCE),
            level=Level.ACT if at_once else Level.ADVISE,
            source=f"scheduledevents: {planned.event.EventType} {planned.event.EventStatus}".rstrip(),
            observed=answer.observed,
            remaining=planned.remaining,
            act_within=None if at_once or kind in PAUSES else self._lead,
            deadline=planned.deadline,
            detail=answer.detail,
        )
