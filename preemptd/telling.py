"""From an open escalation to told processes: scan, select, mark first (250 ms at most), tell once, remember."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from signal import Signals

from preemptd import procfs
from preemptd.escalation import Escalation, Step
from preemptd.events import LinkJoined, LinkLeft, LinkSaid
from preemptd.insisting import Insisting
from preemptd.marks import Marks
from preemptd.model import Process, ProcessId
from preemptd.notices import Meaning
from preemptd.parts import Parts, Timers
from preemptd.procfs import Sent
from preemptd.subscribers import REJOINS_WITHIN, Subscribers
from preemptd.targets.agents import Agents
from preemptd.targets.reachability import Seen, in_short, warn_in_thread
from preemptd.targets.restarts import Restarts
from preemptd.targets.roll import Roll
from preemptd.targets.selection import LINK, Choice, Policy, Selection, select

MARKING_BUDGET = 0.25
"""Seconds that a telling waits for the W&B marks and the ledger's disk, which may hang."""
SCAN_EVERY = 0.2
"""Seconds between scans while an escalation is open: a rank that imports torch gets its handler late."""
SCAN_AFTER_DEADLINE = 2.0
"""Seconds between scans when the machine should be gone already."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Processes that are about to be told, and what that waits for."""

    choices: tuple[Choice, ...]
    record: int
    """Number of the ledger's record that names them; 0: it is written."""


class Telling:
    """Owns who is told. Everything runs in the loop's thread; nothing here waits."""

    def __init__(self, parts: Parts, timers: Timers, main_pid: int) -> None:
        self._parts = parts
        self._timers = timers
        self._main_pid = main_pid
        self._policy = Policy(parts.settings.signals, parts.settings.signal_target)
        self.roll = Roll()
        self.restarts = Restarts()
        self.agents = Agents()
        self._insisting = Insisting(parts, timers, self.roll)
        self._subscribers = Subscribers(parts.link, parts.nodes, parts.settings, self.roll)
        self.processes: Sequence[Process] = ()
        self.selection = Selection((), ())
        self.escalation: Escalation | None = None
        self._spared: set[tuple[ProcessId, str]] = set()
        self._batch: _Batch | None = None
        self._marks = Marks(parts)
        self._fenced = False
        self._passed_over: set[ProcessId] = set()  # shown under --dry-run, or another user's

    def begin(self, escalation: Escalation) -> None:
        """Open: mark what is known now, look afresh, tell what that shows."""
        self.escalation = escalation
        self.roll.clear()
        self.restarts.clear()
        self._spared.clear()
        self._passed_over.clear()
        self._marks.clear()
        self._restore(escalation)
        self._marks.ask(escalation.meaning)
        self._timers.after(MARKING_BUDGET, self._marks_take_too_long)
        self.look()
        self._subscribers.inform_wrappers(escalation, self._timers.now())

    def update(self, escalation: Escalation) -> None:
        """Take over a tighter deadline, a decision or another notice: those who were told over the link hear of it."""
        before, self.escalation = self.escalation, escalation
        if before is not None and before.meaning is not escalation.meaning:
            self._marks.ask(escalation.meaning)
        self._restore(escalation)
        self._parts.ledger.write(self._parts.ledger.record.adding(escalation.event_ids, self.roll.tellings))
        self._subscribers.update(self.roll.ids, escalation, self._timers.now())
        self._subscribers.inform_wrappers(escalation, self._timers.now())

    def revoked(self, event_id: str) -> None:
        """Forget the event, so that it is news when it comes again."""
        self._parts.link.announce({"type": "revoked", "event_id": event_id})
        self._parts.ledger.write(self._parts.ledger.record.forgetting(event_id))

    def end(self) -> None:
        """Close: the last notice was revoked."""
        self.escalation = None
        self._batch = None
        self._parts.marker.rest()
        self._timers.cancel(self._marks_take_too_long)

    def fence(self) -> None:
        """Kill what runs here, now and at each look, without another word: the job runs elsewhere already."""
        self._fenced = True
        self.end()
        self.look()

    def _restore(self, escalation: Escalation) -> None:
        """Put on the roll whom an earlier daemon told of one of these events."""
        for told in self._parts.ledger.record.told:
            if told.event_id in escalation.event_ids:
                self.roll.tell(told.process, told.how, self._timers.now() + REJOINS_WITHIN)

    # -- what comes in -------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Ask for a snapshot; `scanned` gets it. While an escalation is open there is always a next one planned."""
        self._parts.scanner.ask()
        if self.escalation is not None or self._fenced:
            self._timers.after(self._pause(), self.look)

    def scanned(self, processes: Sequence[Process]) -> None:
        self.processes = processes
        self._parts.marker.look(processes)
        self._parts.nodes.look(processes)
        unheard = self._unseen()
        self._subscribers.share(unheard)
        linked = self._subscribers.pids(but_not=unheard)
        self.selection = select(processes, self._main_pid, self._policy, linked, self.roll.ids)
        if self._fenced:
            self._insisting.fence(self.selection)
        if self.escalation is None or self._fenced:
            return
        if not self._marks.awaited:
            self._marks.ask_and_wait(self.escalation.meaning)
            self.warn()
        self._note_spared()
        self._insisting.end_launchers(self.restarts, processes, self.escalation)
        choices = (*self.selection.told, *self._subscribers.elsewhere(processes))
        self._prepare(tuple(choice for choice in choices if self._is_new(choice, unheard)))
        if self._batch is None:  # else after the telling
            self._insisting.end_agents(self.agents, processes, self.escalation)

    def ended(self, process: ProcessId) -> None:
        """Hear that *process* has ended, and look whether others that were told are still there."""
        self.processes = tuple(other for other in self.processes if other.id != process)
        self.look()

    def marking_done(self, asked: int) -> None:
        if self._marks.hear(asked):
            self._send_batch_if_ready()

    def ledger_written(self, number: int) -> None:
        if self._batch is not None and number >= self._batch.record:
            self._batch = replace(self._batch, record=0)
            self._send_batch_if_ready()

    def _pause(self) -> float:
        late = self.escalation is not None and self._timers.now() > self.escalation.deadline
        return max(SCAN_AFTER_DEADLINE if late else SCAN_EVERY, 10 * self._parts.scanner.took)

    def _unseen(self) -> frozenset[ProcessId]:
        """List who was told over the link and stays silent: its listening thread does not run, so it gets a signal."""
        if self.escalation is None:
            return frozenset()
        return self.roll.unseen(self._timers.now(), min(2.0, 0.1 * self.escalation.total))

    def _is_new(self, choice: Choice, unheard: frozenset[ProcessId]) -> bool:
        if self.escalation is None or self.escalation.meaning is Meaning.STOPPED:
            return False
        if any(choice.process.id in known for known in (self._passed_over, self.restarts, self._parts.nodes.told)):
            return False
        if choice.how != LINK and Signals[f"SIG{choice.how}"] in self.escalation.already_sent:
            return False
        return choice.process.id not in self.roll or (choice.how != LINK and choice.process.id in unheard)

    def _note_spared(self) -> None:
        for choice in self.selection.spared:
            said = (choice.process.id, choice.why)
            if said not in self._spared and choice.process.id not in self.roll:  # who leaves puts its handler away
                self._spared.add(said)
                short = in_short(choice.process)
                self._parts.journal.write("spared", pid=choice.process.pid, why=choice.why, command=short)

    def joined(self, event: LinkJoined) -> None:
        self._subscribers.joined(event)
        if self.escalation is not None:
            # Told by signal before it asked, or by an earlier daemon that heard its "seen": clients know events by id.
            self._subscribers.update(self.roll.ids & {event.process}, self.escalation, self._timers.now())
            self._subscribers.inform_wrappers(self.escalation, self._timers.now())
            self.look()

    def left(self, event: LinkLeft) -> None:
        self._subscribers.left(event)

    def heard(self, event: LinkSaid) -> None:
        """Note an acknowledgement; one that nobody asked for (a periodic checkpoint) is only written down."""
        self.roll.heard(event.process, event.verb)
        if self.escalation is not None and (event.verb, self.roll.finished) in {("done", True), ("undone", False)}:
            self._subscribers.update(self.roll.ids, self.escalation, self._timers.now())
        self._parts.journal.write(
            event.verb,
            pid=event.process.pid,
            ms=self.ms(),
            step=event.fields.get("step"),
            path=event.fields.get("path"),
        )

    # -- marking and telling -------------------------------------------------------------------------------------

    def _marks_take_too_long(self) -> None:
        """Tell all the same: by the snapshot from before the notice if not even a fresh one has come."""
        if not self._marks.awaited:
            self._prepare(tuple(choice for choice in self.selection.told if self._is_new(choice, frozenset())))
        self._marks.done = True
        self._send_batch()

    def _prepare(self, choices: tuple[Choice, ...]) -> None:
        """Write down who is to be told, then tell: in this order, for a kill -9 may fall in between."""
        if not choices or self._batch is not None or self.escalation is None:
            return
        number = 0
        if not self._parts.settings.dry_run:
            told = ((choice.process.id, choice.how) for choice in choices)
            number = self._parts.ledger.write(self._parts.ledger.record.adding(self.escalation.event_ids, told))
        self._batch = _Batch(choices, number)
        if self._marks.done:  # a later telling: who listens only now may have begun its run only now
            self._marks.ask_and_wait(self.escalation.meaning)
            self._timers.after(MARKING_BUDGET, self._marks_take_too_long)

    def _send_batch_if_ready(self) -> None:
        if self._batch is not None and self._marks.done and self._batch.record == 0:
            self._send_batch()

    def _send_batch(self) -> None:
        batch, self._batch = self._batch, None
        if batch is None or self.escalation is None or self.escalation.meaning is Meaning.STOPPED:
            return
        for choice in batch.choices:
            self._tell(choice, self.escalation)
        self._subscribers.inform_wrappers(self.escalation, self._timers.now())
        self._insisting.end_agents(self.agents, self.processes, self.escalation)

    def _tell(self, choice: Choice, escalation: Escalation) -> None:
        process, how, now = choice.process, choice.how, self._timers.now()
        if self._parts.settings.dry_run:
            self._passed_over.add(process.id)
        else:
            if how == LINK:
                sent = self._subscribers.tell(process.id, escalation, now)
            else:
                result = procfs.send(process.id, Signals[f"SIG{how}"])
                sent = result is Sent.SENT
                if result is Sent.DENIED:
                    self._passed_over.add(process.id)
                    self._parts.journal.warn(f"pid {process.pid} belongs to another user: SIG{how} was refused")
            if not sent:
                return
            self.roll.tell(process.id, how, now)
            if how != LINK:  # it may have joined since it was chosen
                self._subscribers.update(frozenset({process.id}), escalation, now)
            self.restarts.told(process, self.processes)
        self._parts.journal.write(
            "told",
            pid=process.pid,
            start=process.start,
            how=how,
            event_id=escalation.first.event_id,
            ms=self.ms(),
            command=in_short(process),
            dry_run=self._parts.settings.dry_run,
        )

    @property
    def about_to_tell(self) -> bool:
        """A notice is open, and the first look at who is there, or the marks, are still to come."""
        return self.escalation is not None and (not self._marks.done or self._batch is not None)

    def ms(self) -> float | None:
        """Compute the milliseconds since the escalation began; None: none is open."""
        return None if self.escalation is None else round((self._timers.now() - self.escalation.began) * 1000, 1)

    def insist(self, step: Step) -> None:
        if step is Step.TERM and self.escalation is not None:
            self._insisting.term(self.processes, self.escalation, self._policy)
        elif step is Step.EXIT and not self._parts.settings.dry_run:
            self._marks.finish(self._parts.settings.code_for_wandb, self.roll.answered)
        elif step is Step.KILL and self.escalation is not None and not self._parts.settings.dry_run:
            self._insisting.kill(self.selection, self.escalation)

    @property
    def reached(self) -> bool:
        """Somebody was told, or killed for the notice."""
        return len(self.roll) > 0 or self._insisting.killed or bool(self.agents.ended) or self._parts.nodes.reached

    def warn(self) -> None:
        """Say, while there is time to mend it, what a notice would find."""
        seen = Seen(len(self._subscribers) > 0, self._parts.nodes.covers)
        warn_in_thread(self.selection, self._policy.signals, seen, self._parts.journal.warn)

    def status(self) -> dict[str, object]:
        tell = [{"pid": choice.process.pid, "how": choice.how} for choice in self.selection.told[:50]]
        linked = sorted(self._subscribers.pids(but_not=frozenset()))[:1000]
        return {"would_tell": tell, "linked": linked, "told": len(self.roll), "saved": self.roll.saved}
