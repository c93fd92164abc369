"""What lies between two rounds of `preemptd watch`: one command has ended, and the next is not forked yet."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from preemptd.cli.jobs import Job
from preemptd.journal import Journal
from preemptd.journal_file import JournalFile
from preemptd.log import Log
from preemptd.supervision import FORWARDED, STOPS, signals_to_catch

FIRST_PAUSE = 1.0
"""Seconds after a round that came to nothing; twice as long after each that follows it."""
LONGEST_PAUSE = 300.0
LONE_WITHIN = 5.0
"""Seconds that threads of a round have to end before the next one is forked."""
LOOK_EVERY = 0.1


def pause_after(idle: int) -> float:
    """Compute the seconds to the next round; *idle* in a row, this one included, have come to nothing."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** max(0, idle - 1))


def wait(seconds: float, stops: Sequence[int]) -> None:
    end = time.monotonic() + seconds
    while not stops and (left := end - time.monotonic()) > 0:
        time.sleep(min(LOOK_EVERY, left))


def be_alone() -> None:
    """Wait until only this thread is left: a fork copies no other, but the locks that they hold.

    One that does not end hangs at a server or at a disk, in the kernel, and holds none.
    """
    end = time.monotonic() + LONE_WITHIN
    while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < end:
        time.sleep(0.01)


def not_again(stop: int) -> str:
    """Say that the signal *stop* keeps the command from its next start."""
    return f"not started again: {signal.Signals(stop).name} has come"


def say(job: Job, text: str) -> None:
    """Warn where no journal is open."""
    journal = Journal()
    journal.add(Log(2, job.settings.log_format))
    if job.settings.journal:
        journal.add(JournalFile(job.settings.journal, journal.warn))
    journal.warn(text)
    journal.close()


@contextmanager
def stops_noted() -> Iterator[list[int]]:
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
