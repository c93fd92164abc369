"""GCE preemptions, stops and host maintenance, heard by hanging GETs at the metadata server."""

import time
from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from preemptd.errors import ProviderError
from preemptd.notices import STALE_AFTER, Kind, Level, Notice
from preemptd.provider import Detection, Found, Machine, Observation, Options, Provider, Surroundings, Watch
from preemptd_providers._gce_planned import StopWatch, UpcomingWatch
from preemptd_providers._gce_server import FLAVOR, HOST_VARIABLES, IP_VARIABLE, KeyWatch, Settings, is_google
from preemptd_providers._metadata import Answer, Client, MetadataWatch, load_http

PROBE_SECONDS = 0.9


class GceOptions(Options):
    """The table ``[providers.gce]``."""

    notice_s: float = Field(default=3600.0, gt=0, le=7 * 24 * 3600)
    """Seconds from TERMINATE_ON_HOST_MAINTENANCE to the end, which the metadata do not say.

    3600 with GPUs. Without one and with the policy "terminate" Google announces 60 s: set it to 60 there.
    """
    preemption_notice_s: float | None = Field(default=None, gt=0, le=3600)
    """Seconds from ``preempted`` to the end, for machines made with a preemption notice duration (GCE allows 120 s),
    which the metadata do not say either. None: ``--grace``."""
    upcoming_interval: float = Field(default=60.0, ge=1.0, le=3600.0)
    """Seconds between two looks for maintenance that is planned."""


class PreemptedWatch(KeyWatch):
    """``instance/preempted``: TRUE when a spot machine is being taken away, and then it stays TRUE."""

    notice_period = 30.0

    def __init__(self, provider: str, settings: Settings, notice_s: float | None) -> None:
        super().__init__(provider, "preempted", settings)
        self._notice_s = notice_s

    def judge(self, answer: Answer) -> Observation:
        if answer.text == "FALSE":
            return Observation.clear()
        if answer.text != "TRUE":
            raise answer.malformed("neither TRUE nor FALSE")
        return Observation.of(
            Notice(
                provider=self.provider,
                event_id=f"{self.provider}:preempted",
                kind=Kind.PREEMPT,
                level=Level.ACT,
                source="instance/preempted",
                observed=answer.observed,
                remaining=self._notice_s,
                detail=answer.detail,
            )
        )


class MaintenanceWatch(KeyWatch):
    """``instance/maintenance-event``. Google announces only to those who read the key since the last event."""

    notice_period = 60.0

    def __init__(self, provider: str, settings: Settings, notice_s: float, surroundings: Surroundings) -> None:
        super().__init__(provider, "maintenance-event", settings)
        self._notice_s = notice_s
        self._lead = surroundings.lead
        self._sightings = surroundings.sightings
        self._terminate_seen: float | None = None

    def judge(self, answer: Answer) -> Observation:
        value = answer.text
        if value == "TERMINATE_ON_HOST_MAINTENANCE":
            if self._terminate_seen is None:
                standing = self._notice_s + STALE_AFTER
                self._terminate_seen = self._sightings.since(self._id("terminate"), answer.observed, standing)
            remaining = self._notice_s - (answer.observed - self._terminate_seen)
            return Observation.of(self._notice(answer, Kind.MAINTENANCE, "terminate", remaining))
        if value not in ("NONE", "MIGRATE_ON_HOST_MAINTENANCE"):
            raise answer.malformed("not a maintenance event")
        self._terminate_seen = None
        self._sightings.forget(self._id("terminate"))
        if value == "NONE":
            return Observation.clear()
        return Observation.of(self._notice(answer, Kind.MIGRATE, "migrate", None))

    def _id(self, what: str) -> str:
        return f"{self.provider}:maintenance-{what}"

    def _notice(self, answer: Answer, kind: Kind, what: str, remaining: float | None) -> Notice:
        return Notice(
            provider=self.provider,
            event_id=self._id(what),
            kind=kind,
            level=Level.ADVISE,
            source="instance/maintenance-event",
            observed=answer.observed,
            remaining=remaining,
            act_within=None if remaining is None else self._lead,
            detail=answer.detail,
        )


class Gce(Provider):
    """A Compute Engine machine."""

    name: ClassVar[str] = "gce"
    options_type: ClassVar[type[Options]] = GceOptions

    def __init__(self, options: Options, surroundings: Surroundings) -> None:
        super().__init__(options, surroundings)
        settings = Settings.of(surroundings.environ)
        wishes = options if isinstance(options, GceOptions) else GceOptions()
        self._settings = settings
        self._preempted = PreemptedWatch(self.name, settings, wishes.preemption_notice_s)
        self._watches: Sequence[MetadataWatch] = (
            self._preempted,
            MaintenanceWatch(self.name, settings, wishes.notice_s, surroundings),
            StopWatch(self.name, settings),
            UpcomingWatch(self.name, settings, wishes.upcoming_interval, surroundings.lead),
        )

    @classmethod
    def detect(cls, machine: Machine) -> Detection | None:
        if _check_forbidden(machine.environ):
            return None
        for variable in (*HOST_VARIABLES, IP_VARIABLE):
            if machine.environ.get(variable):
                return Detection(Found.ENVIRONMENT, f"{variable} is set")
        if machine.dmi.get("product_name") == "Google Compute Engine":
            return Detection(Found.MACHINE, "DMI product_name is Google Compute Engine")
        return None

    def prepare(self) -> None:
        load_http()

    def probe(self) -> Detection | None:
        if _check_forbidden(self.surroundings.environ):
            self._preempted.heard = "not asked: NO_GCE_CHECK is set"
            return None
        client = Client(self._settings.probe_bases)
        try:
            return self._probe(client)
        except ProviderError as problem:
            self._preempted.heard = str(problem)
            return None
        finally:
            client.close()

    def _probe(self, client: Client) -> Detection:
        answer = self._first_answer(client, time.monotonic() + PROBE_SECONDS)
        if not is_google(answer):
            raise answer.malformed("without Metadata-Flavor: Google")
        self._preempted.heard = "answers with Metadata-Flavor: Google"
        return Detection(Found.PROBE, f"{client.base} {self._preempted.heard}")

    def _first_answer(self, client: Client, ends: float) -> Answer:
        attempts_left = self._settings.probe_attempts
        while True:
            attempts_left -= 1
            try:
                return client.ask("GET", "/", FLAVOR, ends - time.monotonic())
            except ProviderError:
                if attempts_left <= 0 or time.monotonic() > ends - 0.2:
                    raise
                time.sleep(0.05)

    def watches(self) -> Sequence[Watch]:
        return self._watches

    def describe(self) -> str:
        return f"{self._preempted.client.base}: {self._preempted.heard}"

    def close(self) -> None:
        for watch in self._watches:
            watch.close()


def _check_forbidden(environ: Mapping[str, str]) -> bool:
    return environ.get("NO_GCE_CHECK", "").strip().lower() == "true"
