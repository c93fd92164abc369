"""Our exit status: a pure decision from what happened."""

from dataclasses import dataclass

from preemptd.config import Settings
from preemptd.model import Outcome

AFTER_REVOCATION = 60.0
"""Seconds for which a revoked notice still explains the end of a process that was told of it."""
FUTILE_LIMIT = 3
"""With so many preempted attempts in a row without progress the command's own status is passed on."""
UNDONE = 1
"""Instead of an own status of 0 there: frameworks exit 0 after a preemption, and the job is not done."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What is known when the command has ended."""

    outcome: Outcome
    started: bool
    """False: it never ran, for a notice was pending, or somebody stopped us before."""
    told: bool
    """It was told of a notice that is open, or was revoked a moment ago."""
    done: bool
    """A process of it said preemptd.done()."""
    done_pids: frozenset[int]
    """Who said so."""
    told_at: float | None
    """Monotonic time of the first telling; None: nobody was told."""
    saved: bool
    """A process of it said preemptd.saved()."""
    since_notice: float | None
    """Seconds; None: no notice is open."""
    spare: float | None
    """Seconds left to the deadline; None: no notice is open."""


@dataclass(frozen=True, slots=True)
class Settled:
    """How it all ended."""

    status: int
    preempted: bool
    why: str
    futile: int
    """Preempted attempts in a row without progress, this one included."""


def settle(ending: Ending, settings: Settings, progress: bool | None, futile: int) -> Settled:
    """Decide on our exit status.

    Args:
        ending: what is known.
        settings: for ``--preempted-exit-code`` and ``--exit-zero``.
        progress: something was saved in this attempt; None: there is no way to know.
        futile: preempted attempts without progress before this one.
    """
    outcome = ending.outcome
    if not ending.started:
        return Settled(outcome.status, False, "never started", futile)
    if not ending.told:
        why = "ended by itself" if outcome.known else "its exit status is not known"
        return Settled(outcome.status, False, why, 0)
    if ending.done or (outcome.status == 0 and outcome.known and settings.exit_zero == "done"):
        return Settled(outcome.status, False, "told of a preemption, but done", 0)
    futile = futile + 1 if progress is False else 0
    if futile >= FUTILE_LIMIT:
        why = (
            f"preempted {futile} times in a row without a new checkpoint: its own status {outcome.status} is passed on"
        )
        return Settled(outcome.status or UNDONE, True, why, futile)
    return Settled(settings.preempted_exit_code, True, f"preempted (its own status was {outcome.status})", futile)
