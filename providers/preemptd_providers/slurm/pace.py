"""When to look next: at intervals with jitter, sooner when woken, ever more rarely while nobody answers."""

import os
import random
import select
import threading
import time
from contextlib import suppress

JITTER = 0.2
"""Share of the interval: a thousand jobs that started together must not ask together."""
LONGEST = 300.0
FIRST_BACK_OFF = 1.0


class Pace:
    """One thread waits; any thread may wake it or end it. By the monotonic clock, unlike `threading.Event`."""

    def __init__(self, interval: float) -> None:
        """Make it; *interval* is in seconds, and the first `wait` returns at once."""
        self._interval = interval
        self._next = time.monotonic()
        self._failures = 0
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._lock = threading.Lock()
        self._closed = False

    def wait(self) -> bool:
        """Wait until it is time to look; False: it was closed."""
        while not self._closed:
            left = self._next - time.monotonic()
            if left <= 0 or self._poll.poll(left * 1000):
                break
        with self._lock:
            if self._closed:
                return False
            with suppress(BlockingIOError):
                os.eventfd_read(self._fd)
            return True

    def succeeded(self) -> None:
        """Plan the next look after one that was answered."""
        self._failures = 0
        self._next = time.monotonic() + self._interval * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret

    def failed(self) -> None:
        """Plan the next look after one that was not."""
        self._failures += 1
        pause = min(LONGEST, FIRST_BACK_OFF * 2 ** min(self._failures - 1, 10))
        self._next = time.monotonic() + pause * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret

    def soon(self, seconds: float) -> None:
        """Plan the next look for then, if it is not planned for earlier."""
        self._next = min(self._next, time.monotonic() + seconds)

    def wake(self) -> None:
        """Have `wait` return now; from any thread."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        """Have every `wait` return False from now on; from any thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.eventfd_write(self._fd, 1)

    def __del__(self) -> None:
        os.close(self._fd)
