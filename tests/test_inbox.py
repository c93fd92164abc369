import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from preemptd.events import Event, Inbox, LedgerWritten, MarkingDone, SignalArrived

CAUGHT = frozenset({signal.SIGUSR1, signal.SIGUSR2})


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    one = Inbox()
    one.catch(CAUGHT)
    yield one
    one.close()


def kill(signum: signal.Signals) -> None:
    os.kill(os.getpid(), signum)


def take_all(inbox: Inbox) -> list[Event]:
    taken = []
    while (event := inbox.get(0)) is not None:
        taken.append(event)
    return taken


def test_events_come_out_in_the_order_in_which_they_were_put(inbox: Inbox) -> None:
    events = [MarkingDone(number) for number in range(100)]
    for event in events:
        inbox.put(event)

    assert take_all(inbox) == events


def test_without_an_event_it_returns_none_when_the_time_is_over_and_not_before(inbox: Inbox) -> None:
    began = time.monotonic()
    event = inbox.get(0.05)

    assert event is None
    assert 0.05 <= time.monotonic() - began < 5


def test_many_wake_ups_that_say_nothing_do_not_shorten_the_wait(inbox: Inbox) -> None:
    inbox.put(MarkingDone(1))
    inbox.put(MarkingDone(2))
    assert inbox.get(0) == MarkingDone(1)
    assert inbox.get(0) == MarkingDone(2)
    began = time.monotonic()  # the eventfd still says that something came

    assert inbox.get(0.05) is None
    assert time.monotonic() - began >= 0.05


def test_one_may_wait_for_longer_than_the_kernel_counts(inbox: Inbox) -> None:
    threading.Timer(0.05, inbox.put, [MarkingDone(1)]).start()

    assert inbox.get(60 * 86400.0) == MarkingDone(1)


def test_an_event_from_a_thread_ends_the_wait(inbox: Inbox) -> None:
    timer = threading.Timer(0.05, inbox.put, [MarkingDone(1)])
    timer.start()
    event = inbox.get(None)
    timer.join()

    assert event == MarkingDone(1)


def test_a_signal_ends_the_wait(inbox: Inbox) -> None:
    timer = threading.Timer(0.05, kill, [signal.SIGUSR2])
    timer.start()
    event = inbox.get(None)
    timer.join()

    assert event == SignalArrived(signal.SIGUSR2)


def test_of_what_many_threads_put_nothing_is_lost_and_each_keeps_its_order(inbox: Inbox) -> None:
    def put_all(thread: int) -> None:
        for number in range(500):
            inbox.put(LedgerWritten(thread * 1000 + number))

    threads = [threading.Thread(target=put_all, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    taken = [inbox.get(10) for _ in range(2000)]
    for thread in threads:
        thread.join()

    numbers = [event.number for event in taken if isinstance(event, LedgerWritten)]
    assert inbox.get(0) is None
    for number in range(4):
        assert [n for n in numbers if n // 1000 == number] == [number * 1000 + n for n in range(500)]


def test_each_signal_of_a_burst_is_an_event_in_its_order(inbox: Inbox) -> None:
    sent = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR2] * 300
    for signum in sent:
        kill(signum)

    assert take_all(inbox) == [SignalArrived(signum) for signum in sent]


def test_with_more_signals_than_the_pipe_holds_it_goes_on_and_prints_nothing(
    inbox: Inbox, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(70_000):
        kill(signal.SIGUSR1)
    kill(signal.SIGUSR2)  # falls off: the loop must not rely on each SIGCHLD, and does not
    taken = take_all(inbox)
    kill(signal.SIGUSR2)

    assert 4096 <= len(taken) <= 70_000
    assert set(taken) == {SignalArrived(signal.SIGUSR1)}
    assert inbox.get(10) == SignalArrived(signal.SIGUSR2)
    assert capfd.readouterr().err == ""


def test_signals_and_events_that_wait_together_both_come_out(inbox: Inbox) -> None:
    inbox.put(MarkingDone(1))
    kill(signal.SIGUSR1)
    inbox.put(MarkingDone(2))

    taken = take_all(inbox)

    assert sorted(map(str, taken)) == sorted(map(str, (MarkingDone(1), MarkingDone(2), SignalArrived(signal.SIGUSR1))))
    assert taken.index(MarkingDone(1)) < taken.index(MarkingDone(2))


def test_close_gives_back_handlers_and_descriptors() -> None:
    def mine(*_: object) -> None:
        pass

    before = set(os.listdir("/proc/self/fd"))
    handlers = {signum: signal.signal(signum, mine) for signum in (signal.SIGUSR1, signal.SIGHUP)}
    try:
        inbox = Inbox()
        inbox.catch(CAUGHT | {signal.SIGHUP})
        inbox.close()

        assert signal.getsignal(signal.SIGUSR1) is signal.getsignal(signal.SIGHUP) is mine
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
        assert signal.set_wakeup_fd(-1) == -1
        assert set(os.listdir("/proc/self/fd")) == before
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def test_its_descriptors_are_not_inherited(inbox: Inbox) -> None:
    inheritable = [fd for fd in range(3, 256) if os.path.exists(f"/proc/self/fd/{fd}") and os.get_inheritable(fd)]
    ours = [inbox._eventfd, inbox._wakeup, inbox._wakeup_end]

    assert not set(ours) & set(inheritable)
