"""The inbox of the one loop, and everything that may lie in it."""

import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from preemptd.model import Outcome, Process, ProcessId, Run
from preemptd.notices import Notice


@dataclass(frozen=True, slots=True)
class SignalArrived:
    """A signal to the daemon itself, SIGCHLD included."""

    signum: signal.Signals


@dataclass(frozen=True, slots=True)
class NoticeArrived:
    """A watch sees a notice that is new, or whose deadline is now earlier by more than 10 s, or of another level."""

    watch: str
    notice: Notice


@dataclass(frozen=True, slots=True)
class NoticeRevoked:
    """A watch that saw the notice sees it no more, by a documented negative."""

    watch: str
    provider: str
    event_id: str


@dataclass(frozen=True, slots=True)
class WatchChanged:
    """An outage of a watch began (*why* says what came back) or ended (None: also for the first good answer)."""

    watch: str
    why: str | None


@dataclass(frozen=True, slots=True)
class ProvidersProbed:
    """A bounded probe of the network is over; *found* maps provider name to the reason."""

    found: Mapping[str, str]
    last: bool = True
    """There will be no other: something was found, or it was tried often enough."""


@dataclass(frozen=True, slots=True)
class Scanned:
    """A snapshot of the target's processes, helpers of the daemon itself left out."""

    processes: tuple[Process, ...]


@dataclass(frozen=True, slots=True)
class RunMarked:
    """wandb-core has taken the preempting record of *run*; or *why* says for what reason it will not."""

    run: Run
    why: str | None = None
    mono: float = 0.0


@dataclass(frozen=True, slots=True)
class RunEnded:
    """wandb-core has taken an exit record with *code* for *run*, or *why* says for what reason it will not."""

    run: Run
    code: int
    how: str = ""
    """``delivered``: it said that all is uploaded. ``taken``: it has read the record. Empty: neither."""
    why: str | None = None
    mono: float = 0.0


@dataclass(frozen=True, slots=True)
class MarkingDone:
    """Every run known when `mark` or `finish` was asked for has its record, or cannot; *asked* names that demand."""

    asked: int


@dataclass(frozen=True, slots=True)
class RunsFound:
    """The W&B runs that the target has open changed."""

    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class LinkJoined:
    """A process subscribed over the link. *role* is ``trainer``, or ``wrapper`` for a nested preemptd."""

    process: ProcessId
    role: str


@dataclass(frozen=True, slots=True)
class LinkSaid:
    """A subscribed process said seen, saving, saved, done or undone; *fields* is what came with it."""

    process: ProcessId
    verb: str
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LinkLeft:
    """A subscribed process closed its connection or ended."""

    process: ProcessId


@dataclass(frozen=True, slots=True)
class LinkAsked:
    """A connection asked for something that the loop answers (status, notify) through `Server.answer(peer, ...)`."""

    peer: int
    verb: str
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TargetExited:
    """An attached target ended, which is not our child: a child's end is seen after SIGCHLD."""

    process: ProcessId
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Ordered:
    """To an agent on a node of a SLURM job: a line from its daemon; None: the daemon has gone."""

    line: bytes | None


@dataclass(frozen=True, slots=True)
class LedgerWritten:
    """The ledger's record number *number* is on its way to the disk, or could not be written."""

    number: int


Event = (
    SignalArrived
    | NoticeArrived
    | NoticeRevoked
    | WatchChanged
    | ProvidersProbed
    | Scanned
    | RunMarked
    | RunEnded
    | MarkingDone
    | RunsFound
    | LinkJoined
    | LinkSaid
    | LinkLeft
    | LinkAsked
    | TargetExited
    | LedgerWritten
    | Ordered
)


LONGEST_WAIT = 86400.0
"""Seconds for one poll(), which takes no more than 24 days."""


class Inbox:
    """A deque with an eventfd for threads, a wake-up pipe for signals, and one poll() for the main thread.

    No `SimpleQueue` and no `Event` in the main thread: a signal that falls between the interpreter's last check and
    the wait in C is noticed only when the wait ends (CPython 59181; about once in 2,000 under real patterns).
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wakeup, self._wakeup_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._eventfd, select.POLLIN)
        self._poll.register(self._wakeup, select.POLLIN)
        self._handlers: dict[signal.Signals, object] = {}
        self._closing = threading.Lock()
        self._closed = False

    def catch(self, signals: frozenset[signal.Signals]) -> None:
        """Turn *signals* into `SignalArrived`. Main thread only; before the spawn and before the first thread."""
        signal.set_wakeup_fd(self._wakeup_end, warn_on_full_buffer=False)
        for signum in signals:
            self._handlers[signum] = signal.signal(signum, _nothing)

    def put(self, event: Event) -> None:
        """Add *event*; from any thread, never blocks. Does nothing after `close`: threads may outlive the loop."""
        with self._closing:
            if not self._closed:
                self._events.append(event)
                os.eventfd_write(self._eventfd, 1)

    def put_back(self, events: Sequence[Event]) -> None:
        """Have *events*, which were taken, come first again, in their order. Main thread only."""
        with self._closing:
            if not self._closed:
                self._events.extendleft(reversed(events))
                os.eventfd_write(self._eventfd, 1)

    def get(self, timeout: float | None) -> Event | None:
        """Take the oldest event; None after *timeout* seconds without one (None: wait for ever). Main thread only."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self._events:
            left = None if end is None else max(0.0, end - time.monotonic())
            ready = self._poll.poll(None if left is None else min(left, LONGEST_WAIT) * 1000)
            if not ready and left is not None and left <= LONGEST_WAIT:
                return None
            for fd, _ in ready:
                if fd == self._wakeup:
                    self._events.extend(SignalArrived(signal.Signals(n)) for n in os.read(fd, 4096))
                else:
                    os.eventfd_read(fd)
        return self._events.popleft()

    def close(self) -> None:
        """Give back the signal handlers and the descriptors."""
        with self._closing:
            self._closed = True
        signal.set_wakeup_fd(-1)
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]  # what signal.signal() gave us
        for fd in (self._eventfd, self._wakeup, self._wakeup_end):
            os.close(fd)


def _nothing(signum: int, frame: object) -> None:
    """Be a handler: the wake-up descriptor does the work."""
