"""The journal: one JSON line an event, given to each sink in a thread of its own."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

from preemptd.errors import place_of

Line = Mapping[str, object]

MOST_WAITING = 10_000
"""Lines that wait for one sink at the most: all that 500 targets have to say in a notice is half of that."""
LOOK_EVERY = 0.002
"""Seconds between two looks of one who waits in the main thread, where no `Event` may be waited for."""
LAST_WITHIN = 0.25
"""Seconds to close the sinks when others have used up the time for the end."""


class Sink(Protocol):
    """Where lines go. Called in one thread only, which may be other sinks' as well where there are too few."""

    def write(self, line: Line) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class Resting(Protocol):
    """A sink that does something as soon as no line waits for it."""

    def rest(self) -> None: ...


class Journal:
    """Takes lines from any thread without ever blocking. All sinks get them in the same order, each at its own pace.

    A disk or a terminal that hangs must not keep a notice from the process, or from whoever else is to hear of it:
    that is why each sink has a thread, and nobody else writes.
    """

    def __init__(self) -> None:
        self._sinks: list[Sink] = []
        self._lock = threading.Lock()  # for all below
        self._lanes: Sequence[Lane] | None = None
        """None: not started."""
        self._early: list[Line] = []

    def add(self, sink: Sink) -> None:
        """Add a sink, before `start`."""
        self._sinks.append(sink)

    def start(self) -> None:
        """Start writing; lines from before are kept until then.

        Raises:
            RuntimeError: not one thread can be started.
        """
        lanes: list[Lane] = []
        for sink in self._sinks:
            lane = Lane([sink], self.warn)
            try:
                lane.start()
            except RuntimeError:
                if not lanes:
                    raise
                lanes[0].share(sink)
            else:
                lanes.append(lane)
        self._open(lanes)

    def _open(self, lanes: "Sequence[Lane]") -> None:
        with self._lock:
            for line in self._early:
                for lane in lanes:
                    lane.put(line)
            self._early.clear()
            self._lanes = lanes

    def write(self, event: str, **fields: object) -> None:
        self._put({"event": event, **_clocks(), **fields})

    def warn(self, text: str) -> None:
        self.write("warning", text=text)

    def progress(self, text: str) -> None:
        """Show *text* on the last line of a terminal; nowhere else."""
        self._put({"event": "progress", "text": text})

    def _put(self, line: Line) -> None:
        with self._lock:
            if self._lanes is None:
                self._early.append(line)
            for lane in self._lanes or ():
                lane.put(line)

    def flush(self, timeout: float, sinks: Sequence[Sink]) -> None:
        """Wait until *sinks* have all that was written so far, no longer than *timeout* seconds."""
        self._await([lane for lane in self._lanes or () if lane.leads_to(sinks)], timeout)

    def _await(self, lanes: "Sequence[Lane]", timeout: float) -> None:
        end = time.monotonic() + timeout
        for passed in [lane.mark() for lane in lanes]:
            while not passed.is_set() and time.monotonic() < end:
                time.sleep(LOOK_EVERY)

    def close(self, timeout: float = 2.0) -> None:
        """Write out what is left, within *timeout* seconds; also what was said before a start that never came."""
        end = time.monotonic() + timeout
        if self._lanes is None:
            try:
                self.start()
            except RuntimeError:  # no more threads here
                self._write_out()
                return
        lanes = self._lanes or ()
        self._await(lanes, timeout)  # then each has what the others complained of in their last lines
        for lane in lanes:
            lane.end()
        end = max(end, time.monotonic() + LAST_WITHIN)
        for lane in lanes:
            lane.join(max(0.0, end - time.monotonic()))

    def _write_out(self) -> None:
        """Write in the thread that calls."""
        lane = Lane(self._sinks, self.warn)
        self._open([lane])
        lane.end()
        lane.run()


class Lane:
    """The way to one sink, or to several that share a thread: order is kept, and who puts does not wait."""

    def __init__(self, sinks: Sequence[Sink], complain: Callable[[str], None]) -> None:
        self._sinks = list(sinks)
        self._complain = complain
        self._failed: set[int] = set()
        self._thread = threading.Thread(target=self.run, name="journal", daemon=True)
        self._changed = threading.Condition()  # for all below
        self._waiting: deque[Line | threading.Event] = deque()
        self._missing = 0
        """Lines that found no place since the last that did."""
        self._ending = False

    def start(self) -> None:
        """Begin.

        Raises:
            RuntimeError: no thread can be started.
        """
        self._thread.start()

    def share(self, sink: Sink) -> None:
        """Lead to *sink* as well; before the first `put`."""
        self._sinks.append(sink)

    def leads_to(self, sinks: Sequence[Sink]) -> bool:
        return any(sink in self._sinks for sink in sinks)

    def put(self, line: Line) -> None:
        """Hand *line* on. While the sink does not keep up, what comes last is left out, and counted."""
        with self._changed:
            if self._missing or len(self._waiting) >= MOST_WAITING:
                self._missing += 1
                return
            self._waiting.append(line)
            self._changed.notify()

    def mark(self) -> threading.Event:
        """Return what is set when the sinks have all that was put so far."""
        passed = threading.Event()
        with self._changed:
            self._waiting.append(passed)
            self._changed.notify()
        return passed

    def end(self) -> None:
        """End when nothing waits any more."""
        with self._changed:
            self._ending = True
            self._changed.notify()

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def run(self) -> None:
        """Hand on what comes, until the end; then close the sinks."""
        while (line := self._next()) is not None:
            if isinstance(line, threading.Event):
                line.set()
                continue
            for sink in self._sinks:
                self._call(sink, partial(sink.write, line))
            if not self._waiting:
                self._rest()
        for sink in self._sinks:
            self._call(sink, sink.close)

    def _next(self) -> Line | threading.Event | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._missing or self._ending)
            if self._waiting:
                return self._waiting.popleft()
            missing, self._missing = self._missing, 0
        if not missing:
            return None
        text = f"{missing} lines are missing here: more came than could be written"
        return {"event": "warning", **_clocks(), "text": text}

    def _rest(self) -> None:
        for sink in self._sinks:
            if isinstance(sink, Resting):
                self._call(sink, sink.rest)

    def _call(self, sink: Sink, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - a bug, or no thread to be had: the others go on
            if id(sink) not in self._failed:
                self._failed.add(id(sink))
                self._complain(f"{type(sink).__name__} failed: {error} at {place_of(error)}")


def _clocks() -> Line:
    return {"t": round(time.time(), 3), "mono": round(time.monotonic(), 4)}
