"""A platform's announcement that it will take the machine or the job away."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

STALE_AFTER = 300.0
"""A deadline that had passed longer ago than this at first sight is recorded, not acted on: EC2 leaves old ones."""
OUTLIVED_AFTER = 60.0
"""Seconds past its deadline after which a machine that is still here has outlived a notice: platforms are late."""
PUT_OFF = 60.0
"""Seconds by which the date of maintenance must move away from us to count as another one."""
AFTER_REVOCATION = 60.0
"""Seconds for which a notice that was taken back still explains the end of a process that was told of it."""


class Kind(str, Enum):
    """What the platform will do; the words are the platforms' own."""

    PREEMPT = "preempt"
    TERMINATE = "terminate"
    STOP = "stop"
    HIBERNATE = "hibernate"
    MAINTENANCE = "maintenance"
    REBALANCE = "rebalance"
    MIGRATE = "migrate"
    FREEZE = "freeze"
    TIME_LIMIT = "time-limit"
    REQUESTED = "requested"
    REQUEUED = "requeued"
    CANCELLED = "cancelled"
    NODE_FAILURE = "node-failure"

    def __str__(self) -> str:
        return self.value


class Level(str, Enum):
    """ACT: tell the processes now. ADVISE: write it down, touch nothing."""

    ACT = "act"
    ADVISE = "advise"

    def __str__(self) -> str:
        return self.value


class Meaning(str, Enum):
    """What a notice makes of the end that it announces: of W&B runs, our exit status, a requeue."""

    PREEMPTED = "preempted"
    """The job is to come back: its runs are marked, we exit with 75."""
    UNDECIDED = "undecided"
    """Not known yet: processes are told at once, the marks wait until the same event is seen with another meaning."""
    STOPPED = "stopped"
    """Somebody wants it to end: nothing is marked, nothing comes back, the exit status is the command's own."""
    SUPERSEDED = "superseded"
    """The job runs elsewhere already: what runs here is killed, and nothing else is touched."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Notice:
    """One announcement, as one watch saw it."""

    provider: str
    """Name of the provider, as ``--provider`` takes it."""
    event_id: str
    """The same text for the same event at each look: no time in it, for EC2's `time` may move between two answers."""
    kind: Kind
    level: Level
    source: str
    """Where it was read, for people: ``spot/instance-action``."""
    observed: float
    """time.monotonic() when the answer came."""
    remaining: float | None = None
    """Seconds left at *observed*, by the platform's own clock; may be negative. None: the source does not say."""
    act_within: float | None = None
    """With ADVISE and a date: becomes ACT when this many seconds are left (``--lead``). None: stays as it is."""
    final: bool = False
    """True: the machine is going now (EC2 hibernate): tell at once, plan no further step."""
    deadline: datetime | None = None
    """The platform's own aware UTC time, for logs only: waiting is done on the monotonic clock."""
    already_sent: frozenset[int] = frozenset()
    """Signals that the platform itself has already sent to the processes: never repeated."""
    detail: str = ""
    """The answer's text, at most 4 KiB."""
    meaning: Meaning = Meaning.PREEMPTED
    """A later word on the same event decides; only UNDECIDED never takes a decision back."""
    killed_in: float | None = None
    """Seconds from *observed* to the platform's SIGKILL to all of us: `settle` comes before it, whether or not the
    command has ended. None: nothing says so."""
    irrevocable: bool = False
    """It is never taken back: a command that has not been started yet is not held for that, and we end at once."""
