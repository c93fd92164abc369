"""Azure's Scheduled Events, heard from a server that speaks as Azure's does."""

import email.utils
import json
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import pytest

from preemptd.errors import ConfigError, ProviderError
from preemptd.notices import Kind, Level, Notice
from preemptd.provider import Conclusion, Found, Machine, Observation, Outcome, State, Surroundings, Watch
from preemptd.rehearsal.other_clouds import NAME
from preemptd_providers._deadline_text import moment_of
from preemptd_providers.azure import CHASSIS, ENDPOINT, WITHIN_SECONDS, Azure, AzureOptions
from tests.metadata_server import Exchange, Fault, FaultyAzure, body, hang, hang_up, raw, status
from tests.waiting import wait_until

SAVED = Conclusion(Outcome(75), preempted=True, saved=True)


@pytest.fixture
def server() -> Iterator[FaultyAzure]:
    with FaultyAzure(60.0) as server:
        yield server


def azure_at(url: str, lead: float = 120.0, *, approve: bool = False) -> Azure:
    return Azure(AzureOptions(approve=approve), Surroundings({ENDPOINT: url}, lead=lead))


@pytest.fixture
def watch(server: FaultyAzure) -> Iterator[Watch]:
    provider = azure_at(server.url)
    (watch,) = provider.watches()
    yield watch
    provider.close()


def announced(server: FaultyAzure, watch: Watch, **event: object) -> Observation:
    server.event.update(event)
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
        ("Freeze", Kind.MAINTENANCE, Level.ADVISE, None),
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


def test_of_several_events_the_one_that_ends_the_machine_counts(server: FaultyAzure, watch: Watch) -> None:
    freeze = {"EventId": "F", "EventType": "Freeze", "EventStatus": "Started", "Resources": [NAME], "NotBefore": ""}
    reboot = {**freeze, "EventType": "Reboot", "EventStatus": "Scheduled", "NotBefore": later(300)}
    server.events = [freeze, reboot]
    before = notice_of(watch.observe())
    after = notice_of(announced(server, watch))

    assert before.event_id == "azure:reboot"
    assert after.event_id == "azure:preempt"


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


NO_ANSWER = {
    "an error with status 200": body(b'{"error": "Bad request"}'),
    "no JSON": body(b"<html>Preempt</html>"),
    "no list": body(b'{"Events": {}}'),
    "a deep one": body(b"[" * 50_000),
    "one byte too many": body(b'{"Events": [], "x": "' + b"x" * (65536 - 22) + b'"}'),
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


def test_as_many_bytes_as_are_allowed_are_read(server: FaultyAzure, watch: Watch) -> None:
    filler = b'{"Events": [], "x": "'
    server.fault = body(filler + b"x" * (65536 - len(filler) - 2) + b'"}')

    assert watch.observe().state is State.CLEAR


def test_while_nobody_says_who_we_are_an_event_is_unknown_and_then_known(server: FaultyAzure, watch: Watch) -> None:
    server.fault, server.fault_on = status(500), "/compute"
    before = announced(server, watch)
    server.fault = None

    assert before.state is State.UNKNOWN
    assert watch.observe().state is State.NOTICE


def test_the_name_is_asked_for_once(server: FaultyAzure, watch: Watch) -> None:
    announced(server, watch)
    watch.observe()

    assert server.asked_paths().count("GET /metadata/instance/compute") == 1


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


def settled(server: FaultyAzure, conclusion: Conclusion = SAVED, *, approve: bool = True, **event: object) -> str:
    provider = azure_at(server.url, approve=approve)
    (watch,) = provider.watches()
    announced(server, watch, **event)
    watch.close()
    try:
        return provider.settle(conclusion, 5.0)
    finally:
        provider.close()


def test_what_was_saved_for_is_approved_if_we_were_asked_to(server: FaultyAzure) -> None:
    said = settled(server)

    assert (said, server.approved) == ("Preempt approved", ["A1"])


@pytest.mark.parametrize(
    "conclusion",
    [Conclusion(Outcome(0), preempted=False, saved=True), Conclusion(Outcome(1), preempted=True, saved=False)],
    ids=["a normal end", "nothing saved"],
)
def test_nothing_is_approved_that_was_not_saved_for(server: FaultyAzure, conclusion: Conclusion) -> None:
    assert (settled(server, conclusion), server.approved) == ("", [])


def test_nothing_is_approved_unless_we_were_asked_to(server: FaultyAzure) -> None:
    assert (settled(server, approve=False), server.approved) == ("", [])


def test_what_takes_other_machines_as_well_is_not_approved(server: FaultyAzure) -> None:
    said = settled(server, Resources=[NAME, "another"])

    assert server.approved == []
    assert "takes 2 machines" in said


def test_what_has_begun_needs_no_approval(server: FaultyAzure) -> None:
    assert (settled(server, EventStatus="Started", NotBefore=""), server.approved) == ("", [])


def test_an_approval_that_azure_does_not_take_is_an_error_that_names_it(server: FaultyAzure) -> None:
    provider = azure_at(server.url, approve=True)
    (watch,) = provider.watches()
    announced(server, watch)
    server.fault = status(400)

    with pytest.raises(ProviderError, match="Preempt not approved"):
        provider.settle(SAVED, 5.0)
    provider.close()


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
