"""Every fault of a metadata server, on every cloud: one event where there is one, none where there is none, no end."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from preemptd.provider import Provider, State, Surroundings, Watch
from preemptd_providers.ec2 import Ec2, Ec2Options
from preemptd_providers.gce import Gce, GceOptions
from tests.metadata_server import (
    Fault,
    FaultyEc2,
    FaultyGce,
    body,
    drip,
    drip_body,
    hang,
    hang_up,
    raw,
    redirect,
    status,
)

FAULTS: dict[str, Fault] = {
    "500": status(500),
    "503 with Retry-After": status(503, {"Retry-After": "1"}),
    "429": status(429),
    "403": status(403),
    "401": status(401),
    "404 to everything": status(404),
    "418": status(418),
    "HTML with 200": body(b"<html><body>Please log in. TRUE terminate 2030-01-01T00:00:00Z</body></html>"),
    "{}": body(b"{}"),
    "truncated JSON": body(b'{"action": "terminate", "time": "20'),
    "nothing with 200": body(b""),
    "JSON of another thing": body(b'{"error": "no notifications have been received yet, try again later"}'),
    "64 KiB and one byte more": body(b" " * (64 * 1024 - 3) + b"TRUE"),
    "a redirect": redirect,
    "a gzip bomb's header": status(200, {"Content-Encoding": "gzip"}, b"\x1f\x8b\x08\x00TRUE"),
    "no HTTP": raw(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n"),
    "half an answer": raw(b"HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\nContent-Length: 40\r\n\r\nTR"),
    "a hang-up": hang_up,
    "silence": hang,
    "a byte now and then": drip,
    "a body without end": drip_body,
}
SLOW = {"silence", "a byte now and then", "a body without end"}
"""Those that a look meets until its deadline."""


@dataclass
class World:
    """One cloud: its server, its provider, and the watch of its main signal."""

    server: FaultyEc2 | FaultyGce
    provider: Provider
    watch: Watch

    def states(self, number: int) -> list[State]:
        return [self.watch.observe().state for _ in range(number)]

    def event_ids(self, number: int) -> set[str]:
        observations = [self.watch.observe() for _ in range(number)]
        return {observation.notice.event_id for observation in observations if observation.notice}


def ec2_provider(url: str, within: str) -> Provider:
    return Ec2(
        Ec2Options(),
        Surroundings({"AWS_EC2_METADATA_SERVICE_ENDPOINT": url, "AWS_METADATA_SERVICE_TIMEOUT": within}),
    )


def gce_provider(url: str, within: str) -> Provider:
    return Gce(GceOptions(), Surroundings({"GCE_METADATA_HOST": url, "GCE_METADATA_TIMEOUT": within}))


def make_ec2(port: int = 0) -> FaultyEc2:
    return FaultyEc2(port=port)


def make_gce(port: int = 0) -> FaultyGce:
    server = FaultyGce(port=port)
    server.waits = False  # the fault is to be met by each look at once
    return server


CLOUDS: dict[str, tuple[Callable[[int], FaultyEc2 | FaultyGce], Callable[[str, str], Provider], str]] = {
    "ec2": (make_ec2, ec2_provider, "ec2:terminate"),
    "gce": (make_gce, gce_provider, "gce:preempted"),
}


@pytest.fixture(params=CLOUDS)
def cloud(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def within() -> str:
    """Seconds for a request."""
    return "5"


@pytest.fixture
def world(cloud: str, within: str) -> Iterator[World]:
    make_server, make_provider, _ = CLOUDS[cloud]
    with make_server(0) as server:
        provider = make_provider(server.url, within)
        yield World(server, provider, provider.watches()[0])
        provider.close()


@pytest.mark.parametrize(("fault", "within"), [(fault, "0.7" if fault in SLOW else "5") for fault in FAULTS])
def test_a_fault_is_neither_a_notice_nor_its_absence_and_ends_with_its_end(
    fault: str, world: World, cloud: str
) -> None:
    looks = 1 if fault in SLOW else 2
    world.server.fault = FAULTS[fault]
    assert world.states(looks) == [State.UNKNOWN] * looks

    world.server.fault = None
    assert world.states(2) == [State.CLEAR] * 2

    world.server.announcement.announce()
    assert world.event_ids(2) == {CLOUDS[cloud][2]}

    world.server.fault = FAULTS[fault]
    assert world.states(looks) == [State.UNKNOWN] * looks  # which takes nothing back

    world.server.fault = None
    assert world.event_ids(2) == {CLOUDS[cloud][2]}


def test_an_error_says_in_one_line_what_was_asked_and_what_came_back(world: World) -> None:
    world.server.fault = status(500)

    error = str(world.watch.observe().error)

    assert world.server.url in error
    assert "HTTP 500" in error
    assert "\n" not in error


def test_a_server_that_is_away_across_the_trigger_is_heard_when_it_is_back(cloud: str) -> None:
    make_server, make_provider, event_id = CLOUDS[cloud]
    with make_server(0) as before:
        provider = make_provider(before.url, "5")
        world = World(before, provider, provider.watches()[0])
        assert world.states(2) == [State.CLEAR] * 2
    assert world.states(3) == [State.UNKNOWN] * 3

    with make_server(before.port) as after:
        after.announcement.announce()
        found = world.event_ids(3)
        provider.close()

    assert found == {event_id}


def test_a_lying_proxy_in_the_environment_is_never_asked(
    world: World, cloud: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CLOUDS[cloud][0](0) as proxy:
        proxy.fault = body(b'{"action": "terminate", "time": "2030-01-01T00:00:00Z"}' if cloud == "ec2" else b"TRUE")
        for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(variable, proxy.url)

        assert world.states(2) == [State.CLEAR] * 2
        assert proxy.asked == []
        assert world.provider.probe() is not None
        assert proxy.asked == []


def test_a_closed_watch_is_unknown_and_stays_so(world: World) -> None:
    world.watch.observe()
    world.watch.close()

    assert world.states(2) == [State.UNKNOWN] * 2
