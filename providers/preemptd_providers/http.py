"""A web page that announces the end, as the configuration describes it: the next cloud, without code."""

import re
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from preemptd.errors import ProviderError
from preemptd.notices import Kind, Level, Notice
from preemptd.provider import Observation, Options, Provider, Surroundings, Watch
from preemptd_providers._deadline_text import seconds_left, zone_of
from preemptd_providers._identity import Identity
from preemptd_providers._metadata import Answer, Client, MetadataWatch, load_http


def _expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    return text


def _zone(text: str) -> str:
    zone_of(text)
    return text


Expression = Annotated[str, AfterValidator(_expression)]
Url = Annotated[str, Field(pattern=r"^http://[^/\s]+(/\S*)?$")]


class HttpOptions(Options):
    """The table ``[providers.http]``."""

    url: Url
    headers: dict[str, str] = Field(default_factory=dict)
    notice: Expression
    """The body of a 200 announces the end where this regular expression is found in it."""
    clear: Expression | None = None
    """The body of a 200 says that there is nothing where this is found in it. What matches neither is unknown."""
    clear_status: Literal[204, 404] | None = None
    """So does this status, if `identity_url` was answered with 200 a minute ago at the most."""
    identity_url: Url | None = None
    deadline: Expression | None = None
    """Its first group is a moment (ISO 8601, RFC 1123, Unix seconds), or the seconds that are left."""
    zone: Annotated[str, AfterValidator(_zone)] = "Z"
    """That of a moment that names none: ``+08:00``."""
    kind: Literal["preempt", "terminate", "stop", "hibernate", "maintenance"] = "preempt"
    level: Literal["act", "advise"] = "act"
    notice_s: float = Field(default=30.0, gt=0, le=30 * 86400)
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


class PageWatch(MetadataWatch):
    name = "http:page"

    def __init__(self, options: HttpOptions, lead: float) -> None:
        base, self._path = _split(options.url)
        super().__init__(self.name, Client((base,)))
        self.interval = options.interval
        self.notice_period = options.notice_s
        self.heard = "not asked yet"
        """What became of the last look, for people."""
        self._options = options
        self._lead = lead
        self._identity = Identity(self._identify)

    def look(self) -> Observation:
        try:
            observation = self._look()
        except ProviderError as problem:
            self._identity.doubt()
            self.heard = str(problem)
            raise
        self.heard = "answers"
        return observation

    def _look(self) -> Observation:
        wishes = self._options
        answer = self.client.ask("GET", self._path, wishes.headers, wishes.within)
        if answer.status == 200 and re.search(wishes.notice, answer.text):
            self._identity.doubt()
            return Observation.of(self._notice(answer))
        if answer.status == 200 and wishes.clear is not None and re.search(wishes.clear, answer.text):
            return Observation.clear()
        if answer.status == 200:
            raise answer.malformed("neither `notice` nor `clear` is found in it")
        if answer.status != wishes.clear_status:
            raise answer.rejected()
        self._identity.check()
        return Observation.clear()

    def _identify(self) -> None:
        url = self._options.identity_url
        if url is None:
            return
        base, path = _split(url)
        client = Client((base,))
        try:
            answer = client.ask("GET", path, self._options.headers, self._options.within)
        finally:
            client.close()
        if answer.status != 200:
            raise answer.rejected(": what else this server says means nothing")

    def _notice(self, answer: Answer) -> Notice:
        wishes = self._options
        return Notice(
            provider="http",
            event_id=f"http:{wishes.kind}",
            kind=Kind(wishes.kind),
            level=Level(wishes.level),
            source=wishes.url.partition("?")[0],
            observed=answer.observed,
            remaining=self._remaining(answer),
            act_within=self._lead if wishes.level == "advise" and wishes.deadline is not None else None,
            detail=answer.detail,
        )

    def _remaining(self, answer: Answer) -> float | None:
        wishes = self._options
        found = None if wishes.deadline is None else re.search(wishes.deadline, answer.text)
        now = answer.date or datetime.now(timezone.utc)
        left = None if found is None or found[1] is None else seconds_left(found[1], now, zone_of(wishes.zone))
        if left is None and wishes.level == "act":
            return wishes.notice_s
        return left


class Http(Provider):
    name: ClassVar[str] = "http"
    options_type: ClassVar[type[Options]] = HttpOptions
    opt_in = True  # there is no page that everybody has

    def __init__(self, options: Options, surroundings: Surroundings) -> None:
        super().__init__(options, surroundings)
        assert isinstance(options, HttpOptions)  # noqa: S101  # what the registry checks
        self._watch = PageWatch(options, surroundings.lead)

    def prepare(self) -> None:
        load_http()

    def watches(self) -> Sequence[Watch]:
        return (self._watch,)

    def describe(self) -> str:
        return f"{self._watch.client.base}: {self._watch.heard}"

    def close(self) -> None:
        self._watch.close()


def _split(url: str) -> tuple[str, str]:
    """Part the address of the server from the path."""
    host, slash, path = url.removeprefix("http://").partition("/")
    return f"http://{host}", slash + path or "/"
