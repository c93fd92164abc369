"""A list of Azure's Scheduled Events: what can be read of it, whom it names, and what of that comes first."""

import math
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from preemptd_providers._deadline_text import BELIEVED_SECONDS, moment_of
from preemptd_providers._metadata import Answer

AT_ONCE = frozenset({"preempt", "terminate"})
"""What ends this machine for good; the others are maintenance, with a date to act at."""
PAUSES = frozenset({"freeze"})
"""Seconds of standstill, after which all goes on."""
SOONEST = 30.0
"""Seconds that are counted with where an end has no time: those of a Preempt, the shortest."""
ANYBODY = ""
"""In the place of a name that cannot be read."""
_WORD = re.compile(r"[!-~]{1,128}")


def _text(value: object) -> str:
    """Take a text as it is, and null or anything else as none: what is beside the point hides no event."""
    return value if isinstance(value, str) else ""


def _word(value: object) -> str:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else ""


def _names(value: object) -> object:
    """Take each name once, in lower case: Azure does not tell them apart by that."""
    return tuple(dict.fromkeys(_text(name).lower() for name in value)) if isinstance(value, list) else value


class Event(BaseModel, strict=True, defer_build=True):
    """One of the events that are planned; names as Azure writes them. Only type and machines have to be readable."""

    EventType: str = Field(pattern=r"^[A-Za-z]{1,32}$")
    Resources: Annotated[tuple[str, ...], BeforeValidator(_names)]
    """In lower case, each once."""
    EventId: Annotated[str, BeforeValidator(_word)] = ""
    EventStatus: Annotated[str, BeforeValidator(_word)] = ""
    NotBefore: Annotated[str, BeforeValidator(_text)] = ""

    @property
    def type(self) -> str:
        return self.EventType.lower()

    @property
    def is_under_way(self) -> bool:
        return self.EventStatus.lower() == "started"

    @property
    def is_maintenance(self) -> bool:
        return self.type not in AT_ONCE | PAUSES


@dataclass(frozen=True, slots=True)
class Listed:
    """What is planned for the machines of a set."""

    events: tuple[Event, ...]
    doubtful: frozenset[str]
    """Whom it may name where it cannot be read; see `ANYBODY`."""

    def of(self, name: str) -> tuple[Event, ...]:
        return tuple(event for event in self.events if name in event.Resources)

    def hides(self, name: str) -> bool:
        """Say whether there may be more about *name* than can be read."""
        return not self.doubtful.isdisjoint({name, ANYBODY})

    @property
    def doomed(self) -> str | None:
        """The machine that comes to its end, where the list names no other; None: it does not say, or nobody does."""
        named = self.doubtful.union(*(event.Resources for event in self.events))
        ends = any(event.type in AT_ONCE for event in self.events)
        return next(iter(named)) if ends and len(named) == 1 and ANYBODY not in named else None


@dataclass(frozen=True, slots=True)
class Planned:
    """An event that names this machine."""

    event: Event
    remaining: float | None
    """Seconds from the answer to the moment before which it does not begin; 0: it has begun. None: nobody says."""
    deadline: datetime | None


def parse(answer: Answer) -> Listed:
    """Read the events; raises ProviderError for what is no list."""
    document = answer.json
    listed = document.get("Events") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise answer.malformed("no list of events")
    read = [(item, _event(item)) for item in listed]
    events = tuple(event for _, event in read if event is not None)
    doubtful = frozenset[str]().union(*(_named(item) for item, event in read if event is None))
    is_blurred = any(ANYBODY in event.Resources for event in events)
    return Listed(events, doubtful | {ANYBODY} if is_blurred else doubtful)


def _event(item: object) -> Event | None:
    """Read one; None where that cannot be done: it hides no other."""
    try:
        return Event.model_validate(item)
    except ValidationError:
        return None


def _named(item: object) -> frozenset[str]:
    """List whom an event that cannot be read may be about."""
    names = _names(item.get("Resources")) if isinstance(item, dict) else None
    return frozenset(names) if isinstance(names, tuple) else frozenset({ANYBODY})


def name_of(answer: Answer) -> str:
    """Read this machine's name, as events write it, in lower case; raises ProviderError."""
    document = answer.json
    known = document if isinstance(document, dict) else {}
    name = known.get("name")
    if not (isinstance(name, str) and name and isinstance(known.get("vmId"), str)):
        raise answer.malformed("no name and vmId of a virtual machine")
    return name.lower()


def plan(event: Event, answer: Answer) -> Planned:
    """Compute when *event* comes, by the server's clock; one that is under way: now."""
    deadline = moment_of(event.NotBefore, timezone.utc)  # RFC 1123, ISO 8601, or empty: it is under way
    if event.is_under_way:
        return Planned(event, 0.0, deadline)
    if deadline is None:
        return Planned(event, None, None)
    remaining = (deadline - (answer.date or datetime.now(timezone.utc))).total_seconds()
    if event.is_maintenance:  # it comes not before its time, and may come long after: until it has begun it is due
        remaining = max(0.0, remaining)
    is_believed = remaining <= BELIEVED_SECONDS or event.type not in AT_ONCE
    return Planned(event, remaining if is_believed else None, deadline)


def pressing(planned: Planned, lead: float) -> tuple[int, float]:
    """Make what orders events: 0 is acted on now, 1 is advice, 2 a pause; then by time.

    *lead* is the seconds in which maintenance is acted on.
    """
    left = planned.remaining
    if planned.event.type in AT_ONCE:
        return 0, SOONEST if left is None else left
    if planned.event.type in PAUSES:
        return 2, math.inf if left is None else left
    return (1, math.inf) if left is None else (int(left > lead), left)
