"""The one way in which a test waits."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(look: Callable[[], T], timeout: float = 20.0, what: str = "", pause: float = 0.01) -> T:
    """Call *look* each *pause* seconds until it returns something true; return that. It fails after *timeout* s."""
    end = time.monotonic() + timeout
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, f"not within {timeout} s: {what or look}"
        time.sleep(pause)
