"""Azure's Scheduled Events, heard from a server that speaks as Azure's does."""

import email.utils
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone

import pytest

from preemptd.errors import ConfigError
from preemptd.notices import Kind, Level, Notice
from preemptd.provider import Found, Machine, Observation, State, Surroundings, Watch
from preemptd.rehearsal.other_clouds import NAME
from preemptd_providers._azure_watch import FIRST_SECONDS, WITHIN_SECONDS
from preemptd_providers._deadline_text import moment_of
from preemptd_providers.azure import CHASSIS, ENDPOINT, LONGEST_LIST, Azure, AzureOptions
from tests.metadata_server import Exchange, Fault, FaultyAzure, body, hang, hang_up, raw, status
from tests.waiting import wait_until


@pytest.fixture
def server() -> Iterator[FaultyAzure]:
    with FaultyAzure(60.0) as server:
        yield server


def azure_at(url: str, *, approve: bool = False, warn: Callable[[str], None] = print) -> Azure:
    return Azure(AzureOptions(approve=approve), Surroundings({ENDPOINT: url}, warn=warn))


def planned(type_: str, not_before: object = "", **more: object) -> dict[str, object]:
    """Make an event of this machine."""
    event = {"EventId": type_[0], "EventType": type_, "EventStatus": "Scheduled", "Resources": [NAME]}
    return {**event, "NotBefore": not_before, **more}


@pytest.fixture
def watch(server: FaultyAzure) -> Iterator[Watch]:
    provider = azure_at(server.url)
    (watch,) = provider.watches()
    yield watch
    provider.close()


def announced(server: FaultyAzure, watch: Watch, **event: object) -> Observation:
    server.fields.update(event)
    server.announcement.announce()
    return watch.observe()


def notice_of(observation: Observation) -> Notice:
    assert observation.notice is not None, observation
    return observation.notice


def later(seconds: float) -> str:
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


def test_an_empty_list_of_events_is_clear(watch: Watch) -> None:
    assert watch.observe().state is State.CLEAR


def test_a_preemption_of_this_machine_is_acted_on_at_once_with_its_time(server: FaultyAzure, watch: Watch) -> None:
    notice = notice_of(announced(server, watch))

    assert (notice.kind, notice.level, notice.event_id) == (Kind.PREEMPT, Level.ACT, "azure:preempt")
    assert notice.remaining is not None
    assert 50 < notice.remaining <= 60


@pytest.mark.parametrize(
    ("type_", "kind", "level", "act_within"),
    [
        ("Terminate", Kind.TERMINATE, Level.ACT, None),
        ("Redeploy", Kind.MAINTENANCE, Level.ADVISE, 120.0),
        ("Reboot", Kind.MAINTENANCE, Level.ADVISE, 120.0),
        ("Freeze", Kind.FREEZE, Level.ADVISE, None),
        ("Levitate", Kind.MAINTENANCE, Level.ADVISE, 120.0),
    ],
)
def test_each_type_has_its_level(
    server: FaultyAzure, watch: Watch, type_: str, kind: Kind, level: Level, act_within: float | None
) -> None:
    notice = notice_of(announced(server, watch, EventType=type_))

    assert (notice.kind, notice.level, notice.act_within) == (kind, level, act_within)


@pytest.mark.parametrize("resources", [["another"], [], [f"{NAME}_0"]])
def test_an_event_of_other_machines_of_the_set_is_nothing_to_us(
    server: FaultyAzure, watch: Watch, resources: list[str]
) -> None:
    assert announced(server, watch, Resources=resources).state is State.CLEAR


def test_the_own_name_counts_in_any_case_and_beside_others(server: FaultyAzure, watch: Watch) -> None:
    assert announced(server, watch, Resources=["another", NAME.upper()]).state is State.NOTICE


def test_an_event_that_has_begun_has_no_time_left_and_stays_the_same_event_under_another_id(
    server: FaultyAzure, watch: Watch
) -> None:
    before = notice_of(announced(server, watch, EventId="A1"))
    after = notice_of(announced(server, watch, EventId="B2", EventStatus="Started", NotBefore=""))

    assert before.event_id == after.event_id
    assert after.remaining == 0.0


def test_a_reboot_that_begins_at_once_is_known_to_have_begun(server: FaultyAzure, watch: Watch) -> None:
    notice = notice_of(announced(server, watch, EventType="Reboot", EventStatus="Started", NotBefore=""))

    assert (notice.remaining, notice.act_within) == (0.0, 120.0)


def test_an_event_that_is_withdrawn_is_clear_again(server: FaultyAzure, watch: Watch) -> None:
    announced(server, watch)
    server.announcement.revoke()

    assert watch.observe().state is State.CLEAR


FREEZE = planned("Freeze", EventStatus="Started")


def in_s(type_: str, seconds: float, **more: object) -> Callable[[], dict[str, object]]:
    return lambda: planned(type_, later(seconds), **more)


@pytest.mark.parametrize(
    ("others", "first"),
    [
        ([in_s("Reboot", 900), in_s("Preempt", 60)], "preempt"),
        ([in_s("Terminate", 900), in_s("Reboot", 60)], "reboot-R"),
        ([in_s("Terminate", 100), in_s("Reboot", 110)], "terminate"),
        ([in_s("Terminate", 900), in_s("Reboot", 300)], "terminate"),
        ([in_s("Terminate", 900), lambda: planned("Preempt")], "preempt"),
        ([in_s("Terminate", 10_000), in_s("Preempt", 60)], "terminate"),  # 30 s, for nobody believes that time
        ([in_s("Redeploy", 600), in_s("Reboot", 300)], "reboot-R"),
        ([in_s("Reboot", 90_000), lambda: planned("Redeploy")], "reboot-R"),
        ([in_s("Reboot", 90_000)], "reboot-R"),
    ],
)
def test_of_several_events_what_is_acted_on_now_comes_first_and_a_pause_last(
    server: FaultyAzure, watch: Watch, others: Sequence[Callable[[], object]], first: str
) -> None:
    server.events = [FREEZE, *(other() for other in others)]

    assert notice_of(watch.observe()).event_id == f"azure:{first}"


def test_a_maintenance_that_is_overdue_and_has_not_begun_is_due(server: FaultyAzure, watch: Watch) -> None:
    """Azure says before when it does not begin, and not when it does."""
    server.events = [planned("Redeploy", later(-400))]
    notice = notice_of(watch.observe())

    assert (notice.event_id, notice.remaining) == ("azure:redeploy-R", 0.0)


def test_a_maintenance_that_is_put_off_is_another_event(server: FaultyAzure, watch: Watch) -> None:
    server.events = [planned("Reboot", later(60))]
    before = notice_of(watch.observe())
    server.events = [planned("Reboot", later(90_000), EventId="R2")]
    after = notice_of(watch.observe())

    assert before.event_id != after.event_id


def test_a_maintenance_that_has_begun_is_the_same_event_under_another_id(server: FaultyAzure, watch: Watch) -> None:
    tomorrow = planned("Reboot", later(90_000), EventId="tomorrow")
    server.events = [planned("Reboot", later(60)), tomorrow]
    before = notice_of(watch.observe())
    server.events = [planned("Reboot", EventId="R2", EventStatus="Started"), tomorrow]
    after = [notice_of(watch.observe()) for _ in range(2)]

    assert [each.event_id for each in after] == [before.event_id] * 2


def test_another_maintenance_that_has_begun_is_another_event(server: FaultyAzure, watch: Watch) -> None:
    server.events = [planned("Reboot", later(60))]
    before = notice_of(watch.observe())
    server.events = [*server.events, planned("Reboot", EventId="R2", EventStatus="Started")]
    after = notice_of(watch.observe())

    assert before.event_id != after.event_id


# -- what cannot be read -----------------------------------------------------------------------------------------------

NO_EVENT = [7, None, {}, {"EventId": 1}, {"EventType": "Preempt"}, {"EventId": "x", "Resources": "rehearsal"}]


@pytest.mark.parametrize("broken", NO_EVENT, ids=repr)
def test_an_event_that_cannot_be_read_hides_no_other_and_is_no_clear(
    server: FaultyAzure, watch: Watch, broken: object
) -> None:
    server.events = [broken]
    before = watch.observe()
    after = announced(server, watch)

    assert before.state is State.UNKNOWN
    assert after.state is State.NOTICE


@pytest.mark.parametrize(
    "fields",
    [
        {"NotBefore": None},
        {"NotBefore": 7},
        {"EventId": None},
        {"EventId": "x" * 10_000},
        {"EventId": "\0\n"},
        {"EventStatus": None},
        {"EventStatus": "gone fishing"},
        {"Resources": [None, NAME]},
    ],
    ids=lambda fields: repr(fields)[:40],
)
def test_nothing_that_is_beside_the_point_hides_a_preemption(
    server: FaultyAzure, watch: Watch, fields: dict[str, object]
) -> None:
    server.events = [{**planned("Preempt", later(60)), **fields}]
    notice = notice_of(watch.observe())

    assert (notice.event_id, notice.level) == ("azure:preempt", Level.ACT)
    assert notice.source.isprintable()
    assert notice.remaining is None if "NotBefore" in fields else (notice.remaining or 0.0) > 50


@pytest.mark.parametrize("resources", [["another"], []])
def test_an_event_of_another_machine_that_cannot_be_read_keeps_ours_not_from_being_taken_back(
    server: FaultyAzure, watch: Watch, resources: list[str]
) -> None:
    server.events = [{"EventType": 7, "Resources": resources}]
    before = announced(server, watch)
    server.announcement.revoke()
    after = watch.observe()

    assert (before.state, after.state) == (State.NOTICE, State.CLEAR)


@pytest.mark.parametrize("resources", [[NAME], [None], None])
def test_one_that_may_be_ours_keeps_it(server: FaultyAzure, watch: Watch, resources: object) -> None:
    announced(server, watch)
    server.announcement.revoke()
    server.events = [{"EventType": 7, "Resources": resources}, FREEZE]

    assert watch.observe().state is State.UNKNOWN


def test_what_is_urgent_comes_before_what_cannot_be_read(server: FaultyAzure, watch: Watch) -> None:
    server.events = [FREEZE]
    watch.observe()
    server.events = [{"EventType": 7, "Resources": [NAME]}, planned("Reboot", later(60))]

    assert notice_of(watch.observe()).event_id == "azure:reboot-R"


NO_ANSWER = {
    "an error with status 200": body(b'{"error": "Bad request"}'),
    "no JSON": body(b"<html>Preempt</html>"),
    "no list": body(b'{"Events": {}}'),
    "a deep one": body(b"[" * 50_000),
    "one byte too many": body(b'{"Events": [], "x": "' + b"x" * (LONGEST_LIST - 22) + b'"}'),
    "gone for a while": status(410),
    "too many": status(429),
    "broken": status(500),
    "half of it": raw(b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"Events'),
    "nothing": hang_up,
}


@pytest.mark.parametrize("fault", NO_ANSWER.values(), ids=NO_ANSWER)
def test_what_is_no_list_of_events_neither_tells_nor_takes_back(
    server: FaultyAzure, watch: Watch, fault: Fault
) -> None:
    server.fault = fault

    assert watch.observe().state is State.UNKNOWN


def test_a_list_may_name_all_machines_of_a_large_set(server: FaultyAzure, watch: Watch) -> None:
    listed = json.dumps(
        {"Events": [planned("Reboot", later(60), Resources=[f"set_{n}" for n in range(20_000)] + [NAME])]}
    )
    server.fault, server.fault_on = body(listed.encode().ljust(LONGEST_LIST)), "/scheduledevents"

    assert len(listed) > 65536
    assert watch.observe().state is State.NOTICE


# -- who we are --------------------------------------------------------------------------------------------------------


def names_asked_for(server: FaultyAzure) -> int:
    return server.asked_paths().count("GET /metadata/instance/compute")


def test_the_name_is_asked_for_once_and_before_it_is_needed(server: FaultyAzure, watch: Watch) -> None:
    watch.observe()
    in_calm = names_asked_for(server)
    announced(server, watch)

    assert (in_calm, names_asked_for(server)) == (1, 1)


def test_a_name_that_cannot_be_had_is_no_outage_and_asked_for_when_it_is_needed(
    server: FaultyAzure, watch: Watch
) -> None:
    server.fault, server.fault_on = status(500), "/compute"
    calm = [watch.observe().state for _ in range(3)]
    in_calm = names_asked_for(server)
    server.fault = None
    after = announced(server, watch, Resources=[NAME, "another"])

    assert calm == [State.CLEAR] * 3
    assert in_calm == 1
    assert after.state is State.NOTICE


NOT_FOR_CERTAIN = {
    "maintenance": [planned("Reboot")],
    "a pause": [FREEZE],
    "two machines": [planned("Preempt", Resources=[NAME, "another"])],
    "one each": [planned("Preempt"), planned("Reboot", Resources=["another"])],
    "one that cannot be read": [planned("Preempt"), {"EventType": 7}],
    "nobody": [planned("Preempt", Resources=[])],
}


@pytest.mark.parametrize("events", NOT_FOR_CERTAIN.values(), ids=NOT_FOR_CERTAIN)
def test_while_nobody_says_who_we_are_an_event_is_unknown_and_then_known(
    server: FaultyAzure, watch: Watch, events: list[object]
) -> None:
    server.fault, server.fault_on = status(500), "/compute"
    server.events = events
    before = watch.observe()
    server.fault = None

    assert before.state is State.UNKNOWN
    assert watch.observe().state is (State.CLEAR if events[0] == planned("Preempt", Resources=[]) else State.NOTICE)


def test_the_end_of_the_only_machine_that_is_named_is_ours_until_we_know_our_name(server: FaultyAzure) -> None:
    said: list[str] = []
    (watch,) = azure_at(server.url, warn=said.append).watches()
    server.fault, server.fault_on = status(500), "/compute"
    server.events = [planned("Preempt", later(60), Resources=["neighbour"])]
    before = [watch.observe().state for _ in range(2)]
    server.fault = None
    after = watch.observe()
    watch.close()

    assert (before, after.state) == ([State.NOTICE] * 2, State.CLEAR)
    assert len(said) == 1
    assert "neighbour" in said[0]


@pytest.mark.slow
def test_a_name_that_is_slow_to_come_takes_few_seconds_of_a_preemption(server: FaultyAzure, watch: Watch) -> None:
    server.fault, server.fault_on = hang, "/compute"
    calm = watch.observe().state
    began = time.monotonic()
    seen = announced(server, watch)

    assert (calm, seen.state) == (State.CLEAR, State.NOTICE)
    assert time.monotonic() - began < 0.5 * WITHIN_SECONDS


def test_the_first_answer_may_take_the_two_minutes_that_azure_speaks_of() -> None:
    assert FIRST_SECONDS >= 120


@pytest.mark.slow
def test_the_first_answer_may_come_late(server: FaultyAzure, watch: Watch) -> None:
    def late(exchange: Exchange) -> None:
        exchange.closes_within(1.1 * WITHIN_SECONDS)
        exchange.connection.sendall(exchange.reply.wire(time.time()))

    server.fault = late

    assert watch.observe().state is State.CLEAR


def test_a_wrong_clock_of_ours_changes_nothing(server: FaultyAzure, watch: Watch) -> None:
    event = {"EventId": "A", "EventType": "Preempt", "EventStatus": "Scheduled", "Resources": [NAME]}
    plan = {"Events": [{**event, "NotBefore": later(3600 + 45)}]}
    server.fault = status(200, {"Date": later(3600)}, json.dumps(plan).encode())
    server.fault_on = "/scheduledevents"
    notice = notice_of(watch.observe())

    assert notice.remaining is not None
    assert abs(notice.remaining - 45) <= 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mon, 19 Sep 2016 18:29:47 GMT", datetime(2016, 9, 19, 18, 29, 47, tzinfo=timezone.utc)),
        ("2016-09-19T18:29:47Z", datetime(2016, 9, 19, 18, 29, 47, tzinfo=timezone.utc)),
        ("2016-09-19T18:29:47+02:00", datetime(2016, 9, 19, 16, 29, 47, tzinfo=timezone.utc)),
        ("2016-09-19T18:29:47.5+0200", datetime(2016, 9, 19, 16, 29, 47, tzinfo=timezone.utc)),
        ("2016-09-19T18:29:47,123456789+02", datetime(2016, 9, 19, 16, 29, 47, tzinfo=timezone.utc)),
        ("2016-09-19 18:29", datetime(2016, 9, 19, 18, 29, tzinfo=timezone.utc)),
        ("", None),
        ("soon, very soon", None),
        ("Mon, 99 Sep 2016 18:29:47 GMT", None),
        ("2016", None),
    ],
)
def test_not_before_has_three_forms(text: str, expected: datetime | None) -> None:
    assert moment_of(text, timezone.utc) == expected


def test_a_preemption_without_a_time_is_acted_on_with_the_default_grace(server: FaultyAzure, watch: Watch) -> None:
    assert notice_of(announced(server, watch, NotBefore="soon")).remaining is None


def test_detection_goes_by_the_variable_and_by_azures_own_asset_tag() -> None:
    by_tag = Azure.detect(Machine({}, {"chassis_asset_tag": CHASSIS}))
    by_variable = Azure.detect(Machine({ENDPOINT: "http://127.0.0.1:1"}))

    assert by_tag is not None
    assert by_tag.found is Found.MACHINE
    assert by_variable is not None
    assert by_variable.found is Found.ENVIRONMENT
    assert Azure.detect(Machine({}, {"sys_vendor": "Microsoft Corporation"})) is None


@pytest.mark.parametrize("url", ["https://x", "x", "http://", "http://h:99999"])
def test_an_endpoint_that_is_none_is_named(url: str) -> None:
    with pytest.raises(ConfigError, match=ENDPOINT):
        azure_at(url)


def test_close_breaks_the_long_first_look(server: FaultyAzure, watch: Watch) -> None:
    server.fault = hang
    seen: list[Observation] = []
    looking = threading.Thread(target=lambda: seen.append(watch.observe()))
    looking.start()
    wait_until(lambda: server.asked)
    watch.close()
    looking.join(20)

    assert seen[0].state is State.UNKNOWN


def test_the_deadline_in_the_log_is_in_utc(server: FaultyAzure, watch: Watch) -> None:
    deadline = notice_of(announced(server, watch)).deadline

    assert deadline is not None
    assert deadline.utcoffset() == timedelta(0)
