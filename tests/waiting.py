"""The one way in which a test waits."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(look: Callable[[], T], timeout: float = 20.0, what: str = "") -> T:
    """Call *look* until it returns something true, and return that; fail after *timeout* seconds."""
    end = time.monotonic() + timeout
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, f"not within {timeout} s: {what or look}"
        time.sleep(0.01)
