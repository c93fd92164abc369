"""``--sweep``: ends what a finished command has left running."""

import time
from collections.abc import Callable, Sequence
from signal import Signals

from preemptd.model import Process
from preemptd.procfs import send
from preemptd.targets.roles import is_core

TERM_FIRST = 2.0
"""Seconds between SIGTERM and SIGKILL."""

Snapshot = Callable[[], Sequence[Process]]


def sweep(snapshot: Snapshot) -> int:
    """End every process of *snapshot*: by SIGTERM, after two seconds by SIGKILL. Returns how many there were.

    wandb-core is left alone: it ends by itself when it has sent what it has.
    """
    leftovers = _leftovers(snapshot)
    for process in leftovers:
        send(process.id, Signals.SIGTERM, only_if_caught=False)
    end = time.monotonic() + TERM_FIRST
    while (alive := _leftovers(snapshot)) and time.monotonic() < end:
        time.sleep(0.02)
    for process in alive:
        send(process.id, Signals.SIGKILL, only_if_caught=False)
    return len(leftovers)


def _leftovers(snapshot: Snapshot) -> tuple[Process, ...]:
    return tuple(process for process in snapshot() if process.state not in "ZX" and not is_core(process))
