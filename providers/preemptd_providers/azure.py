"""Azure Scheduled Events: preemptions, terminations and maintenance of this virtual machine."""

import json
from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from preemptd.errors import ProviderError
from preemptd.provider import Conclusion, Detection, Found, Machine, Options, Provider, Surroundings, Watch
from preemptd_providers._azure_events import AT_ONCE, PAUSES, Event, parse
from preemptd_providers._azure_watch import ASKED, EVENTS, WITHIN_SECONDS, Announced, EventsWatch
from preemptd_providers._metadata import Answer, Client, load_http
from preemptd_providers._variables import checked_base

ENDPOINT = "PREEMPTD_AZURE_ENDPOINT"
DEFAULT_BASE = "http://169.254.169.254"
CHASSIS = "7783-7084-3265-9085-8269-3286-77"
"""Azure's own asset tag; the vendor's name alone is any Hyper-V's."""

LONGEST_LIST = 256 * 1024
"""Bytes: an event may name each machine of a large set."""

APPROVED = AT_ONCE | {"reboot", "redeploy"}
"""Types that may be let begin: after the others the machine may go on as it was, or nobody knows."""


class AzureOptions(Options):
    """The table ``[providers.azure]``."""

    interval: float = Field(default=1.0, ge=1.0, le=30.0)
    """Seconds between two looks; Azure recommends one."""
    approve: bool = False
    """``--azure-approve``: let the event begin at once when the command has saved and ended."""


class Azure(Provider):
    """An Azure virtual machine, alone or in a scale set."""

    name: ClassVar[str] = "azure"
    options_type: ClassVar[type[Options]] = AzureOptions

    def __init__(self, options: Options, surroundings: Surroundings) -> None:
        super().__init__(options, surroundings)
        wishes = options if isinstance(options, AzureOptions) else AzureOptions()
        self.settles_last = wishes.approve
        self._base = base_in(surroundings.environ)
        client = Client((self._base,), LONGEST_LIST)
        self._watch = EventsWatch(self.name, client, wishes.interval, surroundings.lead, surroundings.warn)

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
        """Let begin what was told of, when all is saved; never what takes other machines as well."""
        announced = self._watch.announced
        if not self.settles_last or announced is None or announced.event_id not in conclusion.acted:
            return ""
        if announced.event.is_under_way:
            return ""
        if why := _obstacle(announced, conclusion):
            return f"{announced.event.EventType} not approved: {why}"
        why = self._approve(announced.event, min(budget / 2, WITHIN_SECONDS))
        return f"{announced.event.EventType} not approved: {why}" if why else f"{announced.event.EventType} approved"

    def _approve(self, event: Event, within: float) -> str:
        """Let *event* begin, if it still is what it was when it was looked at last; say why not, empty: it may."""
        client = Client((self._base,), LONGEST_LIST)  # the watch's own may be closed, or in the middle of a look
        try:
            listed = parse(_answered(client.ask("GET", EVENTS, ASKED, within)))
            same = (one for one in listed.events if one.EventId == event.EventId and one.Resources == event.Resources)
            if not any(one.EventStatus == event.EventStatus for one in same):
                return "it is not announced any more, or has changed"
            body = json.dumps({"StartRequests": [{"EventId": event.EventId}]}).encode()
            _answered(client.ask("POST", EVENTS, ASKED, within, body))
        except ProviderError as problem:
            raise ProviderError(f"{event.EventType} not approved: {problem}") from problem
        finally:
            client.close()
        return ""

    def describe(self) -> str:
        return f"{self._base}: {self._watch.heard}"

    def close(self) -> None:
        self._watch.close()


def base_in(environ: Mapping[str, str]) -> str:
    value = environ.get(ENDPOINT, "")
    return checked_base(ENDPOINT, value) if value else DEFAULT_BASE


def _answered(answer: Answer) -> Answer:
    if answer.status != 200:
        raise answer.rejected()
    return answer


def _obstacle(announced: Announced, conclusion: Conclusion) -> str:
    """Say why the event must not begin early; empty: it may."""
    event, machines = announced.event, len(announced.event.Resources)
    obstacles = (
        (event.type in PAUSES, "the machine goes on after it"),
        (event.type not in APPROVED, "what it does is not known"),
        (not conclusion.preempted, "the command did not end as preempted"),
        (not conclusion.saved, conclusion.unsaved),
        (machines != 1, f"it takes {machines} machines"),
        (not announced.certain, "which machine this is could not be learned"),
        (not event.EventId or event.EventStatus.lower() != "scheduled", "it cannot be read whole"),
    )
    return next((why for holds, why in obstacles if holds), "")
