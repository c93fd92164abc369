"""Who listens on the link: trainers that are told by message, and preemptds inside this one."""

from collections.abc import Callable, Mapping, Sequence

from preemptd.config import Settings
from preemptd.escalation import Escalation, deadline_of
from preemptd.events import LinkJoined, LinkLeft
from preemptd.model import Process, ProcessId
from preemptd.notices import Kind, Level, Meaning, Notice
from preemptd.parts import Link, Message, Nodes, Timers
from preemptd.targets.roll import Roll
from preemptd.targets.selection import LINK, Choice

REJOINS_WITHIN = 2.5
"""Seconds in which a client is back after a restart of the daemon: it tries to connect every two."""


def notice_message(notice: Notice, escalation: Escalation, now: float, wandb: Message | None) -> Message:
    """Put *notice* into the words of the link; ``remaining`` is in seconds from *now*.

    *wandb* is what a trainer shall do about its own W&B runs; None: nothing.
    """
    remaining = deadline_of(notice, escalation.timing) - now
    # ACT also where it is an advice whose time had come when it was first seen.
    return _message_of(notice, Level.ACT, remaining, wandb)


def _message_of(notice: Notice, level: Level, remaining: float | None, wandb: Message | None) -> Message:
    return {
        "type": "notice",
        "event_id": notice.event_id,
        "kind": str(notice.kind),
        "level": str(level),
        "source": notice.source,
        "remaining": None if remaining is None else round(remaining, 3),
        "wandb": wandb,
    }


class Advice:
    """What may come: who listens may ask for it, nobody is to act. Each may become a notice when its time has come."""

    def __init__(self, link: Link, timers: Timers) -> None:
        self._link = link
        self._timers = timers
        self._acts: dict[str, Callable[[], None]] = {}
        self._given: dict[str, Notice] = {}

    def give(self, notice: Notice, at: float | None, act: Callable[[], None]) -> None:
        """Let everybody know, and call *act* at the monotonic time *at*; None: it stays advice."""
        self.drop(notice.event_id)
        self._acts[notice.event_id] = act
        self._given[notice.event_id] = notice
        if at is not None:
            self._timers.at(at, act)
        remaining = None if notice.remaining is None else notice.observed + notice.remaining - self._timers.now()
        if notice.kind is not Kind.CANCELLED:  # nobody is to know of that one: the job ends as somebody wants it to
            self._link.announce(_message_of(notice, Level.ADVISE, remaining, None))

    def drop(self, event_id: str) -> bool:
        """Forget it; whoever listens is told by what has come of it. False: it was none."""
        act = self._acts.pop(event_id, None)
        self._given.pop(event_id, None)
        if act is not None:
            self._timers.cancel(act)
        return act is not None

    def status(self) -> Sequence[Mapping[str, object]]:
        """List what stands, with the seconds to its date; None: it has none."""
        now = self._timers.now()
        return [
            {
                "event_id": notice.event_id,
                "kind": str(notice.kind),
                "remaining": None if notice.remaining is None else round(notice.observed + notice.remaining - now, 1),
            }
            for notice in self._given.values()
        ]

    def became(self, notice: Notice, escalation: Escalation) -> None:
        """Take it back if it is a notice by now that is not the one to be named: nobody hears of that one."""
        if self.drop(notice.event_id) and escalation.first.event_id != notice.event_id:
            self._link.announce({"type": "revoked", "event_id": notice.event_id})


class Subscribers:
    """Keeps the two sorts apart, and speaks to them."""

    def __init__(self, link: Link, nodes: Nodes, settings: Settings, roll: Roll) -> None:
        self._link = link
        self._nodes = nodes
        self._settings = settings
        self._roll = roll
        self._trainers: dict[int, ProcessId] = {}
        self._wrappers: set[ProcessId] = set()

    def __len__(self) -> int:
        return len(self._trainers)

    def joined(self, event: LinkJoined) -> None:
        if event.role == "wrapper":
            self._wrappers.add(event.process)
        else:
            self._trainers[event.process.pid] = event.process
            self.share(frozenset())

    def share(self, unheard: frozenset[ProcessId]) -> None:
        """Let our agents on the nodes know who is told by us: it hears it once."""
        self._nodes.share((self._roll.ids | set(self._trainers.values())) - unheard)

    def left(self, event: LinkLeft) -> None:
        self._wrappers.discard(event.process)
        if self._trainers.get(event.process.pid) == event.process:
            del self._trainers[event.process.pid]

    def pids(self, but_not: frozenset[ProcessId]) -> frozenset[int]:
        return frozenset(pid for pid, process in self._trainers.items() if process not in but_not)

    def elsewhere(self, processes: Sequence[Process]) -> tuple[Choice, ...]:
        """Find who subscribed from outside of the tree (docker run, other pid namespaces): only the link goes there."""
        here = {process.pid for process in processes}
        return tuple(
            Choice(Process(process.pid, process.start, 0, 0, "S", "", ("(subscribed)",)), LINK, "listens on the link")
            for process in self._trainers.values()
            if process.pid not in here
        )

    def tell(self, process: ProcessId, escalation: Escalation, now: float) -> bool:
        return self._link.tell(process, self._message(escalation, now))

    def update(self, told: frozenset[ProcessId], escalation: Escalation, now: float) -> None:
        """Let those who were told already know of a tighter deadline."""
        for process in told & set(self._trainers.values()):
            self.tell(process, escalation, now)

    def inform_wrappers(self, escalation: Escalation, now: float) -> None:
        self._to_wrappers(self._message(escalation, now))
        if self._roll:
            self._to_wrappers({"type": "told", "count": len(self._roll)})

    def _to_wrappers(self, message: Message) -> None:
        for wrapper in self._wrappers:
            self._link.tell(wrapper, message)

    def _message(self, escalation: Escalation, now: float) -> Message:
        silent = self._settings.no_wandb or self._settings.dry_run or escalation.meaning is not Meaning.PREEMPTED
        return notice_message(escalation.first, escalation, now, None if silent else {"code": self._code()})

    def _code(self) -> int | None:
        """Return what a run that would report 0 shall report; None: 0 is the truth."""
        is_done = self._settings.exit_zero == "done" or self._roll.finished
        return None if is_done else self._settings.code_for_wandb
