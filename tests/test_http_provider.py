"""The `http` provider: a web page that the configuration describes."""

import json
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
from pydantic import ValidationError

from preemptd.errors import ConfigError
from preemptd.notices import Kind, Level, Notice
from preemptd.provider import Observation, State, Surroundings, Watch
from preemptd.registry import options_for
from preemptd.rehearsal.serving import MetadataServer, Reply, Request
from preemptd_providers.http import Http, HttpOptions
from tests.metadata_server import FaultyBytePlus, FaultyTencent, announcement
from tests.watching import Watch as Watching


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


def watch_of(warnings: list[str] | None = None, /, **options: object) -> Watch:
    said: list[str] = [] if warnings is None else warnings
    (watch,) = Http(HttpOptions.model_validate(options), Surroundings({}, lead=100.0, warn=said.append)).watches()
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
    "HTTP's form without a zone": ("18 May 2033 11:34:50", "+08:00"),
    "an e-mail's form": ("Wed, 18 May 2033 11:34:50 +0800", "Z"),
}


@pytest.mark.parametrize(("text", "zone"), DEADLINES.values(), ids=DEADLINES)
def test_a_deadline_goes_by_the_servers_clock_and_has_the_usual_forms(page: Page, text: str, zone: str) -> None:
    date = {"Date": "Wed, 18 May 2033 03:33:20 GMT"}
    page.pages["/"] = Reply(200, json.dumps({"end": text}).encode(), date)
    notice = notice_of(look(watch_of(url=page.url, notice="end", clear="none", deadline='"end": "([^"]*)"', zone=zone)))

    assert notice.remaining == 90.0
    assert (notice.deadline is None) is (text == "90")


@pytest.mark.parametrize("end", ["soon", "Wed, 18 May 2033 11:34:50 CST", "18 May 2033 04:34:50 CET"])
def test_a_notice_without_a_readable_time_counts_with_what_the_source_gives(page: Page, end: str) -> None:
    """CST is a zone of China's, and one of the United States'."""
    page.pages["/"] = Reply(200, f"end: {end}".encode())
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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "provider http: 'soon' is neither a time nor a number of seconds: 30 s are counted with"),
        (
            {"level": "advise"},
            "provider http: 'soon' is neither a time nor a number of seconds: the advice has no date",
        ),
    ],
)
def test_a_time_that_cannot_be_read_is_said_once(page: Page, options: dict[str, object], said: str) -> None:
    page.pages["/"] = Reply(200, b"end: soon")
    warnings: list[str] = []
    watch = watch_of(warnings, url=page.url, notice="end", clear="none", deadline="end: (.*)", **options)
    watch.observe()
    look(watch)

    assert warnings == [said]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"no".ljust(4096, b"-"), State.CLEAR),
        (b"no".ljust(4097, b"-"), State.UNKNOWN),
        (b"yes".ljust(60_000, b"-"), State.NOTICE),
        (b"yes".rjust(4096, b"-"), State.NOTICE),
        (b"yes".rjust(4097, b"-"), State.UNKNOWN),
        (b"no".ljust(4096, b"-") + b"yes", State.UNKNOWN),
    ],
)
def test_of_a_long_page_the_first_4_kib_are_searched_and_it_is_never_clear(
    page: Page, body: bytes, expected: State
) -> None:
    page.pages["/"] = Reply(200, body)

    assert look(watch_of(url=page.url, notice="yes", clear="no")).state is expected


def test_a_notice_wins_over_clear(page: Page) -> None:
    page.pages["/"] = Reply(200, b"no, yes")

    assert look(watch_of(url=page.url, notice="yes", clear="no")).state is State.NOTICE


def test_a_query_needs_no_path(page: Page) -> None:
    look(watch_of(url=f"{page.url}?a=b", notice="yes", clear="no"))

    assert [(request.path, request.query) for request in page.asked] == [("/", {"a": "b"})]


@pytest.mark.parametrize("kind", ["maintenance", "rebalance", "migrate", "freeze"])
def test_advice_may_be_of_every_kind_that_can_be_acted_on(page: Page, kind: str) -> None:
    page.pages["/"] = Reply(200, b"yes")
    notice = notice_of(look(watch_of(url=page.url, notice="yes", clear="no", kind=kind, level="advise")))

    assert (notice.event_id, notice.kind) == (f"http:{kind}", Kind(kind))


WHOLE = {"url": "http://127.0.0.1/x", "notice": "yes", "clear": "no"}
NOT_WHOLE = {
    "no way to be clear": ({"clear": None}, "say what means that there is nothing"),
    "404 alone": ({"clear": None, "clear_status": 404}, "needs identity_url"),
    "no expression": ({"notice": "("}, "no regular expression"),
    "no group": ({"deadline": "end"}, "needs a group"),
    "no zone": ({"zone": "CST"}, "no zone"),
    "a zone too far": ({"zone": "+25:00"}, "they reach from -12:00 to [+]14:00"),
    "a zone too far west": ({"zone": "-13:00"}, "they reach from -12:00 to [+]14:00"),
    "a zone of 61 minutes": ({"zone": "+08:61"}, "they reach from -12:00 to [+]14:00"),
    "a header that frames": ({"headers": {"Content-length": "5"}}, "Content-length frames a request"),
    "https": ({"url": "https://x/"}, "url"),
    "no url": ({"url": "x"}, "url"),
    "another key": ({"notices": "x"}, "notices"),
    "a port that is none": ({"url": "http://127.0.0.1:99999/"}, "write http://HOST"),
    "a port that is no number": ({"url": "http://127.0.0.1:abc/"}, "write http://HOST"),
    "port 0": ({"url": "http://127.0.0.1:0/"}, "write http://HOST"),
    "no host": ({"url": "http://:80/"}, "write http://HOST"),
    "half a bracket": ({"url": "http://[::1/"}, "write http://HOST"),
    "a blank": ({"url": "http://127.0.0.1/a b"}, "write http://HOST"),
    "a fragment": ({"url": "http://127.0.0.1/#a"}, "write http://HOST"),
    "an identity that cannot be asked": ({"identity_url": "http://[::1/"}, "write http://HOST"),
    "a notice in every text": ({"notice": ""}, "it is blank"),
    "clear in every text": ({"clear": ""}, "it is blank"),
    "a deadline in every text": ({"deadline": " "}, "it is blank"),
    "a header without a name": ({"headers": {"": "x"}}, "no name of a header"),
    "a blank in a header's name": ({"headers": {"A b": "x"}}, "'A b' is no name of a header"),
    "a newline in a header's name": ({"headers": {"A\nb": "x"}}, r"'A\\nb' is no name of a header"),
    "a header's name that is no ASCII": ({"headers": {"\u00c4": "x"}}, "no name of a header"),
    "an empty header": ({"headers": {"A": ""}}, "the value of A is empty"),
    "a blank header": ({"headers": {"A": " "}}, "the value of A is empty"),
    "a newline in a header": ({"headers": {"A": "hush\r\nB: c"}}, "the value of A is empty, or not one line"),
    "a header that is no Latin-1": ({"headers": {"A": "hush \u20ac"}}, "the value of A is empty, or not one line"),
}


@pytest.mark.parametrize(("change", "said"), NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_a_description_that_makes_no_sense_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        HttpOptions.model_validate({**WHOLE, **change})


SECRET: dict[str, dict[str, object]] = {
    "headers, another value": {"headers": {"Authorization": "Bearer hush"}, "kind": "x"},
    "headers, something missing": {"headers": {"Authorization": "Bearer hush"}, "clear": None},
    "headers, a newline": {"headers": {"Authorization": "Bearer hush\n"}},
    "headers, no name": {"headers": {"A b": "Bearer hush"}},
    "headers, no text": {"headers": {"Authorization": ["Bearer hush"]}},
    "headers, no table": {"headers": "Authorization: Bearer hush"},
    "headers, a list": {"headers": [{"Authorization": "Bearer hush"}]},
    "a user in the url": {"url": "https://me:hush@127.0.0.1/?token=hush"},
    "a user in the other url": {"identity_url": "http://me:hush@127.0.0.1:99999/"},
}


@pytest.mark.parametrize("change", SECRET.values(), ids=SECRET)
def test_no_error_shows_what_may_be_a_secret(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"^\[providers\.http\] [^={}\n]") as error:
        options_for(Http, {**WHOLE, **change})
    assert "hush" not in str(error.value)
    assert "{" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_page_that_cannot_be_asked_ends_with_one_line_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(
        "[providers.http]\nurl = 'http://h/'\nnotice = 'y'\nheaders = { Authorization = 'Bearer hush' }\n"
    )
    with Watching(tmp_path, ["touch", "ran"], "--provider", "http", "--config", "config") as watch:
        status = watch.wait()

    assert status == 2
    assert watch.err == (
        "preemptd: [providers.http] say what means that there is nothing: clear, or clear_status with identity_url\n"
    )
    assert not (tmp_path / "ran").exists()
