"""The `http` provider: a web page that the configuration describes."""

import json
import time
from collections.abc import Iterator
from datetime import datetime, timezone

import pytest
from pydantic import ValidationError

from preemptd.notices import Kind, Level, Notice
from preemptd.provider import Observation, State, Surroundings, Watch
from preemptd.rehearsal.serving import MetadataServer, Reply, Request
from preemptd_providers.http import Http, HttpOptions
from tests.metadata_server import Fault, FaultyBytePlus, FaultyTencent, announcement, body, hang, hang_up, raw, status


class Page(MetadataServer):
    def __init__(self) -> None:
        super().__init__(announcement())
        self.pages: dict[str, Reply] = {}
        self.asked: list[Request] = []

    def answer(self, request: Request) -> Reply:
        self.asked.append(request)
        return self.pages.get(request.path, Reply(404))


@pytest.fixture
def page() -> Iterator[Page]:
    with Page() as page:
        yield page


def watch_of(**options: object) -> Watch:
    (watch,) = Http(HttpOptions.model_validate(options), Surroundings({}, lead=100.0)).watches()
    return watch


def look(watch: Watch) -> Observation:
    try:
        return watch.observe()
    finally:
        watch.close()


def notice_of(observation: Observation) -> Notice:
    assert observation.notice is not None, observation
    return observation.notice


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"preempted": true}', State.NOTICE),
        ('{"preempted": false}', State.CLEAR),
        ("{}", State.UNKNOWN),
        ("", State.UNKNOWN),
        ("<html>login</html>", State.UNKNOWN),
    ],
)
def test_what_means_notice_and_what_means_clear_is_said_by_the_configuration(
    page: Page, text: str, expected: State
) -> None:
    page.pages["/flag"] = Reply(200, text.encode())
    watch = watch_of(url=f"{page.url}/flag", notice='"preempted": true', clear='"preempted": false')

    assert look(watch).state is expected


@pytest.mark.parametrize(
    ("server", "path", "identity", "zone"),
    [
        (FaultyTencent, "/latest/meta-data/spot/termination-time", "/latest/meta-data/instance-id", "+08:00"),
        (FaultyBytePlus, "/latest/spot_instance_termination_time", "/latest/instance_id", "Z"),
    ],
    ids=["tencent", "byteplus"],
)
def test_it_covers_a_cloud_that_puts_a_time_at_a_key(
    server: type[FaultyTencent | FaultyBytePlus], path: str, identity: str, zone: str
) -> None:
    with server() as cloud:
        options = {"url": cloud.url + path, "identity_url": cloud.url + identity, "clear_status": 404}
        watch = watch_of(**options, notice="^2", deadline="(.*)", zone=zone, kind="terminate")
        before = watch.observe()
        cloud.announcement.announce()
        notice = notice_of(look(watch))

        assert before.state is State.CLEAR
        assert notice.kind is Kind.TERMINATE
        assert abs((notice.remaining or 0.0) - 120.0) < 10


DEADLINES = {
    "seconds": ("90", "Z"),
    "a moment": (datetime.fromtimestamp(2_000_000_090, timezone.utc).isoformat(), "Z"),
    "Unix seconds": ("2000000090", "Z"),
    "HTTP's form": ("Wed, 18 May 2033 03:34:50 GMT", "Z"),
    "without a zone": ("2033-05-18 11:34:50", "+08:00"),
}


@pytest.mark.parametrize(("text", "zone"), DEADLINES.values(), ids=DEADLINES)
def test_a_deadline_goes_by_the_servers_clock_and_has_the_usual_forms(page: Page, text: str, zone: str) -> None:
    date = {"Date": "Wed, 18 May 2033 03:33:20 GMT"}
    page.pages["/"] = Reply(200, json.dumps({"end": text}).encode(), date)
    notice = notice_of(look(watch_of(url=page.url, notice="end", clear="none", deadline='"end": "([^"]*)"', zone=zone)))

    assert notice.remaining == 90.0


def test_a_notice_without_a_readable_time_counts_with_what_the_source_gives(page: Page) -> None:
    page.pages["/"] = Reply(200, b"end: soon")
    watch = watch_of(url=page.url, notice="end", clear="none", deadline="end: (.*)", notice_s=45)

    assert notice_of(look(watch)).remaining == 45.0


@pytest.mark.parametrize(("text", "left"), [("end 3000", 3000.0), ("end", None)])
def test_advice_with_a_time_becomes_a_notice_at_the_lead(page: Page, text: str, left: float | None) -> None:
    page.pages["/"] = Reply(200, text.encode())
    options = {"notice": "end", "clear": "none", "deadline": "end ([0-9]+)", "level": "advise"}
    notice = notice_of(look(watch_of(url=page.url, **options)))

    assert (notice.level, notice.remaining, notice.act_within) == (Level.ADVISE, left, 100.0)


def test_headers_are_sent_and_never_said(page: Page) -> None:
    page.pages["/"] = Reply(500)
    watch = watch_of(url=page.url, notice="x", clear="y", headers={"Authorization": "Bearer hush"})
    observation = look(watch)

    assert page.asked[0].headers["authorization"] == "Bearer hush"
    assert "hush" not in str(observation.error)


def test_404_counts_only_from_a_server_that_knows_something_else(page: Page) -> None:
    options = {"notice": ".", "clear_status": 404, "identity_url": f"{page.url}/id"}
    unknown = look(watch_of(url=f"{page.url}/signal", **options))
    page.pages["/id"] = Reply(200, b"i-1")
    clear = look(watch_of(url=f"{page.url}/signal", **options))

    assert (unknown.state, clear.state) == (State.UNKNOWN, State.CLEAR)


FAULTS = {
    "broken": status(500),
    "moved": status(302, {"Location": "http://127.0.0.1:9/"}),
    "one byte too many": body(b"2" * 65537),
    "half of it": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n2030"),
    "hung up": hang_up,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_server_that_misbehaves_is_unknown(fault: Fault) -> None:
    with FaultyTencent() as cloud:
        cloud.fault = fault

        assert look(watch_of(url=f"{cloud.url}/x", notice="2", clear="no")).state is State.UNKNOWN


def test_a_server_that_answers_after_the_limit_is_unknown_within_it() -> None:
    with FaultyTencent() as cloud:
        cloud.fault = hang
        began = time.monotonic()
        observation = look(watch_of(url=cloud.url, notice="2", clear="no", within=0.3))

        assert observation.state is State.UNKNOWN
        assert time.monotonic() - began < 10


WHOLE = {"url": "http://127.0.0.1/x", "notice": "yes", "clear": "no"}
NOT_WHOLE = {
    "no way to be clear": ({"clear": None}, "say what means that there is nothing"),
    "404 alone": ({"clear": None, "clear_status": 404}, "needs identity_url"),
    "no expression": ({"notice": "("}, "no regular expression"),
    "no group": ({"deadline": "end"}, "needs a group"),
    "no zone": ({"zone": "CST"}, "no zone"),
    "https": ({"url": "https://x/"}, "url"),
    "no url": ({"url": "x"}, "url"),
    "another key": ({"notices": "x"}, "notices"),
}


@pytest.mark.parametrize(("change", "said"), NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_a_description_that_makes_no_sense_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        HttpOptions.model_validate({**WHOLE, **change})
