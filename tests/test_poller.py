import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from queue import SimpleQueue

import pytest

from preemptd.events import Event, NoticeArrived, WatchChanged
from preemptd.notices import Kind, Level, Notice
from preemptd.poller import Poller, stop_all
from preemptd.provider import Observation, State, Watch
from tests.waiting import wait_until

CLEAR = Observation.clear()
DOWN = Observation.unknown("connection refused")
NOTICE = Notice("stand", "stand:1", Kind.TERMINATE, Level.ACT, "here", observed=1000.0, remaining=120.0)


def notice(**changes: object) -> Observation:
    return Observation.of(replace(NOTICE, **changes))  # type: ignore[arg-type]  # rubbish is tried, too


def nothing(event: Event) -> None:  # a put that nobody reads from
    pass


class Scripted(Watch):
    """Gives out the looks of a script, then blocks until it is closed; a look may be a function that is called."""

    name = "stand:key"
    interval = 0.01

    def __init__(self, *looks: object) -> None:
        self._looks: Iterator[object] = iter(looks)
        self.looked: SimpleQueue[float] = SimpleQueue()
        self.closed = threading.Event()

    def observe(self) -> Observation:
        self.looked.put(time.monotonic())
        for look in self._looks:
            return look() if callable(look) else look  # type: ignore[return-value]  # rubbish is on the script, too
        self.closed.wait(60)
        return Observation.unknown("closed")

    def close(self) -> None:
        self.closed.set()


def run(watch: Scripted, events: int) -> list[Event]:
    """Poll *watch* until it made that many *events*, and to the end of its script."""
    found: SimpleQueue[Event] = SimpleQueue()
    poller = Poller(watch, found.put)
    poller.start()
    taken = [found.get(timeout=20) for _ in range(events)]
    poller.stop()
    assert found.empty()
    return taken


def raising(error: BaseException) -> Callable[[], Observation]:
    def look() -> Observation:
        raise error

    return look


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ZeroDivisionError("division\nby zero"), "stand:key: observe() raised ZeroDivisionError: division by zero"),
        (SystemExit(3), "stand:key: observe() raised SystemExit: 3"),
        (RecursionError(), "stand:key: observe() raised RecursionError"),
        (UnspeakableError(), "UnspeakableError: <exception str() failed>"),
    ],
)
def test_an_exception_in_a_plug_in_is_an_outage_with_its_name_and_ends_nothing(error: Exception, said: str) -> None:
    began, ended = run(Scripted(raising(error), raising(error), CLEAR), 2)

    assert isinstance(began, WatchChanged)
    assert said in str(began.why)
    assert ended == WatchChanged("stand:key", None)


RUBBISH = {
    "nothing": None,
    "text": "clear",
    "NOTICE without a notice": Observation(State.NOTICE),
    "CLEAR with a notice": Observation(State.CLEAR, notice=NOTICE),
    "state": Observation("clear"),  # type: ignore[arg-type]
    "notice": Observation(State.NOTICE, notice="now"),  # type: ignore[arg-type]
    "error": Observation(State.UNKNOWN, error="why"),  # type: ignore[arg-type]
    "retry_after": Observation(State.UNKNOWN, retry_after=float("nan")),
    "remaining nan": notice(remaining=float("nan")),
    "remaining text": notice(remaining="120"),
    "observed": notice(observed=None),
    "act_within": notice(act_within=float("inf")),
    "level": notice(level="act"),
    "kind": notice(kind="soon"),
    "event_id": notice(event_id=None),
    "deadline": notice(deadline=1700000000),
    "already_sent": notice(already_sent=15),
}


@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=RUBBISH)
def test_rubbish_from_a_plug_in_is_an_outage_with_its_name_and_never_a_notice(rubbish: object) -> None:
    began, ended = run(Scripted(rubbish, rubbish, CLEAR), 2)

    assert isinstance(began, WatchChanged)
    assert str(began.why).startswith("stand:key: observe() returned ")
    assert ended == WatchChanged("stand:key", None)


def test_what_a_plug_in_says_of_its_interval_cannot_end_the_watch() -> None:
    watch = Scripted(CLEAR, notice())
    watch.interval = "often"  # type: ignore[assignment]
    found: SimpleQueue[Event] = SimpleQueue()
    poller = Poller(watch, found.put)
    poller.start()
    found.get(timeout=20)

    arrived = found.get(timeout=20)  # after the second that is every watch's default
    poller.stop()

    assert isinstance(arrived, NoticeArrived)


def test_the_server_is_left_alone_as_long_as_it_asks() -> None:
    watch = Scripted(Observation.unknown("429", retry_after=0.4), CLEAR)
    run(watch, 2)

    assert -(watch.looked.get() - watch.looked.get()) >= 0.4


def test_what_is_looked_at_seldom_is_not_asked_more_often_because_it_does_not_answer() -> None:
    watch = Scripted(DOWN, CLEAR)
    watch.secondary, watch.interval = True, 0.4
    run(watch, 2)

    assert -(watch.looked.get() - watch.looked.get()) >= 0.4


@pytest.mark.slow
def test_what_has_a_long_interval_is_asked_quickly_again_and_after_some_tries_as_seldom_as_ever() -> None:
    watch = Scripted(*[DOWN] * 6, CLEAR)
    watch.notice_period, watch.interval = 0.0, 2.0
    run(watch, 2)
    times = [watch.looked.get() for _ in range(7)]

    assert times[5] - times[0] < 2.0
    assert times[6] - times[5] >= 2.0


def test_a_watch_that_waits_at_the_server_is_asked_again_at_once_but_not_in_a_busy_loop() -> None:
    watch = Scripted(*[CLEAR] * 5, notice())
    watch.waits, watch.interval = True, 60.0
    run(watch, 2)
    times = [watch.looked.get() for _ in range(6)]

    assert all(later - earlier >= 0.04 for earlier, later in pairwise(times))


def test_it_knows_when_it_last_had_an_answer() -> None:
    watch = Scripted(CLEAR, DOWN)
    poller = Poller(watch, nothing, clock=lambda: 42.0)
    before = (poller.state, poller.last_good)
    poller.start()
    wait_until(lambda: poller.state is State.UNKNOWN)
    poller.stop()

    assert before == (None, None)
    assert poller.last_good == 42.0


# The end


def test_stop_breaks_an_observe_that_hangs() -> None:
    watch = Scripted()
    poller = Poller(watch, nothing)
    poller.start()
    watch.looked.get(timeout=20)

    poller.stop(within=20)

    assert not poller._thread.is_alive()


def test_stop_wakes_a_pause_at_once() -> None:
    watch = Scripted(CLEAR)
    watch.interval = 3000.0
    poller = Poller(watch, nothing)
    poller.start()
    wait_until(lambda: poller.state is State.CLEAR)

    poller.stop(within=20)

    assert not poller._thread.is_alive()


class Deaf(Scripted):
    """Neither `observe` nor `close` returns before the test is over."""

    def close(self) -> None:
        self.closed.wait(60)


def test_watches_that_hang_in_close_cost_a_second_altogether_and_then_put_nothing() -> None:
    events: list[Event] = []
    watches = [Deaf(), Deaf(), Deaf(), Deaf()]
    pollers = [Poller(watch, events.append) for watch in watches]
    for watch, poller in zip(watches, pollers, strict=True):
        poller.start()
        watch.looked.get(timeout=20)
    began = time.monotonic()

    stop_all(pollers, within=0.2)
    took = time.monotonic() - began

    for watch, poller in zip(watches, pollers, strict=True):
        watch.closed.set()
        poller.join(20)
    assert 0.2 <= took < 5
    assert events == []


class Broken(Scripted):
    def close(self) -> None:
        super().close()
        raise OSError("cannot even close")


def test_a_close_that_raises_disturbs_nobody_and_stop_may_be_called_again() -> None:
    poller = Poller(Broken(CLEAR), nothing)
    poller.start()
    wait_until(lambda: poller.last_good)

    poller.stop(within=20)
    poller.stop(within=20)

    assert not poller._thread.is_alive()


def test_a_poller_that_never_started_can_be_stopped() -> None:
    watch = Scripted()

    Poller(watch, nothing).stop(within=20)

    assert watch.closed.is_set()
