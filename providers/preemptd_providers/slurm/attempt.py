"""All that is known of this attempt, from whatever side it came, and the one notice that it makes."""

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from preemptd.notices import Kind, Level, Meaning, Notice
from preemptd_providers._signal_file import printable
from preemptd_providers._signal_search import FoundFile
from preemptd_providers.slurm.classifier import Bringing, Circumstances, Verdict, Wake, classify, is_near
from preemptd_providers.slurm.controller import DEFAULT_KILL_WAIT
from preemptd_providers.slurm.job import Job
from preemptd_providers.slurm.row import Phase, Row

SETTLED = 0.5
"""Seconds after a signal at which RUNNING means that nothing follows: the row is written before the signal is sent."""
CONFIRMED = 1.0
"""Seconds between two looks that both say that the job runs elsewhere, before anything is killed."""
REQUEST_LASTS = 600.0
"""Seconds for which a bare signal explains an end: a training that saves on USR1 and goes on is no preempted one."""
UNASKED_SHARE = 0.1
"""Of a time limit: a job of a minute is not told at its start because less than ``--lead`` is left."""
TERM_LASTS = 10.0
"""Seconds beyond KillWait in which processes may live that got the final SIGTERM."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A signal."""

    signum: signal.Signals
    direct: bool
    """It came to ourselves, and not to the canary step."""
    at: float
    """Monotonic."""

    def __str__(self) -> str:
        return self.signum.name if self.direct else f"canary step: {self.signum.name}"


class Attempt:
    """One run of a job. Any thread may bring news; each gets back the notice as it stands then."""

    def __init__(
        self,
        job: Job,
        lead: float,
        started: float,
        has_controller: bool = True,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.job = job
        self.kill_wait = DEFAULT_KILL_WAIT
        self.knows_kill_wait = False
        """*kill_wait* is the cluster's own."""
        self.may_come_back = True
        """No signal file says otherwise."""
        self._event_id = ""
        self._lead = lead
        self._started = started
        self._has_controller = has_controller
        self._clock = clock
        self._wall = wall
        self._lock = threading.Lock()
        self._job_id = job.id
        self._restart = job.restart
        self._counted = job.counted
        self._heard: list[Heard] = []
        self._file: FoundFile | None = None
        self._row: Row | None = None
        self._asked = float("-inf")
        self._verdict: Verdict | None = None
        self._suspected: float | None = None
        self._grace_end: float | None = None
        self._ending_since: float | None = None

    # -- news ----------------------------------------------------------------------------------------------------

    def heard(self, signum: signal.Signals, *, direct: bool) -> Notice:
        """Take in a signal. What it means is for the next row to say; what the last one has said stands till then."""
        with self._lock:
            self._heard.append(Heard(signum, direct, self._clock()))
            if self._verdict is None and not self._has_controller:
                self._judge(classify(None, self._circumstances()))
            return self._notice()

    def took(self, row: Row, asked: float) -> Notice | None:
        """Take in the controller's word; *asked* is the monotonic time of the question. None: nothing is going on."""
        with self._lock:
            self._row, self._asked = row, asked
            self._job_id = row.id
            if row.phase is Phase.RUNNING and not self._counted and self._ending_since is None:
                self._counted, self._restart = True, row.restarts
            # SLURM_RESTART_COUNT may be that of the job in which sbatch was called.
            self._restart = min(self._restart, row.restarts)
            if row.phase is Phase.RUNNING and row.preempted is not None:
                self._grace_end = row.end
            verdict = classify(row, self._circumstances())
            if self._is_believed(verdict, asked):
                self._judge(verdict)
            return self._open_notice()

    def unanswered(self) -> Notice | None:
        """Take in that the controller does not answer."""
        with self._lock:
            if self._verdict is None and self._is_news():
                self._judge(classify(None, self._circumstances()))
            return self._open_notice()

    def filed(self, file: FoundFile | None) -> Notice | None:
        """Take in the signal file that is there now, or that there is none."""
        with self._lock:
            gone, self._file = file is None and self._file is not None, file
            if gone or (file is not None and self._verdict is None and not self._has_controller):
                self._judge(classify(self._row, self._circumstances()))
            return self._open_notice()

    # -- what is known -------------------------------------------------------------------------------------------

    @property
    def verdict(self) -> Verdict | None:
        """What it is; None: nothing, or nobody knows yet."""
        return self._verdict

    @property
    def event_id(self) -> str:
        """Name the one event; as the job is named when this is first asked for, and so for ever."""
        self._event_id = self._event_id or f"slurm:{self._job_id}:{self._restart}"
        return self._event_id

    @property
    def job_id(self) -> str:
        """The job's id as the last row had it; the environment's word until there was one."""
        return self._job_id

    @property
    def restart(self) -> int:
        """The count of this copy, corrected by the controller's where the environment had none, or another job's."""
        return self._restart

    @property
    def seems_elsewhere(self) -> bool:
        """The last row was that of a later attempt: whatever we did would hit that one."""
        return self._row is not None and self._row.restarts > self._restart

    def open_notice(self) -> Notice | None:
        """Return the notice as it stands; None: nothing is going on."""
        with self._lock:
            return self._open_notice()

    @property
    def is_open(self) -> bool:
        """Somebody has announced something."""
        with self._lock:
            return self._verdict is not None or self._wake() is not None

    @property
    def sent_to_steps(self) -> frozenset[int]:
        """What SLURM has sent to the steps of the job, whether or not the training runs in one."""
        with self._lock:
            heard = frozenset(int(heard.signum) for heard in self._heard if not heard.direct)
            preempted = self._verdict is not None and self._verdict.is_slurms_preemption
            return heard | {int(signal.SIGTERM)} if preempted else heard

    @property
    def is_unsettled(self) -> bool:
        """The next look should come soon."""
        with self._lock:
            unsure = self._verdict is None or self._verdict.is_asked_for
            return self._suspected is not None or (unsure and self._has_controller and self._is_news())

    @property
    def seconds_to_unasked(self) -> float | None:
        """Seconds until the time limit is so near that we act unasked; None: there is no limit, or nobody knows it."""
        with self._lock:
            if self._row is None or self._row.end is None:
                return None
            return self._row.end - self._wall() - self._circumstances().unasked_lead

    # -- under the lock ------------------------------------------------------------------------------------------

    def _circumstances(self) -> Circumstances:
        last = max((heard.at for heard in self._heard if heard.signum is signal.SIGTERM), default=float("-inf"))
        end = None if self._row is None else self._row.end
        return Circumstances(
            now=self._wall(),
            restart=self._restart,
            kill_wait=self.kill_wait,
            lead=self._lead,
            unasked_lead=0.0 if end is None else min(self._lead, UNASKED_SHARE * (end - self._started)),
            wake=self._wake(),
            terminated=self._clock() - last <= self.kill_wait + TERM_LASTS,
            grace_end=self._grace_end,
        )

    def _wake(self) -> Wake | None:
        """Choose what to go by: a signal that announces something says more than a SIGTERM, whichever came first."""
        recent = {heard.signum for heard in self._heard if self._clock() - heard.at <= REQUEST_LASTS}
        if recent - {signal.SIGTERM}:
            return Wake.SIGNAL
        if self._file is not None:
            return Wake.FILE
        return Wake.TERM if recent else None

    def _is_believed(self, verdict: Verdict | None, asked: float) -> bool:
        """Say whether one row is enough for *verdict*."""
        if verdict is None or verdict.meaning is not Meaning.SUPERSEDED:
            self._suspected = None
            return verdict is None or not verdict.is_asked_for or not self._is_news()
        if not self.knows_kill_wait and self._row is not None and self._row.phase is Phase.ENDING:
            return False  # it may be the end of this copy, and nobody knows how long that takes
        if self._verdict is not None and self._verdict.bringing is Bringing.SLURMS and self._ending_since is not None:
            return self._clock() - self._ending_since > self.kill_wait + TERM_LASTS  # it is this copy's own end
        if not self._counted:
            return False
        self._suspected = asked if self._suspected is None else self._suspected
        return asked - self._suspected >= CONFIRMED

    def _judge(self, verdict: Verdict | None) -> None:
        self._verdict = verdict
        ending = verdict is not None and verdict.everybody_terminated
        self._ending_since = (self._ending_since or self._clock()) if ending else None

    def _is_news(self) -> bool:
        """Something was heard that a RUNNING need not tell of yet."""
        times = [heard.at for heard in self._heard]
        if self._file is not None:
            times.append(self._file.observed)
        return self._asked < max(times, default=float("-inf")) + SETTLED

    def _open_notice(self) -> Notice | None:
        return self._notice() if self._verdict is not None or self._wake() is not None else None

    def _notice(self) -> Notice:
        verdict = self._verdict
        return Notice(
            provider="slurm",
            event_id=self.event_id,
            kind=self._first_guess() if verdict is None else verdict.kind,
            level=Level.ACT,
            source=self._source(),
            observed=self._clock(),
            remaining=self._remaining(),
            already_sent=self._already_sent(),
            detail="" if self._row is None else str(self._row)[:4096],
            meaning=Meaning.UNDECIDED if verdict is None else verdict.meaning,
            killed_in=self._killed_in(),
            irrevocable=verdict is not None and verdict.irrevocable,
        )

    def _killed_in(self) -> float | None:
        """Seconds to the SIGKILL of a job that SLURM does not bring back; None: it is not that far, or it does."""
        if self._ending_since is None or self._verdict is None or self._verdict.bringing is not Bringing.OURS:
            return None
        begin = self._ending_since - self.kill_wait  # an older SIGTERM was another one
        terms = [heard.at for heard in self._heard if heard.signum is signal.SIGTERM and heard.direct]
        last = [at for at in terms[-1:] if begin < at < self._ending_since]
        return min([self._ending_since, *last]) + self.kill_wait - self._clock()

    def _first_guess(self) -> Kind:
        return {Wake.TERM: Kind.TERMINATE, Wake.FILE: Kind.PREEMPT}.get(self._wake() or Wake.SIGNAL, Kind.REQUESTED)

    def _source(self) -> str:
        if self._heard:
            return str(self._heard[-1])
        return "squeue" if self._file is None else printable(self._file.place.path)

    def _remaining(self) -> float | None:
        """Seconds to the earliest end that somebody names."""
        verdict, row, now = self._verdict, self._row, self._clock()
        ends = []
        if verdict is None and row is not None and is_near(row, self._circumstances()) and row.end is not None:
            ends.append(row.end - self._wall())
        if verdict is not None and verdict.remaining is not None:
            ends.append(
                verdict.remaining if self._ending_since is None else self._ending_since + verdict.remaining - now
            )
        if self._file is not None and self._file.remaining is not None:
            ends.append(self._file.observed + self._file.remaining - now)
        terms = [heard.at for heard in self._heard if heard.signum is signal.SIGTERM and heard.direct]
        # Steps get SIGTERM when a grace begins, the batch script when it ends: there KillWait may be all that is left.
        if terms and not self.job.in_step and self._asked < terms[-1] + SETTLED:
            ends.append(terms[-1] + self.kill_wait - now)
        return min(ends, default=None)

    def _already_sent(self) -> frozenset[int]:
        """List what SLURM has sent to the training itself.

        A step's signals reach every process of it. The batch script's reach it alone, but for the final SIGTERM.
        """
        direct = frozenset(int(heard.signum) for heard in self._heard if heard.direct)
        term = frozenset({int(signal.SIGTERM)})
        if self._verdict is not None and self._verdict.everybody_terminated:
            return term | (direct if self.job.in_step else frozenset())
        if self.job.in_step:
            return direct
        return direct & term if self._verdict is None else frozenset()
