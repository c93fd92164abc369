"""The HTTP client of the metadata providers, against servers that do their worst."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from preemptd.errors import ProviderError
from preemptd_providers._metadata import (
    BODY_LIMIT,
    Answer,
    Client,
    NoAnswerError,
    NoConnectionError,
)
from tests.metadata_server import (
    Exchange,
    Fault,
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
from tests.waiting import wait_until

FLAVOR = {"Metadata-Flavor": "Google"}
PREEMPTED = "/computeMetadata/v1/instance/preempted"


@pytest.fixture
def server() -> Iterator[FaultyGce]:
    with FaultyGce() as server:
        yield server


@pytest.fixture
def client(server: FaultyGce) -> Iterator[Client]:
    client = Client([server.url])
    yield client
    client.close()


def ask(client: Client, path: str = PREEMPTED, within: float = 5.0) -> Answer:
    return client.ask("GET", path, FLAVOR, within)


def refusing_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def test_an_answer_of_any_status_is_an_answer(client: Client) -> None:
    assert ask(client).text == "FALSE"
    assert ask(client, "/computeMetadata/v1/instance/nothing").status == 404


@pytest.mark.parametrize("fault", [drip, drip_body, hang])
def test_a_server_that_drips_cannot_hold_a_request_past_its_deadline(
    server: FaultyGce, client: Client, fault: Fault
) -> None:
    ask(client)
    server.fault = fault
    began = time.monotonic()

    with pytest.raises(NoAnswerError, match="no whole answer within 0"):
        ask(client, within=0.3)

    assert 0.25 < time.monotonic() - began < 3


def test_a_hanging_request_is_broken_by_close_from_another_thread(server: FaultyGce, client: Client) -> None:
    server.fault = hang
    said: list[str] = []

    def hear() -> None:
        with pytest.raises(ProviderError) as raised:
            ask(client, within=60)
        said.append(str(raised.value))

    thread = threading.Thread(target=hear)
    thread.start()
    wait_until(lambda: server.asked)
    began = time.monotonic()
    client.close()
    thread.join(10)

    assert time.monotonic() - began < 5
    assert len(said) == 1
    with pytest.raises(ProviderError, match="closed"):
        ask(client)


def test_a_body_of_64_kib_is_read_and_one_byte_more_is_refused(server: FaultyGce, client: Client) -> None:
    server.fault = body(b"x" * BODY_LIMIT)
    assert len(ask(client).body) == BODY_LIMIT

    server.fault = body(b"x" * (BODY_LIMIT + 1))
    with pytest.raises(ProviderError, match="more than 64 KiB"):
        ask(client)


def test_a_redirect_is_an_answer_and_its_target_is_never_asked(server: FaultyGce, client: Client) -> None:
    server.fault = redirect

    assert ask(client).status == 302
    assert server.asked_paths() == [f"GET {PREEMPTED}"]


def test_the_proxy_of_the_environment_is_never_asked(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyGce() as proxy:
        proxy.fault = body(b"TRUE")
        for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(variable, proxy.url)

        assert ask(client).text == "FALSE"
        assert proxy.asked == []


def test_cookies_are_not_sent_back(server: FaultyGce, client: Client) -> None:
    server.fault = status(200, {"Set-Cookie": "a=b; Path=/"})
    ask(client)
    ask(client)

    assert "cookie" not in server.asked[1].headers


def test_a_kept_connection_that_the_server_closed_is_not_an_outage(server: FaultyGce, client: Client) -> None:
    ask(client)
    seen: list[Exchange] = []

    def hang_up_once(exchange: Exchange) -> None:
        seen.append(exchange)
        server.fault = None
        hang_up(exchange)

    server.fault = hang_up_once

    assert ask(client).text == "FALSE"
    assert len(seen) == 1


def test_one_connection_serves_many_requests(client: Client) -> None:
    for _ in range(5):
        ask(client)

    assert client._line is not None
    assert client._line.made == 1


def test_the_first_address_that_answers_stays_the_server(server: FaultyGce) -> None:
    nobody = f"http://127.0.0.1:{refusing_port()}"
    client = Client([nobody, server.url])
    try:
        ask(client)

        assert client.base == server.url
    finally:
        client.close()


def test_nobody_there_is_said_for_each_address() -> None:
    ports = refusing_port(), refusing_port()
    client = Client([f"http://127.0.0.1:{port}" for port in ports])
    try:
        with pytest.raises(NoConnectionError) as raised:
            ask(client)
    finally:
        client.close()

    assert str(raised.value).count("Connection refused") == 2


def test_a_name_that_does_not_resolve_is_no_connection() -> None:
    client = Client(["http://no-such-host.invalid"])
    try:
        with pytest.raises(NoConnectionError, match=r"no-such-host\.invalid"):
            ask(client, within=2)
    finally:
        client.close()


def test_a_full_backlog_is_no_connection_within_a_second() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        client = Client([f"http://127.0.0.1:{address[1]}"])
        began = time.monotonic()
        try:
            with pytest.raises(NoConnectionError, match="no connection within"):
                ask(client, within=30)
        finally:
            client.close()
            for filler in fillers:
                filler.close()

        assert time.monotonic() - began < 5


def test_what_a_server_says_is_in_no_message_and_no_log(
    server: FaultyGce, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.fault = raw(b"HTTP/1.1 SECRET\r\n\r\nSECRET")
    with pytest.raises(ProviderError) as raised:
        client.ask("GET", PREEMPTED, {"X-aws-ec2-metadata-token": "SECRET"}, 5)
    server.fault = raw(b"HTTP/1.1 200 OK\r\nSECRET\r\n\r\nSECRET")
    ask(client)

    assert "SECRET" not in str(raised.value) + caplog.text
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_close_leaves_no_descriptor_behind_also_when_called_twice(server: FaultyGce) -> None:
    client = Client([server.url])
    ask(client)
    client.close()
    client.close()

    wait_until(lambda: not server._open, what="the server sees the connection closed")


HEADERS = [
    *(b"Content-Length: " + number for number in (b"4", b"-1", b"x", b"99999999999")),
    *(b"Location: " + target for target in (b"//[", b"http://\xff", b"/")),
    *(b"Transfer-Encoding: chunked", b"Content-Encoding: gzip", b"Connection: close", b"Metadata-Flavor: Google"),
    *(b"Set-Cookie: a=b; expires=x", b"Retry-After: x", b"\xff: \xff", b" x"),
]
STATUS_LINES = [
    b"HTTP/1.1 200 OK",
    b"HTTP/1.1 302 Go",
    b"HTTP/1.1 100 C",
    b"HTTP/1.0 200",
    b"HTTP/9 x y",
    b"ICY 200",
    b"",
]
BODIES = [b"TRUE", b"4\r\nTRUE\r\n0\r\n\r\n", b"f\r\nT"]


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(STATUS_LINES),
    st.lists(st.sampled_from(HEADERS), max_size=4),
    st.sampled_from(BODIES) | st.binary(max_size=64),
)
@example(b"HTTP/1.1 200 OK", [b"Transfer-Encoding: chunked"], b"zz\r\n")
@example(b"HTTP/1.1 302 Go", [b"Location: http://\xff"], b"")
def test_whatever_bytes_a_server_sends_are_an_answer_or_a_provider_error(
    server: FaultyGce, client: Client, line: bytes, headers: list[bytes], content: bytes
) -> None:
    server.fault = raw(b"\r\n".join([line, *headers, b"", content]))

    with contextlib.suppress(ProviderError):
        assert len(ask(client).body) <= BODY_LIMIT
