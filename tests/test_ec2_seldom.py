"""What EC2 announces besides interruptions: rebalance, scheduled events, the target state of an Auto Scaling group."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone

import pytest
from pydantic import ValidationError

from preemptd.notices import Kind, Level
from preemptd.provider import State, Surroundings, Watch
from preemptd_providers.ec2 import Ec2, Ec2Options
from tests.ec2_parts import ENDPOINT, noticed
from tests.metadata_server import FaultyEc2, body, status

REBALANCE = "ec2:events/recommendations/rebalance"
SCHEDULED = "ec2:events/maintenance/scheduled"
LIFECYCLE = "ec2:autoscaling/target-lifecycle-state"
WatchOf = Callable[[str], Watch]


@pytest.fixture
def server() -> Iterator[FaultyEc2]:
    with FaultyEc2() as server:
        yield server


@pytest.fixture
def watch_of(server: FaultyEc2) -> Iterator[WatchOf]:
    provider = Ec2(Ec2Options(lifecycle=True, lifecycle_s=600), Surroundings({ENDPOINT: server.url}, lead=300.0))
    watches = {watch.name: watch for watch in provider.watches()}
    yield watches.__getitem__
    provider.close()


def event(**fields: object) -> dict[str, object]:
    return {"Code": "system-reboot", "EventId": "e1", "NotBefore": "", "State": "active", **fields}


def in_hours(hours: float) -> str:
    return (datetime.now(timezone.utc) + timedelta(hours=hours)).strftime("%d %b %Y %H:%M:%S GMT")


def shows(server: FaultyEc2, *events: object) -> None:
    server.fault, server.fault_on = body(json.dumps(events).encode()), "scheduled"


def test_who_did_not_ask_for_the_lifecycle_is_not_asked_for_it() -> None:
    provider = Ec2(Ec2Options(), Surroundings({}))

    assert LIFECYCLE not in {watch.name for watch in provider.watches()}


def test_what_comes_seldom_is_looked_at_seldom_and_its_silence_is_no_outage(watch_of: WatchOf) -> None:
    watches = [watch_of(name) for name in (REBALANCE, SCHEDULED, LIFECYCLE)]

    assert [(watch.interval, watch.secondary) for watch in watches] == [(5.0, True), (60.0, True), (5.0, False)]


@pytest.mark.parametrize("name", [REBALANCE, SCHEDULED, LIFECYCLE])
def test_nothing_is_clear(watch_of: WatchOf, name: str) -> None:
    assert [watch_of(name).observe().state for _ in range(2)] == [State.CLEAR] * 2


def test_a_rebalance_recommendation_is_advice_without_a_date(server: FaultyEc2, watch_of: WatchOf) -> None:
    server.event = "rebalance"
    server.announcement.announce()

    notice = noticed(watch_of(REBALANCE).observe())

    assert (notice.event_id, notice.kind, notice.level) == ("ec2:rebalance", Kind.REBALANCE, Level.ADVISE)
    assert (notice.remaining, notice.act_within) == (None, None)


def test_maintenance_with_a_date_is_advice_until_the_lead_is_left(server: FaultyEc2, watch_of: WatchOf) -> None:
    server.event = "scheduled"
    server.announcement.announce()

    notice = noticed(watch_of(SCHEDULED).observe())

    assert (notice.kind, notice.level, notice.act_within) == (Kind.MAINTENANCE, Level.ADVISE, 300.0)
    assert notice.event_id == "ec2:scheduled-instance-event-0d59937288b749b32"
    assert notice.remaining == pytest.approx(120, abs=30)
    assert notice.source == "events/maintenance/scheduled: system-reboot"


@pytest.mark.parametrize("state", ["canceled", "completed", "Completed"])
def test_an_event_that_is_canceled_or_completed_is_over(server: FaultyEc2, watch_of: WatchOf, state: str) -> None:
    shows(server, event(State=state, NotBefore=in_hours(1)))

    assert watch_of(SCHEDULED).observe().state is State.CLEAR


def test_of_several_events_the_next_one_counts(server: FaultyEc2, watch_of: WatchOf) -> None:
    shows(
        server,
        event(EventId="later", NotBefore=in_hours(50)),
        event(EventId="over", NotBefore=in_hours(1), State="canceled"),
        event(EventId="some day", NotBefore="soon"),
        event(EventId="next", NotBefore=in_hours(5)),
        {"EventId": "broken"},
    )

    notice = noticed(watch_of(SCHEDULED).observe())

    assert notice.event_id == "ec2:scheduled-next"
    assert notice.remaining == pytest.approx(5 * 3600, abs=60)


def test_an_event_that_goes_on_for_hours_hides_no_other(server: FaultyEc2, watch_of: WatchOf) -> None:
    going_on, coming = event(EventId="on", NotBefore=in_hours(-1)), event(EventId="coming", NotBefore=in_hours(5))
    seen = []
    for listed in ([going_on, coming], [going_on]):
        shows(server, *listed)
        seen.append(noticed(watch_of(SCHEDULED).observe()).event_id)

    assert seen == ["ec2:scheduled-coming", "ec2:scheduled-on"]


def test_an_event_without_a_date_is_advice_for_good(server: FaultyEc2, watch_of: WatchOf) -> None:
    shows(server, event())

    notice = noticed(watch_of(SCHEDULED).observe())

    assert (notice.level, notice.remaining, notice.act_within) == (Level.ADVISE, None, None)


@pytest.mark.parametrize("answer", [b"{}", b"[1]", b'[{"EventId": "x"}]', b"null", b"<html>", b"[" * 20000])
def test_what_is_no_list_of_events_is_unknown(server: FaultyEc2, watch_of: WatchOf, answer: bytes) -> None:
    server.fault, server.fault_on = body(answer), "scheduled"

    assert watch_of(SCHEDULED).observe().state is State.UNKNOWN


@pytest.mark.parametrize("state", ["Terminated", "Warmed:Terminated"])
def test_a_group_that_wants_the_machine_gone_is_a_notice(server: FaultyEc2, watch_of: WatchOf, state: str) -> None:
    server.fault, server.fault_on = body(state.encode()), "lifecycle-state"

    notice = noticed(watch_of(LIFECYCLE).observe())

    assert (notice.event_id, notice.kind, notice.level) == ("ec2:lifecycle", Kind.TERMINATE, Level.ACT)
    assert notice.remaining == 600


@pytest.mark.parametrize("state", ["InService", "Detached", "Standby", "Warmed:Stopped", "Warmed:Hibernated"])
def test_a_group_that_wants_anything_else_is_none(server: FaultyEc2, watch_of: WatchOf, state: str) -> None:
    server.fault, server.fault_on = body(state.encode()), "lifecycle-state"

    assert watch_of(LIFECYCLE).observe().state is State.CLEAR


@pytest.mark.parametrize("state", ["Detached", "Warmed:Stopped"])
def test_who_wants_it_hears_of_other_states(server: FaultyEc2, state: str) -> None:
    options = Ec2Options.model_validate({"lifecycle": True, "lifecycle_states": [state]})
    provider = Ec2(options, Surroundings({ENDPOINT: server.url}))
    watch = next(watch for watch in provider.watches() if watch.name == LIFECYCLE)
    seen = []
    for text in (state, "Terminated", "InService"):
        server.fault, server.fault_on = body(text.encode()), "lifecycle-state"
        seen.append(watch.observe())
    provider.close()

    assert (noticed(seen[0]).kind, noticed(seen[0]).level) == (Kind.STOP, Level.ACT)
    assert [each.state for each in seen[1:]] == [State.CLEAR, State.CLEAR]


@pytest.mark.parametrize("answer", [b"", b"terminated", b"<html>Terminated</html>"])
def test_another_word_of_the_group_is_unknown(server: FaultyEc2, watch_of: WatchOf, answer: bytes) -> None:
    server.fault, server.fault_on = body(answer), "lifecycle-state"

    assert watch_of(LIFECYCLE).observe().state is State.UNKNOWN


@pytest.mark.parametrize(("name", "word"), [(REBALANCE, "rebalance"), (LIFECYCLE, "lifecycle")])
def test_a_server_that_answers_404_to_everything_takes_nothing_back(
    server: FaultyEc2, watch_of: WatchOf, name: str, word: str
) -> None:
    watch = watch_of(name)
    server.event = word
    watch.observe()
    server.announcement.announce()
    announced = watch.observe().state
    server.fault = status(404)

    assert (announced, watch.observe().state) == (State.NOTICE, State.UNKNOWN)
    server.fault = None
    server.announcement.revoke()
    assert watch.observe().state is State.CLEAR


def test_a_state_that_is_none_is_the_only_mistake_that_is_named() -> None:
    with pytest.raises(ValidationError) as refused:
        Ec2Options.model_validate({"lifecycle": True, "lifecycle_states": ["Terminating"]})
    with pytest.raises(ValidationError, match="lifecycle_states is empty"):
        Ec2Options.model_validate({"lifecycle": True, "lifecycle_states": []})

    assert [error["loc"] for error in refused.value.errors()] == [("lifecycle_states", 0)]


@pytest.mark.parametrize("wish", [{"lifecycle_s": 600}, {"lifecycle_states": ["Standby"]}])
def test_a_wish_about_the_lifecycle_without_it_is_a_mistake(wish: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=f"{next(iter(wish))} says nothing without lifecycle = true"):
        Ec2Options.model_validate(wish)
