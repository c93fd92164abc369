"""How the ranks of a job agree on the step at which all of them stop, without a collective on any step.

Each rank counts its calls, and has a thread that looks at the job's key-value store. A rank that is told says so there.
Whoever sees that lets no further call of its own pass, and writes down how many have passed; the last one to do so
takes the highest of these numbers, and the call after it is where all stop. No main thread is needed for it, so it may
sit in a collective meanwhile, and no rank can have passed the call that is agreed on.
"""

import atexit
import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

logger = logging.getLogger("preemptd")

EVERY = 0.25
"""Seconds between two looks at the store."""
LOOKS_PER_SECOND = 2000
"""Of all ranks together: on one core of the rank that serves the store they are 2 %."""
OWN_NEWS_WITHIN = 0.3
"""Seconds in which our own daemon may still tell us what another rank knows already: it tells a node as a whole."""
LIMIT = 30.0
"""Seconds to wait for ranks that do not answer; a third of the time left, if that is less."""
LEAST_LIMIT = 1.0
MARGIN = 1.0
"""Seconds that the main thread waits longer than its own thread does, which may itself be stuck in the store."""
FIRST_PAUSE = 0.005


class Store(Protocol):
    """What we need of torch.distributed.Store. What goes wrong with it is a RuntimeError."""

    def add(self, key: str, amount: int, /) -> int: ...
    def set(self, key: str, value: str, /) -> object: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...
    def compare_set(self, key: str, expected: str, desired: str, /) -> object: ...


class Client(Protocol):
    """What we need of `preemptd`."""

    def should_preempt(self) -> bool: ...
    def time_left(self) -> float | None: ...
    def on_notice(self, callback: Callable[[object], object], /) -> Callable[[], None]: ...
    def notify(self, deadline_s: float | None = None, reason: str = "") -> bool: ...


@dataclass(frozen=True)
class Rank:
    """One of a group."""

    number: int
    of: int
    """The size of the group."""
    name: str
    """What the other ranks call it, and say in their journal."""


class Agreement:
    """One rank's part in one group.

    Args:
        open_store: opens the store, once, in our thread; nobody else's waiting on it may keep us waiting.
        is_alive: says whether the group still exists.
        outlived: the store's server outlives the ranks, so that one that leaves can say so without a fuss.
    """

    def __init__(
        self,
        rank: Rank,
        open_store: Callable[[], Store],
        client: Client,
        is_alive: Callable[[], bool],
        *,
        outlived: bool,
    ) -> None:
        self._rank = rank
        self._open_store = open_store
        self._client = client
        self._is_alive = is_alive
        self._outlived = outlived
        self._pid = os.getpid()
        self._calls = 0
        self._is_asked = False
        """True: no call may pass before it is known where all stop."""
        self._stop: int | None = None
        """The number of the first call that answers True; None, when that is settled: each rank for itself."""
        self._is_told = self._has_heard = False
        self._left: float | None = None
        self._settled = threading.Event()
        self._closed = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="preemptd-agree", daemon=True)

    def start(self) -> None:
        """Begin to look.

        Raises:
            RuntimeError: no thread can be started.
        """
        self._thread.start()
        atexit.register(self.close)  # a daemon thread that comes back from C++ after the end would abort the process

    def agree(self) -> bool:
        # First the number, then the look; `_publish` does it the other way round. So one of the two sees the other.
        self._calls = call = self._calls + 1
        return self._is_asked and self._answer(call)

    def close(self) -> None:
        """End the thread, which tells the others, where it can, that this rank makes no more calls."""
        if self._pid != os.getpid():  # a forked child's way out: the thread did not come along
            return
        self._closed.set()
        self._wake.set()
        self._thread.join(LEAST_LIMIT)

    def _answer(self, call: int) -> bool:
        if not self._settled.is_set() and not self._settled.wait(self._limit() + MARGIN):
            logger.warning("the ranks' store does not answer: rank %s stops by itself", self._rank.name)
            self._alone()
        if self._stop is None:
            return self._has_heard or self._client.should_preempt()
        return call >= self._stop

    def _alone(self) -> None:
        self._stop = None
        self._is_asked = True
        self._settled.set()

    def _limit(self) -> float:
        return LIMIT if self._left is None else min(LIMIT, max(LEAST_LIMIT, self._left / 3))

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        remove = self._client.on_notice(self._hear)
        try:
            board = _Board(self._open_store(), self._rank)
            if self._look(board):
                self._settle(board)
                return
            if self._outlived:
                self._publish(board)
            self._alone()  # there is nobody any more to agree with
        except Exception as error:  # noqa: BLE001  # torch's stores raise what their transport raises
            if self._is_alive() and not self._closed.is_set():
                level = logging.WARNING if self._is_told or self._has_heard else logging.INFO
                logger.log(
                    level, "the ranks' store is gone: rank %s does without the others: %s", self._rank.name, error
                )
            self._alone()
        finally:
            remove()

    def _hear(self, _: object) -> None:
        """Take in our own daemon's notice, which stands from now on, even if it is revoked."""
        self._left = self._client.time_left()
        self._is_told = self._is_asked = True
        self._wake.set()

    def _look(self, board: "_Board") -> bool:
        """Return True when a rank was told, False when there is nobody any more to ask."""
        pause = max(EVERY, self._rank.of / LOOKS_PER_SECOND)
        while self._is_alive() and not self._closed.is_set():
            if self._is_told or self._client.should_preempt():
                self._hear(None)
                board.tell(self._left)
                return True
            if board.is_told():
                self._has_heard = True
                return True
            self._wake.wait(pause)
        return False

    def _settle(self, board: "_Board") -> None:
        news = board.news()
        if self._left is None and isinstance(news["left"], int | float):
            self._left = news["left"]
        end = time.monotonic() + self._limit()
        self._publish(board)
        self._pass_on(f"rank {news['rank']} has been told")
        pause = FIRST_PAUSE
        while (stop := board.stop()) is None:
            if time.monotonic() > end:
                logger.warning("not all ranks answer: rank %s stops with those that do", self._rank.name)
                board.decide()
            elif self._closed.wait(pause):
                return
            pause = min(2 * pause, EVERY)
        if not self._settled.is_set():  # else the main thread's patience is at its end, and has acted on that
            self._stop = stop
            self._settled.set()

    def _publish(self, board: "_Board") -> None:
        self._is_asked = True
        board.publish(self._calls)

    def _pass_on(self, reason: str) -> None:
        """Tell our own daemon what it does not know: this node's part of the job ends the same way."""
        if self._is_told or self._wake.wait(OWN_NEWS_WITHIN):
            return
        with contextlib.suppress(Exception):  # the agreement does not hang on it
            self._client.notify(self._left, reason)


class _Board:
    """What the ranks write for each other."""

    def __init__(self, store: Store, rank: Rank) -> None:
        self._store = store
        self._rank = rank
        # Where a group is made anew on the same store, nothing of the last time is found.
        self._prefix = f"{store.add(f'joined/{rank.number}', 1)}/"

    def tell(self, left: float | None) -> None:
        self._store.set(self._key("told"), json.dumps({"rank": self._rank.name, "left": left}))

    def is_told(self) -> bool:
        return self._store.check([self._key("told")])

    def news(self) -> dict[str, object]:
        news: dict[str, object] = json.loads(self._store.get(self._key("told")))
        return news

    def publish(self, calls: int) -> None:
        """Write how many calls have passed here; the last rank to do so decides."""
        self._store.set(self._key(f"calls/{self._rank.number}"), str(calls))
        if self._store.add(self._key("published"), 1) == self._rank.of:
            self.decide()

    def decide(self) -> None:
        """Name the call after the last one that has passed anywhere; who is first decides for all."""
        keys = [self._key(f"calls/{number}") for number in range(self._rank.of)]
        last = max(int(self._store.get(key)) for key in keys if self._store.check([key]))
        self._store.compare_set(self._key("stop"), "", str(last + 1))

    def stop(self) -> int | None:
        key = self._key("stop")
        return int(self._store.get(key)) if self._store.check([key]) else None

    def _key(self, name: str) -> str:
        return self._prefix + name
