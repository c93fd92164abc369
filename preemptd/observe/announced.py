"""Which notices are open, as the journal tells of them."""

import time
from collections.abc import Mapping

Line = Mapping[str, object]


class Announced:
    """Reads the journal's lines, in the journal's thread; any thread may ask how much time is left."""

    def __init__(self) -> None:
        self._open: dict[str, Line] = {}
        self._advised: set[str] = set()

    def hear(self, line: Line) -> bool:
        """Take a line; say whether it is advice, or a notice that is acted on, of an event that is not known yet."""
        event_id = str(line.get("event_id"))
        if line["event"] == "revoked":
            self._open.pop(event_id, None)
            self._advised.discard(event_id)
        if line["event"] == "advice":
            new = event_id not in self._advised
            self._advised.add(event_id)
            return new
        if line["event"] != "notice":
            return False
        known = event_id in self._open
        if line["acted"] or known:  # the last word may come when the command has ended, and nobody is left to act for
            self._open = {**self._open, event_id: line}
        return bool(line["acted"]) and not known

    @property
    def first(self) -> Line | None:
        """The open notice with the earliest deadline."""
        return min(self._open.values(), key=deadline_of, default=None)

    @property
    def left(self) -> float | None:
        """Seconds to the earliest deadline, negative behind it; None: nothing is announced."""
        first = self.first
        return None if first is None else deadline_of(first) - time.monotonic()


def deadline_of(notice: Line) -> float:
    """Compute the deadline on the monotonic clock."""
    return number(notice["mono"]) + number(notice["grace"])


def number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
