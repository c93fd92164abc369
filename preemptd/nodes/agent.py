"""What runs on each node of a SLURM job: tells the processes of the job's steps there, as the daemon orders.

The telling is the daemon's own (`Escalating`, `Telling`); there is no command, no provider and no exit status here.
"""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from signal import Signals

from preemptd.errors import place_of
from preemptd.escalating import Escalating
from preemptd.escalation import Timing
from preemptd.events import (
    Event,
    LedgerWritten,
    MarkingDone,
    NoticeRevoked,
    Ordered,
    RunEnded,
    RunMarked,
    Scanned,
    SignalArrived,
)
from preemptd.journal import Line
from preemptd.ledger import Told
from preemptd.model import Process, ProcessId
from preemptd.nodes.wire import LONGEST_ORDER, End, Order, WireError, decode, encode_short, end_of, order_of
from preemptd.notices import Notice
from preemptd.parts import Parts, Timers
from preemptd.procfs import machine_life
from preemptd.targets.selection import LINK, without
from preemptd.telling import Telling

LOOK_EVERY = 5.0
"""Seconds between scans while nothing is announced."""
WARN_AFTER = 30.0
"""Seconds after our start at which a training has its handlers, if it will ever have any."""
HEARD_LASTS = 30.0
"""Seconds for which a signal that has reached all steps counts as sent to the processes that we find here."""
HEARD = frozenset({Signals.SIGTERM, Signals.SIGUSR1, Signals.SIGUSR2})
"""What SLURM sends to steps; we live on."""


@dataclass(frozen=True, slots=True)
class Left:
    """How it ended."""

    end: End | None
    """None: the daemon has gone without a word."""
    told_at: float | None
    """Monotonic time at which the first process was told, by us or by SLURM; None: nobody was."""


class Agent:
    """Runs until the daemon says that it is over, or has gone."""

    def __init__(self, parts: Parts, timing: Timing) -> None:
        self._parts = parts
        self._timers = Timers()
        self._telling = Telling(parts, self._timers, 0)
        self._escalating = Escalating(parts, self._timers, timing, self._telling)
        self._order = Order()
        self._life = machine_life()
        self._heard: dict[Signals, float] = {}
        self._unreported: set[Signals] = set()
        self._fenced = False
        self._over = False
        self._end: End | None = None

    def run(self, node: str) -> Left:
        """Say that we are there, and do as we are told."""
        for part in (self._parts.journal, self._parts.scanner, self._parts.marker):
            part.start()
        self._parts.journal.write("hello", node=node, life=self._life)
        self._escalating.let_go()
        self._timers.after(WARN_AFTER, self._telling.warn)
        self._look()
        while not self._over:
            event = self._parts.inbox.get(self._timers.wait())
            try:
                if event is not None:
                    self._handle(event)
                self._timers.run_due()
            except Exception as error:  # noqa: BLE001 - a bug in here must not cost the training
                self._parts.journal.warn(f"internal error, please report it: {error!r} at {place_of(error)}")
        return Left(self._end, self._told_at())

    def _handle(self, event: Event) -> None:
        match event:
            case Ordered():
                self._obey(event.line)
            case SignalArrived():
                self._hear(event.signum)
            case Scanned():
                self._vouch()
                self._telling.scanned(without(event.processes, _others(event.processes)))
                self._report_heard()
            case MarkingDone():
                self._telling.marking_done(event.asked)
            case LedgerWritten():
                self._telling.ledger_written(event.number)
            case RunMarked():
                self._escalating.marked(event)
            case RunEnded():
                self._escalating.ended(event)

    def _look(self) -> None:
        if self._escalating.current is None:
            self._telling.look()
        self._timers.after(LOOK_EVERY, self._look)

    # -- orders --------------------------------------------------------------------------------------------------

    def _obey(self, text: bytes | None) -> None:
        if text is None:
            self._over = True
            return
        try:
            line = decode(text)
            if "sync" in line:
                self._parts.journal.write("synced", number=line["sync"])
            elif isinstance(end := line.get("end"), dict):
                self._end, self._over = end_of(end), True
            else:
                self._take(order_of(line, self._timers.now()))
        except WireError as error:
            self._parts.journal.warn(f"not understood: {error}")

    def _take(self, order: Order) -> None:
        before, self._order = self._order, order
        if told := tuple(one for one in order.told if one[0] == self._life):
            record = self._parts.ledger.record
            told_before = (Told(event_id, process, how) for _, process, how in told for event_id in order.event_ids)
            self._parts.ledger.write(replace(record, told=(*record.told, *told_before)))
        self._release(before.linked - order.linked)
        self._act()
        for event_id in before.event_ids - order.event_ids:
            self._escalating.revoke(NoticeRevoked("orders", "slurm", event_id))
        if order.fenced and not self._fenced:
            self._fenced = True
            self._telling.fence()

    def _act(self) -> None:
        for notice in self._order.notices:
            self._escalating.notice(self._with_heard(notice))

    def _with_heard(self, notice: Notice) -> Notice:
        """Add what SLURM has sent to the steps: processes here have it, those of the batch script need not."""
        now = self._timers.now()
        heard = {int(signum) for signum, at in self._heard.items() if now - at < HEARD_LASTS}
        return replace(notice, already_sent=notice.already_sent | heard)

    def _hear(self, signum: Signals) -> None:
        if signum in HEARD:
            self._heard[signum] = self._timers.now()
            self._unreported.add(signum)
            self._report_heard()
            self._act()

    def _report_heard(self) -> None:
        """Say what has reached the processes here as well: it may be what ends them."""
        if self._telling.processes:
            for signum in self._unreported:
                if self._timers.now() - self._heard[signum] < LOOK_EVERY:
                    self._parts.journal.write("heard", signal=signum.name)
            self._unreported.clear()

    def _told_at(self) -> float | None:
        told, recent = self._telling.roll.first_told, self._timers.now() - HEARD_LASTS
        return min(
            [*([] if told is None else [told]), *(at for at in self._heard.values() if at > recent)], default=None
        )

    # -- who is told by the daemon itself ----------------------------------------------------------------------------

    def _linked(self) -> frozenset[ProcessId]:
        """Pids of the daemon mean something only on its own machine."""
        return self._order.linked if self._order.life == self._life else frozenset()

    def _vouch(self) -> None:
        """Count those as told whom the daemon tells over its socket, which we have not: each hears it once."""
        for process in self._linked() - self._telling.roll.ids:
            self._telling.roll.tell(process, LINK, self._timers.now())
            self._telling.roll.heard(process, "seen")

    def _release(self, processes: frozenset[ProcessId]) -> None:
        """Tell those by signal who left the link, or do not answer there."""
        for process in processes:
            self._telling.roll.forget(process, LINK)


def _others(processes: Sequence[Process]) -> frozenset[int]:
    """List preemptds in the steps: the daemon is none of their ancestors, so they have providers, and tell."""
    return frozenset(
        process.pid
        for process in processes
        if "watch" in process.cmdline[1:5] and "preemptd" in map(os.path.basename, process.cmdline[:4])
    )


class Orders:
    """Reads stdin in a thread, a line an event."""

    def __init__(self, fd: int, put: Callable[[Ordered], None]) -> None:
        self._fd = fd
        self._put = put

    def start(self) -> None:
        threading.Thread(target=self._run, name="orders", daemon=True).start()

    def _run(self) -> None:
        unread = b""
        while got := self._read():
            *lines, unread = (unread + got).split(b"\n")
            for line in lines:
                self._put(Ordered(line))
            if len(unread) > LONGEST_ORDER:
                break
        self._put(Ordered(None))

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, 65536)
        except OSError:
            return b""


class Reports:
    """The journal's sink: what happens here goes to the daemon, a line an event."""

    def __init__(self, fd: int, node: str) -> None:
        self._fd = fd
        self._node = node

    def write(self, line: Line) -> None:
        if line["event"] == "progress" or (line["event"] == "told" and line["how"] == LINK):
            return
        if line["event"] in {"notice", "revoked"}:  # they are the daemon's own
            return
        with suppress(OSError):  # the daemon has gone; the end of stdin says so as well
            os.write(self._fd, encode_short({**line, "node": self._node}))

    def close(self) -> None:
        pass
