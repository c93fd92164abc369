"""`preemptd watch --loop`: runs the command again and again, one W&B agent after the other, until its sweep ends."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from glob import escape, glob

from preemptd.cli.compose import run
from preemptd.cli.jobs import Ended, Job
from preemptd.cli.restarting import allowing_restarts
from preemptd.cli.rounds import be_alone, pause_after, say, stops_noted, wait

FAILURES = 20
"""So many in a row without a run: the command's status is ours."""

Runs = Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Next:
    """What comes after a round that ended by itself."""

    failures: int
    """Rounds in a row that failed without having taken a run."""
    pause: float | None
    """Seconds until the next round; None: there is none."""
    why: str


def after(status: int, took: bool, failures: int) -> Next:
    """Decide what comes after a round that ended with *status* and *took* a run or not; *failures* were before it."""
    if status == 0:
        over = "" if took else "the command has taken no run, and ended well: its sweep has ended"
        return Next(0, 0.0 if took else None, over)
    failures = 0 if took else failures + 1
    if failures >= FAILURES:
        return Next(failures, None, f"the command failed {FAILURES} times in a row without taking a run: giving up")
    pause = pause_after(failures)
    return Next(failures, pause, f"the command failed with status {status}: again in {pause:.0f} s")


def run_rounds(job: Job) -> Ended:
    """Watch over the command of *job*, again after each end, until a notice, a stop or the end of the sweep.

    Raises:
        PreemptdError: nothing was started, or the command cannot be executed.
    """
    failures, job = 0, allowing_restarts(job)
    directory = job.environ.get("WANDB_DIR") or os.getcwd()
    with stops_noted() as stops:
        while True:
            before = _taken(directory)
            ended = run(job)
            if ended.again is None:
                if stops or not ended.by_itself or ended.interrupted:
                    return ended
                following = after(ended.status, _taken(directory) != before, failures)
                if following.why:
                    say(job, following.why)
                if following.pause is None:
                    return ended
                wait(following.pause, stops)
                failures = following.failures
            if stops:
                return replace(ended, status=128 + stops[0])
            be_alone()
            job = replace(job, attempt=ended.attempt, restarts=ended.again or job.restarts)


def _taken(directory: str) -> Runs:
    """List what agents wrote for each run before they started it, with the time of writing."""
    found = {}
    for path in glob(os.path.join(escape(directory), "wandb", "sweep-*", "config-*.yaml")):
        try:
            about = os.stat(path)
        except OSError:
            continue
        found[path] = (about.st_mtime_ns, about.st_ino)
    return found
