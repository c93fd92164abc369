"""A conversation with GCE's metadata server: where it is, and keys whose changes it tells of."""

import re
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from preemptd.errors import ProviderError
from preemptd.provider import Observation
from preemptd_providers._metadata import Answer, Client, MetadataWatch
from preemptd_providers._variables import checked_base, checked_number

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

_ETAG = re.compile(r"[!-~]{1,256}")


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


def is_google(answer: Answer) -> bool:
    """Say whether it was the metadata server that answered, and not a proxy or a page to log in."""
    return answer.headers.get("Metadata-Flavor") == "Google"


class KeyWatch(MetadataWatch):
    """One key below ``instance/``: a plain GET first, then GETs that the server answers when the value changes."""

    interval = POLL_INTERVAL

    def __init__(self, provider: str, key: str, settings: Settings) -> None:
        super().__init__(f"{provider}:instance/{key}", Client(settings.bases))
        self.provider = provider
        self.heard = "not asked yet"
        """What became of the last look, for people."""
        self._path = INSTANCE + key
        self.within = settings.within
        """Seconds for one request that does not hang, all of it."""
        self._etag: str | None = None
        self._value = ""
        self._no_hang_until = 0.0

    def look(self) -> Observation:
        etag, self._etag = self._etag, None
        self.waits = False  # until an answer says that the next look may hang
        hangs = etag is not None and time.monotonic() >= self._no_hang_until
        began = time.monotonic()
        try:
            answer = self._hang(etag) if hangs and etag is not None else self._get("", self.within)
            observation = self.judge(answer) if answer.status == 200 else self.judge_absence(answer)
        except ProviderError as problem:
            self.heard = str(problem)
            raise
        self._plan(answer, came_at_once=hangs and answer.observed - began < NO_HANG_BELOW)
        return observation

    @abstractmethod
    def judge(self, answer: Answer) -> Observation:
        """Say what a validated 200 means; raises ProviderError for a value that is not of this key's."""

    def judge_absence(self, answer: Answer) -> Observation:
        """Say what an answer without a value means; raises ProviderError where that says nothing."""
        if answer.status == 404:
            raise answer.rejected(" (this server does not have the key; on GKE use the host's network)")
        raise answer.rejected()

    def _hang(self, etag: str) -> Answer:
        query = urlencode({"wait_for_change": "true", "last_etag": etag, "timeout_sec": HANG_SECONDS})
        return self._get("?" + query, HANG_SECONDS + HANG_SLACK)

    def _get(self, query: str, within: float) -> Answer:
        answer = self.client.ask("GET", self._path + query, FLAVOR, within)
        if answer.status == 200 and not is_google(answer):
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


def _base_in(environ: Mapping[str, str], *variables: str) -> str | None:
    """Return the base URL in the first of *variables* that is set: HOST[:PORT], a scheme is tolerated."""
    for variable in variables:
        value = environ.get(variable, "")
        if value:
            return checked_base(variable, value if "://" in value else f"http://{value}")
    return None
