"""A conversation with EC2's instance metadata service: where it is, its tokens, and IMDSv1 where there are none."""

import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from preemptd.errors import ConfigError, ProviderError
from preemptd_providers._metadata import Answer, Client, NoAnswerError
from preemptd_providers._variables import checked_base, checked_number

IPV4 = "http://169.254.169.254"
IPV6 = "http://[fd00:ec2::254]"
ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
ENDPOINT_MODE = "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"
METADATA = "/latest/meta-data/"
INSTANCE_ID = METADATA + "instance-id"
TOKEN_PATH = "/latest/api/token"
TOKEN_HEADER = "X-aws-ec2-metadata-token"
TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
TTL = 21600
V1_SECONDS = 300.0
RENEW_AGAIN_SECONDS = 5.0

_INSTANCE_ID = re.compile(r"[a-z]+-[0-9A-Za-z-]{1,64}")
_TOKEN = re.compile(r"[!-~]{1,1024}")


@dataclass(frozen=True, slots=True)
class Settings:
    """botocore's variables, so that one setting serves the SDK and us."""

    bases: tuple[str, ...]
    allow_v1: bool
    within: float
    """Seconds for one request, all of it."""
    attempts: int
    disabled: bool
    """AWS_EC2_METADATA_DISABLED: nobody may look here by himself; who names the provider means it."""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Settings":
        """Read them; raises ConfigError for a value that cannot be used, as botocore does."""
        return cls(
            bases=_bases(environ),
            allow_v1=not is_true(environ, "AWS_EC2_METADATA_V1_DISABLED"),
            within=checked_number(environ, "AWS_METADATA_SERVICE_TIMEOUT", 2.0),
            attempts=int(checked_number(environ, "AWS_METADATA_SERVICE_NUM_ATTEMPTS", 1)) or 1,
            disabled=is_true(environ, "AWS_EC2_METADATA_DISABLED"),
        )


class Imds:
    """A conversation with one metadata service: keeps its token fresh, falls back to IMDSv1 where IMDSv2 is absent."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.client = Client(settings.bases)
        self.heard = "not asked yet"
        """What became of the last attempt, for people."""
        self._settings = settings
        self._clock = clock
        self._token: str | None = None
        self._renew_at = 0.0
        self._expires_at = 0.0
        self._v1_until = 0.0

    def get(self, path: str) -> Answer:
        """GET *path*; an answer of any status but 401. Raises ProviderError when there is none."""
        attempts_left = self._settings.attempts
        while True:
            attempts_left -= 1
            try:
                answer = self._get(path)
            except ProviderError as problem:
                self.heard = str(problem)
                if attempts_left <= 0:
                    raise
            else:
                self.heard = "IMDSv2" if self._token else "IMDSv1"
                return answer

    def identify(self) -> None:
        """Raise ProviderError where the server does not know the instance's id: then its 404 means nothing."""
        answer = self.get(INSTANCE_ID)
        if answer.status != 200 or not _INSTANCE_ID.fullmatch(answer.text):
            raise answer.malformed("no instance id: what else this server says means nothing")

    def _get(self, path: str) -> Answer:
        answer = self._ask(path)
        if answer.status == 401:  # expired, or the service restarted: a new token and once more, in this very look
            self._token, self._v1_until = None, 0.0
            answer = self._ask(path)
        if answer.status == 401:
            raise answer.rejected(" with a new token" if self._token else " without a token")
        return answer

    def _ask(self, path: str) -> Answer:
        self._freshen()
        headers = {TOKEN_HEADER: self._token} if self._token else {}
        return self.client.ask("GET", path, headers, self._settings.within)

    def _freshen(self) -> None:
        now = self._clock()
        if self._token and now < self._renew_at:
            return
        if not self._token and now < self._v1_until:
            return
        try:
            self.fetch_token(self._settings.within)
        except ProviderError:
            if self._token is None or now >= self._expires_at:
                self._token = None
                raise
            self._renew_at = now + RENEW_AGAIN_SECONDS  # the old one is good for a fifth of its life yet

    def fetch_token(self, within: float) -> str:
        """PUT for a token, or find that this server has none to give (IMDSv1); returns what was heard."""
        answer = self._put(within)
        now = self._clock()
        if answer.status in (403, 404, 405):
            if not self._settings.allow_v1:
                raise answer.rejected(" (no IMDSv2 here, and AWS_EC2_METADATA_V1_DISABLED is set)")
            self._token, self._v1_until = None, now + V1_SECONDS
            return "IMDSv1"
        if answer.status != 200:
            raise answer.rejected()
        token, ttl = answer.text, answer.headers.get(TTL_HEADER, "").strip()
        if not _TOKEN.fullmatch(token) or not re.fullmatch("[0-9]{1,5}", ttl) or int(ttl) == 0:
            raise answer.malformed("not a token: this is not EC2's metadata service")
        self._token = token
        # Not all machines of a fleet that started together renew together.
        self._renew_at = now + int(ttl) * random.uniform(0.75, 0.85)  # noqa: S311  # jitter, not a secret
        self._expires_at = now + int(ttl)
        return "IMDSv2"

    def _put(self, within: float) -> Answer:
        try:
            return self.client.ask("PUT", TOKEN_PATH, {TTL_HEADER: str(TTL)}, within)
        except NoAnswerError as problem:
            # The hop limit drops the answer to the PUT, and that alone, on its way into a container.
            raise NoAnswerError(
                f"{problem}; hop limit? In a container use the host's network, or set the instance's "
                "HttpPutResponseHopLimit to 2"
            ) from None


def _bases(environ: Mapping[str, str]) -> tuple[str, ...]:
    endpoint = environ.get(ENDPOINT, "")
    if endpoint:
        return (checked_base(ENDPOINT, endpoint),)
    mode = environ.get(ENDPOINT_MODE, "").lower()
    if mode not in ("", "ipv4", "ipv6"):
        raise ConfigError(f"{ENDPOINT_MODE}={mode!r} is neither ipv4 nor ipv6")
    if mode == "ipv6" or (not mode and is_true(environ, "AWS_IMDS_USE_IPV6")):
        return (IPV6,)
    return (IPV4,) if mode else (IPV4, IPV6)


def is_true(environ: Mapping[str, str], variable: str) -> bool:
    return environ.get(variable, "").strip().lower() == "true"
