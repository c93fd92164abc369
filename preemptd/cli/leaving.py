"""What a command that has ended leaves running."""

from collections.abc import Sequence

from preemptd.cli.jobs import Made
from preemptd.model import Process
from preemptd.settling import Settled
from preemptd.targets.child import Child
from preemptd.targets.reachability import brief
from preemptd.targets.roles import Role, roles
from preemptd.targets.selection import without_own

NAMED = 3
"""Processes that are named; one tells enough."""


def see_to_leftovers(made: Made, settled: Settled) -> None:
    """End it, or say that it is there."""
    if made.job.settings.sweep:
        from preemptd.targets.sweeping import sweep

        sweep(lambda: _left(made))
        return
    if settled.status != 0 or not isinstance(made.target, Child):
        return  # one that was killed may leave anything for a moment
    # A command that put its work into the background is done for us, and its work is not.
    if work := work_left(made):
        made.journal.warn(
            f"the command has ended and left running: {work}; nobody hears notices for that (--sweep ends it)"
        )


def work_left(made: Made) -> str:
    """Name what still works; empty: nothing does."""
    living = tuple(process for process in _left(made) if process.state not in "ZX")
    parts = roles(living, made.job.settings.signals, frozenset())
    work = [process for process in living if parts[process.pid].role is Role.WORK]
    return ", ".join(f"{brief(process)} (pid {process.pid})" for process in work[:NAMED])


def _left(made: Made) -> Sequence[Process]:
    before = made.job.helpers.pids
    return without_own(made.tree.snapshot(), before, made.job.helpers.pids)
