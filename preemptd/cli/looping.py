"""`preemptd watch --loop`: runs the command again and again, one W&B agent after the other, until its sweep ends."""

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import escape, glob

from preemptd.cli.compose import run
from preemptd.cli.jobs import Ended, Job
from preemptd.journal import Journal, Log
from preemptd.journal_file import JournalFile
from preemptd.supervision import FORWARDED, STOPS, signals_to_catch

FIRST_PAUSE = 1.0
"""Seconds after a command that failed; twice as long after each that follows it."""
LONGEST_PAUSE = 300.0
FAILURES = 20
"""So many in a row without a run: the command's status is ours."""
LONE_WITHIN = 5.0
"""Seconds that threads of a round have to end before the next one is forked."""
LOOK_EVERY = 0.1

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
    pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** max(0, failures - 1))
    return Next(failures, pause, f"the command failed with status {status}: again in {pause:.0f} s")


def run_rounds(job: Job) -> Ended:
    """Watch over the command of *job*, again after each end, until a notice, a stop or the end of the sweep.

    Raises:
        PreemptdError: nothing was started, or the command cannot be executed.
    """
    failures = 0
    directory = job.environ.get("WANDB_DIR") or os.getcwd()
    with _stops_noted() as stops:
        while True:
            before = _taken(directory)
            ended = run(job)
            if stops or not ended.by_itself or ended.interrupted:
                return ended
            following = after(ended.status, _taken(directory) != before, failures)
            if following.why:
                _say(job, following.why)
            if following.pause is None:
                return ended
            _wait(following.pause, stops)
            if stops:
                return replace(ended, status=128 + stops[0])
            _be_alone()
            job, failures = replace(job, attempt=ended.attempt), following.failures


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


def _wait(seconds: float, stops: Sequence[int]) -> None:
    end = time.monotonic() + seconds
    while not stops and (left := end - time.monotonic()) > 0:
        time.sleep(min(LOOK_EVERY, left))


def _be_alone() -> None:
    """Wait until only this thread is left: a fork copies no other, but the locks that they hold.

    One that does not end hangs at a server or at a disk, in the kernel, and holds none.
    """
    end = time.monotonic() + LONE_WITHIN
    while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < end:
        time.sleep(0.01)


@contextmanager
def _stops_noted() -> Iterator[list[int]]:
    """Collect the stop signals that come between two rounds; the other signals mean nothing then, and do not kill."""
    stops: list[int] = []

    def note(signum: int, _frame: object) -> None:
        if signum in STOPS:
            stops.append(signum)

    noted = (signals_to_catch() & FORWARDED) - {signal.SIGTSTP, signal.SIGWINCH}
    before = {signum: signal.signal(signum, note) for signum in noted}
    try:
        yield stops
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _say(job: Job, text: str) -> None:
    journal = Journal()
    journal.add(Log(2, job.settings.log_format))
    if job.settings.journal:
        journal.add(JournalFile(job.settings.journal, journal.warn))
    journal.warn(text)
    journal.close()
