"""After a preemption: sees to it that the job's W&B runs end as preempted, within the time that is left."""

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


def mend_runs(roster: Roster, journal: Journal, ending: Ending, code: int) -> None:
    """Mend what the training left: no exit record, or one with 0. Touches nothing that ended without a notice."""
    if ending.done or ending.told_at is None:
        return

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

    mender = Mender(roster, report)
    left = LONGEST if ending.spare is None else ending.spare * SHARE
    mender.start(Policy(code, ending.told_at, ending.done_pids), max(SHORTEST, min(LONGEST, left)))
    mender.wait()
    mender.stop()
