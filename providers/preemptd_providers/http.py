"""A web page that announces the end, as the configuration describes it: the next cloud, without code."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from preemptd.provider import Observation, Options, Provider, Surroundings, Watch
from preemptd_providers._announcing import FURTHEST_SECONDS, Announcer, Announcing
from preemptd_providers._deadline_text import End, zone_of
from preemptd_providers._identity import ProvenWatch
from preemptd_providers._metadata import DETAIL_LIMIT, Answer, Client, load_http, public

_URL = re.compile(
    r"(?P<base>http://(?:[^/?#@\s]*@)?(?:\[[0-9A-Fa-f:.]+(?:%25[\w.~-]+)?\]|[\w.~-]+)(?::(?P<port>[0-9]{1,5}))?)"
    r"(?P<path>/[^?#\s]*)?(?P<query>\?[^#\s]*)?"
)
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110's token
_LINE = re.compile(r"[ -~\t\xa0-\xff]+")


def _parted(url: str) -> tuple[str, str]:
    """Part the address of the server from the path; raises ValueError for what could never be asked."""
    match = _URL.fullmatch(url)
    if match is None or not 0 < int(match["port"] or 80) < 65536:
        raise ValueError("write http://HOST[:PORT][/PATH][?QUERY]")
    return match["base"], (match["path"] or "/") + (match["query"] or "")


def _url(text: str) -> str:
    _parted(text)
    return text


FRAMING = frozenset({"connection", "content-length", "transfer-encoding"})
"""Headers by which a server knows where a request ends: a wrong one has it wait for more."""


def _headers(named: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in named.items():
        if not _HEADER.fullmatch(name):
            raise ValueError(f"{name!r:.60} is no name of a header")
        if name.lower() in FRAMING:
            raise ValueError(f"{name} frames a request, and is not yours to send: leave it out")
        if not _LINE.fullmatch(value) or not value.strip():
            raise ValueError(f"the value of {name:.60} is empty, or not one line of Latin-1")
    return named


def _expression(text: str) -> str:
    if not text.strip():
        raise ValueError("it is blank: that is found in every text")
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    return text


def _zone(text: str) -> str:
    zone_of(text)
    return text


Expression = Annotated[str, AfterValidator(_expression)]
Url = Annotated[str, AfterValidator(_url)]


class HttpOptions(Announcing):
    """The table ``[providers.http]``."""

    url: Url = Field(repr=False)
    headers: Annotated[dict[str, str], AfterValidator(_headers)] = Field(default_factory=dict, repr=False)
    notice: Expression
    """The body of a 200 announces the end where this regular expression is found in its first 4 KiB."""
    clear: Expression | None = None
    """The body of a 200 says that there is nothing where this is found in it, and it is no longer than 4 KiB."""
    clear_status: Literal[204, 404] | None = None
    """So does this status, if `identity_url` was answered with 200 a minute ago at the most."""
    identity_url: Url | None = Field(default=None, repr=False)
    deadline: Expression | None = None
    """Its first group is a moment (ISO 8601, RFC 1123, Unix seconds), or the seconds that are left."""
    zone: Annotated[str, AfterValidator(_zone)] = "Z"
    """That of a moment that names none: ``+08:00``."""
    notice_s: float = Field(default=30.0, gt=0, le=FURTHEST_SECONDS)
    """Seconds that the source gives where it names no time."""
    interval: float = Field(default=5.0, ge=1.0, le=60.0)
    """Seconds between two looks."""
    within: float = Field(default=2.0, gt=0.0, le=60.0)
    """Seconds for one request, all of it."""

    @model_validator(mode="after")
    def _is_whole(self) -> "HttpOptions":
        if self.clear is None and self.clear_status is None:
            raise ValueError("say what means that there is nothing: clear, or clear_status with identity_url")
        if self.clear_status == 404 and self.identity_url is None:
            raise ValueError("clear_status = 404 needs identity_url: any server answers 404 to what it does not know")
        if self.deadline is not None and not re.compile(self.deadline).groups:
            raise ValueError("deadline needs a group: (...) around the time")
        return self


class PageWatch(ProvenWatch):
    name = "http:page"

    def __init__(self, options: HttpOptions, surroundings: Surroundings) -> None:
        base, self._path = _parted(options.url)
        super().__init__(self.name, Client((base,)), self._identify)
        self.interval = options.interval
        self.notice_period = options.notice_s
        self._options = options
        self._announcer = Announcer("http", options, surroundings, options.notice_s)
        base, self._identity_path = _parted(options.identity_url or options.url)
        self._identity_client = Client((base,))

    def close(self) -> None:
        super().close()
        self._identity_client.close()

    def look(self) -> Observation:
        wishes = self._options
        answer = self.client.ask("GET", self._path, wishes.headers, wishes.within)
        if answer.status == 200:
            return self._judge(answer)
        if answer.status != wishes.clear_status:
            raise answer.rejected()
        self.identity.check()
        return Observation.clear()

    def _judge(self, answer: Answer) -> Observation:
        # (.*)end takes sixteen times as long for four times the text, and nothing else runs meanwhile: 12 s for 64 KiB.
        wishes, text = self._options, answer.detail
        if re.search(wishes.notice, text):
            end = self._end(text, answer.date or datetime.now(timezone.utc))
            return Observation.of(self._announcer.notice(public(wishes.url), answer.observed, end, text))
        if len(answer.text) > len(text):
            raise answer.malformed(f"`notice` is not in the first {DETAIL_LIMIT // 1024} KiB, and there is more")
        if wishes.clear is not None and re.search(wishes.clear, text):
            return Observation.clear()
        raise answer.malformed("neither `notice` nor `clear` is found in it")

    def _end(self, text: str, now: datetime) -> End:
        wishes = self._options
        found = None if wishes.deadline is None else re.search(wishes.deadline, text)
        return self._announcer.end((found and found[1]) or "", now, zone_of(wishes.zone))

    def _identify(self) -> None:
        wishes = self._options
        if wishes.identity_url is None:
            return
        answer = self._identity_client.ask("GET", self._identity_path, wishes.headers, wishes.within)
        if answer.status != 200:
            raise answer.rejected(": what else this server says means nothing")


class Http(Provider):
    name: ClassVar[str] = "http"
    options_type: ClassVar[type[Options]] = HttpOptions
    opt_in = True  # there is no page that everybody has

    def __init__(self, options: Options, surroundings: Surroundings) -> None:
        super().__init__(options, surroundings)
        assert isinstance(options, HttpOptions)  # noqa: S101  # what the registry checks
        self._watch = PageWatch(options, surroundings)

    def prepare(self) -> None:
        load_http()

    def watches(self) -> Sequence[Watch]:
        return (self._watch,)

    def describe(self) -> str:
        return f"{self._watch.client.base}: {self._watch.heard}"

    def close(self) -> None:
        self._watch.close()
