"""Runs the daemon on a job that is ready, or runs already, and settles what it leaves.

Imported when the command has been started, where nothing could hold it back: a wrapper is judged by how soon it runs.
"""

import gc
import os
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace

from preemptd.cli.jobs import Made
from preemptd.cli.resuming import overheard
from preemptd.cli.saying import warn_of_leftovers, write_end
from preemptd.config import Settings
from preemptd.daemon import Daemon
from preemptd.escalation import Killing, Timing
from preemptd.ledger import Ledger, Record
from preemptd.parts import Marking, NoLink, NoMarker, NoOuter, Parts
from preemptd.runs.marker import Marker
from preemptd.runs.roster import Roster
from preemptd.settling import Ending, Settled, settle
from preemptd.targets.child import Child
from preemptd.targets.scanner import Scanner
from preemptd.targets.selection import without
from preemptd.written import written_since


def supervise(made: Made) -> Settled:
    """Watch over the job to its end, and settle.

    Raises:
        CommandError: the command cannot be executed.
    """
    job, settings = made.job, made.job.settings
    gc.freeze()
    gc.enable()
    with closing(Roster()) as roster:
        timing = Timing(settings.grace, settings.reserve, Killing.AT_RESERVE if settings.kill else job.killing)
        with _guardian(made):
            ending = Daemon(_parts(made, roster), timing, made.supervision).run()
            made.supervision.finish()
        settled = _settle(ending, settings, made.ledger, made.before)
        if settled.preempted:
            from preemptd.cli.mending import mend_runs

            mend_runs(roster, made.journal, ending, settings.code_for_wandb)
    done = settled.status == 0 or ending.done
    failed = ending.started and not done and not ending.told
    made.resumption.settle(done=done and not settled.preempted, failed=failed)
    write_end(made.journal, made.target.id, ending, settled)
    _leave(made, settled)
    return settled


def _parts(made: Made, roster: Roster) -> Parts:
    return Parts(
        settings=made.job.settings,
        inbox=made.inbox,
        journal=made.journal,
        ledger=made.ledger,
        scanner=Scanner(made.tree.snapshot, made.inbox.put, lambda: made.job.helpers.pids),
        marker=_marker(made, roster),
        link=made.link or NoLink(),
        outer=made.outer or NoOuter(),
        providers=made.providers.certain,
        reasons=made.providers.reasons,
        candidates=made.providers.candidates,
    )


def _marker(made: Made, roster: Roster) -> Marking:
    if made.job.settings.no_wandb or made.job.settings.dry_run or made.outer is not None:
        return NoMarker(made.inbox.put)
    return Marker(overheard(made.resumption, made.inbox.put), roster)


def _guardian(made: Made) -> AbstractContextManager[object]:
    """Arrange for the end of the command should we be killed, if that is wanted."""
    if made.job.settings.die_with_parent:
        from preemptd.targets.guardian import Guardian

        try:
            return closing(Guardian(made.target.id, made.job.helpers))
        except OSError as error:
            made.journal.warn(f"--die-with-parent has no effect ({error.strerror})")
    return nullcontext()


def _settle(ending: Ending, settings: Settings, ledger: Ledger, before: Record) -> Settled:
    """Decide on the exit status, and keep in the ledger what the next attempt needs."""
    record = ledger.record
    progress: bool | None = True if ending.saved else None
    if progress is None and settings.checkpoint_dir and ending.told and os.path.isdir(settings.checkpoint_dir):
        progress = any(file.complete for file in written_since(settings.checkpoint_dir, record.began))
    settled = settle(ending, settings, progress, record.futile)
    if not ending.started:
        ledger.write(before)  # that was no attempt
    elif settled.status == 0 and not settled.preempted:
        ledger.write(Record())
    else:
        ledger.write(replace(record, training=None, futile=settled.futile, told=()))
    return settled


def _leave(made: Made, settled: Settled) -> None:
    """See to what a finished command has left running."""
    job = made.job
    if job.settings.sweep:
        from preemptd.targets.sweeping import sweep

        sweep(made.tree.snapshot)
    elif settled.status == 0 and isinstance(made.target, Child):  # one that was killed may leave anything for a moment
        warn_of_leftovers(made.journal, without(made.tree.snapshot(), job.helpers.pids), job.settings.signals)
