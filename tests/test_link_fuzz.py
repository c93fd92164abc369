"""Anything may come over the link, from either side: nothing of it may end a thread or reach another peer."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preemptd.events import LinkAsked
from preemptd.link import protocol
from preemptd.link.client import Client
from preemptd.link.lines import Lines, LineTooLongError
from preemptd.link.nested import Outer
from preemptd.link.server import Server
from tests.linking import Events, RawPeer, serving
from tests.waiting import wait_until

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
names = st.sampled_from(
    ["v", "verb", "pid", "role", "event_id", "step", "path", "deadline_s", "reason", "kind"]
) | st.text(max_size=8)
verbs = st.sampled_from(sorted(protocol.ALLOWED)) | values
near_misses = st.builds(
    lambda rest, verb, v: json.dumps({**rest, "verb": verb, "v": v}, default=str).encode(),
    st.dictionaries(names, values, max_size=5),
    verbs,
    st.just(1) | values,
)
lines = st.binary(max_size=200) | near_misses
types = st.sampled_from(["registered", "notice", "revoked", "told", "error", "status"]) | values
answers = st.builds(
    lambda rest, kind: {**rest, "type": kind},
    st.dictionaries(
        st.sampled_from(["notices", "mono", "remaining", "event_id", "level", "kind", "source", "count", "text"]),
        values | st.just("act") | st.lists(st.dictionaries(st.just("event_id"), values), max_size=2),
    ),
    types,
)


@settings(max_examples=100, deadline=None)
@given(lines)
def test_any_line_is_either_understood_or_refused(line: bytes) -> None:
    with contextlib.suppress(protocol.ProtocolError):
        said = protocol.parse(line)

        assert said.verb in protocol.ALLOWED
        json.dumps(dict(said.fields()))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=40)))
def test_lines_do_not_depend_on_how_the_stream_was_cut(chunks: list[bytes]) -> None:
    try:
        whole = Lines(30).feed(b"".join(chunks))
        one = Lines(30)
        pieces = [line for chunk in chunks for line in one.feed(chunk)]
    except LineTooLongError:
        return

    assert pieces == whole


@pytest.fixture(scope="module")
def link() -> Iterator[tuple[Server, Events, RawPeer]]:
    with serving() as (server, events), RawPeer(server.path) as decent:
        decent.register()
        yield server, events, decent


@settings(max_examples=50, deadline=None)
@given(st.lists(lines, max_size=6), st.booleans())
def test_whatever_comes_in_the_others_are_served(
    link: tuple[Server, Events, RawPeer], said: list[bytes], is_registered: bool
) -> None:
    server, events, decent = link
    events.clear()
    with RawPeer(server.path) as hostile, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        if is_registered:
            hostile.say("register", pid=os.getpid())
        hostile.sock.sendall(b"\n".join(said))
    with RawPeer(server.path) as asks:
        asks.say("notify", reason="mine and nobody else's")
        wait_until(lambda: "mine and nobody else's" in [asked.fields.get("reason") for asked in events.of(LinkAsked)])
        server.announce({"type": "told", "count": 5})

        assert decent.hear()["count"] == 5


@settings(max_examples=100, deadline=None)
@given(st.lists(answers, max_size=5))
def test_whatever_the_daemon_says_the_client_takes_it(messages: list[Mapping[str, object]]) -> None:
    client, outer = Client("/nowhere/link"), Outer("/nowhere/link")
    for message in messages:
        as_read = json.loads(json.dumps(message))
        client._hear(as_read)
        outer._hear(as_read)
    notice, left = client.notice(), client.time_left()

    assert client.told is (notice is not None)
    assert left is None or left >= 0
    assert notice is None or isinstance(notice.event_id, str)
