"""What GCE announces with a date: a graceful stop, and maintenance that is planned days ahead."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import pytest

from preemptd.notices import Kind, Level, Notice
from preemptd.provider import Observation, State, Surroundings, Watch
from preemptd_providers.gce import Gce, GceOptions
from tests.metadata_server import FaultyGce, body, raw, status

GOOGLE = {"Metadata-Flavor": "Google"}
STOP_STATE, UPCOMING = "shutdown-details/stop-state", "upcoming-maintenance/"


@pytest.fixture
def server() -> Iterator[FaultyGce]:
    with FaultyGce(grace=600.0) as server:
        server.waits = False
        yield server


@pytest.fixture
def watches(server: FaultyGce) -> Iterator[tuple[Watch, ...]]:
    provider = Gce(GceOptions(), Surroundings({"GCE_METADATA_HOST": server.url}, lead=300.0))
    yield tuple(provider.watches())
    provider.close()


@pytest.fixture
def stop(server: FaultyGce, watches: tuple[Watch, ...]) -> Watch:
    server.event = "stop"
    return watches[2]


@pytest.fixture
def upcoming(server: FaultyGce, watches: tuple[Watch, ...]) -> Watch:
    server.event = "upcoming"
    return watches[3]


def noticed(observation: Observation) -> Notice:
    assert observation.notice is not None, observation
    return observation.notice


def test_a_graceful_stop_is_a_notice_with_the_time_that_is_granted(server: FaultyGce, stop: Watch) -> None:
    before = stop.observe()
    server.announcement.announce()

    notice = noticed(stop.observe())

    assert before.state is State.CLEAR
    assert (notice.event_id, notice.kind, notice.level) == ("gce:stop", Kind.STOP, Level.ACT)
    assert notice.remaining == pytest.approx(600, abs=30)
    assert notice.deadline is not None


def test_the_granted_time_is_counted_by_the_servers_clock(server: FaultyGce, stop: Watch) -> None:
    """Ours is five hours ahead: the request was made at 12:00, it is 12:01, and five minutes are granted."""
    server.announcement.announce()
    values = {
        "stop-state": "PENDING_STOP",
        "max-duration": "300s",
        "request-timestamp": "2026-03-01T12:00:00.123456789Z",
    }
    date = {"Date": "Sun, 01 Mar 2026 12:01:00 GMT", **GOOGLE}
    server.fault = lambda exchange: status(200, date, values[exchange.request.path.rpartition("/")[2]].encode())(
        exchange
    )

    assert noticed(stop.observe()).remaining == 240


@pytest.mark.parametrize("missing", ["max-duration", "request-timestamp"])
def test_a_stop_that_does_not_say_how_long_counts_with_the_default_grace(
    server: FaultyGce, stop: Watch, missing: str
) -> None:
    server.announcement.announce()
    server.fault, server.fault_on = status(404), missing

    notice = noticed(stop.observe())

    assert (notice.level, notice.remaining, notice.deadline) == (Level.ACT, None, None)


def test_a_machine_that_stops_is_going_and_does_not_say_for_how_long(server: FaultyGce, stop: Watch) -> None:
    server.fault = body(b"STOPPING")

    notice = noticed(stop.observe())

    assert (notice.event_id, notice.remaining) == ("gce:stop", None)


def test_a_machine_without_graceful_stops_is_looked_at_once_a_minute(server: FaultyGce, stop: Watch) -> None:
    server.announced = {}
    off = stop.observe().state, stop.interval, stop.waits
    server.event = "stop"
    on = stop.observe().state, stop.interval

    assert off == (State.CLEAR, 60.0, False)
    assert on == (State.CLEAR, 1.0)


@pytest.mark.parametrize("value", [b"UNSPECIFIED", b"UNKNOWN"])
def test_a_machine_that_runs_is_clear(server: FaultyGce, stop: Watch, value: bytes) -> None:
    server.fault = body(value)

    assert stop.observe().state is State.CLEAR


@pytest.mark.parametrize("which", [2, 3])
def test_404_of_somebody_else_is_unknown(server: FaultyGce, watches: tuple[Watch, ...], which: int) -> None:
    server.fault = raw(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    assert watches[which].observe().state is State.UNKNOWN


def test_what_is_planned_is_advice_until_the_lead_is_left(server: FaultyGce, upcoming: Watch) -> None:
    server.announcement.announce()

    notice = noticed(upcoming.observe())

    assert (notice.event_id, notice.kind, notice.level) == (
        "gce:upcoming-maintenance",
        Kind.MAINTENANCE,
        Level.ADVISE,
    )
    assert notice.remaining == pytest.approx(600, abs=30)
    assert notice.act_within == 300.0


NOTHING = {
    "503": status(503, GOOGLE),
    "404": status(404, GOOGLE),
    "an empty object": body(b"{ }"),
    "NONE": body(b"NONE"),
    "NONE in JSON": body(b'"NONE"'),
    "nothing yet": body(b'{ "error": "no notifications have been received yet, try again later" }'),
}


@pytest.mark.parametrize("form", NOTHING)
def test_nothing_is_planned_in_each_of_its_forms(server: FaultyGce, upcoming: Watch, form: str) -> None:
    server.fault = NOTHING[form]

    assert [upcoming.observe().state for _ in range(2)] == [State.CLEAR] * 2


FORMS = ["windowStartTime", "window_start_time", "startTime"]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("key", FORMS)
def test_its_date_is_read_in_each_of_its_forms(server: FaultyGce, upcoming: Watch, key: str, wrapped: bool) -> None:
    start = datetime.now(timezone.utc) + timedelta(hours=8)
    document: dict[str, object] = {"type": "SCHEDULED", key: start.isoformat()}
    server.fault = body(json.dumps({"Upcoming maintenance": document} if wrapped else document).encode())

    assert noticed(upcoming.observe()).remaining == pytest.approx(8 * 3600, abs=60)


def test_maintenance_without_a_date_is_advice_for_good(server: FaultyGce, upcoming: Watch) -> None:
    server.fault = body(b'{"maintenanceStatus": "PENDING", "type": "UNSCHEDULED"}')

    notice = noticed(upcoming.observe())

    assert (notice.level, notice.remaining, notice.act_within) == (Level.ADVISE, None, None)


@pytest.mark.parametrize("nothing", ["503", "404", "an empty object"])
def test_one_nothing_takes_no_plan_back_and_the_third_does(server: FaultyGce, upcoming: Watch, nothing: str) -> None:
    server.announcement.announce()
    planned = upcoming.observe().state
    server.fault = NOTHING[nothing]

    assert planned is State.NOTICE
    assert [upcoming.observe().state for _ in range(4)] == [State.UNKNOWN, State.UNKNOWN, State.CLEAR, State.CLEAR]


@pytest.mark.parametrize("nothing", ["NONE", "NONE in JSON", "nothing yet"])
def test_what_says_that_nothing_is_planned_takes_it_back_at_once(
    server: FaultyGce, upcoming: Watch, nothing: str
) -> None:
    server.announcement.announce()
    planned = upcoming.observe().state
    server.fault = NOTHING[nothing]

    assert (planned, upcoming.observe().state) == (State.NOTICE, State.CLEAR)


def test_one_404_takes_no_stop_back_and_the_third_does(server: FaultyGce, stop: Watch) -> None:
    server.announcement.announce()
    announced = stop.observe().state
    server.fault = status(404, GOOGLE)

    assert announced is State.NOTICE
    assert [stop.observe().state for _ in range(4)] == [State.UNKNOWN, State.UNKNOWN, State.CLEAR, State.CLEAR]


def test_a_503_between_two_looks_at_a_plan_does_not_count_towards_the_next(server: FaultyGce, upcoming: Watch) -> None:
    server.announcement.announce()
    states = []
    for _ in range(3):
        server.fault = None
        states.append(upcoming.observe().state)
        server.fault = status(503, GOOGLE)
        states.append(upcoming.observe().state)

    assert states == [State.NOTICE, State.UNKNOWN] * 3


@pytest.mark.parametrize("answer", [b"[]", b"1", b'{"a": 1, "b": 2}', b"<html>", b"", b'{"error": "quota"}'])
def test_what_is_no_plan_is_unknown(server: FaultyGce, upcoming: Watch, answer: bytes) -> None:
    server.fault = body(answer)

    assert upcoming.observe().state is State.UNKNOWN
