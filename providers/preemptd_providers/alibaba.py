"""Alibaba Cloud ECS: spot instances are reclaimed five minutes after a time appears in the metadata."""

import re
import time
from datetime import datetime

from preemptd.errors import ProviderError
from preemptd.provider import Options, Surroundings
from preemptd_providers._deadline_text import rfc3339
from preemptd_providers._metadata import Answer, Client, NoAnswerError
from preemptd_providers._termination_time import TerminationTimeProvider

TOKEN_PATH = "/latest/api/token"
TOKEN_HEADER = "X-aliyun-ecs-metadata-token"
TTL_HEADER = "X-aliyun-ecs-metadata-token-ttl-seconds"
TTL = 21600
PLAIN_SECONDS = 300.0
"""For which it is asked without a token where there are none."""

_TOKEN = re.compile(r"[!-~]{1,1024}")


class Alibaba(TerminationTimeProvider):
    name = "alibaba"
    endpoint = "PREEMPTD_ALIBABA_ENDPOINT"
    default_base = "http://100.100.100.200"
    signal_path = "/latest/meta-data/instance/spot/termination-time"
    identity_path = "/latest/meta-data/instance-id"
    notice_seconds = 300.0
    dmi = {"product_name": "Alibaba Cloud ECS"}  # noqa: RUF012  # the base declares it a ClassVar

    def __init__(self, options: Options, surroundings: Surroundings) -> None:
        super().__init__(options, surroundings)
        self._token: str | None = None
        self._renew_at = 0.0
        """When a token is asked for (again)."""
        self._why_plain = ""

    @staticmethod
    def parse(text: str) -> datetime | None:
        return rfc3339(text)

    def ask(self, client: Client, path: str, within: float) -> Answer:
        answer = client.ask("GET", path, self._headers(client, within), within)
        if answer.status in {401, 403}:  # expired, the service restarted, or it is in its other mode by now
            self._renew_at = 0.0
            if self._token is None:
                raise answer.rejected(self._why_plain)
            answer = client.ask("GET", path, self._headers(client, within), within)
        return answer

    def _headers(self, client: Client, within: float) -> dict[str, str]:
        if time.monotonic() >= self._renew_at:
            self._token = self._new_token(client, within)
            self._renew_at = time.monotonic() + (0.8 * TTL if self._token else PLAIN_SECONDS)
        return {TOKEN_HEADER: self._token} if self._token else {}

    def _new_token(self, client: Client, within: float) -> str | None:
        """Get a token; None: this instance works without (its normal mode). Raises ProviderError."""
        self._why_plain = " without a token"
        try:
            answer = client.ask("PUT", TOKEN_PATH, {TTL_HEADER: str(TTL)}, within)
        except NoAnswerError as problem:  # its answer, and that alone, may be lost on its way into a container
            self._why_plain = f" without a token ({problem}; in a container use the host's network)"
            return None
        if answer.status in {403, 404, 405}:
            return None
        if answer.status != 200:
            raise answer.rejected()
        if not _TOKEN.fullmatch(answer.text):
            raise ProviderError(f"PUT {answer.url}: HTTP 200, but no token")
        return answer.text
