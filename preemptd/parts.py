"""What the daemon is put together from; composition happens in cli."""

import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from signal import Signals
from typing import Protocol, runtime_checkable

from preemptd.config import Settings
from preemptd.escalation import Escalation
from preemptd.events import Inbox, MarkingDone, SignalArrived
from preemptd.journal import Journal
from preemptd.ledger import Ledger
from preemptd.model import Outcome, Process, ProcessId
from preemptd.notices import Notice
from preemptd.provider import Provider
from preemptd.targets.scanner import Scanner

Message = Mapping[str, object]


class Marking(Protocol):
    """What marks W&B runs: `runs.marker.Marker`, or `NoMarker` under ``--no-wandb`` and in a nested preemptd."""

    def start(self) -> None: ...

    def look(self, processes: Sequence[Process]) -> None: ...

    def mark(self, asked: int) -> None: ...

    def finish(self, asked: int, code: int, spared: Container[int] = ()) -> None: ...

    def rest(self) -> None: ...

    def stop(self) -> None: ...


class NoMarker:
    """Nothing to mark: every demand is met at once."""

    def __init__(self, put: Callable[[MarkingDone], None]) -> None:
        self._put = put

    def start(self) -> None:
        pass

    def look(self, processes: Sequence[Process]) -> None:
        pass

    def mark(self, asked: int) -> None:
        self._put(MarkingDone(asked))

    def finish(self, asked: int, code: int, spared: Container[int] = ()) -> None:  # noqa: ARG002 - a null object
        self._put(MarkingDone(asked))

    def rest(self) -> None:
        pass

    def stop(self) -> None:
        pass


class Link(Protocol):
    """Our socket: `link.server.Server`, or `NoLink` where it could not be made."""

    def start(self) -> None: ...

    def tell(self, process: ProcessId, message: Message) -> bool: ...

    def announce(self, message: Message) -> None: ...

    def answer(self, peer: int, message: Message) -> None: ...

    def sync(self) -> None:
        """Wait, a moment at the most, until all that peers have sent up to now is in the inbox."""

    def close(self) -> None: ...


class NoLink:
    """Nobody can subscribe: everybody is told by signal."""

    def start(self) -> None:
        pass

    def tell(self, process: ProcessId, message: Message) -> bool:  # noqa: ARG002 - a null object
        return False

    def announce(self, message: Message) -> None:
        pass

    def answer(self, peer: int, message: Message) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


class Outer(Protocol):
    """The preemptd around this one, which watches and tells for both: `link.nested.Outer`, or `NoOuter`."""

    @property
    def preempted(self) -> bool:
        """The outer one told processes of a notice that is open, or was revoked a moment ago."""

    def start(self) -> None:
        """Listen to it, after the command was forked."""

    def close(self) -> None: ...


class NoOuter:
    """We are the outermost."""

    preempted = False

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass


class Nodes(Protocol):
    """Our agents on the nodes of a job that srun reaches: `nodes.steps.JobSteps`, or `NoNodes`."""

    @property
    def present(self) -> int:
        """How many nodes have an agent of ours."""

    @property
    def covers(self) -> bool:
        """Who is not in our tree may be told by an agent."""

    @property
    def reached(self) -> bool:
        """Somebody was told of the open notices there."""

    @property
    def told(self) -> frozenset[ProcessId]:
        """Who was, among the processes of this machine."""

    def start(self) -> None: ...

    def look(self, processes: Sequence[Process]) -> None: ...

    def inform(self, escalation: Escalation | None, *, fenced: bool = False) -> None: ...

    def share(self, linked: frozenset[ProcessId]) -> None: ...

    def sync(self) -> None: ...

    def end(self, *, preempted: bool, code: int, budget: float) -> None: ...

    def close(self, budget: float = 0.0) -> None: ...


@dataclass(frozen=True, slots=True)
class NoNodes:
    """All that is to be told is in our tree; for an agent itself (*covers*) it is not."""

    present: int = 0
    covers: bool = False
    reached: bool = False
    told: frozenset[ProcessId] = frozenset()

    def start(self) -> None:
        pass

    def look(self, processes: Sequence[Process]) -> None:
        pass

    def inform(self, escalation: Escalation | None, *, fenced: bool = False) -> None:
        pass

    def share(self, linked: frozenset[ProcessId]) -> None:
        pass

    def sync(self) -> None:
        pass

    def end(self, *, preempted: bool, code: int, budget: float) -> None:
        pass

    def close(self, budget: float = 0.0) -> None:
        pass


@runtime_checkable
class Pulse(Protocol):
    """Who wants to know that the loop turns: systemd's watchdog, /healthz; or `NoPulse`."""

    @property
    def interval(self) -> float | None:
        """Seconds from one beat to the next; None: one at the start is enough."""
        ...

    def beat(self, status: Callable[[], Mapping[str, object]]) -> None:
        """Take it that the loop turns; *status* makes what `preemptd status` shows. Never blocks."""
        ...


@dataclass(frozen=True, slots=True)
class NoPulse:
    """Nobody does."""

    interval: float | None = None

    def beat(self, status: Callable[[], Mapping[str, object]]) -> None:
        pass


class Supervised(Protocol):
    """What the daemon is there for: the command of `supervision.Supervision`, or the targets of `fleet.Fleet`."""

    started: bool
    held: bool
    """It waits for `release`."""
    is_left_alone: bool
    """A stop is meant for us alone: others start and stop what we look after, and what we know is in the ledger."""

    @property
    def id(self) -> ProcessId: ...

    def release(self) -> None: ...

    def abandon(self) -> None: ...

    def signal(self, event: SignalArrived) -> Outcome | None:
        """Deal with an ordinary signal; the outcome, when it means that all is over."""
        ...

    def keep(self, signum: Signals) -> None: ...

    def note(self, signum: Signals) -> None: ...

    def give(self, notice: Notice, was_announced: Callable[[], bool]) -> None: ...

    def children(self) -> Outcome | None: ...

    def targets(self) -> Sequence[Mapping[str, object]]:
        """List the targets of a daemon, for its status."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """The collaborators, made and validated before the command starts."""

    settings: Settings
    inbox: Inbox
    journal: Journal
    ledger: Ledger
    scanner: Scanner
    marker: Marking
    link: Link
    outer: Outer
    nodes: Nodes
    pulse: Pulse
    providers: Mapping[str, Provider]
    """By name: those that are certain to be at home here."""
    reasons: Mapping[str, str]
    """By name: why they are."""
    candidates: Sequence[Provider]
    """Providers that ask the network, after the command has started, whether they are at home here."""
    outlived: frozenset[str] | None = None
    """Events that were announced before, and did not come; None: this is no later start in place (``--restart``)."""


class Timers:
    """What the loop does when nothing comes in: one time for each thing to do."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._at: dict[Callable[[], None], float] = {}
        self.now = clock

    def at(self, when: float, act: Callable[[], None]) -> None:
        """Call *act* once at monotonic *when*, instead of at the time set before."""
        self._at[act] = when

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self._at[act] = self.now() + seconds

    def cancel(self, act: Callable[[], None]) -> None:
        self._at.pop(act, None)

    def wait(self) -> float | None:
        """Compute the seconds until the next one is due; None: nothing is planned."""
        return max(0.0, min(self._at.values()) - self.now()) if self._at else None

    def run_due(self) -> None:
        """Call everything whose time has come, in the order of time."""
        now = self.now()
        due = sorted((when, number, act) for number, (act, when) in enumerate(self._at.items()) if when <= now)
        for _, _, act in due:
            if self._at.pop(act, None) is not None:
                act()
