"""A server that answers too late, at every source: a look ends within its limit, and nothing was heard.

All of them wait side by side: the limits of the clouds are seconds, and nobody may set them.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from preemptd.provider import State
from tests.every_provider import SOURCES, Source
from tests.every_world import SiteWorld, at_site
from tests.metadata_server import Exchange, Fault, drip_body, hang
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("every provider, slowly")]

WITHIN = 2.0
SLACK = 20.0
"""Seconds for a machine that others use as well."""


def late(limit: float) -> Fault:
    """Give the true answer, whole and at once, a second after the limit."""

    def fault(exchange: Exchange) -> None:
        if not exchange.closes_within(limit + 1.0):
            exchange.connection.sendall(exchange.reply.wire(time.time()))

    return fault


def byte_by_byte(exchange: Exchange) -> None:
    """Send the true answer; its status line alone takes three seconds."""
    for byte in exchange.reply.wire(time.time()):
        exchange.connection.sendall(bytes([byte]))
        if exchange.closes_within(0.2):
            return


def chunk_by_chunk(exchange: Exchange) -> None:
    """Send a body without end, of chunks that come in time each."""
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not exchange.closes_within(0.05):
        exchange.connection.sendall(b"1\r\n \r\n")


def header_by_header(exchange: Exchange) -> None:
    """Say that it goes on, and on."""
    while not exchange.closes_within(0.05):
        exchange.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


SLOW: Mapping[str, Callable[[float], Fault]] = {
    "an answer after the limit": late,
    "silence": lambda _: hang,
    "a byte now and then": lambda _: byte_by_byte,
    "a body without end": lambda _: drip_body,
    "chunks without end": lambda _: chunk_by_chunk,
    "interim answers without end": lambda _: header_by_header,
}
CASES = [(source, fault) for source in SOURCES for fault in SLOW]


def endures(source: Source, fault: Fault, limit: float) -> list[object]:
    """Return what the looks found: before, during and after the fault, without and with an announcement."""
    with at_site(source, WITHIN) as world:
        found: list[object] = [heard(world), heard(world)]  # the first answer of a cloud may take longer (Azure)
        found += look_through(world, fault, limit)
        world.announce()
        found += [heard(world)]
        found += look_through(world, fault, limit)
        return found


def look_through(world: SiteWorld, fault: Fault, limit: float) -> list[object]:
    """Look while the *fault* is there, then when it is over."""
    world.site.fault = fault
    began = time.monotonic()
    state = world.look().state
    took = time.monotonic() - began
    world.site.fault = None
    return [state, limit - 0.1 <= took <= limit + SLACK, heard(world)]


def heard(world: SiteWorld) -> State:
    """Look until something is heard: so many at once may be too much for this machine at first."""
    found = wait_until(lambda: [state for state in world.states(1) if state is not State.UNKNOWN], 60)
    return found[0]


@pytest.fixture(scope="module")
def enduring() -> Iterator[Mapping[tuple[str, str], "Future[list[object]]"]]:
    """Every source and fault, under way."""
    with ThreadPoolExecutor(len(CASES)) as pool:
        futures = {}
        for name, fault in CASES:
            limit = SOURCES[name].limit or WITHIN
            futures[name, fault] = pool.submit(endures, SOURCES[name], SLOW[fault](limit), limit)
        yield futures


@pytest.mark.parametrize(("source", "fault"), CASES)
def test_a_look_ends_within_its_limit_and_has_heard_nothing(
    source: str, fault: str, enduring: Mapping[tuple[str, str], "Future[list[object]]"]
) -> None:
    clear, notice, unknown = State.CLEAR, State.NOTICE, State.UNKNOWN

    assert enduring[source, fault].result(180) == [
        *(clear, clear),
        *(unknown, True, clear),
        notice,
        *(unknown, True, notice),
    ]
