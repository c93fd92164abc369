"""The `slurm` provider: wires the four wake-ups to the one attempt, and does the requeue."""

import shutil
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from preemptd.errors import ProviderError
from preemptd.notices import Kind, Meaning, Notice
from preemptd.provider import Conclusion, Detection, Found, Machine, Observation, Provider, Surroundings, Watch
from preemptd_providers._signal_search import VARIABLE, SignalFileOptions, SignalSearch
from preemptd_providers.slurm.acks import Acks
from preemptd_providers.slurm.attempt import CONFIRMED, SETTLED, Attempt
from preemptd_providers.slurm.canary import END_WITHIN, CanaryWatch
from preemptd_providers.slurm.classifier import Bringing, Verdict
from preemptd_providers.slurm.controller import LIMIT, Controller, NoAnswerError, is_reachable
from preemptd_providers.slurm.files import FileWatch
from preemptd_providers.slurm.inspection import Expectations, Inspection
from preemptd_providers.slurm.job import Job, job_of
from preemptd_providers.slurm.pace import Pace
from preemptd_providers.slurm.polling import JobWatch, NodeWatch
from preemptd_providers.slurm.requeueing import WISHES, delay, refusal, requeue

NODE_INTERVAL_FACTOR = 10
"""Looks at the job for each look at its node."""
QUIET_LIMIT = 1.0
"""Seconds for the last question when nothing was ever heard: a hung controller must not hold up a finished job."""
SENSE_WITHIN = 5.0
"""Seconds for a last word, or for a look before the requeue, from a controller that answers and makes no sense: it may
have forgotten the job. One that does not answer at all is waited for as long as there is time."""
ACK_WITHIN = 1.0
TRY_AGAIN = 1.0
"""Seconds for one more look and one more try."""
SHORTEST_CLOSE = 0.1
"""Seconds for the canary step to end when no time is left; usually it takes 15 ms."""
OF_OTHERS = Verdict(Kind.PREEMPT, Meaning.PREEMPTED, None, Bringing.OURS)
"""What SLURM knows nothing of: `preemptd notify` over the link, or the cloud that takes the node away."""
NO_JOB = Job("none", "none", 0, counted=False, node=None, in_step=False, is_first=False)


class SlurmOptions(SignalFileOptions):
    """The table ``[providers.slurm]``."""

    poll_interval: Annotated[float, Field(ge=5, le=3600, allow_inf_nan=False)] = 30.0
    """Seconds from one question for the job's state to the next; each costs slurmctld less than a millisecond."""
    canary: bool = True
    """Keep a job step of our own that hears what SLURM sends to steps alone."""


class Slurm(Provider):
    name = "slurm"
    options_type = SlurmOptions
    settles_within = 3.0

    def __init__(self, options: SlurmOptions, surroundings: Surroundings) -> None:
        super().__init__(options, surroundings)
        self._options = options
        self._interval = options.poll_interval
        self._wants_canary = options.canary
        self._wishes = surroundings.requeue
        self._job = job_of(surroundings.environ)
        self._reachable = self._job is not None and is_reachable(surroundings.environ)
        job = self._job or NO_JOB
        self._attempt = Attempt(job, surroundings.lead, surroundings.started, has_controller=self._reachable)
        self._pace = Pace(options.poll_interval)
        self._search = SignalSearch(options, surroundings)
        self._searched = job.id, surroundings.attempt
        directory = surroundings.environ.get(VARIABLE)
        self._acks = Acks(self._ack_name, directory, surroundings.warn)
        self._canary: CanaryWatch | None = None
        self._is_silent = False
        """The last question of our own was not answered."""
        self._said_silence = False

    @classmethod
    def detect(cls, machine: Machine) -> Detection | None:
        job = job_of(machine.environ)
        return None if job is None else Detection(Found.ENVIRONMENT, f"SLURM job {job.id}")

    def watches(self) -> Sequence[Watch]:
        commands, environ, job = self.surroundings.commands, self.surroundings.environ, self._job
        files = FileWatch(self._current_search, self._attempt, self._acks, self._pace.wake)
        if job is None or commands is None:
            return (files,)
        if not self._reachable:
            self.surroundings.warn(
                f"job {job.id}: no squeue and scontrol on the PATH: only signals and signal files are heard, and "
                "nothing is requeued (in a container: run preemptd around the container's command instead)"
            )
            return (files,)
        in_batch = job.node is not None and not job.in_step
        if in_batch and self._wants_canary and job.node is not None and shutil.which("srun", path=environ.get("PATH")):
            self._canary = CanaryWatch(
                job.node, commands, environ, Pace(0.0), self._canary_heard, self._attempt.open_notice
            )
        wants_requeue = bool(self._wishes.on) and job.is_first
        expected = Expectations(wants_requeue, in_batch, self._canary is not None, self._interval)
        inspect = Inspection(self._attempt, expected, self.surroundings.warn)
        watches: list[Watch] = [JobWatch(self._attempt, self._controller(), self._pace, inspect), files]
        if self._canary is not None:
            watches.append(self._canary)
        if job.node is not None:
            watches.append(NodeWatch(job.node, self._controller(), Pace(NODE_INTERVAL_FACTOR * self._interval)))
        return watches

    def signals(self) -> frozenset[signal.Signals]:
        if self._job is None or self._job.node is None:  # SLURM signals no shell of an salloc
            return frozenset()
        return frozenset({signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM})

    def on_signal(self, signum: signal.Signals) -> Observation:
        if signum not in self.signals():
            return Observation.clear()
        notice = self._attempt.heard(signum, direct=True)
        self._pace.wake()
        return Observation.of(notice)

    def _canary_heard(self, signum: signal.Signals) -> Notice:
        notice = self._attempt.heard(signum, direct=False)
        self._pace.wake()
        return notice

    def conclude(self, budget: float) -> Notice | None:
        end = time.monotonic() + budget
        try:
            return self._last_word(end)
        finally:
            if self._canary is not None:
                self._canary.close(max(SHORTEST_CLOSE, min(END_WITHIN, end - time.monotonic())))

    def _last_word(self, end: float) -> Notice | None:
        if self._job is None or self.surroundings.commands is None or not self._reachable:
            return None
        limit, sense = (LIMIT if self._attempt.is_open else QUIET_LIMIT), min(end, time.monotonic() + SENSE_WITHIN)
        notice = self._ask(min(limit, end - time.monotonic()))
        while self._attempt.is_unsettled and self._left(end, sense) > CONFIRMED + SETTLED:
            self._say_silence(end)
            time.sleep(SETTLED)  # the command may end sooner than SLURM's word on it is final
            notice = self._ask(min(LIMIT, end - time.monotonic()))
        return notice and replace(notice, already_sent=notice.already_sent | self._attempt.sent_to_steps)

    def _left(self, end: float, sense: float) -> float:
        """Return the seconds for one more question."""
        return (end if self._is_silent else sense) - time.monotonic()

    def _say_silence(self, end: float) -> None:
        left = end - time.monotonic()
        if self._is_silent and not self._said_silence and left > SENSE_WITHIN:
            self._said_silence = True
            self.surroundings.warn(
                f"job {self._attempt.job_id}: it has ended, slurmctld does not answer, and nobody else can bring it "
                f"back: asking for {left:.0f} s at the most"
            )

    def _ask(self, limit: float) -> Notice | None:
        """Ask once more, not by way of the watch, whose thread may wait for an answer of its own."""
        asked = time.monotonic()
        try:
            row = self._controller().row(max(limit, 0.1))
        except ProviderError as error:
            self._is_silent = isinstance(error, NoAnswerError)
            return self._attempt.unanswered()
        self._is_silent = False
        return self._attempt.took(row, asked)

    def settle(self, conclusion: Conclusion, budget: float) -> str:
        end = time.monotonic() + budget
        job, verdict = self._job, self._verdict(conclusion)
        if job is None or self.surroundings.commands is None or not job.is_first or verdict is None:
            return ""
        if conclusion.saved:
            self._ack("checkpointed")
        why = refusal(verdict, conclusion, self._wishes, self._attempt.restart)
        forbidden = not self._attempt.may_come_back
        if why is None and not forbidden:
            return self._requeue(conclusion, end)
        self._ack("requeued" if verdict.bringing is Bringing.SLURMS else "ended" if forbidden else "failed")
        return "not requeued: a signal file forbids it" if why is None else why

    def _requeue(self, conclusion: Conclusion, end: float) -> str:
        try:
            refused = self._try_to_requeue(conclusion, end)
        except ProviderError:
            self._ack("failed")
            raise
        if refused is not None:
            self._ack("requeued" if self._attempt.seems_elsewhere else "failed")
            return refused
        kind, job_id, later = (self._verdict(conclusion) or OF_OTHERS).kind, self._attempt.job_id, self._wishes.delay
        moved = "" if later is None else delay(self._controller(), job_id, later)
        self._ack("requeued")
        return f"requeued job {job_id} ({kind}, restart {self._attempt.restart + 1}){moved}"

    def _try_to_requeue(self, conclusion: Conclusion, end: float) -> str | None:
        """Requeue the job unless its state has changed, for which we look before each try; None: done.

        Raises:
            ProviderError: it cannot be done.
        """
        while True:
            self._look_again(end)
            why = refusal(self._verdict(conclusion) or OF_OTHERS, conclusion, self._wishes, self._attempt.restart)
            if why is not None:
                return why
            if self._attempt.seems_elsewhere:
                return "not requeued: SLURM seems to have started the job anew already"
            try:
                requeue(self._controller(), self._attempt.job_id, end - time.monotonic())
            except NoAnswerError:
                if time.monotonic() + SETTLED + TRY_AGAIN > end:
                    raise
                time.sleep(SETTLED)
            else:
                return None

    def _verdict(self, conclusion: Conclusion) -> Verdict | None:
        """Return what ended the job; None: it has ended by itself."""
        own, others = self._attempt.verdict, conclusion.acted - {self._attempt.event_id}
        if not conclusion.preempted:
            return own
        if own is None:
            return OF_OTHERS
        if not others or own.kind not in {Kind.REQUESTED, Kind.TIME_LIMIT}:
            return own
        # A drill, or a SIGTERM to all, beside the end that another provider has announced: that is why it ends.
        wanted = own.meaning is Meaning.PREEMPTED and WISHES[own.kind] in self._wishes.on
        return own if wanted else OF_OTHERS

    def _look_again(self, end: float) -> None:
        """See whether somebody has cancelled the job in the meantime; try for as long as there is time.

        Raises:
            ProviderError: nobody knows.
        """
        sense = min(end, time.monotonic() + SENSE_WITHIN)
        while True:
            asked = time.monotonic()
            try:
                self._attempt.took(self._controller().row(max(0.1, min(LIMIT, end - asked))), asked)
            except ProviderError as error:
                self._is_silent = isinstance(error, NoAnswerError)
                if self._left(end, sense) < SETTLED:
                    raise ProviderError(f"job {self._attempt.job_id} is not requeued: {error}") from error
                self._say_silence(end)
                time.sleep(SETTLED)
            else:
                return

    def _current_search(self) -> SignalSearch:
        """Look for the files of the job that squeue has named, in the attempt that it counts."""
        found = self._attempt.job_id, self._attempt.restart
        if self._job is not None and found != self._searched:
            array, _, task = found[0].partition("_")
            named = {"SLURM_ARRAY_JOB_ID": array if task else "", "SLURM_ARRAY_TASK_ID": task}
            environ = {**self.surroundings.environ, **named}
            self._search = SignalSearch(self._options, replace(self.surroundings, environ=environ, attempt=found[1]))
            self._searched = found
        return self._search

    def _ack_name(self) -> str:
        return f"{self._attempt.job_id}.{self._attempt.restart}.ack"

    def _ack(self, state: str) -> None:
        """Write the answer to a signal file; a file server that hangs must not hold up the end."""
        writing = threading.Thread(target=self._acks.write, args=(state,), daemon=True)
        writing.start()
        writing.join(ACK_WITHIN)

    def _controller(self) -> Controller:
        job, commands = self._job, self.surroundings.commands
        if job is None or commands is None:
            raise ProviderError("there is no job whose controller could be asked")
        return Controller(job, commands, self.surroundings.environ)

    def describe(self) -> str:
        if self._job is None:
            return "no SLURM job: SLURM_JOB_ID is not set"
        how = f"squeue each {self._interval:g} s, " if self._reachable else ""
        return f"job {self._attempt.job_id}: {how}signals, {self._search.describe()}"

    def close(self) -> None:
        self._pace.close()
        if self._canary is not None:
            self._canary.close()
