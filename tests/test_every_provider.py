"""What every source of notices keeps, whatever its server or its command does: one event where there is one."""

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

import pytest

from preemptd.events import Event, NoticeArrived, NoticeRevoked, WatchChanged
from preemptd.news import News
from preemptd.poller import Poller
from preemptd.provider import State, Surroundings
from preemptd.registry import installed, load
from tests.every_provider import COMPUTE, SOURCES
from tests.every_world import Looking, SiteWorld, World, at_site, world_of
from tests.metadata_server import Exchange, Fault, body, hang, hang_up, raw, redirect, status
from tests.waiting import wait_until


def reset(exchange: Exchange) -> None:
    """Break the connection so that the other side gets an error."""
    exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.connection.shutdown(socket.SHUT_RD)  # so that the server hears no more, and closes it


FAULTS: dict[str, Fault] = {
    "500": status(500),
    "503 with Retry-After": status(503, {"Retry-After": "1"}),
    "429": status(429),
    "410": status(410),
    "403": status(403),
    "401": status(401),
    "400": status(400),
    "404 to everything": status(404),
    "404 of somebody else": status(404, {"Metadata-Flavor": "", "Server": "nginx"}),
    "204": status(204, content=b""),
    "206": status(206, content=b"TRUE"),
    "418": status(418),
    "HTML with 200": body(b"<html><body>Please log in. TRUE terminate 2030-01-01T00:00:00Z</body></html>"),
    "{}": body(b"{}"),
    "null": body(b"null"),
    "[]": body(b'["terminate"]'),
    "truncated JSON": body(b'{"action": "terminate", "time": "20'),
    "nothing with 200": body(b""),
    "a null byte": body(b"\0"),
    "JSON of another thing": body(b'{"error": "no notifications have been received yet, try again later"}'),
    "64 KiB and one byte more": body(b" " * (64 * 1024 - 3) + b"TRUE"),
    "deep JSON": body(b"[" * 50_000),
    "a redirect": redirect,
    "a redirect to itself": status(307, {"Location": "/"}),
    "a gzip bomb's header": status(200, {"Content-Encoding": "gzip"}, b"\x1f\x8b\x08\x00TRUE"),
    "no HTTP": raw(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n"),
    "half an answer": raw(b"HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\nContent-Length: 40\r\n\r\nTR"),
    "half a chunk": raw(b"HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nTRUE"),
    "no last chunk": raw(
        b"HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nTRUE\r\n"
    ),
    "headers that end too early": raw(b"HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\n"),
    "a header without end": raw(b"HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\nX: " + b"x" * 100_000),
    "a thousand headers": raw(b"HTTP/1.1 200 OK\r\n" + b"Metadata-Flavor: Google\r\n" * 1000 + b"\r\nTRUE"),
    "another HTTP": raw(b"HTTP/2.0 200 OK\r\nMetadata-Flavor: Google\r\nContent-Length: 6\r\n\r\n{null}"),
    "TLS": raw(b"\x15\x03\x01\x00\x02\x02\x46"),
    "a hang-up": hang_up,
    "a reset": reset,
}
"""What each look may meet, and none of it means anything; but see `Source.negatives`."""

COMMAND_FAULTS = {
    "status 1": "exit 1",
    "the status of a notice, and one more": "echo 90; exit 76",
    "a time, and the status of a failure": "echo 90; exit 1",
    "a signal": "echo 90; kill -KILL $$",
    "SIGTERM": "echo 90; kill -TERM $$",
    "no such command": "no-such-command",
    "no script": "(",
}
CASES = [
    *((name, fault) for name, source in SOURCES.items() for fault in FAULTS if fault not in source.negatives),
    *(("exec", fault) for fault in COMMAND_FAULTS),
]
WORLDS = (*SOURCES, "exec", "file")
ELSEWHERE = {"shutdown", "sigterm", "slurm"}
"""Providers that hear no server, and have tests of their own; the `file` provider has some of its own, too."""


def fault_named(name: str) -> Fault | str:
    return FAULTS[name] if name in FAULTS else COMMAND_FAULTS[name]


@pytest.fixture
def source(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def world(source: str, tmp_path: Path) -> Iterator[World]:
    with world_of(source, tmp_path) as world:
        yield world


def test_every_watch_of_every_provider_is_here() -> None:
    with ExitStack() as stack:
        known = {stack.enter_context(at_site(source)).watch.name for source in SOURCES.values()}
    options = {"ec2": {"lifecycle": True}, "http": {"url": "http://127.0.0.1:9/", "notice": "yes", "clear": "no"}}
    kinds = [kind for name, kind in load(installed()).providers.items() if name not in {"exec", "file"} | ELSEWHERE]
    made = [kind(kind.options_type.model_validate(options.get(kind.name, {})), Surroundings({})) for kind in kinds]

    assert {watch.name for provider in made for watch in provider.watches()} == known


@pytest.mark.parametrize(("source", "fault"), CASES, indirect=["source"])
def test_a_fault_is_neither_a_notice_nor_its_absence_and_ends_with_its_end(world: World, fault: str) -> None:
    met = fault_named(fault)
    world.misbehave(met)
    assert world.states(2) == [State.UNKNOWN] * 2

    world.misbehave(None)
    assert world.states(2) == [State.CLEAR] * 2

    world.announce()
    assert world.event_ids(2) == {world.event_id}

    world.misbehave(met)
    assert world.states(2) == [State.UNKNOWN] * 2  # which takes nothing back

    world.misbehave(None)
    assert world.event_ids(2) == {world.event_id}


@pytest.mark.parametrize("source", SOURCES)
def test_as_many_bytes_as_are_allowed_are_read_and_not_one_more(source: str) -> None:
    with at_site(SOURCES[source]) as world:
        for fill in (world.announce, world.withdraw):
            fill()
            expected = world.look().state
            code, content = world.site.pages.get(world.source.key, (404, b""))
            world.site.pages[world.source.key] = (code, content.ljust(world.source.longest))
            assert world.look().state is expected

            world.site.pages[world.source.key] = (code, content.ljust(world.source.longest + 1))
            assert world.look().state is State.UNKNOWN


@pytest.mark.parametrize("source", SOURCES)
def test_all_that_people_read_is_one_line_that_says_where_it_looks_and_no_secret(source: str) -> None:
    with at_site(SOURCES[source]) as world:
        world.announce()
        notice = world.look().notice
        world.site.fault = status(500)
        error = str(world.look().error)

        assert notice is not None
        assert world.site.url in error
        assert "HTTP 500" in error
        for text in (error, notice.source, world.provider.describe(), world.watch.name):
            assert text.isprintable()
            assert "hush" not in text


@pytest.mark.parametrize("source", SOURCES)
def test_a_server_that_is_away_across_the_trigger_is_heard_when_it_is_back(source: str) -> None:
    with at_site(SOURCES[source]) as world:
        assert world.states(2) == [State.CLEAR] * 2
        url, port = world.site.url, world.site.port
        world.site.close()
        assert world.states(3) == [State.UNKNOWN] * 3

        with at_site(SOURCES[source], port=port) as after:
            assert after.site.url == url
            after.announce()
            assert world.event_ids(3) == {world.event_id}


@pytest.mark.parametrize("source", SOURCES)
def test_a_lying_proxy_in_the_environment_is_never_asked(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with at_site(SOURCES[source]) as world, at_site(SOURCES[source]) as proxy:
        proxy.announce()
        for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(variable, proxy.site.url)
        monkeypatch.delenv("NO_PROXY", raising=False)

        assert world.states(2) == [State.CLEAR] * 2
        world.provider.probe()
        assert proxy.site.asked == []


@pytest.mark.parametrize("source", WORLDS)
def test_a_closed_watch_is_unknown_and_stays_so(world: World) -> None:
    world.look()
    world.watch.close()
    world.watch.close()

    assert world.states(2) == [State.UNKNOWN] * 2


@pytest.mark.parametrize("source", WORLDS)
def test_what_is_withdrawn_is_clear_and_announced_again_it_is_the_same_event(world: World) -> None:
    for _ in range(3):
        assert world.states(2) == [State.CLEAR] * 2
        world.announce()
        assert world.event_ids(2) == {world.event_id}
        world.withdraw()


@pytest.mark.parametrize("source", WORLDS)
def test_through_the_poller_each_announcement_arrives_once_and_is_revoked_once(world: World) -> None:
    world.watch.interval = 0.05
    found: SimpleQueue[Event] = SimpleQueue()
    poller = Poller(world.watch, found.put)
    poller.start()
    assert found.get(timeout=20) == WatchChanged(world.watch.name, None)
    for _ in range(2):
        world.announce()
        arrived = found.get(timeout=20)
        world.withdraw()
        revoked = found.get(timeout=20)

        assert isinstance(arrived, NoticeArrived)
        assert arrived.notice.event_id == world.event_id
        assert revoked == NoticeRevoked(world.watch.name, world.provider.name, world.event_id)
    poller.stop(10.0)

    assert found.empty()


@pytest.mark.parametrize("source", SOURCES)
def test_every_way_to_say_that_there_is_nothing_is_clear_and_takes_back_what_was_announced(source: str) -> None:
    for pages in SOURCES[source].clears.values():
        with at_site(SOURCES[source]) as world:
            world.show(pages)
            assert world.look().state is State.CLEAR

        with at_site(SOURCES[source]) as world:
            world.announce()
            assert world.look().state is State.NOTICE

            world.show(pages)
            states = world.states(3)
            assert states[-1] is State.CLEAR
            assert State.NOTICE not in states


def refusing_all(exchange: Exchange) -> None:
    status(404, {"Metadata-Flavor": ""})(exchange)


@pytest.mark.parametrize("fault", [refusing_all, hang_up, status(503, {"Metadata-Flavor": ""})])
@pytest.mark.parametrize("source", SOURCES)
def test_neither_an_outage_nor_a_404_to_everything_ever_withdraws(source: str, fault: Fault) -> None:
    news = News(source)
    with at_site(SOURCES[source]) as world:
        world.look()
        world.announce()
        arrived = news.take(world.look())
        world.withdraw()
        world.site.fault = fault
        after = [event for _ in range(5) for event in news.take(world.look())]

        assert [type(event) for event in arrived] == [NoticeArrived, WatchChanged]
        assert [type(event) for event in after] == [WatchChanged]


@pytest.mark.parametrize("source", SOURCES)
def test_all_that_is_said_of_an_event_is_one_event_however_it_is_said(source: str) -> None:
    it = SOURCES[source]
    news = News(source)
    with at_site(it) as world:
        events: list[Event] = []
        for number in range(3):  # the server computes the time anew at each GET
            end = time.time() + 600 + number
            for pages in (
                *(form(end) for form in it.forms.values()),
                *it.bare.values(),
                *(f(end) for f in it.same.values()),
            ):
                world.show(pages)
                events += news.take(world.look())

        arrived = [event.notice.event_id for event in events if isinstance(event, NoticeArrived)]
        assert set(arrived) == {it.event_id}
        assert not [event for event in events if isinstance(event, NoticeRevoked)]


PLACES = [(name, place) for name, source in SOURCES.items() for place in {**source.quiet, **source.announced(0.0)}]


@pytest.mark.parametrize(("source", "place"), PLACES)
def test_close_breaks_a_look_whichever_of_its_requests_hangs(source: str, place: str) -> None:
    with at_site(SOURCES[source], within=59.0) as world:
        world.site.fault, world.site.fault_on = hang, place
        looking = hanging(world, place)
        began = time.monotonic()
        world.watch.close()

        assert looking.result().state is not State.CLEAR or place == COMPUTE
        assert time.monotonic() - began < 15


def hanging(world: SiteWorld, place: str) -> Looking:
    """Begin a look that hangs at *place*, whatever has to be said there so that it is asked for."""
    source = world.source
    for pages in ({}, source.announced(time.time() + 90), *source.clears.values()):
        world.show(pages)
        looking = Looking(world.watch)
        wait_until(lambda looking=looking: place in world.site.asked or looking.is_done)  # type: ignore[misc]
        if place in world.site.asked:
            return looking
    raise AssertionError(f"{place} is never asked for")
