"""Our exit status: a pure decision from what happened."""

from dataclasses import dataclass

from preemptd.config import Settings
from preemptd.model import Outcome
from preemptd.notices import Meaning

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
    """It was told of a notice that is open, or was revoked a moment ago; by us or by the platform's own signal."""
    meaning: Meaning
    """What the notice means; without one it counts for nothing."""
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
    running: bool = False
    """It still runs, and the platform is about to kill it: *outcome* says what will become of it."""
    agent_ended: bool = False
    """We ended a W&B agent for the notice: whatever its training says of itself, the sweep is to go on."""
    silent: frozenset[int] = frozenset()
    """Who of those who were told said neither that they have saved nor that all is done."""
    acted: frozenset[str] = frozenset()
    """Ids of the events that are open, and no mere advice."""

    @property
    def held_back(self) -> bool:
        """It never ran, for it was to be preempted: its own time is still to come."""
        return not self.started and self.since_notice is not None and self.meaning is Meaning.PREEMPTED


@dataclass(frozen=True, slots=True)
class Settled:
    """How it all ended."""

    status: int
    preempted: bool
    why: str
    futile: int
    """Preempted attempts in a row without progress, this one included."""
    progressed: bool = False
    """Something was saved in this attempt, as far as we know."""

    @property
    def stuck(self) -> bool:
        """Coming back once more would save nothing either."""
        return self.futile >= FUTILE_LIMIT


def settle(ending: Ending, settings: Settings, progress: bool | None, futile: int) -> Settled:
    """Decide on our exit status.

    Args:
        ending: what is known.
        settings: for ``--preempted-exit-code`` and ``--exit-zero``.
        progress: something was saved in this attempt; None: there is no way to know.
        futile: preempted attempts without progress before this one.
    """
    outcome = ending.outcome
    if ending.meaning is Meaning.SUPERSEDED:
        return Settled(outcome.status, False, "this job runs elsewhere already", futile)
    if not ending.started:
        return _unstarted(ending, settings, futile)
    if why := _own_end(ending, settings):
        return Settled(outcome.status, False, why, 0)
    if ending.meaning is Meaning.UNDECIDED:
        return Settled(settings.preempted_exit_code, False, "told to end, and nobody could say why", futile)
    futile = futile + 1 if progress is False else 0
    if futile >= FUTILE_LIMIT:
        own = "its own status" if outcome.status else f"{UNDONE}, for its own status 0 would say that it is done,"
        why = f"preempted {futile} times in a row without a new checkpoint: {own} is passed on"
        return Settled(outcome.status or UNDONE, True, why, futile)
    own = "it still ran" if ending.running else f"its own status was {outcome.status}"
    unsaved = "; nothing new and complete lies in its --checkpoint-dir" if progress is False else ""
    return Settled(settings.preempted_exit_code, True, f"preempted ({own}{unsaved})", futile, progress is True)


def why_unsaved(ending: Ending, *, elsewhere: bool) -> str:
    """Say why it is not known that all is saved, as far as that is the processes' to say; empty: it is.

    Args:
        ending: what is known.
        elsewhere: others were told by our agents in the steps of the job.
    """
    if ending.running:
        return "the command still runs"
    if ending.silent:
        others = f" and {len(ending.silent) - 1} more" if len(ending.silent) > 1 else ""
        return f"pid {min(ending.silent)}{others} was told, and did not say that it has saved"
    if not (ending.saved or ending.done):
        return "no process said that it has saved"
    return "whether the tasks of srun have saved is not known" if elsewhere else ""


def _unstarted(ending: Ending, settings: Settings, futile: int) -> Settled:
    """Decide for a command that was held back: the platform's own signal ended it, or somebody stopped us."""
    if ending.told and ending.meaning is Meaning.PREEMPTED:
        return Settled(settings.preempted_exit_code, True, "preempted before it was started", futile)
    return Settled(ending.outcome.status, False, "never started", futile)


def _own_end(ending: Ending, settings: Settings) -> str:
    """Say why the command's own status is ours; empty: it was told of a notice, and that is how it ended."""
    if ending.meaning is Meaning.STOPPED:
        return "somebody has stopped this job"
    if not ending.told:
        return "ended by itself" if ending.outcome.known else "its exit status is not known"
    if ending.agent_ended:
        return ""
    if ending.done or (ending.outcome.status == 0 and ending.outcome.known and settings.exit_zero == "done"):
        return "told of a preemption, but done"
    return ""
