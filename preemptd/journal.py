"""The journal: one JSON line an event, given to each sink in a thread of its own."""

import queue
import threading
import time
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
class Idling(Protocol):
    """A sink that does something as soon as no line waits for it."""

    def when_idle(self) -> None: ...


class Journal:
    """Takes lines from any thread without ever blocking: nobody waits for a lock that another thread may hold.

    All sinks get them in the order of each thread that writes, and each at its own pace. A disk or a terminal that
    hangs must not keep a notice from the process, or from whoever else is to hear of it: that is why each sink has a
    thread, and nobody else writes.
    """

    def __init__(self) -> None:
        self._lanes: list[Lane] = []
        self._started = False

    def add(self, sink: Sink) -> None:
        """Add a sink, before `start`."""
        self._lanes.append(Lane(sink, self.warn))

    def start(self) -> None:
        """Start writing; lines from before are kept until then.

        Raises:
            RuntimeError: not one thread can be started.
        """
        for lane in self._lanes:
            try:
                lane.start()
            except RuntimeError:
                if not self._started:
                    raise
                self._lanes[0].carry(lane)
            self._started = True

    def write(self, event: str, **fields: object) -> None:
        self._put({"event": event, **_clocks(), **fields})

    def warn(self, text: str) -> None:
        self.write("warning", text=text)

    def progress(self, text: str) -> None:
        """Show *text* on the last line of a terminal; nowhere else."""
        self._put({"event": "progress", "text": text})

    def _put(self, line: Line) -> None:
        for lane in reversed(self._lanes):  # the first one may carry others, whose lines it looks for at its own
            lane.put(line)

    def flush(self, timeout: float, sinks: Sequence[Sink]) -> None:
        """Wait until *sinks* have all that was written so far, no longer than *timeout* seconds."""
        self._await([lane for lane in self._lanes if lane.sink in sinks], timeout)

    def _await(self, lanes: "Sequence[Lane]", timeout: float) -> None:
        end = time.monotonic() + timeout
        for passed in [lane.mark() for lane in reversed(lanes)]:
            while not passed.is_set() and time.monotonic() < end:
                time.sleep(LOOK_EVERY)

    def close(self, timeout: float = 2.0) -> None:
        """Write out what is left, within *timeout* seconds; also what was said before a start that never came."""
        end = time.monotonic() + timeout
        if not self._started:
            try:
                self.start()
            except RuntimeError:  # no more threads here
                self._write_out()
                return
        self._await(self._lanes, timeout)  # then each has what the others complained of in their last lines
        for lane in reversed(self._lanes):
            lane.end()
        end = max(end, time.monotonic() + LAST_WITHIN)
        for lane in self._lanes:
            lane.join(max(0.0, end - time.monotonic()))

    def _write_out(self) -> None:
        """Write in the thread that calls."""
        first, *others = self._lanes
        for lane in others:
            first.carry(lane)
        first.end()
        first.run()


class Lane:
    """The way to one sink. One that has no thread of its own is carried by another one."""

    def __init__(self, sink: Sink, complain: Callable[[str], None]) -> None:
        self.sink = sink
        self._complain = complain
        self._failed = False
        self._lines: queue.SimpleQueue[Line | threading.Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self.run, name="journal", daemon=True)
        self._carried: list[Lane] = []
        self.carrier: Lane | None = None
        self._full = threading.Lock()  # for the one below, once it is not 0
        self._missing = 0
        """Lines that found no place since the last that did."""

    def start(self) -> None:
        """Begin.

        Raises:
            RuntimeError: no thread can be started.
        """
        self._thread.start()

    def carry(self, other: "Lane") -> None:
        """Do the work of *other* as well."""
        other.carrier = self
        self._carried.append(other)

    def put(self, line: Line) -> None:
        """Hand *line* on. While the sink does not keep up, what comes last is left out, and counted."""
        if self._missing or self._lines.qsize() >= MOST_WAITING:
            with self._full:
                if self._missing or self._lines.qsize() >= MOST_WAITING:
                    self._missing += 1
                    return
        self._lines.put(line)

    def mark(self) -> threading.Event:
        """Return what is set when the sink has all that was put so far."""
        passed = threading.Event()
        self._lines.put(passed)
        if self.carrier is not None:
            self.carrier.mark()
        return passed

    def end(self) -> None:
        """End when nothing waits any more."""
        self._lines.put(None)

    def join(self, timeout: float) -> None:
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def run(self) -> None:
        """Hand on what comes, until the end; then close the sinks."""
        while (line := self._lines.get()) is not None:
            self._hand_on(line)
            self._catch_up()
        self.finish()

    def _hand_on(self, line: Line | threading.Event | None) -> None:
        if isinstance(line, threading.Event):
            line.set()
        elif line is not None:
            self._call(partial(self.sink.write, line))

    def _catch_up(self) -> None:
        """Do what is to be done when nothing waits, here and for those that are carried."""
        for lane in self._carried:
            lane.drain()
        if self._lines.empty():
            self._apologize()
            self._be_idle()

    def drain(self) -> None:
        while not self._lines.empty():
            self._hand_on(self._lines.get())
        self._apologize()
        self._be_idle()

    def finish(self) -> None:
        for lane in self._carried:
            lane.finish()
        self.drain()  # what sinks complained of behind the end
        self._call(self.sink.close)

    def _apologize(self) -> None:
        if self._missing:
            with self._full:
                missing, self._missing = self._missing, 0
            text = f"{missing} lines are missing here: more came than could be written"
            self._hand_on({"event": "warning", **_clocks(), "text": text})

    def _be_idle(self) -> None:
        if isinstance(self.sink, Idling):
            self._call(self.sink.when_idle)

    def _call(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - a bug, or no thread to be had: the others go on
            if not self._failed:
                self._failed = True
                self._complain(f"{type(self.sink).__name__} failed: {error} at {place_of(error)}")


def _clocks() -> Line:
    return {"t": round(time.time(), 3), "mono": round(time.monotonic(), 4)}
