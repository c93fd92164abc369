"""One thread a watch: it looks again and again, and puts into the inbox what is new."""

import contextlib
import math
import os
import random
import select
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import NoneType

from preemptd.errors import ProviderError
from preemptd.events import Event
from preemptd.news import News
from preemptd.notices import Kind, Level, Meaning, Notice
from preemptd.provider import Observation, State, Watch

FIRST_PAUSE = 0.25
LONGEST_PAUSE = 5.0
LONGEST_ASKED_PAUSE = 30.0
"""A server that asks for an hour of silence would have us sleep through the notice."""
QUICK_TRIES = 5
"""Failures in a row after which what is looked at seldom is asked no more often than that."""
SHORTEST_PAUSE = 0.05
LONGEST_INTERVAL = 3600.0

OBSERVATION_TYPES = {
    "state": (State,),
    "notice": (Notice, NoneType),
    "error": (ProviderError, NoneType),
    "retry_after": (int, float, NoneType),
}
NOTICE_TYPES = {
    "provider": (str,),
    "event_id": (str,),
    "kind": (Kind,),
    "level": (Level,),
    "observed": (int, float),
    "remaining": (int, float, NoneType),
    "act_within": (int, float, NoneType),
    "deadline": (datetime, NoneType),
    "already_sent": (frozenset,),
    "meaning": (Meaning,),
    "killed_in": (int, float, NoneType),
    "irrevocable": (bool,),
}


def back_off(failures: int, notice_period: float, asked: float | None) -> float:
    """Return how many seconds to wait after the *failures*-th UNKNOWN in a row.

    Full jitter, as a thousand machines lose one server at one instant. The server's own wish is heard within limits: a
    notice that comes in the meantime must leave time enough.
    """
    limit = min(LONGEST_PAUSE, max(notice_period, 0.0) / 6)
    # Ten doublings are past every limit; 2.0 ** 2000 is an OverflowError.
    pause = random.uniform(0, min(limit, FIRST_PAUSE * 2 ** min(failures - 1, 10)))  # noqa: S311  # no secret
    return max(SHORTEST_PAUSE, pause, min(asked or 0.0, LONGEST_ASKED_PAUSE, notice_period / 3))


class _Stopper:
    """An Event whose wait goes by the monotonic clock everywhere.

    That of `threading.Event` follows the wall clock where Python was built for a glibc before 2.30: a clock that is set
    back an hour would stop the watch for an hour.
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self.is_set = False

    def set(self) -> None:
        self.is_set = True
        os.eventfd_write(self._fd, 1)

    def wait(self, seconds: float) -> bool:
        """Wait for `set`, at most *seconds*; return whether it was called."""
        return self.is_set or bool(self._poll.poll(seconds * 1000)) or self.is_set

    def close(self) -> None:
        os.close(self._fd)


class Poller:
    """Looks through one watch until it is stopped. Whatever the watch does, the poller goes on.

    `state`, `last_good` and `every` may be read from any thread.
    """

    def __init__(self, watch: Watch, put: Callable[[Event], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.watch = watch
        self.state: State | None = None
        """What the last look found; None: there was none yet."""
        self.last_good: float | None = None
        """*clock* at the last CLEAR or NOTICE; None: there was none yet."""
        self.every: float | None = None
        """Seconds from one look to the next while all is well; None: it waits at the server."""
        self._put = put
        self._clock = clock
        self._news = News(watch.name)
        self._failures = 0
        self._stopping = _Stopper()
        self._closed = False
        self._lock = threading.Lock()  # held to put and to begin stopping: nothing is put after `stop` was called
        # Daemon threads: a plug-in that hangs in C must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"watch {watch.name}", daemon=True)
        self._closer = threading.Thread(target=self._close, name=f"close {watch.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, within: float = 1.0) -> None:
        """Close the watch and wait for its thread, at most *within* seconds. Nothing is put from now on."""
        stop_all([self], within)

    def begin_stop(self) -> None:
        """As `stop`, without waiting."""
        with self._lock:
            first = not self._stopping.is_set
            if first:
                self._stopping.set()
        if first:
            with contextlib.suppress(RuntimeError):  # no more threads here: a look that hangs ends with us
                self._closer.start()

    def join(self, within: float) -> None:
        """Wait for what `begin_stop` began, at most *within* seconds."""
        end = time.monotonic() + within
        for thread in (self._thread, self._closer):
            if thread.ident is not None:  # it was started
                thread.join(max(0.0, end - time.monotonic()))
        if not self._thread.is_alive() and not self._closed:
            self._closed = True
            self._stopping.close()

    def _close(self) -> None:
        try:
            self.watch.close()
        except Exception:  # noqa: BLE001  # the plug-in border: what a watch does when it closes concerns nobody now
            return

    def _run(self) -> None:
        pause = 0.0
        while not self._stopping.wait(pause):
            began = self._clock()
            observation = self._look()
            now = self._clock()
            self._note(observation, now)
            self._tell(self._news.take(observation))
            try:
                pause = self._pause(observation, now - began)
            except Exception:  # noqa: BLE001  # the plug-in border: `interval` or its kin is no number
                pause = Watch.interval

    def _look(self) -> Observation:
        try:
            observation = self.watch.observe()
            fault = _fault(observation)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # the plug-in border: a bug in a plug-in ends no watch
            fault = f"raised {one_line(error)}"
            observation = Observation.clear()
        return Observation.unknown(f"{self.watch.name}: observe() {fault}") if fault else observation

    def _note(self, observation: Observation, now: float) -> None:
        self.state = observation.state
        if observation.state is State.UNKNOWN:
            self._failures += 1
        else:
            self._failures = 0
            self.last_good = now

    def _tell(self, events: Sequence[Event]) -> None:
        with self._lock:
            if self._stopping.is_set:
                return
            for event in events:
                self._put(event)

    def _pause(self, observation: Observation, took: float) -> float:
        if observation.state is State.UNKNOWN:
            pause = back_off(self._failures, self.watch.notice_period, observation.retry_after)
            # What is asked for seldom is not to be asked for more often, for days, because it does not answer.
            slow = self.watch.secondary or self._failures > QUICK_TRIES
            return max(pause, self.watch.interval) if slow and not self.watch.waits else pause
        if self.watch.waits:  # one that says so and yet returns at once must not become a busy loop
            self.every = None
            return max(0.0, SHORTEST_PAUSE - took)
        self.every = min(max(SHORTEST_PAUSE, self.watch.interval), LONGEST_INTERVAL)
        return self.every


def stop_all(pollers: Sequence[Poller], within: float = 1.0) -> None:
    """Stop *pollers* at once, in *within* seconds altogether."""
    end = time.monotonic() + within
    for poller in pollers:
        poller.begin_stop()
    for poller in pollers:
        poller.join(max(0.0, end - time.monotonic()))


def one_line(error: BaseException) -> str:
    """Say what *error* is on one line; also for exceptions whose own `__str__` raises."""
    return " ".join("".join(traceback.format_exception_only(type(error), error)).split())[:300]


def _fault(observation: object) -> str | None:
    """Say what a plug-in's answer lacks to be one; None: nothing. A NaN would stop every clock of the escalation."""
    if not isinstance(observation, Observation):
        return f"returned {type(observation).__name__}, which is no Observation"
    wrong = _wrong(observation, OBSERVATION_TYPES)
    if wrong is None and observation.notice is not None:
        wrong = _wrong(observation.notice, NOTICE_TYPES)
    if wrong is None and (observation.state is State.NOTICE) is not (observation.notice is not None):
        wrong = f"state {observation.state.name} and notice={observation.notice!r}"
    return wrong and f"returned {wrong:.200}"


def _wrong(data: Observation | Notice, types: Mapping[str, tuple[type, ...]]) -> str | None:
    for name, allowed in types.items():
        value = getattr(data, name)
        if not isinstance(value, allowed) or (isinstance(value, (int, float)) and not math.isfinite(value)):
            return f"{type(data).__name__}({name}={value!r})"
    return None
