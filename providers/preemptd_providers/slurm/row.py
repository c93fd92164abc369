"""What the controller says of a job: one row of squeue, read strictly."""

import calendar
import time
from dataclasses import dataclass
from enum import Enum

from preemptd.errors import ProviderError

FORMAT = "State:|,Reason:|,EndTime:|,PreemptTime:|,RestartCnt:|"
"""With a suffix a field is as long as it has to be; without one squeue cuts it after 20 characters."""
FIELDS = 5


class Phase(Enum):
    """What a job's state means to the processes of it."""

    RUNNING = "running"
    ENDING = "ending"
    """SIGTERM is on its way to all of them, or they should be gone already."""
    WAITING = "waiting"
    """It waits to be started (again): processes that still run are left over."""


_PHASES = {
    **dict.fromkeys(("RUNNING", "SIGNALING", "CONFIGURING", "RESIZING", "SUSPENDED", "STOPPED"), Phase.RUNNING),
    **dict.fromkeys(
        (
            *("COMPLETING", "STAGE_OUT", "CANCELLED", "COMPLETED", "FAILED", "TIMEOUT", "PREEMPTED", "NODE_FAIL"),
            *("BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY", "LAUNCH_FAILED", "RECONFIG_FAIL", "REVOKED"),
        ),
        Phase.ENDING,
    ),
    **dict.fromkeys(
        ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"), Phase.WAITING
    ),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One answer of squeue; times are Unix times by the controller's clock."""

    state: str
    reason: str
    end: float | None
    preempted: float | None
    """When a preemption was decided; None: none was."""
    restarts: int

    @property
    def phase(self) -> Phase:
        return _PHASES[self.state]

    def __str__(self) -> str:
        said = [self.state, self.reason, f"restarts {self.restarts}"]
        said += [] if self.preempted is None else [f"preempted at {_utc(self.preempted)}"]
        return ", ".join(said if self.end is None else [*said, f"end at {_utc(self.end)}"])


def parse_row(text: str, *, is_leader: bool = False) -> Row:
    """Read the one row that squeue printed with TZ=UTC; of a heterogeneous job that of its leader, the first one.

    Raises:
        ProviderError: it is anything but a row as we know them.
    """
    rows = [line.strip() for line in text.splitlines() if line.strip()]
    if not rows or (len(rows) > 1 and not is_leader):
        raise ProviderError(f"squeue does not know one state of the job, but {len(rows)}: {text.strip()[:200]!r}")
    fields = [field.strip() for field in rows[0].split("|")]
    if len(fields) != FIELDS + 1 or fields[FIELDS]:
        raise ProviderError(f"squeue answered {text.strip()[:200]!r}")
    state, reason, end, preempted, restarts = fields[:FIELDS]
    if state not in _PHASES:
        raise ProviderError(f"squeue answered with the state {state[:80]!r}, which is none that we know")
    if not (restarts.isascii() and restarts.isdecimal() and len(restarts) < 10):
        raise ProviderError(f"squeue answered with the restart count {restarts[:80]!r}")
    return Row(state, reason, _time(end), _time(preempted), int(restarts))


def _time(text: str) -> float | None:
    if text in {"N/A", "NONE", "None", "Unknown", "UNLIMITED"}:
        return None
    try:
        return float(calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%S")))
    except (ValueError, OverflowError) as error:
        raise ProviderError(f"squeue answered with the time {text[:80]!r}") from error


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
