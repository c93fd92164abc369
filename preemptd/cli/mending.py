"""After a preemption: sees to it that the job's W&B runs end as preempted, within the time that is left."""

from collections.abc import Callable

from preemptd.journal import Journal
from preemptd.runs.mending import Mender, Policy, Repair
from preemptd.runs.roster import Roster
from preemptd.settling import Ending

LONGEST = 10.0
"""Seconds at the most: an official API call takes about one, and a machine that goes has no more to give."""
SHORTEST = 1.5
"""Seconds that are tried in any case: platforms are late."""
SHARE = 0.8
"""Part of the time left: the rest is for our own exit, and what waits for it."""


def policy_of(ending: Ending, code: int) -> Policy | None:
    """Say what is to be mended; None: nothing, for a training that was not told, or is done, tells the truth."""
    if ending.done or ending.told_at is None:
        return None
    return Policy(code, ending.told_at, ending.done_pids)


def mend_runs(roster: Roster, journal: Journal, policy: Policy, budget: float) -> None:
    """Mend, within *budget* seconds, what the training left: no exit record, or one with 0."""
    mender = Mender(roster, reporter(journal))
    mender.start(policy, budget)
    mender.wait()
    mender.stop()


def reporter(journal: Journal) -> Callable[[Repair], None]:
    """Make what writes down what became of a run."""

    def report(repair: Repair) -> None:
        journal.write(
            "repaired",
            run_id=repair.run_id,
            ok=repair.ok,
            how=repair.how,
            why=repair.why,
            code=repair.code,
            ms=round(repair.ms, 1),
        )

    return report


def budget_of(spare: float | None, needed: float) -> float:
    """Compute the seconds for it.

    Args:
        spare: seconds to the deadline; None: no notice is open.
        needed: those that must be left after it, for a requeue, which comes last and is worth more.
    """
    left = LONGEST if spare is None else min(spare * SHARE, spare - needed)
    return max(SHORTEST, min(LONGEST, left))
