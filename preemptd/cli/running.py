"""Runs the daemon on a job that is ready, or runs already, and settles what it leaves.

Imported when the command has been started, where nothing could hold it back: a wrapper is judged by how soon it runs.
"""

import gc
import os
import time
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial

from preemptd.cli.job_nodes import nodes_of
from preemptd.cli.jobs import Ended, Made
from preemptd.cli.leaving import see_to_leftovers
from preemptd.cli.observing import Latecomers, pulses_among, rest
from preemptd.cli.restarting import may_restart, start_again
from preemptd.cli.resuming import overheard
from preemptd.cli.saying import write_end
from preemptd.cli.syncing import syncing_among
from preemptd.config import Settings
from preemptd.daemon import Daemon
from preemptd.escalation import Killing, Timing
from preemptd.ledger import Ledger, Record
from preemptd.notices import Meaning
from preemptd.observe.pulses import Pulses
from preemptd.parts import Marking, Nodes, NoLink, NoMarker, NoOuter, Parts
from preemptd.provider import Conclusion
from preemptd.runs.marker import Marker
from preemptd.runs.roster import Roster
from preemptd.settling import Ending, Settled, settle, why_unsaved
from preemptd.targets.agents import agent_above
from preemptd.targets.child import Child
from preemptd.targets.scanner import Scanner
from preemptd.watching import Turn
from preemptd.written import progress_in

LAST_WORD_WITHIN = 0.5
"""Seconds for what our agents on other nodes say last."""
SETTLE_BUDGET = 300.0
"""Seconds at the most for what only a provider can do at the end: a requeue, for which SLURM must answer. The job is
lost without it, and while slurmctld is away, nobody else gets the node."""
LET_GO_WITHIN = 10.0
"""Seconds for what is done at the very last, and keeps nothing but our own exit waiting."""


def supervise(made: Made) -> Ended:
    """Watch over the job to its end, and settle.

    Raises:
        CommandError: the command cannot be executed.
    """
    job, settings, attempt = made.job, made.job.settings, made.ledger.record.attempt
    gc.freeze()
    gc.enable()
    agent, restarts = _agent_above(made), may_restart(made)
    timing = Timing(settings.grace, settings.reserve, Killing.AT_RESERVE if settings.kill else job.killing)
    with (
        closing(Roster()) as roster,
        closing(nodes_of(made)) as nodes,
        closing(Daemon(_parts(made, roster, nodes, restarts=restarts), timing, made.supervision)) as daemon,
    ):
        with _guardian(made):
            ending = daemon.run(stays=agent is not None or restarts)
            made.supervision.finish()
        sync_until = _hasten(made, ending)
        settled = _settle(ending, settings, made.ledger, made.before)
        conclusion = _conclusion(ending, settled, why_unsaved(ending, elsewhere=nodes.reached))
        last_act = partial(daemon.settle, conclusion, SETTLE_BUDGET)
        done = last_act(turns=(Turn.FIRST,)) if _is_urgent(made, ending) else ()
        _see_to_runs(made, roster, nodes, ending, settled)
        settled = _settle_parts(made, ending, settled, sync_until)
        write_end(made.journal, made.target.id, ending, settled, (*done, *last_act()))
        _let_go(made, daemon, conclusion)
        if agent is not None and ending.started and not made.supervision.stopped:
            made.resumption.close()
            daemon.outliving().hold(f"not ending yet: agent {agent} would take the sweep's next run, on this machine")
        status, again = start_again(made, daemon, ending, settled) if restarts else (settled.status, None)
    interrupted = isinstance(made.target, Child) and made.target.interrupted and not settled.preempted
    untold = ending.started and not ending.told and ending.meaning is Meaning.PREEMPTED
    return Ended(status, interrupted, untold and not made.supervision.stopped, attempt, again)


def _conclusion(ending: Ending, settled: Settled, unsaved: str) -> Conclusion:
    preempted = settled.preempted or ending.held_back
    return Conclusion(ending.outcome, preempted, unsaved, settled.stuck, ending.acted)


def _let_go(made: Made, daemon: Daemon, conclusion: Conclusion) -> None:
    """Have those who want to let the platform go on early do that, when nothing of ours is under way any more."""
    if not any(provider.settles_last for provider in (*made.providers.certain.values(), *made.providers.candidates)):
        return
    made.resumption.close()
    late = Latecomers(made.inbox)
    undone = rest(made.journal, made.job.sinks, late.stopped)
    made.inbox.put_back(late.taken())  # for those who ask next
    known = replace(conclusion, unsaved=conclusion.unsaved or undone)
    for text in daemon.settle(known, LET_GO_WITHIN, (Turn.LAST,)):
        made.journal.write("let-go", why=text)


def _is_urgent(made: Made, ending: Ending) -> bool:
    """Say whether a requeue cannot wait until W&B has been seen to."""
    from preemptd.cli.mending import SHORTEST

    needed = made.providers.need_at_the_end
    return needed > 0 and ending.spare is not None and ending.spare < needed + SHORTEST


def _see_to_runs(made: Made, roster: Roster, nodes: Nodes, ending: Ending, settled: Settled) -> None:
    """Mend what was preempted, on all nodes at the same time, and end what we have there: a requeue comes after it."""
    code = made.job.settings.code_for_wandb
    if not settled.preempted:
        nodes.end(preempted=False, code=code, budget=0.0)
        nodes.close(LAST_WORD_WITHIN)
        return
    from preemptd.cli.mending import budget_of, mend_runs, policy_of

    budget = budget_of(ending.spare, made.providers.need_at_the_end)
    nodes.end(preempted=True, code=code, budget=budget)
    until = time.monotonic() + budget + LAST_WORD_WITHIN
    if (policy := policy_of(ending, code)) is not None:
        mend_runs(roster, made.journal, policy, budget)
    nodes.close(max(0.0, until - time.monotonic()))


def _agent_above(made: Made) -> int | None:
    """Find the W&B agent that has started us for one run of its sweep; an outer preemptd would see to it itself."""
    if made.outer is not None or not {"WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH"} <= made.job.environ.keys():
        return None
    return agent_above(os.getpid())


def _hasten(made: Made, ending: Ending) -> float | None:
    """Have sent away at once what the command has left; return till when there is time for it (None: all there is).

    What a provider does at the end must not wait for that.
    """
    syncing_among(made.job.sinks).hasten(made.ledger.record.attempt)
    return None if ending.spare is None else time.monotonic() + ending.spare - made.providers.need_at_the_end


def _settle_parts(made: Made, ending: Ending, settled: Settled, sync_until: float | None) -> Settled:
    done = settled.status == 0 or ending.done
    failed = ending.started and not done and not ending.told
    made.resumption.settle(done=done and not settled.preempted, failed=failed)
    see_to_leftovers(made, settled)
    return syncing_among(made.job.sinks).conclude(ending, settled, sync_until, made.resumption.close)


def _parts(made: Made, roster: Roster, nodes: Nodes, *, restarts: bool) -> Parts:
    again = restarts and made.job.attempt is not None
    return Parts(
        settings=made.job.settings,
        inbox=made.inbox,
        journal=made.journal,
        ledger=made.ledger,
        scanner=Scanner(made.tree.snapshot, made.inbox.put, lambda: made.job.helpers.pids),
        marker=_marker(made, roster),
        link=made.link or NoLink(),
        outer=made.outer or NoOuter(),
        nodes=nodes,
        pulse=Pulses(pulses_among(made.job.sinks)),
        providers=made.providers.certain,
        reasons=made.providers.reasons,
        candidates=made.providers.candidates,
        outlived=made.job.restarts.outlived if again else None,
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
    if progress is None and settings.checkpoint_dir and ending.told:
        progress = progress_in(settings.checkpoint_dir, record.began)
    settled = settle(ending, settings, progress, record.futile)
    if not ending.started:
        ledger.write(before)  # that was no attempt
    elif settled.status == 0 and not settled.preempted:
        ledger.write(Record())
    else:
        ledger.write(replace(record, training=None, futile=settled.futile, told=()))
    return settled
