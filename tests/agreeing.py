"""Ranks without torch: threads of one process, each with a client of its own, and a store that they share."""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator

from preemptd.integrations.agreement import Agreement, Rank


class Shared:
    """A store as torch's are: what one rank writes all can read. `fails` and `hangs` are its server's end."""

    def __init__(self) -> None:
        self._kept: dict[str, str] = {}
        self._lock = threading.Lock()
        self.fails = threading.Event()
        self.hangs = threading.Event()
        self.goes_on = threading.Event()

    def add(self, key: str, amount: int, /) -> int:
        with self._at_work():
            self._kept[key] = str(int(self._kept.get(key, "0")) + amount)
            return int(self._kept[key])

    def set(self, key: str, value: str, /) -> None:
        with self._at_work():
            self._kept[key] = value

    def get(self, key: str, /) -> bytes:
        with self._at_work():
            return self._kept[key].encode()

    def check(self, keys: list[str], /) -> bool:
        with self._at_work():
            return all(key in self._kept for key in keys)

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes:
        with self._at_work():
            if self._kept.get(key, "") == expected:
                self._kept[key] = desired
            return self._kept[key].encode()

    def names(self) -> frozenset[str]:
        return frozenset(self._kept)

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        if self.hangs.is_set():
            self.goes_on.wait()
        with self._lock:
            if self.fails.is_set():
                raise RuntimeError("connection reset by peer")
            yield


class Link:
    """A rank's client, which the test tells what a daemon would."""

    def __init__(self, left: float | None = None) -> None:
        self.told = False
        self.left = left
        self.passed_on: list[tuple[float | None, str]] = []
        self._callbacks: list[Callable[[object], object]] = []

    def tell(self) -> None:
        self.told = True
        for callback in list(self._callbacks):
            callback(None)

    def should_preempt(self) -> bool:
        return self.told

    def time_left(self) -> float | None:
        return self.left if self.told else None

    def on_notice(self, callback: Callable[[object], object], /) -> Callable[[], None]:
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def notify(self, deadline_s: float | None = None, reason: str = "") -> bool:
        self.passed_on.append((deadline_s, reason))
        return True


class Ranks:
    """So many ranks, and each one's training: it takes steps until `agree` says that all are to stop."""

    def __init__(
        self,
        count: int,
        store: Shared | None = None,
        *,
        left: float | None = None,
        outlived: bool = False,
        begun: int | None = None,
    ) -> None:
        """Let only the first *begun* ranks come as far as their first call."""
        self._begun = count if begun is None else begun
        self.store = store or Shared()
        self.links = [Link(left) for _ in range(count)]
        self.group_lives = True
        self.agreements = [
            Agreement(Rank(number, count, str(number)), self._open, link, lambda: self.group_lives, outlived=outlived)
            for number, link in enumerate(self.links)
        ]
        self.steps = [0] * count

    def __enter__(self) -> "Ranks":  # noqa: PYI034  # typing.Self is newer than Python 3.10
        for agreement in self.agreements[: self._begun]:
            agreement.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.store.goes_on.set()
        for agreement in self.agreements[: self._begun]:
            agreement.close()

    def train(self, number: int, step: Callable[[], object]) -> None:
        """Call *step* and `agree` until that is True; `steps` has the number of calls then."""
        stop = False
        while not stop:
            step()
            self.steps[number] += 1
            stop = self.agreements[number].agree()

    def all_train(self, step: Callable[[], object]) -> list[threading.Thread]:
        return [self.start(number, step) for number in range(self._begun)]

    def start(self, number: int, step: Callable[[], object]) -> threading.Thread:
        thread = threading.Thread(target=self.train, args=(number, step))
        thread.start()
        return thread

    def _open(self) -> Shared:
        return self.store


def pace(seed: int) -> Callable[[], None]:
    """A step of a millisecond or so, longer at times: as uneven as evaluation, logging and other people make it."""
    chance = random.Random(seed)
    return lambda: time.sleep(chance.choice([0, 0, 0.001, 0.001, 0.003, 0.02]))
