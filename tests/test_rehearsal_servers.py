"""The metadata servers of a rehearsal keep the clouds' own rules."""

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pytest

from tests.metadata_server import FaultyEc2, FaultyGce

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
    ],
)
def test_gce_keeps_the_rules_of_its_paths(path: str, status: int, text: str | None, gce: FaultyGce) -> None:
    got = ask(gce.port, "GET", path, FLAVOR)

    assert got.status == status
    assert text is None or got.text == text


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
