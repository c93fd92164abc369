"""Any answer at every source: it never raises, never hangs, and means something only where an oracle of ours agrees."""

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preemptd.provider import Observation, State
from tests.every_provider import COMPUTE, MACHINE, SOURCES
from tests.every_world import at_site
from tests.metadata_server import raw

few = settings(max_examples=120, derandomize=True, database=None, suppress_health_check=list(HealthCheck))

# -- what may come ---------------------------------------------------------------------------------------------------

TIMES = """
0000-01-01T00:00:00Z          0001-01-01T00:00:00+23:59       9999-12-31T23:59:59Z        9999-12-31T23:59:59-23:59
-001-01-01T00:00:00Z          2030-02-30T00:00:00Z            2030-01-01T24:00:00Z        2030-01-01T23:59:60Z
2030-01-01T00:00:00+24:00     2030-01-01T00:00:00.123456789Z  2030-01-01T00:00:00.1234567890Z    2030-01-01T00:00Z
0000-00-00 00:00:00           9999-12-31 23:59:59             0001-01-01 00:00:00         2030-01-01 25:00:00
Mon, 01 Jan 0000 00:00:00 GMT    Fri, 31 Dec 9999 23:59:59 -9959    19 Sep 2016 18:29:47 +9999    Mon, , , ,
21 Jan 99999 09:00:43 GMT     99 Jan 2019 99:99:99 GMT        1 Foo 2019 00:00:00 GMT     2030-1-1 0:0:0
"""
MOMENTS = [moment for moment in re.split(r"\s{2,}|\n", TIMES) if moment]
MOMENTS += ["-1", "0", "1e9", "9" * 400, "2030-01-01T00:00:00Z\nTRUE", "2030-01-01T00:00:00Z\0", "TRUE FALSE"]
MOMENTS += ["\ufeff2030-01-01T00:00:00Z", "\uff12\uff10\uff13\uff10-01-01T00:00:00Z"]
TEXTS = ["", " ", "\0", "\ud800", "x\ny", "x" * 5000, "DEEP", "HUGE"]
NUMBERS = [None, True, -1, 0, 10**30, 10**400, 1e308, math.nan, math.inf, -math.inf]
JUNK: list[object] = [*MOMENTS, *TEXTS, *NUMBERS, [], {}, [[]], {"": {}}, ["terminate"]]
DEEP = "[" * 10_000 + "]" * 10_000
STATUSES = [204, 206, 304, 307, 400, 401, 403, 404, 410, 418, 429, 500, 503, 599]
DATES = ["Thu, 01 Jan 0001 00:00:00 +2359", "Fri, 31 Dec 9999 23:59:59 GMT", "Fri, 20 Nov 2026 00:00:00 +9999", "0", ""]
EXTRA = [
    *(f"{name}: {date}" for name in ("Date", "Retry-After") for date in [*DATES, "Mon, , , ,", "-1", "9" * 20, "nan"]),
    *("Metadata-Flavor: Google", "metadata-flavor: google", "Content-Encoding: gzip, br, x", "Connection: upgrade"),
    *("ETag: \xff\x01", "ETag: " + "x" * 5000, "Location: http://[", "Content-Type: text/plain; charset=\xff"),
    *(": no name", "no colon", "Set-Cookie: a=b", "Content-Type: application/json"),
]


def paths(value: object) -> list[tuple[object, ...]]:
    """List where something stands in *value*."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((key, *rest) for key, each in inner for rest in paths(each))]


def replaced(value: object, path: tuple[object, ...], new: object) -> object:
    if not path:
        return new
    first, *rest = path
    if isinstance(value, dict):
        return {key: replaced(each, tuple(rest), new) if key == first else each for key, each in value.items()}
    assert isinstance(value, list)
    return [replaced(each, tuple(rest), new) if number == first else each for number, each in enumerate(value)]


def written(document: object) -> bytes:
    text = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False)
    text = text.replace('"DEEP"', DEEP).replace('"HUGE"', "1" + "0" * 6000)
    return text.encode("utf-8", "surrogatepass")


def changed(valid: bytes) -> st.SearchStrategy[bytes]:
    """Change something of *valid*, which is an announcement."""
    try:
        document = json.loads(valid)
    except ValueError:
        document = valid.decode()
    places = paths(document)
    keys = [path[-1] for path in places if path and isinstance(path[-1], str)] or ["x"]
    junk, tails = st.sampled_from(JUNK), st.binary(max_size=3)
    upset = [valid + valid, valid + b"\0", b"\0" + valid, valid.upper(), valid.lower()]
    encoded = [b"\xef\xbb\xbf" + valid, valid.decode().encode("utf-16"), valid.decode().encode("utf-16-be")]
    mutated = st.builds(lambda path, new: written(replaced(document, path, new)), st.sampled_from(places), junk)
    return st.one_of(
        *(mutated, mutated, mutated),
        st.builds(lambda key, new, first: twice(valid, key, new, first), st.sampled_from(keys), junk, st.booleans()),
        st.builds(lambda at, tail: valid[:at] + tail + valid[at:], st.integers(0, len(valid)), tails),
        st.sampled_from([valid, *upset, *encoded]),
        st.integers(0, len(valid)).map(lambda length: valid[:length]),
        st.sampled_from(MOMENTS).map(written),
        st.binary(),
    )


def twice(valid: bytes, key: object, new: object, first: bool) -> bytes:
    """Add *key* once more to the outermost object of *valid*."""
    pair = written(json.dumps(key)) + b": " + (written(json.dumps(new)))
    inner = valid.strip()[1:-1]
    return b"{" + b", ".join([pair, inner] if first else [inner, pair]) + b"}"


def framed(content: bytes, framing: str) -> tuple[bytes, bytes, bytes | None]:
    """Return the header, what is sent, and what of it is a whole body; None: it breaks off."""
    chunks = b"%x\r\n%s\r\n" % (len(content), content) if content else b""
    length = b"Content-Length: %d\r\n"
    return {
        "length": (length % len(content), content, content),
        "none": (b"", content, content),
        "too long": (length % (len(content) + 1), content, None),
        "too short": (length % (len(content) // 2), content, content[: len(content) // 2]),
        "chunked": (b"Transfer-Encoding: chunked\r\n", chunks + b"0\r\n\r\n", content),
        "no last chunk": (b"Transfer-Encoding: chunked\r\n", chunks, None),
        "no size": (b"Transfer-Encoding: chunked\r\n", b"x\r\n" + chunks, None),
    }[framing]


FRAMES = ["none", "too long", "too short", "chunked", "no last chunk", "no size"]
HOW = st.one_of(
    *[st.just((200, "length"))] * 4,
    st.tuples(st.just(200), st.sampled_from(FRAMES)),
    st.tuples(st.sampled_from(STATUSES), st.just("length")),
)
"""Status and framing: most are as they should be, so that the body is looked at."""

# -- what it means ---------------------------------------------------------------------------------------------------

Meaning = bool | None
"""True: it is announced. False: there is nothing, as documented. None: neither."""


def text(content: bytes) -> str:
    return content.decode("utf-8", "replace").strip()


def document(content: bytes) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return "no document"


RFC_3339 = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)"
ANY_ZONE = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)?"
CHINESE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


def is_moment(value: object, pattern: str = RFC_3339) -> bool:
    if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
        return False
    try:
        datetime.strptime(re.sub(r"\D", "", value)[:14], "%Y%m%d%H%M%S")  # noqa: DTZ007  # its zone is all the same
    except ValueError:
        return False
    return True


def words(announced: set[str], clear: set[str]) -> Callable[[bytes], Meaning]:
    return lambda content: True if text(content) in announced else False if text(content) in clear else None


def instance_action(content: bytes) -> Meaning:
    said = document(content)
    if not isinstance(said, dict) or not isinstance(action := said.get("action"), str):
        return None
    known = action.lower() in {"terminate", "stop", "hibernate"}
    return True if known or (re.fullmatch("[A-Za-z_-]+", action) and is_moment(said.get("time"))) else None


def rebalance(content: bytes) -> Meaning:
    said = document(content)
    return True if isinstance(said, dict) and isinstance(said.get("noticeTime"), str) else None


def has_texts(event: object, *names: str) -> bool:
    return isinstance(event, dict) and all(isinstance(event.get(name), str) for name in names)


def scheduled(content: bytes) -> Meaning:
    said = document(content)
    if not isinstance(said, list):
        return None
    readable = [event for event in said if has_texts(event, "EventId", "Code", "State")]
    if any(event["State"].lower() not in {"canceled", "completed"} for event in readable):
        return True
    return False if len(readable) == len(said) else None


def upcoming(content: bytes) -> Meaning:
    said = document(content)
    if text(content) in {"NONE", '"NONE"', "{}"} or (isinstance(said, dict) and "no notif" in str(said.get("error"))):
        return False
    if isinstance(said, dict) and len(said) == 1 and isinstance(one := next(iter(said.values())), dict):
        said = one
    if not isinstance(said, dict):
        return None
    named = ("windowStartTime", "window_start_time", "startTime", "maintenanceStatus", "maintenance_status")
    return True if any(isinstance(said.get(name), str) and said[name] for name in named) else None


def scheduled_events(content: bytes) -> Meaning:
    said = document(content)
    listed = said.get("Events") if isinstance(said, dict) else None
    if not isinstance(listed, list):
        return None
    named = [each for each in listed if isinstance(each, dict) and isinstance(each.get("Resources"), list)]
    ours = [each for each in named if MACHINE in [str(name).lower() for name in each["Resources"]]]
    if any(has_texts(event, "EventType") for event in ours):
        return True
    return False if len(named) == len(listed) and not ours else None


def moment(pattern: str) -> Callable[[bytes], Meaning]:
    return lambda content: True if is_moment(text(content), pattern) else None


def flag(content: bytes) -> Meaning:
    return True if '"preempted": true' in text(content) else False if '"preempted": false' in text(content) else None


STAYING = {"InService", "Detached", "Standby", "Warmed:Running", "Warmed:Stopped", "Warmed:Hibernated"}
ORACLES: Mapping[str, tuple[Callable[[bytes], Meaning], frozenset[int]]] = {
    "ec2:spot/instance-action": (instance_action, frozenset({404})),
    "ec2:events/recommendations/rebalance": (rebalance, frozenset({404})),
    "ec2:events/maintenance/scheduled": (scheduled, frozenset({404})),
    "ec2:autoscaling/target-lifecycle-state": (words({"Terminated", "Warmed:Terminated"}, STAYING), frozenset({404})),
    "gce:instance/preempted": (words({"TRUE"}, {"FALSE"}), frozenset()),
    "gce:instance/maintenance-event": (
        words({"TERMINATE_ON_HOST_MAINTENANCE", "MIGRATE_ON_HOST_MAINTENANCE"}, {"NONE"}),
        frozenset(),
    ),
    "gce:instance/shutdown-details/stop-state": (
        words({"PENDING_STOP", "STOPPING"}, {"UNSPECIFIED", "STOP_STATE_UNSPECIFIED", "UNKNOWN"}),
        frozenset({404}),
    ),
    "gce:instance/upcoming-maintenance": (upcoming, frozenset({404, 503})),
    "azure:scheduledevents": (scheduled_events, frozenset()),
    "alibaba:termination-time": (moment(RFC_3339), frozenset({404})),
    "tencent:termination-time": (moment(CHINESE), frozenset({404})),
    "byteplus:termination-time": (moment(ANY_ZONE), frozenset({404})),
    "http, two expressions": (flag, frozenset()),
    "http, a status": (lambda content: True if text(content)[:1] in set("0123456789") else None, frozenset({404})),
}
"""By source: what a body of status 200 means, and which other statuses mean that there is nothing."""


BESIDE = [
    (name, place)
    for name, source in SOURCES.items()
    for place in {**source.quiet, **source.announced(0.0)}
    if place != source.key
]


def check(seen: Observation) -> None:
    """Check what holds for every answer."""
    assert seen.retry_after is None or math.isfinite(seen.retry_after)
    assert seen.error is None or ("\n" not in str(seen.error) and len(str(seen.error)) < 500)
    notice = seen.notice
    if notice is not None:
        assert notice.remaining is None or math.isfinite(notice.remaining)
        assert notice.event_id.isprintable()
        assert len(notice.event_id) < 200
        assert notice.source.isprintable()
        assert len(notice.source) < 200
        assert len(notice.detail) <= 4096
        assert notice.deadline is None or notice.deadline.tzinfo is not None


def wire(source: str, status: int, frame: bytes, extra: list[str], sent: bytes) -> bytes:
    """Make the whole answer, with the headers of the source's server."""
    true = [f"{name}: {value}" for name, value in SOURCES[source].headers.items()]
    head = "\r\n".join([f"HTTP/1.1 {status} So", *true, ""]).encode()
    return head + frame + b"".join(line.encode("latin-1") + b"\r\n" for line in extra) + b"\r\n" + sent


@pytest.mark.parametrize("source", SOURCES)
def test_no_answer_is_more_than_it_says(source: str) -> None:
    it = SOURCES[source]
    meaning, negatives = ORACLES[source]
    _, valid = it.announced(1_900_000_000.0)[it.key]
    extras = st.lists(st.sampled_from(EXTRA), max_size=3)
    with at_site(it) as world:
        world.announce()

        @few
        @given(changed(valid), HOW, extras)
        def answers(content: bytes, how: tuple[int, str], extra: list[str]) -> None:
            status, framing = how
            frame, sent, whole = framed(content, framing)
            world.site.fault, world.site.fault_on = raw(wire(source, status, frame, extra, sent)), it.key
            seen = world.look()
            meant = meaning(whole) if status == 200 and whole is not None else None

            check(seen)
            assert seen.state is not State.NOTICE or meant is True
            assert seen.state is not State.CLEAR or meant is False or status in negatives

        answers()


@pytest.mark.parametrize(("source", "place"), BESIDE)
def test_no_answer_beside_the_signal_makes_a_notice_or_takes_one_back(source: str, place: str) -> None:
    it = SOURCES[source]
    _, valid = it.announced(1_900_000_000.0)[place]
    with at_site(it) as world:

        @few
        @given(changed(valid), HOW, st.booleans())
        def answers(content: bytes, how: tuple[int, str], announced: bool) -> None:
            status, framing = how
            frame, sent, _ = framed(content, framing)
            (world.announce if announced else world.withdraw)()
            world.site.fault, world.site.fault_on = raw(wire(source, status, frame, [], sent)), place
            seen = world.look()

            check(seen)
            assert announced or seen.state is not State.NOTICE
            assert not announced or seen.state is not State.CLEAR or place == COMPUTE

        answers()
