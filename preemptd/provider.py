"""The plug-in API: what a platform's provider offers to the daemon (docs/write-a-provider.md)."""

import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from preemptd.errors import ProviderError
from preemptd.model import Outcome
from preemptd.notices import Kind, Level, Meaning, Notice
from preemptd.sightings import NoSightings, Sightings

__all__ = [
    "Commands",
    "Conclusion",
    "Detection",
    "Found",
    "Kind",
    "Level",
    "Machine",
    "Meaning",
    "Notice",
    "Observation",
    "Options",
    "Outcome",
    "Provider",
    "Requeue",
    "State",
    "Surroundings",
    "Watch",
]


class Options(BaseModel):
    """Base of a provider's own options: the table ``[providers.NAME]`` of the configuration file.

    A field that is made with ``Field(repr=False)`` is a secret: no error shows what is in it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class State(Enum):
    """CLEAR: the platform says there is nothing. NOTICE: it announces something. UNKNOWN: nobody knows."""

    CLEAR = "clear"
    NOTICE = "notice"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Observation:
    """What one look at one key, file or signal found."""

    state: State
    notice: Notice | None = None
    error: ProviderError | None = None
    retry_after: float | None = None
    """Seconds that the server asked us to wait; None: it did not."""

    @classmethod
    def clear(cls) -> "Observation":
        """Only for a documented negative: FALSE, NONE, 404 on a signal path of a server that answered 200 elsewhere."""
        return cls(State.CLEAR)

    @classmethod
    def of(cls, notice: Notice) -> "Observation":
        """Only for an answer that was validated."""
        return cls(State.NOTICE, notice=notice)

    @classmethod
    def unknown(cls, why: str, retry_after: float | None = None) -> "Observation":
        """Everything else; *why* is for people: what was asked and what came back."""
        return cls(State.UNKNOWN, error=ProviderError(why), retry_after=retry_after)


class Found(Enum):
    """How a provider knows that it is at home here; the order is the order of trust (environment before DMI)."""

    ENVIRONMENT = "environment"
    MACHINE = "machine"
    PROBE = "probe"


@dataclass(frozen=True, slots=True)
class Detection:
    """A provider's word that this is its platform."""

    found: Found
    why: str
    """For people: ``DMI sys_vendor is Amazon EC2``."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What may be looked at without network or privilege: the environment and the world-readable DMI strings."""

    environ: Mapping[str, str]
    dmi: Mapping[str, str] = field(default_factory=dict)
    """File name below /sys/class/dmi/id to its stripped content; empty on machines without DMI (Firecracker)."""


class Commands(Protocol):
    """How a provider starts commands of its own: they are no part of the job, and nobody else waits for them."""

    def popen(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> "subprocess.Popen[bytes]":
        """Start *command* in a session of its own, with TERM, USR1 and USR2 ignored; wait for it, then `release`.

        SLURM sends its signals to every process of a job: a query that dies of them is no answer.
        """
        ...

    def release(self, process: "subprocess.Popen[bytes]") -> None: ...


@dataclass(frozen=True, slots=True)
class Requeue:
    """The user's wishes about bringing the job back, for schedulers that can (``--requeue-on`` and its kin)."""

    on: frozenset[str] = frozenset({"preempt", "timelimit", "request"})
    at_most: int | None = None
    """``--max-requeues``; None: as often as it takes."""
    delay: float | None = None
    """``--requeue-delay`` in seconds; None: what the scheduler does by itself."""


def _nobody_hears(_text: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a provider may know of the job it works for."""

    environ: Mapping[str, str]
    job_id: str | None = None
    attempt: int = 0
    """How often this job was started before (SLURM_RESTART_COUNT); 0 for the first time."""
    started: float = 0.0
    """time.time() when this job was started: a signal file that is older is not for us."""
    grace: float | None = None
    """``--grace`` in seconds, for sources that name no deadline; None: the source's own default."""
    lead: float = 120.0
    """``--lead``: a dated maintenance is acted on when this many seconds are left."""
    requeue: Requeue = Requeue()
    commands: Commands | None = None
    """None: only where nothing is watched over (``preemptd providers``)."""
    warn: Callable[[str], None] = _nobody_hears
    """Says one line to the user, from any thread: what it is to be said once."""
    scripts: Commands | None = None
    """As `commands`, for what the user has written: in the user's environment, and the signals are ignored under SLURM
    alone. At `release` all that it has left is killed."""
    sightings: Sightings = field(default_factory=NoSightings)
    """Remembers when something was first announced, for sources that do not say it."""


@dataclass(frozen=True, slots=True)
class Conclusion:
    """How the command ended, and what was made of it."""

    outcome: Outcome
    preempted: bool
    """It was told of a notice (or held back for one), is not done, and was not stopped by somebody."""
    unsaved: str = "nobody has said that it has saved"
    """Why it is not *saved*, for people; empty: it is."""
    stuck: bool = False
    """Several preempted attempts in a row have saved nothing new: bringing it back once more helps nobody."""
    acted: frozenset[str] = frozenset()
    """Ids of the events, of all providers, that were open at the end and acted on: notices, and no mere advice."""

    @property
    def saved(self) -> bool:
        """All who were told have said that they have saved, or are done.

        If the provider `settles_last`, also: what ``--on-saved`` and ``--on-exit`` run has ended well, and ``--sync``
        has brought the last state away.
        """
        return not self.unsaved


class Watch(ABC):
    """One key, file or signal. The daemon gives it a thread of its own and calls `observe` again and again."""

    name: str
    """``ec2:spot/instance-action``: unique, for logs and journal."""
    interval: float = 1.0
    """Seconds from one observation to the next; ignored after an `observe` that waited at the server (see `waits`)."""
    notice_period: float = 30.0
    """Seconds between notice and end at the least: after errors the pause never exceeds a sixth of it."""
    waits: bool = False
    """True while `observe` itself waits at the server for a change (a hanging GET); may change from call to call."""
    secondary: bool = False
    """True: it tells of what comes seldom, or long before. That it gets no answer is no outage of the provider, and the
    command is not held at the start for its first one."""

    @abstractmethod
    def observe(self) -> Observation:
        """Look once. Anything that a server can do wrong is an UNKNOWN, not an exception."""

    def close(self) -> None:
        """Make an `observe` that is under way in another thread return soon. Called once, at the end."""


class Provider(ABC):
    """One platform. Constructed before the command starts: no network, no thread, no blocking here."""

    name: ClassVar[str]
    options_type: ClassVar[type[Options]] = Options
    stands_down_for: ClassVar[frozenset[str]] = frozenset()
    """Names of providers that do this one's work where they run (`file` stands down where `slurm` runs)."""
    holds_commands: ClassVar[bool] = True
    """A command is not started before the watches have said, within 0.3 s, whether a notice is pending."""
    opt_in: ClassVar[bool] = False
    """True: only ever used when named with ``--provider``."""
    settles_within: ClassVar[float] = 0.0
    """Seconds before the deadline that nothing else may take: for `settle`."""
    settles_last: bool = False
    """True: its `settle` may end this machine. It comes when nothing else is under way: hooks, uploads, a requeue."""

    def __init__(self, options: Options, surroundings: Surroundings) -> None:
        self.options = options
        self.surroundings = surroundings

    @classmethod
    def detect(cls, machine: Machine) -> Detection | None:
        """Say whether this is the platform, from environment and DMI alone; None: cannot tell."""
        return None

    def prepare(self) -> None:
        """Import what looking needs, before the command starts: then the first look is as quick as the server."""

    def probe(self) -> Detection | None:
        """Ask the network whether this is the platform; must return within a second. None: no, or cannot tell."""
        return None

    def watches(self) -> Sequence[Watch]:
        return ()

    def signals(self) -> frozenset[signal.Signals]:
        """Signals to the daemon itself that this provider wants to hear; each goes to `on_signal`."""
        return frozenset()

    def on_signal(self, signum: signal.Signals) -> Observation:
        """Judge a signal of `signals`. A NOTICE makes it a preemption; anything else leaves it an ordinary signal."""
        return Observation.clear()

    def child_started(self, pid: int) -> None:
        """Hear that the command runs now, as *pid*. Must not block."""

    def conclude(self, budget: float) -> Notice | None:
        """After the end of the command: say within *budget* seconds, for the last time, what it was that ended it.

        None: nothing to add to what was said. W&B's runs, the exit status and `settle` go by this.
        """
        return None

    def settle(self, conclusion: Conclusion, budget: float) -> str:
        """Do, as the last act, within *budget* seconds, what must not be left undone (a requeue).

        Returns what was done, for the journal; empty: nothing. A `ProviderError` says that it could not be done.
        Called in a thread of its own, beside those of other providers; after them, if they have `settles_within` and
        this one has not.
        """
        return ""

    def relax(self) -> None:
        """Hear that, for now, nobody needs the platform to be held back: all who were told have saved or ended.

        Called again and again while a notice is open, from its own loop: must not block.
        """

    def describe(self) -> str:
        """Say for people, in a few words, where it looks: ``http://169.254.169.254, IMDSv2``."""
        return ""

    def close(self) -> None:
        """Let go of what the constructor took. Watches are closed before."""
