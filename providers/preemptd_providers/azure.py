"""Azure Scheduled Events: preemptions, terminations and maintenance of this virtual machine."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import ClassVar

from pydantic import BaseModel, Field, ValidationError

from preemptd.errors import ProviderError
from preemptd.notices import Kind, Level, Notice
from preemptd.provider import Conclusion, Detection, Found, Machine, Observation, Options, Provider, Surroundings, Watch
from preemptd_providers._deadline_text import moment_of
from preemptd_providers._metadata import Answer, Client, MetadataWatch, checked_base, load_http

ENDPOINT = "PREEMPTD_AZURE_ENDPOINT"
DEFAULT_BASE = "http://169.254.169.254"
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
COMPUTE = "/metadata/instance/compute?api-version=2021-02-01&format=json"
ASKED = {"Metadata": "true"}
CHASSIS = "7783-7084-3265-9085-8269-3286-77"
"""Azure's own asset tag; the vendor's name alone is any Hyper-V's."""

FIRST_SECONDS = 125.0  # Azure turns the feature on at the first call, which may take two minutes
WITHIN_SECONDS = 10.0

KINDS = {"preempt": Kind.PREEMPT, "terminate": Kind.TERMINATE}
AT_ONCE = frozenset(KINDS)
"""What ends this machine for good; the others are maintenance, with a date to act at."""
PAUSES = frozenset({"freeze"})
"""Seconds of standstill, after which all goes on."""


class AzureOptions(Options):
    """The table ``[providers.azure]``."""

    interval: float = Field(default=1.0, ge=1.0, le=30.0)
    """Seconds between two looks; Azure recommends one."""
    approve: bool = False
    """``--azure-approve``: let the event begin at once when the command has saved and ended."""


class Event(BaseModel, strict=True, defer_build=True):
    """One of the events that are planned; names as Azure writes them."""

    EventId: str = Field(min_length=1, max_length=256)
    EventType: str = Field(pattern=r"^[A-Za-z]{1,32}$")
    EventStatus: str = Field(pattern=r"^[A-Za-z]{1,32}$")
    Resources: list[str]
    NotBefore: str = ""

    @property
    def type(self) -> str:
        return self.EventType.lower()

    @property
    def is_under_way(self) -> bool:
        return self.EventStatus.lower() != "scheduled"


@dataclass(frozen=True, slots=True)
class Planned:
    """An event that names this machine."""

    event: Event
    remaining: float | None
    """Seconds from the answer to the moment before which it does not begin; 0: it has begun. None: nobody says."""
    deadline: datetime | None


class EventsWatch(MetadataWatch):
    """The list of events. All virtual machines of a set get the same list: only those that name us count."""

    notice_period = 30.0

    def __init__(self, provider: str, client: Client, interval: float, lead: float) -> None:
        super().__init__(f"{provider}:scheduledevents", client)
        self.interval = interval
        self.heard = "not asked yet"
        """What became of the last look, for people."""
        self.ours: tuple[Event, ...] = ()
        """The events of the last good answer that name this machine."""
        self._provider = provider
        self._lead = lead
        self._is_on = False
        self._name: str | None = None

    def look(self) -> Observation:
        try:
            answer = self._ask(EVENTS, WITHIN_SECONDS if self._is_on else FIRST_SECONDS)
            self._is_on = True
            found, broken = parse(answer)
            self.ours = self._of_us(found)
        except ProviderError as problem:
            self.heard = str(problem)
            raise
        self.heard = "scheduled events"
        planned = [plan(event, answer) for event in self.ours]
        if not planned:
            if broken:
                raise answer.malformed("an event that cannot be read")
            return Observation.clear()
        return Observation.of(self._notice(min(planned, key=_pressing), answer))

    def _of_us(self, events: Iterable[Event]) -> tuple[Event, ...]:
        listed = tuple(events)
        if not listed:
            return ()
        name = self._name = self._name or name_of(self._ask(COMPUTE, WITHIN_SECONDS))  # it never changes
        return tuple(each for each in listed if name in map(str.lower, each.Resources))

    def _ask(self, path: str, within: float) -> Answer:
        answer = self.client.ask("GET", path, ASKED, within)
        if answer.status != 200:
            raise answer.rejected()
        return answer

    def _notice(self, planned: Planned, answer: Answer) -> Notice:
        kind = planned.event.type
        at_once = kind in AT_ONCE
        return Notice(
            provider=self._provider,
            event_id=f"{self._provider}:{kind}",  # not Azure's own id, which may be another one when it has begun
            kind=KINDS.get(kind, Kind.MAINTENANCE),
            level=Level.ACT if at_once else Level.ADVISE,
            source=f"scheduledevents: {planned.event.EventType} {planned.event.EventStatus}",
            observed=answer.observed,
            remaining=planned.remaining,
            act_within=None if at_once or kind in PAUSES else self._lead,
            deadline=planned.deadline,
            detail=answer.detail,
        )


class Azure(Provider):
    """An Azure virtual machine, alone or in a scale set."""

    name: ClassVar[str] = "azure"
    options_type: ClassVar[type[Options]] = AzureOptions

    def __init__(self, options: Options, surroundings: Surroundings) -> None:
        super().__init__(options, surroundings)
        wishes = options if isinstance(options, AzureOptions) else AzureOptions()
        self._approves = wishes.approve
        self._base = base_in(surroundings.environ)
        self._watch = EventsWatch(self.name, Client((self._base,)), wishes.interval, surroundings.lead)

    @classmethod
    def detect(cls, machine: Machine) -> Detection | None:
        if machine.environ.get(ENDPOINT):
            return Detection(Found.ENVIRONMENT, f"{ENDPOINT} is set")
        if machine.dmi.get("chassis_asset_tag") == CHASSIS:
            return Detection(Found.MACHINE, "DMI chassis_asset_tag is Azure's")
        return None

    def prepare(self) -> None:
        load_http()

    def watches(self) -> Sequence[Watch]:
        return (self._watch,)

    def settle(self, conclusion: Conclusion, budget: float) -> str:
        """Approve what was announced, when all is saved; never where the event takes other machines as well."""
        if not (self._approves and conclusion.preempted and conclusion.saved):
            return ""
        said = []
        for event in self._watch.ours:
            if event.is_under_way:
                continue
            if len(event.Resources) != 1:
                said.append(f"{event.EventType} not approved: it takes {len(event.Resources)} machines")
                continue
            self._approve(event, min(budget, WITHIN_SECONDS))
            said.append(f"{event.EventType} approved")
        return "; ".join(said)

    def _approve(self, event: Event, within: float) -> None:
        client = Client((self._base,))  # the watch's own may be closed, or in the middle of a look
        try:
            body = json.dumps({"StartRequests": [{"EventId": event.EventId}]}).encode()
            answer = client.ask("POST", EVENTS, ASKED, within, body)
        finally:
            client.close()
        if answer.status != 200:
            raise answer.rejected(f" ({event.EventType} not approved)")

    def describe(self) -> str:
        return f"{self._base}: {self._watch.heard}"

    def close(self) -> None:
        self._watch.close()


def base_in(environ: Mapping[str, str]) -> str:
    value = environ.get(ENDPOINT, "")
    return checked_base(ENDPOINT, value) if value else DEFAULT_BASE


def parse(answer: Answer) -> tuple[Sequence[Event], bool]:
    """Read the events, and say whether one of them could not be read; raises ProviderError for what is no list."""
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        document = None
    listed = document.get("Events") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise answer.malformed("no list of events")
    events = [event for event in map(_event, listed) if event is not None]
    return events, len(events) < len(listed)


def _event(item: object) -> Event | None:
    """Read one; None where that cannot be done: it hides no other."""
    try:
        return Event.model_validate(item)
    except ValidationError:
        return None


def name_of(answer: Answer) -> str:
    """Read this machine's name, as events write it, in lower case; raises ProviderError."""
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        document = None
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
    now = answer.date or datetime.now(timezone.utc)
    return Planned(event, (deadline - now).total_seconds(), deadline)


def _pressing(planned: Planned) -> tuple[bool, bool, float]:
    """Order: what ends the machine before maintenance, that before a pause, then by time."""
    left = math.inf if planned.remaining is None else planned.remaining
    return planned.event.type not in AT_ONCE, planned.event.type in PAUSES, left
