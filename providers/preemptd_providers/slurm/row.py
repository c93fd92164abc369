"""What the controller says of a job: one row of squeue, read strictly."""

import calendar
import time
from dataclasses import dataclass
from enum import Enum

from preemptd.errors import ProviderError

FORMAT = "State:|,Reason:|,EndTime:|,PreemptTime:|,RestartCnt:|,JobID:|,ArrayJobID:|,ArrayTaskID:|,HetJobID:|"
"""With a suffix a field is as long as it has to be; without one squeue cuts it after 20 characters."""
FIELDS = 9
NUMBER = 5
"""The place of JobID among them."""


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
    id: str
    """As every query and requeue takes it: ARRAY_TASK for a task, the leader's for a heterogeneous job."""

    @property
    def phase(self) -> Phase:
        return _PHASES[self.state]

    def __str__(self) -> str:
        said = [self.state, self.reason, f"restarts {self.restarts}"]
        said += [] if self.preempted is None else [f"preempted at {_utc(self.preempted)}"]
        return ", ".join(said if self.end is None else [*said, f"end at {_utc(self.end)}"])


def parse_row(text: str, number: str) -> Row:
    """Read, of what squeue printed with TZ=UTC, the row of the job whose SLURM_JOB_ID is *number*.

    The leader of a heterogeneous job comes with its components; the last task of an array has the array's own number,
    by which squeue lists all of them.

    Raises:
        ProviderError: it is anything but a row as we know them.
    """
    lines = [[field.strip() for field in line.split("|")] for line in text.splitlines()]
    rows = [fields for fields in lines if len(fields) == FIELDS + 1 and not fields[FIELDS] and fields[NUMBER] == number]
    if len(rows) != 1:
        raise ProviderError(f"squeue does not know one state of job {number}, but {len(rows)}: {text.strip()[:200]!r}")
    state, reason, end, preempted, restarts, *ids = rows[0][:FIELDS]
    if state not in _PHASES:
        raise ProviderError(f"squeue answered with the state {state[:80]!r}, which is none that we know")
    if not (restarts.isascii() and restarts.isdecimal() and len(restarts) < 10):
        raise ProviderError(f"squeue answered with the restart count {restarts[:80]!r}")
    return Row(state, reason, _time(end), _time(preempted), int(restarts), _id(*ids))


def _id(number: str, array: str, task: str, leader: str) -> str:
    if _is_number(leader) and int(leader) > 0:
        return leader
    return f"{array}_{task}" if _is_number(array) and _is_number(task) else number


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 12


def _time(text: str) -> float | None:
    if text in {"N/A", "NONE", "None", "Unknown", "UNLIMITED"}:
        return None
    try:
        return float(calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%S")))
    except (ValueError, OverflowError) as error:
        raise ProviderError(f"squeue answered with the time {text[:80]!r}") from error


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
