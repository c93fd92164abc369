"""Keeps directories at their URLs while the command runs: sends the newest state when it has come to rest."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from preemptd.errors import place_of
from preemptd.sync.folder import State, is_empty, read_marker, scan, without_logs
from preemptd.sync.layout import Writer
from preemptd.sync.open_files import written_now
from preemptd.sync.transfer import Line, Transfer

LOOK_EVERY = 2.0
"""Seconds between two looks: what is the same in two of them has come to rest."""
RESTLESS = 60.0
"""Seconds after which what never rests is tried all the same."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0
"""Seconds after a failure; twice as long after each that follows it."""
LAST_TRIES, LAST_PAUSE = 3, 1.0
"""So often, with so many seconds between, what is new at the end is tried to be sent."""
READ_FOR = 0.1


@dataclass(frozen=True, slots=True)
class Pair:
    """What is kept where."""

    directory: str
    """Absolute."""
    url: str
    shown: str
    """As the user wrote it, without secrets."""


Begin = Callable[[Pair, Writer, Callable[[Line], None]], Transfer]
Report = Callable[[Pair, Line, float, bool], None]
"""Takes what became of an upload, its seconds, and whether it was the last act."""


class Keeping:
    """One thread for all directories: one upload at a time, the newest state wins."""

    def __init__(
        self, writers: Mapping[Pair, Writer], begin: Begin, report: Report, hear: Callable[[Line], None]
    ) -> None:
        """Make it.

        Args:
            writers: who may write to each URL.
            begin: begins an upload. May raise OSError.
            report: hears of each that has ended.
            hear: takes what it says meanwhile.
        """
        self._kept = [_Kept(pair, writer, begin, report, hear) for pair, writer in writers.items()]
        self._changed = threading.Condition()
        self._saved = self._ending = False
        self._thread = threading.Thread(target=self._run, name="sync", daemon=True)

    def start(self) -> None:
        """Begin, when the command runs."""
        with self._changed:
            if self._thread.ident is None:
                self._thread.start()

    def saved(self) -> None:
        """Hear that a checkpoint is complete: it is sent without waiting for rest."""
        with self._changed:
            self._saved = True
            self._changed.notify()

    def end(self) -> None:
        """Send what is new for the last time; `is_alive` says whether that is still going on."""
        with self._changed:
            self._ending = True
            self._changed.notify()

    def stop(self, why: str) -> None:
        """Break off whatever is under way."""
        for kept in self._kept:
            kept.stop(why)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def unsent(self) -> Sequence[tuple[Pair, str]]:
        """List the directories whose last state is not at its URL, and why."""
        return [(kept.pair, kept.unsent) for kept in self._kept if kept.unsent]

    def _run(self) -> None:
        ending = False
        while not ending:
            with self._changed:
                self._changed.wait_for(lambda: self._saved or self._ending, LOOK_EVERY)
                saved, ending, self._saved = self._saved, self._ending, False
            for kept in self._kept:
                try:
                    if ending:
                        kept.end()
                    else:
                        kept.look(eager=saved)
                except Exception as error:  # noqa: BLE001, PERF203 - a bug in here must not look like a success
                    kept.fail(f"internal error, please report it: {error!r} at {place_of(error)}")


class _Kept:
    """One directory. All but `stop` runs in the thread."""

    def __init__(self, pair: Pair, writer: Writer, begin: Begin, report: Report, hear: Callable[[Line], None]) -> None:
        self.pair = pair
        self.unsent = ""
        """Why its last state is not at the URL, as far as is known; empty: it is."""
        self._writer = writer
        self._begin = begin
        self._report = report
        self._hear = hear
        self._seen: State | None = None
        self._rested_at = time.monotonic()
        self._failures = 0
        self._again_at = 0.0
        self._fenced = False
        self._stopped = ""

    def stop(self, why: str) -> None:
        self._stopped = why

    def look(self, *, eager: bool) -> None:
        """Send what is there, if it is new, and has come to rest or is known to be complete (*eager*)."""
        if self._fenced or (not eager and time.monotonic() < self._again_at):
            return
        try:
            state = scan(self.pair.directory)
        except OSError as error:
            self.fail(f"{error.strerror}: {error.filename}")
            return
        rests, self._seen = self._seen == without_logs(state), without_logs(state)
        overdue = time.monotonic() - self._rested_at > RESTLESS
        if not self._is_new(state):
            self._rested_at = time.monotonic()
        elif overdue or eager or (rests and self._is_closed(state)):
            self._rested_at = time.monotonic()
            self._send(last=False)

    def _is_closed(self, state: State) -> bool:
        """Say whether nobody writes one of the files in place: that takes longer than one looks at it."""
        return written_now(self.pair.directory).isdisjoint(without_logs(state))

    def end(self) -> None:
        """Send the last state, logs included."""
        for number in range(LAST_TRIES):
            self._pause(LAST_PAUSE * number)
            try:
                state = scan(self.pair.directory)
            except OSError as error:
                self.unsent = f"{error.strerror}: {error.filename}"
                return
            if not self._is_new(state, logs=True):
                self.unsent = ""
                return
            if self._stopped or self._fenced:
                self.unsent = self._stopped or self.unsent
                return
            self._send(last=True)

    def fail(self, why: str) -> None:
        """Take note that nothing could be sent."""
        self._take({"event": "failed", "kind": "local", "why": why}, 0.0)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopped and not self._fenced and time.monotonic() < end:
            time.sleep(READ_FOR)

    def _is_new(self, state: State, *, logs: bool = False) -> bool:
        if is_empty(state):
            return False
        marker = read_marker(self.pair.directory, self.pair.url)
        if marker is None:
            return True
        held = {path: found for path, (found, _, _) in marker.files.items()}
        return held != state if logs else without_logs(held) != without_logs(state)

    def _send(self, *, last: bool) -> None:
        began = time.monotonic()
        try:
            transfer = self._begin(self.pair, self._writer, self._hear)
        except OSError as error:
            self.fail(f"no process: {error.strerror}")
            return
        result = None
        while result is None:
            if self._stopped:
                transfer.kill(self._stopped)
            result = transfer.advance(READ_FOR)
        self._take(result, time.monotonic() - began, last=last)

    def _take(self, result: Line, seconds: float, *, last: bool = False) -> None:
        if result["event"] == "done":
            self._failures, self._again_at, self.unsent = 0, 0.0, ""
        else:
            self.unsent = str(result["why"])
            self._fenced = result["kind"] == "fenced"
            self._again_at = time.monotonic() + min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._failures)
            self._failures += 1
        self._report(self.pair, result, seconds, last)
