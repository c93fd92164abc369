from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preemptd.events import Event, NoticeArrived, NoticeRevoked, WatchChanged
from preemptd.news import News
from preemptd.notices import Kind, Level, Notice
from preemptd.poller import back_off
from preemptd.provider import Observation, State

CLEAR = Observation.clear()
DOWN = Observation.unknown("connection refused")
NOTICE = Notice("stand", "stand:1", Kind.TERMINATE, Level.ACT, "here", observed=1000.0, remaining=120.0)


def notice(**changes: object) -> Observation:
    return Observation.of(replace(NOTICE, **changes))  # type: ignore[arg-type]  # also rubbish


def advice(**changes: object) -> Observation:
    return notice(level=Level.ADVISE, **changes)


def events_of(history: Iterable[Observation]) -> list[list[str]]:
    """Tell what each observation of *history* brings, in short words."""
    news = News("stand:key")
    return [[word(event) for event in news.take(observation)] for observation in history]


def word(event: Event) -> str:
    if isinstance(event, NoticeArrived):
        return f"+{event.notice.event_id}"
    if isinstance(event, NoticeRevoked):
        return f"-{event.event_id}"
    assert isinstance(event, WatchChanged)
    return "up" if event.why is None else "down"


# What is news


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        pytest.param([CLEAR, CLEAR, CLEAR], [["up"], [], []], id="the first good answer is said once"),
        pytest.param([DOWN, DOWN, CLEAR], [["down"], [], ["up"]], id="an outage from the start is said at once"),
        pytest.param(
            [CLEAR, DOWN, DOWN, CLEAR, DOWN, CLEAR],
            [["up"], ["down"], [], ["up"], ["down"], ["up"]],
            id="an outage is said once when it begins and once when it ends",
        ),
        pytest.param([notice(), notice()], [["+stand:1", "up"], []], id="the notice comes before the rest, and once"),
        pytest.param(
            [CLEAR, notice(), CLEAR, notice()],
            [["up"], ["+stand:1"], ["-stand:1"], ["+stand:1"]],
            id="after a documented negative the same event is told again",
        ),
        pytest.param(
            [CLEAR, notice(), DOWN, DOWN, notice(), CLEAR],
            [["up"], ["+stand:1"], ["down"], [], ["up"], ["-stand:1"]],
            id="an outage neither revokes nor repeats",
        ),
        pytest.param(
            [CLEAR, notice(), DOWN, CLEAR],
            [["up"], ["+stand:1"], ["down"], ["-stand:1", "up"]],
            id="a negative right after an outage revokes",
        ),
        pytest.param(
            [CLEAR, notice(), notice(event_id="stand:2"), CLEAR],
            [["up"], ["+stand:1"], ["+stand:2", "-stand:1"], ["-stand:2"]],
            id="a new event arrives before the old one is revoked",
        ),
        pytest.param(
            [notice(level=Level.ADVISE), notice(level=Level.ADVISE), notice(), notice(level=Level.ADVISE)],
            [["+stand:1", "up"], [], ["+stand:1"], ["+stand:1"]],
            id="another level is news",
        ),
        pytest.param(
            [notice(), notice(observed=1060.0, remaining=120.0), notice(observed=1120.0, remaining=120.0)],
            [["+stand:1", "up"], [], []],
            id="a time that rolls with each look is no news",
        ),
        pytest.param(
            [notice(), notice(observed=1001.0, remaining=119.0), notice(observed=1002.0, remaining=108.1)],
            [["+stand:1", "up"], [], []],
            id="the same deadline, a little off, is no news",
        ),
        pytest.param(
            [notice(), notice(remaining=109.0), notice(remaining=100.0), notice(remaining=98.0)],
            [["+stand:1", "up"], ["+stand:1"], [], ["+stand:1"]],
            id="a deadline more than 10 s earlier than the last one told is news",
        ),
        pytest.param(
            [notice(remaining=None), notice(), notice(remaining=None)],
            [["+stand:1", "up"], ["+stand:1"], []],
            id="a deadline that becomes known is news, one that is forgotten is not",
        ),
        pytest.param(
            [advice(), advice(remaining=170.0), advice(remaining=181.0), advice(remaining=None), advice(remaining=9.0)],
            [["+stand:1", "up"], [], ["+stand:1"], [], ["+stand:1"]],
            id="advice that is put off by more than a minute is news, one that cannot be read for once is not",
        ),
        pytest.param(
            [CLEAR, *(advice(observed=1000.0 + 60 * n, remaining=100.0 - 60 * n) for n in range(9))],
            [["up"], ["+stand:1"], *[[]] * 8],
            id="a date that passes is no news",
        ),
        pytest.param(
            [advice(remaining=0.0), advice(observed=1070.0, remaining=0.0), advice(observed=1140.0, remaining=0.0)],
            [["+stand:1", "up"], [], []],
            id="nor is one that is under way",
        ),
        pytest.param(
            [notice(remaining=-900.0), notice(observed=1060.0, remaining=-960.0), notice(observed=1120.0)],
            [["+stand:1", "up"], [], ["-stand:1", "+stand:1"]],
            id="a time to come in the place of one that is long past is another event",
        ),
        pytest.param(
            [notice(), DOWN, notice(observed=5000.0), notice(observed=5001.0)],
            [["+stand:1", "up"], ["down"], ["-stand:1", "+stand:1", "up"], []],
            id="also if it was acted on, hours ago",
        ),
        pytest.param(
            [notice(), notice(observed=1179.0), notice(observed=1181.0, remaining=-61.0), notice(observed=1182.0)],
            [["+stand:1", "up"], [], [], ["-stand:1", "+stand:1"]],
            id="a minute after its end, in which platforms are late",
        ),
        pytest.param(
            [notice(observed=1000.0 + 60 * n) for n in range(12)],
            [["+stand:1", "up"], *[[]] * 11],
            id="a time that rolls on for long is none",
        ),
        pytest.param(
            [notice(), notice(final=True), notice(final=True)],
            [["+stand:1", "up"], ["+stand:1"], []],
            id="that the machine goes now is news",
        ),
    ],
)
def test_the_news_of(history: list[Observation], expected: list[list[str]]) -> None:
    assert events_of(history) == expected


@pytest.mark.parametrize(
    ("history", "left"),
    [
        pytest.param([notice(remaining=-301.0)], -301.0, id="what stood there at the start may be old"),
        pytest.param([DOWN, notice(remaining=-301.0)], -301.0, id="or before the first answer"),
        pytest.param([CLEAR, notice(remaining=-301.0)], None, id="what has just come is new: a clock is wrong"),
        pytest.param([CLEAR, DOWN, notice(remaining=-28682.0)], None, id="by a zone, say"),
        pytest.param([CLEAR, notice(remaining=-299.0)], -299.0, id="less than that is believed"),
    ],
)
def test_an_end_that_is_long_past_is_believed_of_what_may_be_old(
    history: list[Observation], left: float | None
) -> None:
    news = News("stand:key")
    events = [event for seen in (*history, history[-1]) for event in news.take(seen)]
    (arrived,) = [event for event in events if isinstance(event, NoticeArrived)]

    assert arrived.notice.remaining == left


def test_maintenance_that_has_just_come_with_a_date_long_past_is_under_way() -> None:
    news, advised = News("stand:key"), advice(remaining=-400.0, act_within=120.0)
    news.take(CLEAR)
    arrived = news.take(advised)[0]

    assert isinstance(arrived, NoticeArrived)
    assert (arrived.notice.level, arrived.notice.remaining) == (Level.ACT, None)
    assert news.take(advised) == ()


def test_an_outage_says_what_came_back_and_a_revocation_whose_it_is() -> None:
    news = News("stand:key")
    news.take(notice())

    assert news.take(DOWN) == (WatchChanged("stand:key", "connection refused"),)
    assert news.take(CLEAR)[0] == NoticeRevoked("stand:key", "stand", "stand:1")


@given(st.lists(st.sampled_from([CLEAR, DOWN, notice(), notice(event_id="stand:2"), notice(level=Level.ADVISE)])))
def test_after_any_history_what_is_open_is_what_was_seen_last(history: list[Observation]) -> None:
    open_ids: set[str] = set()
    for words in events_of(history):
        for said in words:
            if said.startswith("+"):
                open_ids.add(said[1:])
            elif said.startswith("-"):
                open_ids.remove(said[1:])
    known = [seen for seen in history if seen.state is not State.UNKNOWN]

    assert open_ids == ({known[-1].notice.event_id} if known and known[-1].notice else set())


# How long it waits


@given(failures=st.integers(1, 10_000), period=st.floats(0, 1e6), asked=st.none() | st.floats(-1e9, 1e9))
def test_the_pause_after_an_error_is_bounded(failures: int, period: float, asked: float | None) -> None:
    pause = back_off(failures, period, asked)

    assert 0.05 <= pause <= max(0.05, min(5.0, period / 6), min(asked or 0.0, 30.0, period / 3))


def test_the_pauses_after_errors_grow_and_are_spread() -> None:
    first, later = ([back_off(failures, 120.0, None) for _ in range(200)] for failures in (1, 9))

    assert max(first) <= 0.25 < max(later) <= 5.0
    assert len(set(later)) > 100
