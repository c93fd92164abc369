"""What metadata providers share: an HTTP client that no server can hang, fool or fill, and a watch on top of it."""

import email.utils
import json
import re
import threading
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from preemptd.errors import ProviderError
from preemptd.provider import Observation, Watch

if TYPE_CHECKING:
    import urllib3

    from preemptd_providers._session import Line, Session

BODY_LIMIT = 64 * 1024
DETAIL_LIMIT = 4 * 1024
_USER = re.compile("//[^/]*@")


class NoConnectionError(ProviderError):
    """Nobody there: nothing of the request was sent."""


class NoAnswerError(ProviderError):
    """The server took the request and did not answer in time."""


class RejectedError(ProviderError):
    """The server answered with a status that says neither yes nor no."""

    def __init__(self, message: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _BodyTooLargeError(ValueError):
    """The body goes on after what is allowed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP answer of any status."""

    url: str
    method: str
    status: int
    headers: Mapping[str, str]
    """Case does not matter in its keys."""
    body: bytes
    observed: float
    """time.monotonic() when it had come."""

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace").strip()

    @property
    def json(self) -> object:
        """The value in the body; None: it is no JSON, or null."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    @property
    def detail(self) -> str:
        """The text, cut to what a notice may carry."""
        return self.text[:DETAIL_LIMIT]

    @property
    def date(self) -> datetime | None:
        """The server's clock; None: it does not say."""
        return _http_date(self.headers.get("Date", ""))

    @property
    def retry_after(self) -> float | None:
        """Seconds that the server asks us to stay away; None: it does not."""
        value = self.headers.get("Retry-After", "").strip()
        if value.isascii() and value.isdigit():
            return float(value[:9])
        until = _http_date(value)
        if until is None:
            return None
        return max(0.0, (until - (self.date or datetime.now(timezone.utc))).total_seconds())

    def rejected(self, hint: str = "") -> RejectedError:
        """Make the error that says what came back; never the body: it may hold a token."""
        return RejectedError(f"{self.method} {public(self.url)}: HTTP {self.status}{hint}", self.retry_after)

    def malformed(self, why: str) -> ProviderError:
        return ProviderError(f"{self.method} {public(self.url)}: HTTP {self.status}, but {why}")


def public(url: str) -> str:
    """Return *url* for people: without a user and a query, which may be secrets."""
    return _USER.sub("//", url.partition("?")[0])


def load_http() -> None:
    """Import what the first `Client.ask` would import: 50 ms, too much for the moment before the start."""
    import preemptd_providers._session  # noqa: F401


class Client:
    """Asks one metadata server, over one connection. One thread asks; any thread may `close`."""

    def __init__(self, bases: Sequence[str], limit: int = BODY_LIMIT) -> None:
        """Take the addresses to try, in order; the first that answers is the server from then on.

        *limit* is in bytes, for the body of an answer.
        """
        self._bases = tuple(bases)
        self._limit = limit
        self._home: str | None = None
        self._lock = threading.Lock()
        self._line: Line | None = None
        self._session: Session | None = None
        self._asking = False
        self._closed = False

    @property
    def base(self) -> str:
        """Where it asks, for people."""
        return public(self._home) if self._home else " or ".join(map(public, self._bases))

    def ask(
        self, method: str, path: str, headers: Mapping[str, str], within: float, body: bytes | None = None
    ) -> Answer:
        """Send a request and read the whole answer, all of it in *within* seconds.

        Raises ProviderError, and nothing else, when there is no answer: see its subclasses.
        """
        ends = time.monotonic() + within  # the first time, that includes the import of urllib3
        with self._lock:
            if self._closed:
                raise ProviderError("closed")
            self._asking = True
            line, session = self._open()
        line.ends = ends
        try:
            return self._ask_each(line, session, _Asked(method, path, headers, body, self._limit))
        finally:
            with self._lock:
                self._asking = False
                if self._closed:
                    session.close()

    def close(self) -> None:
        """Break what is under way: an `ask` in another thread raises at once."""
        with self._lock:
            self._closed = True
            if self._line is not None:
                self._line.cut()
            if self._session is not None and not self._asking:
                self._session.close()

    def _open(self) -> "tuple[Line, Session]":
        if self._line is None or self._session is None:
            from preemptd_providers._session import Line, Session  # costs 50 ms: not before the child runs

            self._line = Line()
            self._session = Session(self._line)
        return self._line, self._session

    def _ask_each(self, line: "Line", session: "Session", asked: "_Asked") -> Answer:
        from preemptd_providers._session import CONNECT_SECONDS

        bases = [self._home] if self._home else list(self._bases)
        problems = []
        for number, base in enumerate(bases):
            share = (line.ends - time.monotonic()) / (len(bases) - number)
            line.connect_ends = time.monotonic() + min(CONNECT_SECONDS, share)
            try:
                answer = _ask_one(line, session, asked, base + asked.path)
            except NoConnectionError as problem:
                problems.append(str(problem))
            else:
                self._home = base
                return answer
        raise NoConnectionError("; ".join(problems))


@dataclass(frozen=True, slots=True)
class _Asked:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes | None
    limit: int


def _ask_one(line: "Line", session: "Session", asked: _Asked, url: str) -> Answer:
    from preemptd_providers._session import FAULTS

    made = line.made
    began = time.monotonic()
    while True:
        try:
            return _exchange(session, asked, url, line.seconds_left())
        except FAULTS as problem:  # noqa: PERF203  # the loop is a second try
            session.close()
            was_kept, made = line.made == made, -1
            if not was_kept or time.monotonic() >= line.connect_ends:
                raise _named(line, f"{asked.method} {public(url)}", problem, time.monotonic() - began) from None
            # Once more: the server had closed the kept connection in the meantime, as it may, and that is no outage.


def _exchange(session: "Session", asked: _Asked, url: str, left: float) -> Answer:
    method, headers = asked.method, asked.headers
    response = session.ask(method, url, headers, asked.body, left)
    try:
        body = _body(response, asked.limit)
    except BaseException:
        response.close()
        raise
    return Answer(url, method, response.status, response.headers, body, time.monotonic())


def _body(response: "urllib3.BaseHTTPResponse", limit: int) -> bytes:
    body: bytes = response.read(limit + 1, decode_content=False)
    if len(body) > limit:
        raise _BodyTooLargeError(limit)
    announced = response.headers.get("Content-Length", "")
    if announced.isascii() and announced.isdigit() and len(body) < int(announced):
        raise ConnectionError("the answer broke off")
    return body


def _named(line: "Line", what: str, fault: Exception, took: float) -> ProviderError:
    """Say in one line what went wrong. Nothing of the request's headers or the answer's body: they hold tokens."""
    from preemptd_providers._session import TIMEOUTS

    unreachable, line.unreachable = line.unreachable, None
    if isinstance(unreachable, TimeoutError):
        return NoConnectionError(f"{what}: no connection within {took:.1f} s")
    if unreachable is not None:
        return NoConnectionError(f"{what}: {unreachable.strerror or unreachable}")
    if isinstance(fault, _BodyTooLargeError):
        return ProviderError(f"{what}: an answer of more than {fault.args[0] // 1024} KiB")
    if time.monotonic() >= line.ends:
        return NoAnswerError(f"{what}: connected, but no whole answer within {took:.1f} s")
    if isinstance(fault, TIMEOUTS):
        return ProviderError(f"{what}: the network lost the connection after {took:.1f} s")
    return ProviderError(f"{what}: the connection broke or did not speak HTTP ({type(fault).__name__})")


class MetadataWatch(Watch):
    """A watch whose every failure is an UNKNOWN."""

    def __init__(self, name: str, client: Client) -> None:
        self.name = name
        self.client = client

    @abstractmethod
    def look(self) -> Observation:
        """Look once; raise ProviderError for all that is neither a notice nor a documented negative."""

    def observe(self) -> Observation:
        try:
            return self.look()
        except RejectedError as problem:
            return Observation.unknown(str(problem), problem.retry_after)
        except ProviderError as problem:
            return Observation.unknown(str(problem))

    def close(self) -> None:
        self.client.close()


def _http_date(value: str) -> datetime | None:
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=timezone.utc)
