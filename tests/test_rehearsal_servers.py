"""The metadata servers of a rehearsal keep the clouds' own rules."""

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import NamedTuple

import pytest

from preemptd.rehearsal.page import PageServer
from tests.metadata_server import FaultyEc2, FaultyGce, announcement
from tests.waiting import wait_until

TTL = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "X-aws-ec2-metadata-token"
FLAVOR = {"Metadata-Flavor": "Google"}
INSTANCE = "/computeMetadata/v1/instance/"


class Got(NamedTuple):
    status: int
    text: str
    headers: http.client.HTTPMessage


def ask(port: int, method: str, path: str, headers: Mapping[str, str]) -> Got:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, headers=dict(headers))
        response = connection.getresponse()
        return Got(response.status, response.read().decode(), response.headers)
    finally:
        connection.close()


@pytest.fixture
def ec2() -> Iterator[FaultyEc2]:
    with FaultyEc2(grace=90) as server:
        yield server


@pytest.fixture
def gce() -> Iterator[FaultyGce]:
    with FaultyGce() as server:
        yield server


def token(server: FaultyEc2, ttl: str = "60") -> str:
    return ask(server.port, "PUT", "/latest/api/token", {TTL: ttl}).text


def test_ec2_gives_a_token_and_repeats_its_life(ec2: FaultyEc2) -> None:
    got = ask(ec2.port, "PUT", "/latest/api/token", {TTL: "21600"})

    assert got.status == 200
    assert got.headers[TTL] == "21600"
    assert got.headers["Server"] == "EC2ws"
    assert got.headers["Connection"] == "close"
    assert got.headers["Date"].endswith("GMT")


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/latest/api/token", {}, 400),
        ("/latest/api/token", {TTL: "0"}, 400),
        ("/latest/api/token", {TTL: "21601"}, 400),
        ("/latest/api/token", {TTL: "x"}, 400),
        ("/latest/api/token", {TTL: "60", "X-Forwarded-For": "10.0.0.1"}, 403),
        ("/2021-03-23/api/token", {TTL: "60"}, 403),
    ],
)
def test_ec2_refuses_a_put_that_is_not_right(path: str, headers: dict[str, str], status: int, ec2: FaultyEc2) -> None:
    assert ask(ec2.port, "PUT", path, headers).status == status


def test_ec2_takes_no_token_but_its_own(ec2: FaultyEc2) -> None:
    path = "/latest/meta-data/instance-id"
    good = token(ec2)

    assert ask(ec2.port, "GET", path, {}).status == 401
    assert ask(ec2.port, "GET", path, {TOKEN: "x"}).status == 401
    assert ask(ec2.port, "GET", path, {TOKEN: good}).status == 200
    assert ask(ec2.port, "DELETE", path, {TOKEN: good}).status == 405
    ec2.forget_tokens()
    assert ask(ec2.port, "GET", path, {TOKEN: good}).status == 401


def test_ec2_takes_two_token_headers_for_none(ec2: FaultyEc2) -> None:
    good = token(ec2)
    connection = http.client.HTTPConnection("127.0.0.1", ec2.port, timeout=20)
    connection.putrequest("GET", "/latest/meta-data/instance-id")
    for value in ("old", good):
        connection.putheader(TOKEN, value)
    connection.endheaders()

    assert connection.getresponse().status == 401
    connection.close()


def test_ec2_shows_the_end_at_both_paths_when_it_is_announced(ec2: FaultyEc2) -> None:
    def signals() -> list[Got]:
        paths = "spot/instance-action", "spot/termination-time"
        return [ask(ec2.port, "GET", f"/latest/meta-data/{path}", {TOKEN: token(ec2)}) for path in paths]

    assert [(got.status, "404 - Not Found" in got.text) for got in signals()] == [(404, True), (404, True)]
    ec2.announcement.announce()

    action, termination_time = signals()
    assert json.loads(action.text) == {"action": "terminate", "time": termination_time.text}


def shown(server: FaultyEc2, key: str) -> Got:
    return ask(server.port, "GET", f"/latest/meta-data/{key}", {TOKEN: token(server)})


REBALANCE = "events/recommendations/rebalance"
SCHEDULED = "events/maintenance/scheduled"
LIFECYCLE = "autoscaling/target-lifecycle-state"


def test_ec2_shows_nothing_at_any_key_while_nothing_is_announced(ec2: FaultyEc2) -> None:
    got = [shown(ec2, key) for key in ("spot/instance-action", REBALANCE, LIFECYCLE, SCHEDULED)]

    assert [each.status for each in got] == [404, 404, 404, 200]
    assert got[-1].text == "[]"


@pytest.mark.parametrize(
    ("event", "key"), [("rebalance", REBALANCE), ("scheduled", SCHEDULED), ("lifecycle", LIFECYCLE)]
)
def test_ec2_shows_an_event_at_its_own_key_alone(event: str, key: str, ec2: FaultyEc2) -> None:
    keys = ("spot/instance-action", "spot/termination-time", REBALANCE, SCHEDULED, LIFECYCLE)
    ec2.event = event
    before = {each: shown(ec2, each).text for each in keys}
    ec2.announcement.announce()

    assert [each for each in keys if shown(ec2, each).text != before[each]] == [key]


def test_ec2_says_when_it_recommended_to_rebalance(ec2: FaultyEc2) -> None:
    ec2.event = "rebalance"
    ec2.announcement.announce()
    document = json.loads(shown(ec2, REBALANCE).text)

    assert document.keys() == {"noticeTime"}
    assert abs(seconds_to(document["noticeTime"])) < 30


def test_ec2_keeps_showing_a_scheduled_event_that_it_has_canceled(ec2: FaultyEc2) -> None:
    ec2.event = "scheduled"
    ec2.announcement.announce()
    (active,) = json.loads(shown(ec2, SCHEDULED).text)
    ec2.announcement.revoke()
    (canceled,) = json.loads(shown(ec2, SCHEDULED).text)

    assert (active["State"], active["Description"]) == ("active", "scheduled reboot")
    assert time.strptime(active["NotBefore"], "%d %b %Y %H:%M:%S GMT")
    assert canceled == {**active, "State": "canceled", "Description": "[Canceled] scheduled reboot"}


def test_ec2_shows_the_target_state_of_an_auto_scaling_group(ec2: FaultyEc2) -> None:
    ec2.event = "lifecycle"
    before = shown(ec2, LIFECYCLE).text
    ec2.announcement.announce()

    assert (before, shown(ec2, LIFECYCLE).text) == ("InService", "Terminated")


def seconds_to(text: str) -> float:
    return (datetime.fromisoformat(text.replace("Z", "+00:00")) - datetime.now(timezone.utc)).total_seconds()


def test_gce_answers_only_to_its_flavor(gce: FaultyGce) -> None:
    path = INSTANCE + "preempted"

    assert ask(gce.port, "GET", path, {}).status == 403
    assert ask(gce.port, "GET", path, {**FLAVOR, "X-Forwarded-For": "10.0.0.1"}).status == 403
    got = ask(gce.port, "GET", path, FLAVOR)
    assert (got.status, got.text, got.headers["Metadata-Flavor"]) == (200, "FALSE", "Google")
    assert got.headers["ETag"]


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/", 200, "computeMetadata/\n"),
        (INSTANCE.rstrip("/"), 301, ""),
        (INSTANCE + "nothing", 404, None),
        (INSTANCE + "preempted?wait_for_change=true&timeout_sec=x", 400, ""),
        (INSTANCE + "preempted?alt=json", 200, '"FALSE"'),
        (INSTANCE + "preempted?wait_for_change=true&last_etag=0", 200, "FALSE"),
        (INSTANCE + "preempted?wait_for_change=true&timeout_sec=0", 200, "FALSE"),
        (INSTANCE + "maintenance-event", 200, "NONE"),
        (INSTANCE + "shutdown-details/stop-state", 404, None),
        (INSTANCE + "shutdown-details/stop-state?wait_for_change=true", 404, None),
        (INSTANCE + "shutdown-details/max-duration", 404, None),
        (INSTANCE + "upcoming-maintenance", 503, ""),
        (INSTANCE + "upcoming-maintenance/?alt=json&recursive=true", 503, ""),
    ],
)
def test_gce_keeps_the_rules_of_its_paths(path: str, status: int, text: str | None, gce: FaultyGce) -> None:
    got = ask(gce.port, "GET", path, FLAVOR)

    assert got.status == status
    assert text is None or got.text == text
    assert got.headers["Metadata-Flavor"] == "Google"


@pytest.mark.parametrize(
    ("event", "key", "value"),
    [
        ("preempted", "preempted", "TRUE"),
        ("terminate", "maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"),
        ("migrate", "maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE"),
        ("stop", "shutdown-details/stop-state", "PENDING_STOP"),
    ],
)
def test_gce_shows_an_event_at_its_own_key_alone_and_tells_who_waits(
    event: str, key: str, value: str, gce: FaultyGce
) -> None:
    keys = ("preempted", "maintenance-event", "shutdown-details/stop-state", "upcoming-maintenance")
    gce.event = event
    before = {each: ask(gce.port, "GET", INSTANCE + each, FLAVOR) for each in keys}
    with ThreadPoolExecutor() as threads:
        waits = threads.submit(ask, gce.port, "GET", f"{INSTANCE}{key}?wait_for_change=true", FLAVOR)
        wait_until(lambda: gce.waiting == 1)
        gce.announcement.announce()
        got = waits.result()

    assert (got.status, got.text) == (200, value)
    assert [each for each in keys if ask(gce.port, "GET", INSTANCE + each, FLAVOR).text != before[each].text] == [key]


def test_gce_says_when_a_stop_was_asked_for_and_how_long_it_may_take(gce: FaultyGce) -> None:
    gce.event = "stop"
    before = ask(gce.port, "GET", INSTANCE + "shutdown-details/request-timestamp", FLAVOR)
    gce.announcement.announce()
    details = ("request-timestamp", "max-duration", "target-state")
    asked_for, most, target = (
        ask(gce.port, "GET", f"{INSTANCE}shutdown-details/{key}", FLAVOR).text for key in details
    )

    assert before.status == 404
    assert abs(seconds_to(asked_for)) < 30
    assert (most, target) == ("120", "STOPPED")


def test_gce_describes_the_window_of_an_upcoming_maintenance(gce: FaultyGce) -> None:
    gce.event = "upcoming"
    gce.announcement.announce()
    got = ask(gce.port, "GET", INSTANCE + "upcoming-maintenance/?alt=json&recursive=true", FLAVOR)
    window = json.loads(got.text)

    assert (window["maintenanceStatus"], window["type"], window["canReschedule"]) == ("PENDING", "SCHEDULED", "true")
    assert 60 < seconds_to(window["windowStartTime"]) <= 120
    assert window["windowStartTime"] < window["windowEndTime"] < window["latestWindowStartTime"]
    assert got.headers["ETag"]


def test_an_answer_comes_in_one_piece(gce: FaultyGce) -> None:
    ask(gce.port, "GET", "/", FLAVOR)
    connection = http.client.HTTPConnection("127.0.0.1", gce.port, timeout=20)
    took = []
    for _ in range(10):
        began = time.monotonic()
        connection.request("GET", INSTANCE + "preempted", headers=FLAVOR)
        connection.getresponse().read()
        took.append(time.monotonic() - began)
    connection.close()

    assert min(took) < 0.030  # two pieces would take 40 ms each time: Nagle's algorithm and delayed ACK


@pytest.mark.parametrize("cloud", ["ec2", "gce"])
def test_as_a_program_it_says_what_happens_and_ends_with_its_standard_input(cloud: str) -> None:
    options = ["--after", "0.05", "--grace", "0.2", "--revoke", "0.6"]
    with subprocess.Popen(
        [sys.executable, "-m", "preemptd.rehearsal.servers", cloud, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        ready, url = program.stdout.readline().split()
        port = int(url.rpartition(":")[2])
        if cloud == "ec2":
            headers = {TOKEN: ask(port, "PUT", "/latest/api/token", {TTL: "60"}).text}
            ask(port, "GET", "/latest/meta-data/spot/instance-action", headers)
        else:
            ask(port, "GET", INSTANCE + "preempted", FLAVOR)
        said = [program.stdout.readline().strip() for _ in range(4)]
        program.stdin.close()

        assert ready == "ready"
        assert url.startswith("http://127.0.0.1:")
        assert said == ["watched", "raised", "over", "revoked"]
        assert program.wait(20) == 0


def test_a_hanging_get_does_not_keep_the_program_from_ending() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "preemptd.rehearsal.servers", "gce"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        port = int(program.stdout.readline().rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", INSTANCE + "preempted?wait_for_change=true", headers=FLAVOR)
        assert program.stdout.readline() == "watched\n"
        program.stdin.close()

        assert program.wait(20) == 0
        connection.close()


def test_as_a_program_it_announces_what_it_is_asked_to() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "preemptd.rehearsal.servers", "gce", "--event", "upcoming", "--after", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        port = int(program.stdout.readline().rpartition(":")[2])
        path = INSTANCE + "upcoming-maintenance/?alt=json&recursive=true"
        before = ask(port, "GET", path, FLAVOR)
        said = [program.stdout.readline().strip() for _ in range(2)]
        after = ask(port, "GET", path, FLAVOR)
        program.stdin.close()

        assert (before.status, said, after.status) == (503, ["watched", "raised"], 200)


def test_as_a_program_it_names_the_events_that_its_cloud_has() -> None:
    command = [sys.executable, "-m", "preemptd.rehearsal.servers", "gce", "--event", "reboot"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    assert ended.returncode == 2
    assert "--event reboot: gce has preempted, terminate, migrate, stop, upcoming" in ended.stderr


@pytest.mark.parametrize(("announced", "status", "said"), [(False, 0, ""), (True, 75, "20")])
def test_the_command_of_a_rehearsal_asks_its_page(announced: bool, status: int, said: str) -> None:
    with PageServer(announcement()) as server:
        if announced:
            server.announcement.announce()
        command = [sys.executable, "-m", "preemptd.rehearsal.asking", server.url]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stdout[:2]) == (status, said)


def test_the_command_of_a_rehearsal_says_nothing_where_nobody_answers() -> None:
    command = [sys.executable, "-m", "preemptd.rehearsal.asking", "http://127.0.0.1:1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stdout) == (1, "")
