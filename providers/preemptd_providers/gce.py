"""GCE preemptions and host maintenance, heard by hanging GETs at the metadata server."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import urlencode

from pydantic import Field

from preemptd.errors import ProviderError
from preemptd.notices import Kind, Level, Notice
from preemptd.provider import Detection, Found, Machine, Observation, Options, Provider, Surroundings, Watch
from preemptd_providers._metadata import Answer, Client, MetadataWatch, checked_base, checked_number, load_http

# The number first: no name server can keep it waiting. IPv6-only machines have the name alone.
DEFAULT_BASES = ("http://169.254.169.254", "http://metadata.google.internal")
HOST_VARIABLES = ("GCE_METADATA_HOST", "GCE_METADATA_ROOT")
IP_VARIABLE = "GCE_METADATA_IP"
FLAVOR = {"Metadata-Flavor": "Google"}
INSTANCE = "/computeMetadata/v1/instance/"

HANG_SECONDS = 60
HANG_SLACK = 5.0
NO_HANG_BELOW = 0.5
POLL_INTERVAL = 1.0
TRY_HANG_AGAIN = 60.0
PROBE_SECONDS = 0.9

_ETAG = re.compile(r"[!-~]{1,256}")


class GceOptions(Options):
    """The table ``[providers.gce]``."""

    notice_s: float = Field(default=3600.0, gt=0, le=7 * 24 * 3600)
    """Seconds from TERMINATE_ON_HOST_MAINTENANCE to the end, which the metadata do not say.

    3600 with GPUs. Without one and with the policy "terminate" Google announces 60 s: set it to 60 there.
    """


@dataclass(frozen=True, slots=True)
class Settings:
    """google-auth's variables, so that one setting serves the SDK and us."""

    bases: tuple[str, ...]
    probe_bases: tuple[str, ...]
    within: float
    probe_attempts: int

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Settings":
        """Read them; raises ConfigError for a value that cannot be used, as google-auth does."""
        host = _base_in(environ, *HOST_VARIABLES)
        address = _base_in(environ, IP_VARIABLE)
        return cls(
            bases=tuple(base for base in (host, address) if base) or DEFAULT_BASES,
            probe_bases=tuple(base for base in (address, host) if base) or DEFAULT_BASES,
            within=checked_number(environ, "GCE_METADATA_TIMEOUT", 3.0),
            probe_attempts=int(checked_number(environ, "GCE_METADATA_DETECT_RETRIES", 3)) or 1,
        )


class KeyWatch(MetadataWatch):
    """One key below ``instance/``: a plain GET first, then GETs that the server answers when the value changes."""

    interval = POLL_INTERVAL

    def __init__(self, provider: str, key: str, settings: Settings) -> None:
        super().__init__(f"{provider}:instance/{key}", Client(settings.bases))
        self.provider = provider
        self.heard = "not asked yet"
        """What became of the last look, for people."""
        self._path = INSTANCE + key
        self._within = settings.within
        self._etag: str | None = None
        self._value = ""
        self._no_hang_until = 0.0

    def look(self) -> Observation:
        etag, self._etag = self._etag, None
        self.waits = False  # until an answer says that the next look may hang
        hangs = etag is not None and time.monotonic() >= self._no_hang_until
        began = time.monotonic()
        try:
            answer = self._hang(etag) if hangs and etag is not None else self._get("", self._within)
            observation = self.judge(answer)
        except ProviderError as problem:
            self.heard = str(problem)
            raise
        self._plan(answer, came_at_once=hangs and answer.observed - began < NO_HANG_BELOW)
        return observation

    def judge(self, answer: Answer) -> Observation:
        """Say what a validated 200 means; raises ProviderError for a value that is not of this key's."""
        raise NotImplementedError

    def _hang(self, etag: str) -> Answer:
        query = urlencode({"wait_for_change": "true", "last_etag": etag, "timeout_sec": HANG_SECONDS})
        return self._get("?" + query, HANG_SECONDS + HANG_SLACK)

    def _get(self, query: str, within: float) -> Answer:
        answer = self.client.ask("GET", self._path + query, FLAVOR, within)
        if answer.status == 404:
            raise answer.rejected(" (this server does not have the key; on GKE use the host's network)")
        if answer.status != 200:
            raise answer.rejected()
        if answer.headers.get("Metadata-Flavor") != "Google":
            raise answer.malformed("without Metadata-Flavor: Google; something else answers for the metadata server")
        return answer

    def _plan(self, answer: Answer, came_at_once: bool) -> None:
        """Choose between a hang and a pause for the next look."""
        if came_at_once and answer.text == self._value:
            self._no_hang_until = answer.observed + TRY_HANG_AGAIN  # this server or proxy does not know how to wait
        self._value = answer.text
        etag = answer.headers.get("ETag", "").strip()
        self._etag = etag if _ETAG.fullmatch(etag) else None
        can_hang = self._etag is not None and answer.observed >= self._no_hang_until
        self.waits = can_hang and not came_at_once
        self.heard = "hanging GETs" if can_hang else f"a GET every {self.interval:g} s: hanging GETs do not wait here"


class PreemptedWatch(KeyWatch):
    """``instance/preempted``: TRUE when a spot machine is being taken away, and then it stays TRUE."""

    notice_period = 30.0

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
                detail=answer.detail,
            )
        )


class MaintenanceWatch(KeyWatch):
    """``instance/maintenance-event``. Google announces only to those who read the key since the last event."""

    notice_period = 60.0

    def __init__(self, provider: str, settings: Settings, notice_s: float, lead: float) -> None:
        super().__init__(provider, "maintenance-event", settings)
        self._notice_s = notice_s
        self._lead = lead
        self._terminate_seen: float | None = None

    def judge(self, answer: Answer) -> Observation:
        value = answer.text
        if value == "TERMINATE_ON_HOST_MAINTENANCE":
            if self._terminate_seen is None:
                self._terminate_seen = answer.observed
            remaining = self._notice_s - (answer.observed - self._terminate_seen)
            return Observation.of(self._notice(answer, "terminate", remaining, self._lead))
        if value not in ("NONE", "MIGRATE_ON_HOST_MAINTENANCE"):
            raise answer.malformed("not a maintenance event")
        self._terminate_seen = None
        if value == "NONE":
            return Observation.clear()
        return Observation.of(self._notice(answer, "migrate", None, None))

    def _notice(self, answer: Answer, what: str, remaining: float | None, act_within: float | None) -> Notice:
        return Notice(
            provider=self.provider,
            event_id=f"{self.provider}:maintenance-{what}",
            kind=Kind.MAINTENANCE,
            level=Level.ADVISE,
            source="instance/maintenance-event",
            observed=answer.observed,
            remaining=remaining,
            act_within=act_within,
            detail=answer.detail,
        )


class Gce(Provider):
    """A Compute Engine machine."""

    name: ClassVar[str] = "gce"
    options_type: ClassVar[type[Options]] = GceOptions

    def __init__(self, options: Options, surroundings: Surroundings) -> None:
        super().__init__(options, surroundings)
        settings = Settings.of(surroundings.environ)
        notice_s = (options if isinstance(options, GceOptions) else GceOptions()).notice_s
        self._settings = settings
        self._preempted = PreemptedWatch(self.name, "preempted", settings)
        self._maintenance = MaintenanceWatch(self.name, settings, notice_s, surroundings.lead)

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
        if answer.headers.get("Metadata-Flavor") != "Google":
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
        return (self._preempted, self._maintenance)

    def describe(self) -> str:
        return f"{self._preempted.client.base}: {self._preempted.heard}"

    def close(self) -> None:
        self._preempted.close()
        self._maintenance.close()


def _base_in(environ: Mapping[str, str], *variables: str) -> str | None:
    """Return the base URL in the first of *variables* that is set: HOST[:PORT], a scheme is tolerated."""
    for variable in variables:
        value = environ.get(variable, "")
        if value:
            return checked_base(variable, value if "://" in value else f"http://{value}")
    return None


def _check_forbidden(environ: Mapping[str, str]) -> bool:
    return environ.get("NO_GCE_CHECK", "").strip().lower() == "true"
