"""POSTs to a URL that is a secret: what went wrong is said without a word of it. The one importer of requests here."""

import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import requests
import requests.exceptions

import preemptd

RETRY_AFTER_LIMIT = 30.0
"""Seconds at the most for which a server's Retry-After is minded."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one POST."""

    why: str | None
    """What went wrong; None: it was taken."""
    again: bool = False
    """The same may work a moment later."""
    retry_after: float = 0.0
    """Seconds that the server asks us to wait."""


class _Session(requests.Session):
    """Honours the proxies of the environment; follows no redirect: that would become a GET, of somebody else."""

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002 - requests' own signature
        """Say that there is none: requests reads a redirect's body whole, without limit, even if it does not follow."""
        return


@dataclass(slots=True)
class _Attempt:
    """One POST in a thread of its own: `timeout=` is for each byte anew, and name servers know none."""

    url: str
    body: bytes
    seconds: float
    answer: Answer | None = None
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, name="webhook-post", daemon=True)

    def _run(self) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": f"preemptd/{preemptd.__version__}"}
        try:
            with (
                _Session() as session,
                session.post(
                    self.url, data=self.body, headers=headers, timeout=self.seconds, stream=True, allow_redirects=False
                ) as response,
            ):
                self.answer = _judged(response)
        except Exception as error:  # noqa: BLE001 - a traceback of requests has the URL in it
            self.answer = Answer(_in_words(error), again=not isinstance(error, ValueError))


class Poster:
    """Posts, one at a time; of those that hang at most one is left behind."""

    def __init__(self) -> None:
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of bad headers with the URL in the text
        self._left: threading.Thread | None = None

    def post(self, url: str, body: bytes, seconds: float) -> Answer:
        """Post *body*, and return what came of it within *seconds*."""
        if self._left is not None:
            self._left.join(seconds)
            if self._left.is_alive():
                return Answer("no answer", again=True)
        attempt = _Attempt(url, body, seconds)
        attempt.thread.start()
        attempt.thread.join(seconds)
        self._left = attempt.thread if attempt.thread.is_alive() else None
        return attempt.answer or Answer(f"no answer within {seconds:.1f} s", again=True)


def _judged(response: requests.Response) -> Answer:
    status = response.status_code
    if 200 <= status < 300:
        return Answer(None)
    after = response.headers.get("Retry-After", "").strip()
    wait = min(RETRY_AFTER_LIMIT, float(after[:9])) if after.isascii() and after.isdecimal() else 0.0
    return Answer(f"the server answers {status}", again=status in {408, 429} or status >= 500, retry_after=wait)


def _in_words(error: Exception) -> str:
    """Say what went wrong by the kind of error and the system's own words: the text of requests' errors has the URL."""
    if isinstance(error, requests.exceptions.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy lets nothing through"
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            return f"TLS fails ({getattr(cause, 'reason', None) or type(cause).__name__})"
        if isinstance(cause, socket.gaierror):
            return "its name does not resolve"
        if isinstance(cause, OSError) and cause.errno is not None and cause.strerror:
            return cause.strerror
    return type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """List *error* and what is behind it: requests and urllib3 hand the first error on as an argument or a reason."""
    seen: set[int] = set()
    found = [error]
    while found:
        cause = found.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        behind = (*cause.args, getattr(cause, "reason", None), cause.__cause__, cause.__context__)
        found += [other for other in behind if isinstance(other, BaseException)]
