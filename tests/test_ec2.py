"""EC2's spot notices, read from a server that speaks as EC2's does."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from preemptd.errors import ProviderError
from preemptd.notices import Kind, Level
from preemptd.provider import State, Surroundings
from preemptd_providers._deadline_text import rfc3339
from preemptd_providers._metadata import Answer
from preemptd_providers.ec2 import Ec2, Ec2Options, SpotWatch, parse_action, parse_termination_time
from tests.ec2_parts import ACTION, ENDPOINT, INSTANCE_ID, TERMINATION_TIME, TOKEN, noticed, watch_of
from tests.metadata_server import FaultyEc2, RollingEc2, body, status


@pytest.fixture
def server() -> Iterator[FaultyEc2]:
    with FaultyEc2() as server:
        yield server


MakeProvider = Callable[..., Ec2]


@pytest.fixture
def provider_at() -> Iterator[MakeProvider]:
    made = []

    def make(url: str, **environ: str) -> Ec2:
        provider = Ec2(Ec2Options(), Surroundings({ENDPOINT: url, **environ}))
        made.append(provider)
        return provider

    yield make
    for provider in made:
        provider.close()


@pytest.fixture
def watch(server: FaultyEc2, provider_at: MakeProvider) -> SpotWatch:
    return watch_of(provider_at(server.url))


def test_404_on_the_signal_path_of_an_ec2_server_means_no_notice(server: FaultyEc2, watch: SpotWatch) -> None:
    assert watch.observe().state is State.CLEAR
    assert watch.observe().state is State.CLEAR
    assert server.asked_paths() == [TOKEN, ACTION, TERMINATION_TIME, INSTANCE_ID, ACTION]


def test_a_termination_is_to_be_acted_on_with_the_servers_time(server: FaultyEc2, watch: SpotWatch) -> None:
    server.announcement.announce()

    notice = noticed(watch.observe())

    assert (notice.event_id, notice.kind, notice.level) == ("ec2:terminate", Kind.TERMINATE, Level.ACT)
    assert notice.remaining is not None
    assert 110 <= notice.remaining <= 120
    assert notice.deadline is not None
    assert notice.deadline.tzinfo is timezone.utc
    assert not notice.final


def test_a_time_that_rolls_at_each_get_is_one_event(provider_at: MakeProvider) -> None:
    with RollingEc2() as server:
        server.announcement.announce()
        watch = watch_of(provider_at(server.url))
        notices = [noticed(watch.observe()) for _ in range(4)]

    assert len({notice.deadline for notice in notices}) == 4
    assert {notice.event_id for notice in notices} == {"ec2:terminate"}


def test_the_remaining_time_is_counted_by_the_servers_clock(server: FaultyEc2, watch: SpotWatch) -> None:
    past = datetime.now(timezone.utc) - timedelta(hours=5)  # our clock is five hours ahead of it
    server.fault = status(
        200,
        {"Date": past.strftime("%a, %d %b %Y %H:%M:%S GMT")},
        json.dumps({"action": "stop", "time": f"{past + timedelta(seconds=90):%Y-%m-%dT%H:%M:%SZ}"}).encode(),
    )
    server.fault_on = "instance-action"

    assert noticed(watch.observe()).remaining == 90


def test_hibernation_is_final_and_leaves_no_time(server: FaultyEc2, watch: SpotWatch) -> None:
    server.event = "hibernate"
    server.announcement.announce()

    notice = noticed(watch.observe())

    assert (notice.kind, notice.remaining, notice.final) == (Kind.HIBERNATE, 0.0, True)


def test_an_unknown_action_with_a_time_is_acted_on(server: FaultyEc2, watch: SpotWatch) -> None:
    server.event = "vaporize"
    server.announcement.announce()

    notice = noticed(watch.observe())

    assert (notice.event_id, notice.kind, notice.level) == ("ec2:vaporize", Kind.PREEMPT, Level.ACT)


def test_a_known_action_without_a_time_leaves_the_two_minutes_that_aws_announces(
    server: FaultyEc2, watch: SpotWatch
) -> None:
    server.fault, server.fault_on = body(b'{"action": "terminate"}'), "instance-action"

    assert noticed(watch.observe()).remaining == 120


def test_a_token_that_is_never_taken_is_asked_for_once_a_look(server: FaultyEc2, watch: SpotWatch) -> None:
    server.fault, server.fault_on = status(401), "instance-action"

    observation = watch.observe()

    assert observation.state is State.UNKNOWN
    assert "401 with a new token" in str(observation.error)
    assert server.asked_paths() == [TOKEN, ACTION, TOKEN, ACTION]


def test_termination_time_is_heard_where_instance_action_is_silent(server: FaultyEc2, watch: SpotWatch) -> None:
    server.fault, server.fault_on = status(404), "instance-action"
    server.announcement.announce()

    notices = [noticed(watch.observe()) for _ in range(3)]

    assert {(notice.event_id, notice.source) for notice in notices} == {("ec2:terminate", "spot/termination-time")}


def test_one_event_where_both_paths_show_it_one_after_the_other(server: FaultyEc2, watch: SpotWatch) -> None:
    server.announcement.announce()
    first = noticed(watch.observe())
    server.fault, server.fault_on = status(404), "instance-action"

    second = noticed(watch.observe())

    assert first.source != second.source
    assert first.event_id == second.event_id


def test_a_termination_time_that_is_no_time_is_no_notice(server: FaultyEc2, watch: SpotWatch) -> None:
    server.fault, server.fault_on = body(b"not-scheduled"), "termination-time"

    assert watch.observe().state is State.CLEAR


def test_a_failing_fallback_path_does_not_hide_the_main_one(server: FaultyEc2, watch: SpotWatch) -> None:
    server.fault, server.fault_on = status(500), "termination-time"

    assert watch.observe().state is State.CLEAR


def test_a_notice_that_is_taken_back_is_clear_only_after_the_server_proved_itself_again(
    server: FaultyEc2, watch: SpotWatch
) -> None:
    watch.observe()
    server.announcement.announce()
    watch.observe()
    server.announcement.revoke()
    server.fault = status(404)
    assert watch.observe().state is State.UNKNOWN

    server.fault = None

    assert watch.observe().state is State.CLEAR


@pytest.mark.parametrize("identity", [b"<html>hello</html>", b"", b"i-1\ni-2", b"no id here"])
def test_404_of_a_server_that_knows_no_instance_id_means_nothing(
    identity: bytes, server: FaultyEc2, watch: SpotWatch
) -> None:
    server.fault, server.fault_on = body(identity), "instance-id"

    assert watch.observe().state is State.UNKNOWN


def answer(content: bytes) -> Answer:
    return Answer("http://x", "GET", 200, {"Date": "Fri, 20 Nov 2026 10:00:00 GMT"}, content, 1.0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 60000)
@example(b"1" * 60000)
@example(b"\xff\xfe{}")
@example(b'{"action": "login please", "time": "2017-09-18T08:22:00Z"}')
@example(b'{"action": "none", "time": "never"}')
def test_no_other_document_is_an_instance_action(content: bytes) -> None:
    with pytest.raises(ProviderError):
        parse_action(answer(content), "ec2")


@given(
    st.fixed_dictionaries({"action": st.sampled_from(["terminate", "stop", "zap"]), "time": st.datetimes().map(str)})
)
def test_no_time_makes_an_exception_of_another_kind(document: dict[str, str]) -> None:
    document["time"] = document["time"][:19].replace(" ", "T") + "+14:00"
    try:
        notice = parse_action(answer(json.dumps(document).encode()), "ec2")
    except ProviderError:
        return

    assert notice.event_id == f"ec2:{document['action']}"
    assert isinstance(notice.remaining, float)


@given(st.text(max_size=40))
@example("2017-09-18T08:22:00")
@example("2017-13-18T08:22:00Z")
@example("2017-09-18")
@example("\u0662017-09-18T08:22:00Z")
def test_no_other_text_is_a_termination_time(text: str) -> None:
    assert parse_termination_time(answer(text.encode()), "ec2") is None


@pytest.mark.parametrize("text", ["2017-09-18T08:22:00Z", "2017-09-18T10:22:00.123456789+02:00"])
def test_rfc_3339_times_are_read(text: str) -> None:
    assert rfc3339(text) == datetime(2017, 9, 18, 8, 22, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    "content", [b"<html>terminate</html>", b"{}", b"", b"[]", b"null", b'{"action": "terminate", "ti', b'{"action": 7}']
)
def test_another_document_on_the_signal_path_is_no_notice_and_takes_none_back(
    content: bytes, server: FaultyEc2, watch: SpotWatch
) -> None:
    server.fault_on = "instance-action"
    server.announcement.announce()
    for fault, state in ((body(content), State.UNKNOWN), (None, State.NOTICE), (body(content), State.UNKNOWN)):
        server.fault = fault

        assert watch.observe().state is state
