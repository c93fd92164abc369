"""What a notice would find if it came now, said while there is time to mend it."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from signal import Signals
from threading import Thread

from preemptd import procfs
from preemptd.discretion import discreet
from preemptd.model import Process
from preemptd.targets.roles import roles
from preemptd.targets.selection import Selection, other_nodes


@dataclass(frozen=True, slots=True)
class Seen:
    """What else is known of who can be told."""

    anybody_listens: bool
    """Some process subscribed over the link."""
    in_part: bool = False
    """There may be more processes of the job, which others tell."""


def warnings(selection: Selection, signals: Sequence[Signals], seen: Seen) -> Iterator[str]:
    """Yield a sentence for each thing that would cost work.

    Args:
        selection: who would be told, and who not.
        signals: those that would tell.
        seen: what else is known.
    """
    nobody = not selection.told and not seen.anybody_listens
    if nobody and (selection.unreachable or (not seen.in_part and _waits_for_work(selection, signals))):
        names = ", ".join(f"{in_short(process)[:60]} (pid {process.pid})" for process in selection.unreachable[:3])
        how = " or ".join(signum.name for signum in signals)
        yield (
            f"nothing in this job handles {how}{': ' + names if names else ''}; a notice could not be told to anybody,"
            " and what was done since the last periodic checkpoint would be lost"
        )
    if not seen.in_part and (text := other_nodes([procfs.environ(choice.process.pid) for choice in selection.told])):
        yield text


def _waits_for_work(selection: Selection, signals: Sequence[Signals]) -> bool:
    """Say whether there is what may wait for work out of our sight (docker run).

    What has just ended, and a shell or a wandb-core that it leaves for a moment, is not there to be told.
    """
    parts = roles([choice.process for choice in selection.spared], tuple(signals), frozenset())
    return any(not choice.is_core and not parts[choice.process.pid].is_shell for choice in selection.spared)


def warn_in_thread(selection: Selection, signals: Sequence[Signals], seen: Seen, say: Callable[[str], None]) -> None:
    """Say each of `warnings`, soon: /proc/PID/environ waits for the process's memory, which a fork locks for long."""

    def warn() -> None:
        for text in warnings(selection, signals, seen):
            say(text)

    with suppress(RuntimeError):  # no more threads here; and this is on the way to the telling
        Thread(target=warn, daemon=True).start()


def in_short(process: Process) -> str:
    """Name *process* for people and journals: without secrets."""
    return discreet(" ".join(process.cmdline))[:200] or process.comm


def brief(process: Process) -> str:
    """Name it in few words: what a program runs says more than where it lies."""
    program, blank, rest = in_short(process).partition(" ")
    return f"{os.path.basename(program) or program}{blank}{rest}"[:60]
