"""`preemptd watch --restart N`: starts the command again in place when the notice that ended it has come to nothing."""

import time
from dataclasses import replace
from signal import Signals
from typing import TYPE_CHECKING

from preemptd.cli.compose import run
from preemptd.cli.jobs import Ended, Job, Made, Restarts
from preemptd.cli.resuming import starts_agent
from preemptd.cli.rounds import be_alone, not_again, pause_after, say, stops_noted
from preemptd.notices import OUTLIVED_AFTER
from preemptd.resumption.page import Memory
from preemptd.slurm_job import job_of
from preemptd.targets.child import Child

if TYPE_CHECKING:
    from preemptd.daemon import Daemon
    from preemptd.settling import Ending, Settled

LEAVES_WITHIN = 15.0
"""Seconds for what the last attempt has left to end, when nothing else keeps the next one: two copies would be worse
than none."""
LOOK_EVERY = 0.5


def run_again(job: Job) -> Ended:
    """Watch over the command of *job*, and start it again as often as ``--restart`` allows.

    Raises:
        PreemptdError: nothing was started, or the command cannot be executed.
    """
    job = allowing_restarts(job)
    with stops_noted() as stops:
        while True:
            ended = run(job)
            if ended.again is None:
                return ended
            be_alone()
            if stops:
                say(job, not_again(stops[0]))
                return ended.with_stops(stops)
            job = replace(job, attempt=ended.attempt + 1, restarts=ended.again)


def allowing_restarts(job: Job) -> Job:
    allowed = job.settings.restart
    return replace(job, restarts=Restarts(allowed, Memory())) if allowed else job


def may_restart(made: Made) -> bool:
    """Say whether the command is ever started again by us; if that was asked for in vain, the user hears why."""
    if not made.job.restarts.allowed:
        return False
    obstacle = _obstacle(made)
    if obstacle and not made.job.restarts.done:
        made.journal.warn(f"--restart has no effect here: {obstacle}")
    return not obstacle


def _obstacle(made: Made) -> str:
    """Say who else brings the job back; empty: nobody."""
    job = made.job
    if made.outer is not None:
        return "the preemptd around this one decides"
    if job_of(job.environ) is not None or made.providers.need_at_the_end:
        return "the job is requeued"
    if job.environ.get("WANDB_SWEEP_ID") and not starts_agent(job.argv):
        return "W&B gives a preempted run of a sweep to whichever agent asks first (put --restart around the agent)"
    return ""


def start_again(made: Made, daemon: "Daemon", ending: "Ending", settled: "Settled") -> tuple[int, Restarts | None]:
    """Wait until the machine is safe; return our status and what the next start goes by, None if there is none."""
    outliving, restarts = daemon.outliving(), made.job.restarts
    if made.job.attempt is not None and made.supervision.stopped and not ending.started and not settled.preempted:
        made.journal.warn(not_again(ending.outcome.status - 128))
    if outliving.is_final or not _is_wanted(made, daemon, ending, settled):
        return settled.status, None
    number, of = restarts.done + 1, restarts.allowed
    if number > of:
        made.journal.warn(f"not started again: --restart {of} is used up")
        return settled.status, None
    idle = 0 if settled.progressed else restarts.idle + 1
    why = f"the command is started again ({number} of {of}) {_when(pause_after(idle), daemon)}"
    made.resumption.close()
    made.journal.write("waiting", why=why, number=number, of=of)
    safe, until = outliving.wait(pause_after(idle), why), time.monotonic() + LEAVES_WITHIN
    while safe is not None and (left := _work_left(made)):
        if time.monotonic() > until:
            made.journal.warn(f"not started again, the last attempt has left running: {left} (--sweep ends it)")
            return settled.status, None
        safe = outliving.wait(LOOK_EVERY, why)
    if safe is None:
        return _status(outliving.stop, settled, announced=daemon.is_in_escalation), None
    made.journal.write("restarted", why=safe.why, number=number, of=of, attempt=made.ledger.record.attempt + 1)
    following = replace(restarts, done=number, since=time.time(), idle=idle, futile=settled.futile)
    return settled.status, replace(following, outlived=safe.outlived)


def _when(pause: float, daemon: "Daemon") -> str:
    if not daemon.is_in_escalation:
        return f"in {pause:.0f} s"
    return f"when the notice is taken back, or {OUTLIVED_AFTER:.0f} s after its deadline"


def _work_left(made: Made) -> str:
    """Name what of the last attempt still works."""
    from preemptd.cli.leaving import work_left  # with --restart this module is there before the command starts

    return work_left(made)


def _is_wanted(made: Made, daemon: "Daemon", ending: "Ending", settled: "Settled") -> bool:
    """Say whether it was the notice that ended the command, and not somebody's wish; a stuck one stays as it is."""
    called_off = daemon.called_off or made.supervision.stopped
    interrupted = isinstance(made.target, Child) and made.target.interrupted
    ended = ending.started and not ending.running and settled.preempted and not settled.stuck
    return ended and not called_off and not interrupted


def _status(stop: Signals | None, settled: "Settled", *, announced: bool) -> int:
    """Return the status after a wait in vain: SIGTERM under an open notice is the end that was announced."""
    if stop is None or (stop is Signals.SIGTERM and announced):
        return settled.status
    return 128 + stop
