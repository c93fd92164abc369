"""What is known of a job before it starts, and after it has ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from preemptd.config import Settings
from preemptd.escalation import Killing
from preemptd.events import Inbox
from preemptd.journal import Journal, Sink
from preemptd.ledger import Ledger, Record
from preemptd.link.server import Server
from preemptd.procfs import Tree
from preemptd.provider import Provider
from preemptd.resumption.keeper import Resumption
from preemptd.resumption.page import Memory
from preemptd.supervision import Supervision
from preemptd.targets.attached import Attached
from preemptd.targets.child import Child
from preemptd.targets.reaping import Helpers

if TYPE_CHECKING:  # all that the daemon is made of, which is imported when the command runs
    from preemptd.parts import Outer


@dataclass(frozen=True, slots=True)
class Restarts:
    """The restarts in place of one command, so far, and what its next start has to know of the last one."""

    allowed: int = 0
    memory: Memory | None = None
    """Of its W&B run, where the job has no name; None: there are no restarts."""
    done: int = 0
    since: float = 0.0
    """time.time() up to which the last start's watches have seen everything; 0: there was none."""
    idle: int = 0
    """So many in a row after an attempt of which nobody knows that it saved something."""
    futile: int = 0
    """Preempted attempts in a row that are known to have saved nothing."""
    outlived: frozenset[str] = frozenset()
    """Events that the platform still announces, and that did not come."""


@dataclass(frozen=True, slots=True)
class Job:
    """One command to watch over."""

    argv: tuple[str, ...]
    environ: Mapping[str, str]
    settings: Settings
    helpers: Helpers
    """Knows our own commands, which are no part of the job."""
    platform_environ: Mapping[str, str] | None = None
    """The environment that providers see; None: the same. A rehearsal's server is no business of the command's."""
    killing: Killing = Killing.NEVER
    sinks: Sequence[Sink] = ()
    """Who reads the journal besides the log and ``--journal``."""
    attempt: int | None = None
    """How often the job was started before, for a later round; None: that is to be found out."""
    restarts: Restarts = Restarts()


@dataclass(frozen=True, slots=True)
class Providers:
    """Where notices come from."""

    certain: Mapping[str, Provider]
    """By name: those that are at home here."""
    reasons: Mapping[str, str]
    """By name: why they are."""
    candidates: Sequence[Provider]
    """Those that ask the network, after the start, whether they are."""

    @property
    def need_at_the_end(self) -> float:
        """Seconds before the deadline that belong to their last act."""
        return max((provider.settles_within for provider in self.certain.values()), default=0.0)


@dataclass(frozen=True, slots=True)
class Ended:
    """How it went."""

    status: int
    """Our exit status."""
    interrupted: bool
    """Ctrl-C has ended the command, and nothing else is to be said: a loop around us is to end as well."""
    by_itself: bool
    """The command ran and ended, with no notice and no stop signal behind it."""
    attempt: int
    """How often the job was started before."""
    again: Restarts | None = None
    """The command is to be started again now, and what that goes by; None: it is not."""

    def with_stops(self, stops: Sequence[int]) -> "Ended":
        """Take in the stop signals that came when the loop had ended."""
        if not stops:
            return self
        status = self.status if self.again is None else 128 + stops[0]
        return replace(self, status=status, by_itself=False, again=None)


@dataclass(frozen=True, slots=True)
class Made:
    """Everything that had to be there before the command could start."""

    job: Job
    inbox: Inbox
    journal: Journal
    ledger: Ledger
    before: Record
    """The ledger's page as this start found it."""
    providers: Providers
    link: Server | None
    outer: "Outer | None"
    """The preemptd around us."""
    resumption: Resumption
    target: Child | Attached
    tree: Tree
    supervision: Supervision
