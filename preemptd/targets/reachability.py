"""What a notice would find if it came now, said while there is time to mend it."""

import os
from collections.abc import Iterator, Sequence
from signal import Signals

from preemptd import procfs
from preemptd.discretion import discreet
from preemptd.model import Process
from preemptd.targets.selection import Selection, other_nodes


def warnings(selection: Selection, signals: Sequence[Signals], *, anybody_listens: bool) -> Iterator[str]:
    """Yield a sentence for each thing that would cost work.

    Args:
        selection: who would be told, and who not.
        signals: those that would tell.
        anybody_listens: some process subscribed over the link.
    """
    if not selection.told and not anybody_listens:
        names = ", ".join(f"{in_short(process)[:60]} (pid {process.pid})" for process in selection.unreachable[:3])
        how = " or ".join(signum.name for signum in signals)
        yield (
            f"nothing in this job handles {how}{': ' + names if names else ''}; a notice could not be told to anybody,"
            " and what was done since the last periodic checkpoint would be lost"
        )
    if text := other_nodes([procfs.environ(choice.process.pid) for choice in selection.told]):
        yield text


def in_short(process: Process) -> str:
    """Name *process* for people and journals: without secrets."""
    return discreet(" ".join(process.cmdline))[:200] or process.comm


def brief(process: Process) -> str:
    """Name it in few words: what a program runs says more than where it lies."""
    program, blank, rest = in_short(process).partition(" ")
    return f"{os.path.basename(program) or program}{blank}{rest}"[:60]
