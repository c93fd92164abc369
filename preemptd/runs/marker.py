"""Marks the W&B runs of the target as preempting: one thread, one selector, every wandb-core at once.

A wandb-core that is stopped, silent or flooded never delays another: connections do not block, and there is no time
limit a core. The thread knows the cores before a notice comes, so that marking is one exchange over a local socket.
"""

import logging
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from preemptd.events import Event, MarkingDone, RunEnded, RunMarked, RunsFound
from preemptd.model import Process, ProcessId, Run
from preemptd.runs import discovery
from preemptd.runs.attempt import RETRY, Attempt
from preemptd.runs.core_socket import CoreError, Progress
from preemptd.runs.discovery import Core
from preemptd.runs.roster import Roster

_STOP_WITHIN = 1.0

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Demand:
    asked: int
    waits_for: tuple[Attempt, ...] | None = None
    """None: not all cores have been looked at since the demand."""


@dataclass(frozen=True, slots=True)
class _Finish:
    """That runs are to be ended now."""

    code: int
    spared: Container[int]
    """Pids of owners that end their runs themselves."""


class Marker:
    """Start it before the notice; `look()` feeds it snapshots; `mark()` opens an escalation and `rest()` ends it."""

    def __init__(self, put: Callable[[Event], None], roster: Roster | None = None) -> None:
        """Make it; *roster* is shown the runs while their processes live."""
        self._put = put
        self._roster = roster or Roster()
        self._orders: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = False
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="wandb-marker", daemon=True)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._serving = True
        self._cores: dict[ProcessId, Core] = {}
        self._to_look: deque[Core] = deque()
        self._next_look = 0.0
        self._found: frozenset[Run] = frozenset()
        self._marking = False
        self._demands: list[_Demand] = []
        self._finish: _Finish | None = None
        self._attempts: dict[tuple[Run, bool], Attempt] = {}
        """By run, and whether it is to end it."""
        self._settled: set[tuple[Run, bool]] = set()
        self._given_up: set[Run] = set()
        """Runs that had only a debug log and did not answer; if a transaction log appears they are tried after all."""

    def start(self) -> None:
        self._thread.start()

    def look(self, processes: Sequence[Process]) -> None:
        """Take a new snapshot of the target; from any thread. Cores and their runs are found in the marker's own."""
        self._order(lambda: self._take(processes))

    def mark(self, asked: int) -> None:
        """Mark every run, and those that appear until `rest()`; `MarkingDone(asked)` when the known ones are done."""
        self._order(lambda: self._begin(asked))

    def finish(self, asked: int, code: int, spared: Container[int] = ()) -> None:
        """Mark and end every run with *code*, until `rest()`; `RunEnded` for each, then `MarkingDone(asked)`.

        For the very last moment: what a run logs after that is dropped, and a later `Run.finish()` raises (0.19, 0.31)
        or hangs for seconds (0.22). The runs of the processes *spared* are left alone.
        """
        self._order(lambda: self._begin(asked, _Finish(code, spared)))

    def rest(self) -> None:
        """End the escalation: nothing more is marked; the next `mark()` marks anew."""
        self._order(self._end)

    def stop(self) -> None:
        """End the thread and close everything; what is called after that does nothing."""
        self._order(self._leave)
        if self._thread.ident is not None:
            self._thread.join(_STOP_WITHIN)
        with self._closing:
            if not self._closed and not self._thread.is_alive():
                self._selector.close()
                os.close(self._wake)
            self._closed = True

    def _order(self, order: Callable[[], None]) -> None:
        with self._closing:
            if not self._closed:
                self._orders.append(order)
                os.eventfd_write(self._wake, 1)

    def _wake_up(self) -> None:
        self._order(lambda: None)

    # From here on everything runs in the marker's thread.

    def _serve(self) -> None:
        while self._serving:
            for key, _ in self._selector.select(self._patience()):
                if isinstance(key.data, Attempt):
                    self._step(key.data, key.data.go_on)
                else:
                    os.eventfd_read(self._wake)
            while self._orders:
                self._orders.popleft()()
            self._work(time.monotonic())

    def _patience(self) -> float | None:
        """Seconds until something is due; None: nothing before the next order."""
        if self._to_look:
            return 0.0
        if not self._marking:
            return None
        due = min([self._next_look, *(attempt.due for attempt in self._attempts.values())])
        return max(0.0, due - time.monotonic())

    def _work(self, now: float) -> None:
        if self._marking:
            for attempt in [attempt for attempt in self._attempts.values() if attempt.due <= now]:
                self._press(attempt, now)
            if self._next_look <= now and not self._to_look:
                self._to_look.extend(self._cores.values())
                self._next_look = now + RETRY
        if self._to_look:  # one core a turn: answers that came in meanwhile are read before the next
            self._look_at(self._to_look.popleft(), now)
        if not self._to_look:
            self._report_found()
            self._roster.see(self._found, self._marking, self._wake_up)
            self._report_done()

    def _take(self, processes: Sequence[Process]) -> None:
        """Add the cores of a snapshot. One that is missing is kept until it has ended: a snapshot can tear."""
        for process in discovery.cores(processes):
            if process.id not in self._cores:
                self._cores[process.id] = Core(process)
        self._to_look = deque(self._cores.values())

    def _begin(self, asked: int, finish: _Finish | None = None) -> None:
        """Start with what is known, at once; then look at every core again."""
        self._marking = True
        self._finish = finish or self._finish
        self._demands.append(_Demand(asked))
        now = time.monotonic()
        for core in list(self._cores.values()):
            self._attempt_all(core, now)
        self._to_look = deque(self._cores.values())
        self._next_look = now + RETRY

    def _end(self) -> None:
        self._marking = False
        self._finish = None
        for attempt in self._attempts.values():
            attempt.hang_up()
        self._attempts.clear()
        self._settled.clear()
        self._given_up.clear()
        self._demands.clear()

    def _leave(self) -> None:
        self._end()
        self._serving = False

    def _look_at(self, core: Core, now: float) -> None:
        try:
            core.look()
        except ProcessLookupError:
            self._forget(core)
            return
        for attempt in self._attempts_of(core):
            if attempt.run not in core.certain | core.possible:
                self._drop(attempt)
        if self._marking:
            self._attempt_all(core, now)

    def _forget(self, core: Core) -> None:
        self._cores.pop(core.process.id, None)
        for attempt in self._attempts_of(core):
            self._settle(attempt, "its wandb-core has ended")

    def _attempts_of(self, core: Core) -> list[Attempt]:
        return [attempt for attempt in self._attempts.values() if attempt.core is core]

    def _attempt_all(self, core: Core, now: float) -> None:
        if core.address is None and core.out_of_reach is None:
            return
        for run in core.certain | (core.possible - self._given_up):
            code = self._code_for(run)
            key = run, code is not None
            if key not in self._settled and key not in self._attempts:
                if code is not None and (marking := self._attempts.get((run, False))):
                    self._drop(marking)  # whoever ends it marks it first: two connections keep no order
                self._attempts[key] = Attempt(run, core, self._selector, code)
                self._press(self._attempts[key], now)

    def _code_for(self, run: Run) -> int | None:
        """Return the code with which *run* is to end; None: it is to be marked only."""
        return self._finish.code if self._finish and run.owner_pid not in self._finish.spared else None

    def _is_current(self, attempt: Attempt) -> bool:
        return self._attempts.get((attempt.run, attempt.code is not None)) is attempt

    def _press(self, attempt: Attempt, now: float) -> None:
        if not self._is_current(attempt):
            return
        if not attempt.core.lives():  # somebody else may have its address now
            self._forget(attempt.core)
        elif attempt.hopeless:
            self._settle(attempt, "it has ended")
        else:
            self._step(attempt, lambda: attempt.press(now))

    def _step(self, attempt: Attempt, step: Callable[[], Progress]) -> None:
        """Take *step*; whatever goes wrong in it concerns this run alone."""
        try:
            progress = step()
            if progress in (Progress.MARKED, Progress.TAKEN, Progress.EXITED):
                self._settle(attempt, how="delivered" if progress is Progress.EXITED else "taken")
        except CoreError as error:
            self._settle(attempt, str(error))
        except PermissionError as error:
            self._settle(attempt, f"its wandb-core lets us not in: {error.strerror}")
        except OSError as error:
            log.debug("run %s: %s; asked again when it is due", attempt.run.run_id, error)
            attempt.hang_up()

    def _settle(self, attempt: Attempt, why: str | None = None, how: str = "") -> None:
        """Be done with a run for this escalation; say so, unless it is one that has probably ended before."""
        settings = attempt.settings
        self._drop(attempt)
        if attempt.taken:  # also when the connection ended then: 0.31 closes it when the run is gone
            why, how = None, how or "taken"
        if why is not None and not attempt.certain:
            self._given_up.add(attempt.run)
            return
        if why is None:
            self._roster.marked(attempt.run, settings)
        if (attempt.run, False) not in self._settled:
            self._settled.add((attempt.run, False))
            self._put(RunMarked(attempt.run, why, time.monotonic()))
        if attempt.code is not None:
            if how == "delivered":
                self._roster.ended(attempt.run, attempt.code)
            self._settled.add((attempt.run, True))
            self._put(RunEnded(attempt.run, attempt.code, how, why, time.monotonic()))

    def _drop(self, attempt: Attempt) -> None:
        """End an attempt of which there is nothing to say: its run has ended by itself."""
        attempt.hang_up()
        self._attempts.pop((attempt.run, attempt.code is not None), None)

    def _report_found(self) -> None:
        found = frozenset(run for core in self._cores.values() for run in core.certain)
        if found != self._found:
            self._found = found
            self._put(RunsFound(tuple(sorted(found, key=lambda run: (run.core_pid, run.run_id)))))

    def _report_done(self) -> None:
        for demand in list(self._demands):
            if demand.waits_for is None:
                demand.waits_for = tuple(self._attempts.values())
            waits = any(self._is_current(attempt) and attempt.delays_telling for attempt in demand.waits_for)
            if not waits and not self._roster.looking:
                self._demands.remove(demand)
                self._put(MarkingDone(demand.asked))
