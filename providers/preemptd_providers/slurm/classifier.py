"""What a row of squeue, and what woke us, mean together: pure.

Seen on SLURM 22.05, when the processes of a job hear of it (RestartCnt is compared with our own):

=====================================  ===========  =========  =====  ===========  ====================
situation                              State        Reason     Count  PreemptTime  EndTime
=====================================  ===========  =========  =====  ===========  ====================
running                                RUNNING      None       same   N/A          start + limit
in GraceTime                           RUNNING      None       same   set          PreemptTime + grace
preempted, REQUEUE, final SIGTERM      COMPLETING   None       +1     set          -
preempted, CANCEL, final SIGTERM       COMPLETING   None       same   now          now
time limit, final SIGTERM              COMPLETING   TimeLimit  same   N/A          now
scancel                                COMPLETING   None       same   N/A          now
scancel in GraceTime                   COMPLETING   None       same   its start    now
scontrol requeue                       COMPLETING   None       +1     N/A          -
node failure, requeued elsewhere       PENDING/RUN  BeginTime  +1     N/A          -
scancel -s USR1                        RUNNING      None       same   N/A          far
=====================================  ===========  =========  =====  ===========  ====================
"""

from dataclasses import dataclass
from enum import Enum

from preemptd.notices import Kind, Meaning
from preemptd_providers.slurm.row import Phase, Row

EARLY = 90.0
"""Seconds by which ``--signal`` may come before its time: SLURM looks each 30 s, and rounds up."""
USUAL_LEAD = 120.0
"""Seconds that people ask for with ``--signal=B:USR1@120``."""
ONE_TICK = 1.5
"""Seconds: SLURM's times are whole ones, and two that are meant to be equal may lie on both sides of a tick."""


class Wake(Enum):
    """What makes us ask."""

    SIGNAL = "signal"
    """USR1 or USR2: they are sent to announce something."""
    TERM = "term"
    FILE = "file"


class Bringing(Enum):
    """Who brings the job back."""

    OURS = "ours"
    SLURMS = "slurm's"
    """It has done so already."""
    NOBODYS = "nobody's"


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What there is to know besides the row."""

    now: float
    """Unix time."""
    restart: int
    kill_wait: float
    lead: float
    """``--lead``."""
    unasked_lead: float = 0.0
    """Seconds before a time limit at which we act although nobody has sent a signal."""
    wake: Wake | None = None
    """None: we ask by ourselves."""
    terminated: bool = False
    """A SIGTERM reached the job a moment ago: this copy is the one that is being ended."""
    grace_end: float | None = None
    """Unix time of the end of a grace that we have seen; None: we have seen none."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What it is."""

    kind: Kind
    meaning: Meaning
    remaining: float | None
    """Seconds; None: nobody says."""
    bringing: Bringing
    everybody_terminated: bool = False
    """SLURM has sent SIGTERM to every process of the job."""
    irrevocable: bool = False
    """A preemption goes on to the end, even if the job that it is for is cancelled."""

    @property
    def is_asked_for(self) -> bool:
        """Somebody asks for it, by a signal or a file: SLURM itself knows nothing of it."""
        return self.kind is Kind.REQUESTED or (self.kind is Kind.PREEMPT and not self.is_slurms_preemption)

    @property
    def is_slurms_preemption(self) -> bool:
        return self.kind is Kind.PREEMPT and (self.irrevocable or self.everybody_terminated)


def classify(row: Row | None, known: Circumstances) -> Verdict | None:
    """Say what is going on; None: nothing.

    Args:
        row: the controller's word; None: it does not answer.
        known: all the rest.
    """
    if row is None:
        return _without_controller(known)
    if row.restarts > known.restart:
        return _brought_back(row, known)
    if row.phase is Phase.RUNNING:
        return _running(row, known)
    return _ending(row, known)


def is_near(row: Row, known: Circumstances) -> bool:
    """Say whether a signal may be the announcement of the time limit."""
    return row.end is not None and row.end - known.now <= max(known.lead, USUAL_LEAD) + EARLY


def _running(row: Row, known: Circumstances) -> Verdict | None:
    left = None if row.end is None else row.end - known.now
    signalled = known.wake in {Wake.SIGNAL, Wake.TERM}
    if row.preempted is not None:
        return Verdict(Kind.PREEMPT, Meaning.PREEMPTED, left, Bringing.OURS, irrevocable=True)
    if left is not None and (left <= known.unasked_lead or (signalled and is_near(row, known))):
        return Verdict(Kind.TIME_LIMIT, Meaning.PREEMPTED, left, Bringing.OURS)
    if known.wake is Wake.TERM:  # scancel -s TERM: somebody wants it to end, and is no platform
        return Verdict(Kind.REQUESTED, Meaning.STOPPED, None, Bringing.NOBODYS)
    if known.wake is Wake.SIGNAL:  # it may be an early --signal: nothing but the limit ends the job
        return Verdict(Kind.REQUESTED, Meaning.PREEMPTED, left, Bringing.OURS)
    if known.wake is Wake.FILE:
        return _announced(left if is_near(row, known) else None)
    return None


def _announced(left: float | None) -> Verdict:
    """Judge a signal file: whoever writes one says that the job is preempted, as `preemptd notify` does by message."""
    return Verdict(Kind.PREEMPT, Meaning.PREEMPTED, left, Bringing.OURS)


def _ending(row: Row, known: Circumstances) -> Verdict:
    """Judge the end of this very attempt."""
    kind, meaning, bringing = Kind.CANCELLED, Meaning.STOPPED, Bringing.NOBODYS
    if row.reason == "TimeLimit" or row.state == "TIMEOUT":
        kind, meaning, bringing = Kind.TIME_LIMIT, Meaning.PREEMPTED, Bringing.OURS
    elif row.state in {"NODE_FAIL", "BOOT_FAIL"}:
        kind, meaning, bringing = Kind.NODE_FAILURE, Meaning.PREEMPTED, Bringing.OURS
    elif row.state == "PREEMPTED" or (row.preempted is not None and not _cut_short(row, row.preempted, known)):
        kind, meaning, bringing = Kind.PREEMPT, Meaning.PREEMPTED, Bringing.OURS
    return Verdict(kind, meaning, known.kill_wait, bringing, everybody_terminated=True)


def _cut_short(row: Row, preempted: float, known: Circumstances) -> bool:
    """Say whether a grace ended before its time: by scancel, for SLURM itself is late, but never early.

    At the end of a grace SLURM sets PreemptTime anew; scancel leaves it at the beginning of the grace.
    """
    if row.end is not None and row.end - preempted > ONE_TICK:
        return True
    return known.grace_end is not None and known.now < known.grace_end - ONE_TICK


def _brought_back(row: Row, known: Circumstances) -> Verdict:
    """Judge a job that SLURM has requeued: this copy is being ended, or is left over from a node that was given up.

    A job that is ended in good order is COMPLETING as long as one process of it lives, and all have heard SIGTERM. A
    node that SLURM has given up hears nothing, or is not waited for.
    """
    if row.restarts == known.restart + 1 and row.phase is Phase.ENDING and known.terminated:
        kind = Kind.REQUEUED if row.preempted is None else Kind.PREEMPT
        return Verdict(kind, Meaning.PREEMPTED, known.kill_wait, Bringing.SLURMS, everybody_terminated=True)
    kind = Kind.NODE_FAILURE if row.preempted is None else Kind.REQUEUED
    return Verdict(kind, Meaning.SUPERSEDED, 0.0, Bringing.SLURMS)


def _without_controller(known: Circumstances) -> Verdict | None:
    """USR1 and USR2 are only sent to announce something; a SIGTERM may be a person's wish."""
    if known.wake is Wake.SIGNAL:
        return Verdict(Kind.REQUESTED, Meaning.PREEMPTED, None, Bringing.OURS)
    return _announced(None) if known.wake is Wake.FILE else None
